/** The page accounting of a KV cache, against a model that keeps the tokens themselves. */
import { describe, expect, it } from 'vitest'
import { KvPages, type KvSequence } from '../../../lib/runtime/kv_pages'
import fc from '../../support/fast_check'
import '../matchers'

const PAGE = 4

describe('pages', () => {
  it('are taken as tokens need them, and counted', () => {
    const kv = new KvPages(8, PAGE)
    const sequence = kv.allocate()
    expect(kv.append(sequence, 5)).toBeNull()
    expect(sequence).toMatchObject({ length: 5, pages: [0, 1] })
    expect(kv.stats()).toEqual({ totalPages: 8, freePages: 6, usedPages: 2, sharedPages: 0, sequences: 1, tokens: 5, wastedTokens: 3, utilisation: 5 / 8 })
    kv.append(sequence, 3)
    expect(sequence.pages).toEqual([0, 1])
    kv.append(sequence, 1)
    expect(sequence.pages).toEqual([0, 1, 2])
    kv.free(sequence)
    expect(kv.stats()).toMatchObject({ freePages: 8, usedPages: 0, sequences: 0, tokens: 0, utilisation: 1 })
    kv.checkPages()
  })

  it('come as compressed rows', () => {
    const kv = new KvPages(8, PAGE)
    const [a, empty, b] = [kv.allocate(), kv.allocate(), kv.allocate()]
    kv.append(a, 6)
    kv.append(b, 4)
    expect(kv.tables([a, empty, b, a])).toEqual({
      indptr: Int32Array.of(0, 2, 2, 3, 5),
      indices: Int32Array.of(0, 1, 2, 0, 1),
      lastPageLen: Int32Array.of(2, 0, 4, 2),
    })
    expect(kv.tables([])).toEqual({ indptr: Int32Array.of(0), indices: new Int32Array(0), lastPageLen: new Int32Array(0) })
  })

  it('are shared by a fork, and the last one copied by whoever writes first', () => {
    const kv = new KvPages(8, PAGE)
    const a = kv.allocate()
    kv.append(a, 6)
    const b = kv.fork(a)
    expect(kv.stats()).toMatchObject({ usedPages: 2, sharedPages: 2, sequences: 2, tokens: 12, wastedTokens: 2 })
    expect(kv.append(b, 1)).toEqual({ from: 1, to: 2 })
    expect(b.pages).toEqual([0, 2])
    // The other has the page to itself now.
    expect(kv.append(a, 1)).toBeNull()
    expect(a.pages).toEqual([0, 1])
    kv.checkPages()
  })

  it('that are full and shared are not copied', () => {
    const kv = new KvPages(8, PAGE)
    const a = kv.allocate()
    kv.append(a, 4)
    const b = kv.fork(a)
    expect(kv.append(b, 1)).toBeNull()
    expect(b.pages).toEqual([0, 1])
  })

  it('are taken all or not at all', () => {
    const kv = new KvPages(3, PAGE)
    const a = kv.allocate()
    kv.append(a, 6)
    const b = kv.fork(a)
    const before = { ...kv.stats() }
    // The copy of the shared page takes the last one, and there is none for the rest.
    expect(() => kv.append(b, 3)).toThrowCode('ERR_OUT_OF_DEVICE_MEMORY', /3 more tokens need 2 pages, and 1 of the KV cache's 3 are free/)
    expect(kv.stats()).toEqual(before)
    expect(b).toMatchObject({ length: 6, pages: [0, 1] })
    kv.checkPages()
    expect(kv.append(b, 2)).toEqual({ from: 1, to: 2 })
  })

  it('go back with what is truncated', () => {
    const kv = new KvPages(8, PAGE)
    const a = kv.allocate()
    kv.append(a, 12)
    kv.truncate(a, 5)
    expect(a).toMatchObject({ length: 5, pages: [0, 1] })
    kv.truncate(a, 4)
    expect(a.pages).toEqual([0])
    kv.truncate(a, 0)
    expect(a.pages).toEqual([])
    expect(kv.freePages).toBe(8)
  })

  const refused: [what: string, call: (kv: KvPages, sequence: KvSequence) => unknown, message: RegExp][] = [
    ['a freed sequence', (kv, sequence) => (kv.free(sequence), kv.append(sequence, 1)), /number 0 was freed/],
    ['freeing twice', (kv, sequence) => (kv.free(sequence), kv.free(sequence)), /number 0 was freed/],
    ['a sequence of another cache', (kv) => kv.fork(new KvPages(1, 1).allocate()), /a sequence of this cache/],
    ['what is no sequence', (kv) => kv.tables([{ id: 0, length: 1, pages: [0] }]), /"sequences\[0\]"/],
    ['no list', (kv, sequence) => kv.tables(sequence as never), /"sequences" must be an array/],
    ['a fraction of a token', (kv, sequence) => kv.append(sequence, 0.5), /"tokens"/],
    ['a negative number', (kv, sequence) => kv.append(sequence, -1), /"tokens"/],
    ['growing by truncation', (kv, sequence) => kv.truncate(sequence, 1), /from 0 to 0, not 1/],
    ['a page beyond the pool', (kv) => kv.checkPage('page', 8), /"page" must be a page, an integer from 0 to 7, not 8/],
  ]
  it.each(refused)('refuse %s', (_, call, message) => {
    const kv = new KvPages(8, PAGE)
    expect(() => call(kv, kv.allocate())).toThrowCode('ERR_INVALID_ARGUMENT', message)
    kv.checkPages()
  })
})

type Command = { kind: 'allocate' | 'append' | 'truncate' | 'fork' | 'free'; which: number; tokens: number }
const commands: fc.Arbitrary<Command> = fc.record({
  kind: fc.constantFrom('allocate', 'append', 'append', 'append', 'truncate', 'fork', 'free'),
  which: fc.nat(50),
  tokens: fc.nat(11),
})

it('keeps every token of every sequence, whatever is done', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 5 }), fc.array(commands, { maxLength: 60 }), (total, pageSize, steps) => {
      const kv = new KvPages(total, pageSize)
      /** The device's memory: what was written where. */
      const places: (number | undefined)[][] = Array.from({ length: total }, () => [])
      const live: { sequence: KvSequence; tokens: number[] }[] = []
      let next = 0
      for (const { kind, which, tokens } of steps) {
        const entry = live[which % Math.max(live.length, 1)]
        if (kind === 'allocate' || entry === undefined) {
          live.push({ sequence: kv.allocate(), tokens: [] })
        } else if (kind === 'fork') {
          live.push({ sequence: kv.fork(entry.sequence), tokens: [...entry.tokens] })
        } else if (kind === 'free') {
          kv.free(entry.sequence)
          live.splice(live.indexOf(entry), 1)
        } else if (kind === 'truncate') {
          const length = Math.min(tokens, entry.tokens.length)
          kv.truncate(entry.sequence, length)
          entry.tokens.length = length
        } else {
          const before = { free: kv.freePages, length: entry.sequence.length, pages: [...entry.sequence.pages] }
          try {
            const copy = kv.append(entry.sequence, tokens)
            if (copy !== null) places[copy.to] = [...places[copy.from]!]
          } catch (error) {
            expect(error).toHaveCode('ERR_OUT_OF_DEVICE_MEMORY')
            expect({ free: kv.freePages, length: entry.sequence.length, pages: [...entry.sequence.pages] }).toEqual(before)
            continue
          }
          for (let i = 0; i < tokens; i++) {
            const at = entry.tokens.push(next++) - 1
            places[entry.sequence.pages[Math.floor(at / pageSize)]!]![at % pageSize] = entry.tokens[at]
          }
        }
        kv.checkPages()
        const stats = kv.stats()
        expect(stats.freePages + stats.usedPages).toBe(total)
        expect(stats.tokens).toBe(live.reduce((sum, { tokens }) => sum + tokens.length, 0))
        const { indptr, indices, lastPageLen } = kv.tables(live.map(({ sequence }) => sequence))
        live.forEach((one, i) => {
          const pages = [...indices.subarray(indptr[i], indptr[i + 1])]
          expect(one.sequence.length).toBe(one.tokens.length)
          expect(one.tokens.length).toBe(pages.length === 0 ? 0 : (pages.length - 1) * pageSize + lastPageLen[i]!)
          expect(one.tokens.map((_, at) => places[pages[Math.floor(at / pageSize)]!]![at % pageSize])).toEqual(one.tokens)
        })
      }
    }),
    { numRuns: 500 },
  )
})
