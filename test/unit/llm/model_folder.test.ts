import { cpSync, mkdtempSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import '../matchers'
import { inspectModel, readModelFolder } from '../../../lib/llm/model_folder'

const story = join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'model-'))
  cpSync(story, folder, { recursive: true })
})
afterEach(() => rmSync(folder, { recursive: true }))

const path = (name: string): string => join(folder, name)
const remove = (name: string): void => rmSync(path(name))
const write = (name: string, content: unknown): void =>
  writeFileSync(path(name), typeof content === 'string' ? content : JSON.stringify(content))
const edit = (name: string, fields: object): void =>
  write(name, { ...(JSON.parse(readFileSync(path(name), 'utf8')) as object), ...fields })
const failure = (of = folder): Promise<unknown> =>
  readModelFolder(of).then(
    () => undefined,
    (error: unknown) => error,
  )

describe('a model folder', () => {
  it('is read whole', async () => {
    const model = await readModelFolder(folder)
    expect(model.path).toBe(folder)
    expect(model.weightFiles).toEqual([path('model.safetensors')])
    expect(model.weightBytes).toBe(readFileSync(path('model.safetensors')).length)
    expect(model.chatTemplate.available).toBe(true)
    expect(model.defaults).toEqual({
      temperature: 0.7,
      topK: 0,
      topP: 0.95,
      minP: 0,
      repetitionPenalty: 1,
      maxTokens: 320,
      eosTokenIds: Int32Array.of(5, 1),
    })
  })

  it.each([
    ['model.safetensors', 'ERR_WEIGHTS_INVALID'],
    ['tokenizer.json', 'ERR_TOKENIZER_INVALID'],
  ])('that was cloned without Git LFS is told so: %s', async (name, code) => {
    write(name, `version https://git-lfs.github.com/spec/v1\noid sha256:${'4d'.repeat(32)}\nsize 6892304\n`)
    expect(await failure()).toHaveCode(code, /is a pointer of Git LFS, not the file \(fetch the file: git lfs pull\)$/)
    if (name !== 'model.safetensors') return
    remove(name)
    write('model-00001-of-00001.safetensors', 'version https://git-lfs.github.com/spec/v1\n')
    write('model.safetensors.index.json', { weight_map: { a: 'model-00001-of-00001.safetensors' } })
    expect(await failure()).toHaveCode(code, /model-00001-of-00001\.safetensors is a pointer of Git LFS/)
  })

  it('is found from the working directory', async () => {
    expect((await readModelFolder(relative(process.cwd(), folder))).path).toBe(folder)
  })

  it('may be a link, as in a cache of downloads', async () => {
    symlinkSync(folder, `${folder}-link`)
    try {
      expect((await readModelFolder(`${folder}-link`)).graph.family).toBe('llama')
    } finally {
      rmSync(`${folder}-link`)
    }
  })

  it('is described without its weights', async () => {
    expect(await inspectModel(folder)).toEqual({
      path: folder,
      family: 'llama',
      layers: 6,
      vocabSize: 4096,
      maxPositions: 1024,
      hasChatTemplate: true,
      weightBytes: 6_892_304,
      files: 1,
    })
  })

  it('needs few of its files', async () => {
    for (const name of ['generation_config.json', 'special_tokens_map.json', 'tokenizer_config.json', 'README.md'])
      remove(name)
    const model = await readModelFolder(folder)
    expect(model.chatTemplate.available).toBe(false)
    expect(model.defaults).toMatchObject({ temperature: 0, maxTokens: undefined, eosTokenIds: Int32Array.of(5, 1) })
  })

  it('takes end of sequence from the tokenizer where no config has it', async () => {
    remove('generation_config.json')
    edit('config.json', { eos_token_id: null })
    expect((await readModelFolder(folder)).defaults.eosTokenIds).toEqual(Int32Array.of(5))
  })

  it('prefers chat_template.jinja', async () => {
    write('chat_template.jinja', 'from the file')
    expect((await readModelFolder(folder)).chatTemplate.render([{ role: 'user', content: 'x' }])).toBe('from the file')
  })

  it('reads JSON that begins with a byte order mark', async () => {
    write('config.json', `\ufeff${readFileSync(path('config.json'), 'utf8')}`)
    expect((await readModelFolder(folder)).graph.vocabSize).toBe(4096)
  })
})

