import { describe, expect, it } from 'vitest'
import { Detokenizer, Tokenizer, type DetokenizerOptions } from '../../../lib/text'
import { Utf8Stream } from '../../../lib/text/utf8_stream'
import { llama2Tokenizer, llama2TokenizerJson, readJson, storyTokenizer, unigramTokenizer } from './fixtures'
import fc from '../../support/fast_check'

const goldens = readJson('test', 'fixtures', 'tiny-storyteller-goldens', 'tokenizer-goldens.json')

function stripsBothEnds(): Tokenizer {
  const json = llama2TokenizerJson()
  json.decoder.decoders[3] = { type: 'Strip', content: ' ', start: 2, stop: 2 }
  return new Tokenizer(json, {})
}

const subjects: [string, Tokenizer][] = [
  ['byte level', storyTokenizer()],
  ['byte fallback with strip', llama2Tokenizer()],
  ['strip at both ends', stripsBothEnds()],
  ['metaspace', unigramTokenizer()],
]

function stream(
  tokenizer: Tokenizer,
  ids: readonly number[],
  cuts: readonly number[],
  options: DetokenizerOptions,
): string[] {
  const detokenizer = new Detokenizer(tokenizer, options)
  const texts: string[] = []
  let from = 0
  for (const cut of cuts) {
    texts.push(detokenizer.push(ids.slice(from, from + cut)))
    from += cut
  }
  for (const id of ids.slice(from)) texts.push(detokenizer.pushToken(id))
  return [...texts, detokenizer.flush()]
}

/** The batch decode, told by bytes: an oracle that shares no code with the stream. */
function decodeBytes(tokenizer: Tokenizer, ids: readonly number[]): string {
  const bytes = ids.map((id) => tokenizer.tokenBytes(id)).filter((piece) => piece instanceof Uint8Array)
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(bytes))
}

describe.each(subjects)('%s', (name, tokenizer) => {
  // Ids of single bytes come often, so that characters are cut, broken and finished in all ways.
  const id = fc.oneof(fc.nat(tokenizer.vocabSize + 1), fc.nat(Math.min(260, tokenizer.vocabSize - 1)))
  const ids = fc.array(id, { maxLength: 40 })

  it('streams exactly the whole text, however it is cut', () => {
    fc.assert(
      fc.property(ids, fc.array(fc.nat(5)), fc.boolean(), (list, cuts, skipSpecialTokens) => {
        const texts = stream(tokenizer, list, cuts, { skipSpecialTokens })
        expect(texts.join('')).toBe(tokenizer.decode(list, { skipSpecialTokens }))
        for (const text of texts) expect(text.isWellFormed()).toBe(true)
      }),
      { numRuns: 1000 },
    )
  })

  it('continues a text without the rules for its beginning', () => {
    fc.assert(
      fc.property(ids, (list) => {
        const texts = stream(tokenizer, list, [], { skipSpecialTokens: true, continuation: true })
        const whole = decodeBytes(tokenizer, list)
        expect(texts.join('')).toBe(name === 'strip at both ends' ? whole.replace(/ {1,2}$/, '') : whole)
      }),
      { numRuns: 300 },
    )
  })
})

describe('text as it arrives', () => {
  it.each(goldens.token_bytes.map((golden: any) => [golden.text, golden]) as [unknown, any][])(
    'emits %j by whole characters',
    (text, golden: any) => {
      const tokenizer = storyTokenizer()
      const detokenizer = new Detokenizer(tokenizer)
      const utf8 = new TextDecoder()
      golden.ids.forEach((id: number, i: number) => {
        // The platform's own streaming decoder says what is certain after each token.
        expect(detokenizer.pushToken(id)).toBe(utf8.decode(Buffer.from(golden.bytes_hex[i], 'hex'), { stream: true }))
      })
      expect(detokenizer.flush()).toBe('')
      expect(tokenizer.decode(golden.ids)).toBe(text)
    },
  )

  it('streams every golden text', () => {
    const tokenizer = storyTokenizer()
    for (const golden of goldens.texts) {
      expect(stream(tokenizer, golden.ids, [], {}).join('')).toBe(golden.decoded)
      expect(stream(tokenizer, golden.ids, [], { skipSpecialTokens: true }).join('')).toBe(golden.decoded_skip_special)
    }
  })

  it('ends a broken character as soon as it is certain, and not before', () => {
    const tokenizer = llama2Tokenizer()
    const byte = (value: number) => 3 + value
    const detokenizer = new Detokenizer(tokenizer)
    expect(detokenizer.pushToken(byte(0xf0))).toBe('')
    expect(detokenizer.pushToken(byte(0x9f))).toBe('')
    expect(detokenizer.pushToken(tokenizer.tokenToId('ing')!)).toBe('\uFFFDing')
    expect(detokenizer.pushToken(byte(0xff))).toBe('\uFFFD')
    expect(detokenizer.pushToken(byte(0xe6))).toBe('')
    expect(detokenizer.flush()).toBe('\uFFFD')
  })

  it('keeps a pending character across skipped special tokens and ids without a token', () => {
    const tokenizer = llama2Tokenizer()
    const detokenizer = new Detokenizer(tokenizer, { skipSpecialTokens: true })
    expect(detokenizer.push([3 + 0xc3, 2, 99_999])).toBe('')
    expect(detokenizer.pushToken(3 + 0xa9)).toBe('é')
  })

  it('cuts the first space of a text, and keeps it where the tokens continue one', () => {
    const tokenizer = llama2Tokenizer()
    const world = tokenizer.tokenToId('▁world')!
    expect(new Detokenizer(tokenizer).push([world, world])).toBe('world world')
    expect(new Detokenizer(tokenizer, { continuation: true }).push([world, world])).toBe(' world world')
  })

  it('refuses what is no token id', () => {
    const detokenizer = new Detokenizer(storyTokenizer())
    for (const bad of [-1, 0.5, Number.NaN]) {
      expect(() => detokenizer.pushToken(bad)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_TOKEN' }))
    }
  })
})

describe('Utf8Stream', () => {
  it('equals the platform decoder on any bytes, piece by piece', () => {
    const byte = fc.oneof(
      fc.integer({ min: 0, max: 255 }),
      fc.constantFrom(0xe0, 0xed, 0xf0, 0xf4, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xef, 0xbb),
    )
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 3 })), fc.array(byte), (pieces, tail) => {
        const own = new Utf8Stream()
        const platform = new TextDecoder('utf-8', { ignoreBOM: true })
        for (const piece of [...pieces, ...tail.map((value) => Uint8Array.of(value))]) {
          expect(own.push(piece)).toBe(platform.decode(piece, { stream: true }))
        }
        expect(own.flush()).toBe(platform.decode())
        expect(own.pending).toBe(false)
      }),
      { numRuns: 2000 },
    )
  })
})
