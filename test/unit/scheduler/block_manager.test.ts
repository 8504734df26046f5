import { describe, expect, it } from 'vitest'
import { BlockManager, defaultPageHash, type PageHash } from '../../../lib/scheduler/block_manager'
import { randomSource } from './drive'

const ids = (...tokens: number[]): Int32Array => Int32Array.from(tokens)

function publishAll(blocks: BlockManager, tokens: Int32Array, salt = ''): number[] {
  const pages: number[] = []
  let chain = 0
  for (let at = 0; at + blocks.pageSize <= tokens.length; at += blocks.pageSize) {
    const page = blocks.allocate()
    pages.push(page)
    chain = blocks.publish(page, chain, tokens, at, salt)
  }
  return pages
}

function found(blocks: BlockManager, tokens: Int32Array, salt = ''): number[] {
  const out = new Int32Array(64)
  return [...out.subarray(0, blocks.match(tokens, Math.floor(tokens.length / blocks.pageSize), salt, out))]
}

describe('BlockManager', () => {
  it('finds the longest published prefix, under its salt only', () => {
    const blocks = new BlockManager({ numPages: 8, pageSize: 2 })
    const pages = publishAll(blocks, ids(1, 2, 3, 4, 5, 6))
    expect(found(blocks, ids(1, 2, 3, 4, 9, 9))).toEqual(pages.slice(0, 2))
    expect(found(blocks, ids(1, 2, 3, 4, 5, 6, 7, 8))).toEqual(pages)
    expect(found(blocks, ids(3, 4))).toEqual([])
    expect(found(blocks, ids(1, 2), 'other')).toEqual([])
    blocks.check()
  })

  it('compares on a hit: under a hash that always collides nothing wrong is found', () => {
    const blocks = new BlockManager({ numPages: 16, pageSize: 2, hash: () => 0 })
    const a = publishAll(blocks, ids(1, 2, 7, 7))
    const b = publishAll(blocks, ids(3, 4, 7, 7))
    // Equal tokens after different prefixes are different contents.
    expect(found(blocks, ids(3, 4, 7, 7))).toEqual(b)
    expect(found(blocks, ids(1, 2, 7, 7))).toEqual(a)
    expect(found(blocks, ids(5, 6, 7, 7))).toEqual([])
    blocks.check()
  })

  it('keeps one findable page of equal contents, and chains on from it', () => {
    const blocks = new BlockManager({ numPages: 8, pageSize: 1 })
    const [first] = publishAll(blocks, ids(1))
    const [twin, after] = publishAll(blocks, ids(1, 2))
    expect(found(blocks, ids(1, 2))).toEqual([first, after])
    blocks.release(twin!)
    expect(blocks.free).toBe(6)
  })

  it('keeps released content until the page is needed, and gives up the oldest first', () => {
    const blocks = new BlockManager({ numPages: 3, pageSize: 1 })
    const pages = [publishAll(blocks, ids(1))[0]!, publishAll(blocks, ids(2))[0]!, publishAll(blocks, ids(3))[0]!]
    for (const page of [pages[1]!, pages[2]!, pages[0]!]) blocks.release(page)
    expect([blocks.free, blocks.cached, blocks.used]).toEqual([0, 3, 0])
    expect(blocks.allocate()).toBe(pages[1])
    expect(found(blocks, ids(2))).toEqual([])
    expect(found(blocks, ids(1))).toEqual([pages[0]])
    blocks.retainPage(pages[0]!)
    expect(blocks.allocate()).toBe(pages[2])
    expect(blocks.allocate()).toBe(-1)
    blocks.check()
  })

  it('without retention forgets content with the last reference', () => {
    const blocks = new BlockManager({ numPages: 2, pageSize: 1, retain: false })
    const [page] = publishAll(blocks, ids(1))
    blocks.retainPage(page!)
    blocks.release(page!)
    expect(found(blocks, ids(1))).toEqual([page])
    blocks.release(page!)
    expect(found(blocks, ids(1))).toEqual([])
    expect(blocks.free).toBe(2)
  })

  it('holds pages back until the step that uses them has completed', () => {
    const blocks = new BlockManager({ numPages: 2, pageSize: 1, maxStepsInFlight: 2 })
    const [a, b] = [blocks.allocate(), blocks.allocate()]
    blocks.releaseAfter(a, 1)
    blocks.releaseAfter(b, 0)
    expect([blocks.available, blocks.soonAvailable]).toEqual([0, 2])
    blocks.completeStep(0)
    expect(blocks.available).toBe(1)
    blocks.completeStep(1)
    expect(blocks.available).toBe(2)
    expect(() => blocks.completeStep(1)).toThrow(/completed after/)
    blocks.check()
  })

  it('makes a page that was written by a failed step unfindable', () => {
    const blocks = new BlockManager({ numPages: 4, pageSize: 1 })
    const pages = publishAll(blocks, ids(1, 2, 3))
    blocks.release(pages[2]!)
    blocks.unpublish(pages[1]!)
    expect(found(blocks, ids(1, 2, 3))).toEqual([pages[0]])
    blocks.unpublish(pages[2]!)
    expect([blocks.free, blocks.cached, blocks.used]).toEqual([2, 0, 2])
    blocks.check()
  })

  it('refuses to release what is not held, and its check sees a reference too many', () => {
    const blocks = new BlockManager({ numPages: 2, pageSize: 1 })
    const page = blocks.allocate()
    expect(() => blocks.check(new Int32Array(2))).toThrow(/references/)
    blocks.release(page)
    expect(() => blocks.release(page)).toThrow(/more often/)
    expect(() => blocks.retainPage(page)).toThrow(/free/)
  })

  for (const [name, hash] of [
    ['the default hash', defaultPageHash],
    ['a hash of two values', (parent, tokens, offset) => (parent + tokens[offset]!) & 1],
  ] as [string, PageHash][]) {
    it(`survives a million random operations with ${name}`, () => {
      randomOperations(1_000_000, hash)
    }, 600_000)
  }
})

