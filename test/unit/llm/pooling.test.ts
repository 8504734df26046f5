import { describe, expect, it } from 'vitest'
import '../matchers'
import { checkEmbeddingOptions, embeddingDefaults, LAST_TOKEN, readEmbeddingDefaults } from '../../../lib/llm/pooling'

const POOLING = '1_Pooling/config.json'
const module = (type: string, path = '') => ({ idx: 0, name: '0', path, type })
const ST = 'sentence_transformers.models.'
const list = (...kinds: string[]) => kinds.map((kind) => module(ST + kind, kind === 'Pooling' ? '1_Pooling' : ''))
const read = (files: Record<string, unknown>, config: Record<string, unknown> = {}) =>
  readEmbeddingDefaults({ path: '/model', config, read: (name) => Promise.resolve(files[name]) })

describe('how embeddings are made', () => {
  it('is by the last token, of length 1, where the folder says nothing', async () => {
    expect(await read({})).toEqual(LAST_TOKEN)
  })

  it.each([
    [{ pooling_mode_mean_tokens: true, pooling_mode_cls_token: false }, 'mean'],
    [{ pooling_mode_cls_token: true }, 'cls'],
    [{ pooling_mode_lasttoken: true, include_prompt: false }, 'last'],
    [{ embedding_dimension: 4, pooling_mode: 'mean', include_prompt: true }, 'mean'],
    [{ pooling_mode: 'lasttoken' }, 'last'],
  ])('is told by %j: %s', async (config, pooling) => {
    const files = { 'modules.json': list('Transformer', 'Pooling', 'Normalize'), [POOLING]: config }
    expect(await read(files)).toEqual({ pooling, normalize: true, matryoshkaDimensions: [], unsupported: undefined })
    expect(await read({ ...files, 'modules.json': list('Transformer', 'Pooling') })).toMatchObject({ pooling, normalize: false })
  })

  it.each([
    [list('Transformer', 'Pooling'), { pooling_mode_max_tokens: true }, /max/],
    [list('Transformer', 'Pooling'), { pooling_mode_mean_tokens: true, pooling_mode_cls_token: true }, /cls and mean/],
    [list('Transformer', 'Pooling'), { pooling_mode_mean_tokens: true, include_prompt: false }, /instruction/],
    [list('Transformer', 'Pooling'), {}, /unknown/],
    [list('Transformer', 'Pooling', 'Dense'), { pooling_mode_mean_tokens: true }, /Dense/],
    [list('Transformer'), {}, /no pooling/],
  ])('cannot be by %j with %j', async (modules, config, why) => {
    const { unsupported } = await read({ 'modules.json': modules, [POOLING]: config })
    expect(unsupported).toMatch(why)
    // Whoever names a pooling knows better; to scale alone says nothing of that.
    const told = await read({ 'modules.json': modules, [POOLING]: config })
    expect(embeddingDefaults(told, { pooling: 'mean' })).toMatchObject({ pooling: 'mean', unsupported: undefined })
    expect(embeddingDefaults(told, { normalize: false }).unsupported).toMatch(why)
  })

  it.each([
    [{ 'modules.json': {} }, /array of modules/],
    [{ 'modules.json': [null] }, /array of modules/],
    [{ 'modules.json': [module(`${ST}Pooling`, '../elsewhere')] }, /array of modules/],
    [{ 'modules.json': list('Transformer', 'Pooling') }, /1_Pooling\/config\.json/],
  ])('is an error where the files are wrong: %j', async (files, message) => {
    await expect(read(files)).rejects.toMatchObject({ code: 'ERR_MODEL_INVALID', message: expect.stringMatching(message) as string })
  })

  it.each([
    [{ is_matryoshka: true }, 'any'],
    [{ is_matryoshka: true, matryoshka_dimensions: [64, 256] }, [64, 256]],
    [{ matryoshka_dimensions: null }, []],
    [{ is_matryoshka: 'yes' }, []],
  ])('may be cut as %j says', async (config, dimensions) => {
    expect((await read({}, config)).matryoshkaDimensions).toEqual(dimensions)
  })

  it('refuses dimensions that are none', async () => {
    await expect(read({}, { matryoshka_dimensions: [0] })).rejects.toMatchObject({ code: 'ERR_MODEL_INVALID' })
    for (const options of [{ pooling: 'max' }, { normalize: 1 }, { matryoshkaDimensions: [] }, { matryoshkaDimensions: 'all' }, { dimensions: 3 }, 7]) {
      expect(() => checkEmbeddingOptions(options)).toThrowCode('ERR_INVALID_ARGUMENT')
    }
    expect(checkEmbeddingOptions({ matryoshkaDimensions: 'any', normalize: false })).toEqual({ pooling: undefined, normalize: false, matryoshkaDimensions: 'any' })
  })
})