describe('a broken folder', () => {
  it.each(['', 'with\0nul', 7, null, {}])('%j is no path', async (bad) => {
    expect(await failure(bad as string)).toHaveCode('ERR_INVALID_ARGUMENT')
  })

  it('nor is a URL, and is told how to become one', async () => {
    expect(await failure(new URL('file:///models/one') as unknown as string)).toHaveCode('ERR_INVALID_ARGUMENT', /not by an object of URL \(fileURLToPath/)
  })

  it('is not there, or a file', async () => {
    expect(await failure(`${folder}-not`)).toHaveCode('ERR_MODEL_NOT_FOUND', /nothing is downloaded/)
    expect(await failure(path('config.json'))).toHaveCode('ERR_MODEL_NOT_FOUND', /is no folder/)
    expect(await failure(join(path('config.json'), 'deeper'))).toHaveCode('ERR_MODEL_NOT_FOUND')
    // As in the programs of the documentation, where the package is installed.
    expect(await failure(join(folder, 'models/tiny-storyteller'))).toHaveCode('ERR_MODEL_NOT_FOUND', /the one of this package is \/.*\/models\/tiny-storyteller\b/)
  })

  it.each([
    ['config.json', 'ERR_MODEL_INVALID', /no config\.json/],
    ['tokenizer.json', 'ERR_TOKENIZER_INVALID', /no tokenizer\.json/],
    ['model.safetensors', 'ERR_WEIGHTS_MISSING', /neither model\.safetensors nor/],
  ])('has no %s', async (name, code, message) => {
    remove(name)
    expect(await failure()).toHaveCode(code, message)
  })

  it.each([
    ['config.json', 'ERR_MODEL_INVALID'],
    ['generation_config.json', 'ERR_MODEL_INVALID'],
    ['tokenizer.json', 'ERR_TOKENIZER_INVALID'],
    ['tokenizer_config.json', 'ERR_TOKENIZER_INVALID'],
  ])('has JSON that is none, or no object: %s', async (name, code) => {
    for (const content of ['', '{"a": ', '[1]', 'null', '"x"']) {
      write(name, content)
      expect(await failure(), content).toHaveCode(code, new RegExp(name))
    }
  })

  it('has a folder where a file should be', async () => {
    remove('config.json')
    mkdirSync(path('config.json'))
    expect(await failure()).toHaveCode('ERR_IO', /config\.json/)
  })

  it('has weights of another format, which the message names', async () => {
    remove('model.safetensors')
    write('pytorch_model.bin', 'x')
    expect(await failure()).toHaveCode('ERR_WEIGHTS_MISSING', /there is pytorch_model\.bin.*must be converted/s)
  })

  it('has a template that does not parse', async () => {
    write('chat_template.jinja', '{% for %}')
    expect(await failure()).toHaveCode('ERR_CHAT_TEMPLATE')
  })

  it.each([
    ['temperature', -1],
    ['temperature', '0.7'],
    ['top_p', 0],
    ['top_k', 1.5],
    ['min_p', 2],
    ['repetition_penalty', 0],
    ['max_new_tokens', 0],
    ['do_sample', 'yes'],
    ['eos_token_id', 4096],
    ['eos_token_id', [5, -1]],
    ['eos_token_id', 'end'],
  ])('has a generation config with %s %j', async (field, value) => {
    edit('generation_config.json', { [field]: value })
    expect(await failure()).toHaveCode('ERR_MODEL_INVALID', new RegExp(`generation_config.json: "${field}"`))
  })
})

describe('shards', () => {
  const index = (map: unknown): void => write('model.safetensors.index.json', { metadata: {}, weight_map: map })
  beforeEach(() => {
    remove('model.safetensors')
    write('model-00001-of-00002.safetensors', 'abc')
    write('model-00002-of-00002.safetensors', 'defg')
  })

  it('are listed once each', async () => {
    index({
      a: 'model-00002-of-00002.safetensors',
      b: 'model-00001-of-00002.safetensors',
      c: 'model-00002-of-00002.safetensors',
    })
    const model = await readModelFolder(folder)
    expect(model.weightFiles).toEqual([
      path('model-00001-of-00002.safetensors'),
      path('model-00002-of-00002.safetensors'),
    ])
    expect(model.weightBytes).toBe(7)
  })

  it('must be there', async () => {
    index({ a: 'model-00003-of-00002.safetensors' })
    expect(await failure()).toHaveCode('ERR_WEIGHTS_MISSING', /names model-00003/)
  })

  it.each([
    '../x.safetensors',
    '/etc/x.safetensors',
    'a/b.safetensors',
    '..\\x.safetensors',
    'c:x.safetensors',
    'x.bin',
    '',
    '\0.safetensors',
    7,
    null,
  ])('must not lead out of the folder: %j', async (name) => {
    index({ a: name })
    expect(await failure()).toHaveCode('ERR_WEIGHTS_INVALID', /same folder/)
  })

  it.each([[[]], [null], ['x'], [{}]])('need a map, not %j', async (map) => {
    index(map)
    expect(await failure()).toHaveCode('ERR_WEIGHTS_INVALID', /weight_map/)
  })
})
