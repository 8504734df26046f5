import { describe, expect, it } from 'vitest'
import '../matchers'
import { kvPages } from '../../../lib/llm/kv_sizing'
import { graphFromConfig } from '../../../lib/models'
import { readJson } from '../text/fixtures'

const graph = graphFromConfig(readJson('models', 'tiny-storyteller', 'config.json'))
const PAGE_BYTES = 16 * 6144
const CONTEXT_PAGES = 64
const sizing = { pageSize: 16, numPages: undefined, kvCacheMemory: undefined, maxSequences: 8, freeBytes: 2 ** 40 }
const pages = (options: Partial<typeof sizing> | object): number => kvPages(graph, 4, { ...sizing, ...options })

describe('pages of the KV pool', () => {
  it('are as many as asked for', () => {
    expect(pages({ numPages: 7 })).toBe(7)
    expect(pages({ kvCacheMemory: 10 * PAGE_BYTES - 1 })).toBe(9)
  })

  it('hold a full context for each sequence', () => {
    expect(pages({})).toBe(8 * CONTEXT_PAGES)
  })

  it('take no more than a gibibyte, or a quarter of what is free', () => {
    expect(pages({ maxSequences: 1000 })).toBe(Math.floor(2 ** 30 / PAGE_BYTES))
    expect(pages({ freeBytes: 4 * 100 * PAGE_BYTES })).toBe(100)
  })

  it('hold one full context in any case', () => {
    expect(pages({ freeBytes: 0 })).toBe(CONTEXT_PAGES)
  })

  it('are at least one', () => {
    expect(() => pages({ kvCacheMemory: PAGE_BYTES - 1 })).toThrowCode('ERR_INVALID_ARGUMENT', /98304/)
  })
})