interface Holder {
  tokens: Int32Array
  salt: string
  pages: number[]
  published: number
  chain: number
}

/**
 * Checks conservation and references after each operation, and every hit against what was really written to the page.
 */
function randomOperations(operations: number, hash: PageHash): void {
  const random = randomSource(operations)
  const below = (n: number): number => Math.floor(random() * n)
  const numPages = 24
  const pageSize = 2
  const inFlight = 3
  const blocks = new BlockManager({ numPages, pageSize, maxStepsInFlight: inFlight, hash })
  const owned = new Int32Array(numPages)
  const written = Array.from({ length: numPages }, () => '')
  const holders: Holder[] = []
  const out = new Int32Array(8)
  let completed = -1
  let hits = 0

  const start = (): void => {
    const tokens = Int32Array.from({ length: pageSize * (1 + below(6)) }, () => below(2))
    const salt = below(4) === 0 ? 'b' : 'a'
    const count = blocks.match(tokens, tokens.length / pageSize, salt, out)
    hits += count
    const pages = [...out.subarray(0, count)]
    pages.forEach((page, i) => {
      const expected = `${salt}:${tokens.slice(0, (i + 1) * pageSize).join('')}`
      if (written[page] !== expected) throw new Error(`Found ${written[page]} for ${expected}`)
    })
    const fresh = pages.filter((page) => blocks.refCount(page) === 0).length
    const missing = tokens.length / pageSize - count
    if (missing + fresh > blocks.available) return
    const chain = count > 0 ? blocks.contentOf(pages.at(-1)!) : 0
    for (const page of pages) blocks.retainPage(page)
    for (let i = 0; i < missing; i++) {
      const page = blocks.allocate()
      if (page < 0 || owned[page] !== 0) throw new Error(`Allocated page ${page} is in use`)
      written[page] = ''
      pages.push(page)
    }
    for (const page of pages) owned[page]!++
    holders.push({ tokens, salt, pages, published: count, chain })
  }

  for (let i = 0; i < operations; i++) {
    const holder = holders[below(holders.length)]
    const choice = below(10)
    if (choice < 3 || holder === undefined) {
      start()
    } else if (choice < 6 && holder.published < holder.pages.length) {
      const at = holder.published++
      const page = holder.pages[at]!
      written[page] = `${holder.salt}:${holder.tokens.slice(0, (at + 1) * pageSize).join('')}`
      holder.chain = blocks.publish(page, holder.chain, holder.tokens, at * pageSize, holder.salt)
    } else if (choice < 8) {
      holders.splice(holders.indexOf(holder), 1)
      const step = completed + below(inFlight + 1)
      for (const page of holder.pages.reverse()) {
        owned[page]!--
        blocks.releaseAfter(page, step)
      }
    } else if (choice < 9) {
      blocks.completeStep(++completed)
    } else {
      blocks.unpublish(below(numPages))
    }
    blocks.check(owned)
  }
  expect(hits).toBeGreaterThan(operations / 100)
}
