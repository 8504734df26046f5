import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { spellFaster } from '../../../lib/text/byte_level'
import { HfTokenizerClass } from '../../../lib/text/hf_libraries'

const folder = join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
const read = (file: string): object => JSON.parse(readFileSync(join(folder, file), 'utf8')) as object
const json = read('tokenizer.json')

const byteLevel = (fields: object) => ({ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, ...fields })
const split = { type: 'Split', pattern: { Regex: '\\p{L}+|\\s+|[^\\p{L}\\s]+' }, behavior: 'Isolated', invert: false }

const text = fc.oneof(fc.string(), fc.string({ unit: 'binary' }), fc.string({ unit: fc.constantFrom('a', ' ', "'s", 'é', '日', '😀', '\ud800', '\n', '\u00ad') }))

describe('spellFaster', () => {
  it.each([
    ['its own pre-tokenizer', (json as { pre_tokenizer: unknown }).pre_tokenizer],
    ['words of its own', byteLevel({ use_regex: true })],
    ['a space in front', byteLevel({ use_regex: true, add_prefix_space: true })],
    ['whole texts', byteLevel({ use_regex: false, add_prefix_space: true })],
    ['words of another', { type: 'Sequence', pretokenizers: [split, byteLevel({ use_regex: false })] }],
    ['no bytes', { type: 'Whitespace' }],
    ['nothing', null],
  ])('changes no token: %s', (_, preTokenizer) => {
    const make = () => new HfTokenizerClass({ ...json, pre_tokenizer: preTokenizer }, read('tokenizer_config.json'))
    const [plain, faster] = [make(), make()]
    spellFaster(faster.pre_tokenizer)
    const options = { add_special_tokens: false }
    const same = fc.property(text, (given) => {
      expect(faster.encode(given, options).ids).toEqual(plain.encode(given, options).ids)
    })
    fc.assert(same, { numRuns: 200 })
  })

  it('takes the place of the bytes', () => {
    const faster = new HfTokenizerClass(json, read('tokenizer_config.json'))
    const before = JSON.stringify(faster.pre_tokenizer?.('two words', { section_index: 0 }))
    spellFaster(faster.pre_tokenizer)
    const encode = TextEncoder.prototype.encode
    TextEncoder.prototype.encode = () => {
      throw new Error('not for each word')
    }
    try {
      expect(JSON.stringify(faster.pre_tokenizer?.('two words', { section_index: 0 }))).toBe(before)
    } finally {
      TextEncoder.prototype.encode = encode
    }
  })
})
