/**
 * The pages of the KV pool: who holds them, what they contain, and when they may be written again.
 *
 * A page is in one of three states:
 *  - used: at least one reference;
 *  - cached: no reference, but its content is known and a later prompt may find it;
 *  - free: no reference and no content.
 * `free + cached + used = numPages` at all times ({@link BlockManager.check}). Allocation takes a free page, else the
 * cached page that was released longest ago.
 *
 * A full page is addressed by content: (identity of the page content before it, its tokens). Identities are numbers
 * that are never used twice, and the first page's predecessor is the salt, so equality of one page implies equality of
 * the whole prefix. The hash only finds candidates; the comparison decides.
 *
 * Everything per page lives in typed arrays with intrusive lists: the hot path makes no garbage.
 */
import { TensorRTError } from '../errors'

/** Hash of a page's content: any int32. A poor one costs time, never correctness. */
export type PageHash = (parent: number, tokens: Int32Array, offset: number, pageSize: number) => number

export interface BlockManagerOptions {
  numPages: number
  /** Tokens per page. */
  pageSize: number
  /** Steps that can be in flight at once, >= 1: for how many step ids releases can be held back. */
  maxStepsInFlight?: number
  /** False: a page's content is forgotten with its last reference (sharing only between those alive). */
  retain?: boolean
  hash?: PageHash
}

const NONE = -1

/** Multiplicative mixing in the manner of murmur3's 32-bit finaliser; enough to spread, as hits are compared. */
export const defaultPageHash: PageHash = (parent, tokens, offset, pageSize) => {
  let h = (parent | 0) ^ Math.imul((parent / 0x1_0000_0000) | 0, 0x9e3779b1)
  for (let i = offset, end = offset + pageSize; i < end; i++) {
    h = Math.imul(h ^ tokens[i]!, 0x85ebca6b)
    h ^= h >>> 13
  }
  h = Math.imul(h, 0xc2b2ae35)
  return h ^ (h >>> 16)
}

interface Salt {
  key: string
  /** Negative, so that it cannot equal a page's content identity. */
  id: number
  /** First pages that are published under it. */
  pages: number
}

export class BlockManager {
  readonly numPages: number
  readonly pageSize: number

  private readonly retain: boolean
  private readonly hash: PageHash
  private readonly refs: Int32Array
  /** How many of a page's references are held only until a step completes. */
  private readonly heldRefs: Int32Array
  /** Identity of the content; 0 = not published. */
  private readonly content: Float64Array
  private readonly parent: Float64Array
  private readonly tokens: Int32Array
  /**
   * Links of the free stack (`next` only) and of the list of cached pages; index `numPages` is that list's sentinel.
   */
  private readonly next: Int32Array
  private readonly prev: Int32Array
  private readonly bucketHead: Int32Array
  private readonly bucketNext: Int32Array
  private readonly bucketOf: Int32Array
  private readonly salts = new Map<string, Salt>()
  private readonly saltOfPage: (Salt | null)[]
  /** `[stepId % ring]`: pages, one entry per reference to drop when that step completes. */
  private readonly held: Int32Array[]
  private readonly heldCount: Int32Array

  private freeHead = NONE
  private freeTotal = 0
  private cachedTotal = 0
  private soonFreeTotal = 0
  private nextContent = 1
  private nextSalt = -1
  private completedStep = -1
  /** Where {@link find} looked last: `publish` inserts there without hashing again. */
  private lastBucket = 0

  constructor(options: BlockManagerOptions) {
    const { numPages, pageSize, maxStepsInFlight = 2, retain = true, hash = defaultPageHash } = options
    if (!Number.isInteger(numPages) || numPages < 1 || !Number.isInteger(pageSize) || pageSize < 1) {
      throw new TensorRTError(
        'ERR_INVALID_ARGUMENT',
        `A pool of ${numPages} pages of ${pageSize} tokens is not possible`,
      )
    }
    this.numPages = numPages
    this.pageSize = pageSize
    this.retain = retain
    this.hash = hash
    this.refs = new Int32Array(numPages)
    this.heldRefs = new Int32Array(numPages)
    this.content = new Float64Array(numPages)
    this.parent = new Float64Array(numPages)
    this.tokens = new Int32Array(numPages * pageSize)
    this.next = new Int32Array(numPages + 1)
    this.prev = new Int32Array(numPages + 1)
    const buckets = 2 ** Math.ceil(Math.log2(Math.max(numPages, 2)))
    this.bucketHead = new Int32Array(buckets).fill(NONE)
    this.bucketNext = new Int32Array(numPages).fill(NONE)
    this.bucketOf = new Int32Array(numPages).fill(NONE)
    this.saltOfPage = Array.from({ length: numPages }, () => null)
    this.held = Array.from({ length: maxStepsInFlight }, () => new Int32Array(64))
    this.heldCount = new Int32Array(maxStepsInFlight)
    this.next[numPages] = numPages
    this.prev[numPages] = numPages
    for (let page = numPages - 1; page >= 0; page--) this.pushFree(page)
  }

  get free(): number {
    return this.freeTotal
  }

  get cached(): number {
    return this.cachedTotal
  }

  get used(): number {
    return this.numPages - this.freeTotal - this.cachedTotal
  }

  /** Pages that can be allocated now. */
  get available(): number {
    return this.freeTotal + this.cachedTotal
  }

  /** Used pages that become available as soon as the steps in flight have completed. */
  get soonAvailable(): number {
    return this.soonFreeTotal
  }

  refCount(page: number): number {
    return this.refs[page]!
  }

  /** Identity of a published page's content, to be the parent of the page after it; 0 if it is not published. */
  contentOf(page: number): number {
    return this.content[page]!
  }

  /** A page with one reference and no content, or -1 when none is available. */
  allocate(): number {
    let page = this.freeHead
    if (page !== NONE) {
      this.freeHead = this.next[page]!
      this.freeTotal--
    } else {
      page = this.next[this.numPages]!
      if (page === this.numPages) return NONE
      this.unlinkCached(page)
      this.forget(page)
    }
    this.refs[page] = 1
    return page
  }

  /**
   * Finds the longest published prefix of `tokens`, at most `maxPages` pages, and writes its pages to `out` from
   * `outOffset` on. Takes no reference: the caller decides first whether the rest fits, then calls {@link retainPage}
   * on each.
   * @returns how many pages were found.
   */
  match(tokens: Int32Array, maxPages: number, salt: string, out: Int32Array, outOffset = 0): number {
    let parent = this.salts.get(salt)?.id
    if (parent === undefined) return 0
    let found = 0
    for (; found < maxPages; found++) {
      const page = this.find(parent, tokens, found * this.pageSize)
      if (page === NONE) break
      out[outOffset + found] = page
      parent = this.content[page]!
    }
    return found
  }

  /** Adds a reference to a page that {@link match} found (or that the caller holds already). */
  retainPage(page: number): void {
    const refs = this.refs[page]!
    if (refs === 0) {
      if (this.content[page] === 0) throw new TensorRTError('ERR_INTERNAL', `Page ${page} is free and cannot be shared`)
      this.unlinkCached(page)
    } else if (refs === this.heldRefs[page]!) {
      this.soonFreeTotal--
    }
    this.refs[page] = refs + 1
  }

  /**
   * Makes a full page findable. `parent` is what `publish` returned for the page before it, 0 for the first page.
   * @returns the identity to pass on as the next page's parent. When equal content is published already (two sequences
   * computed it at the same time), that page stays the findable one, its identity is returned, and `page` stays
   * private.
   */
  publish(page: number, parent: number, tokens: Int32Array, offset: number, salt: string): number {
    let entry: Salt | null = null
    let parentId = parent
    if (parent === 0) {
      entry = this.salts.get(salt) ?? null
      if (entry === null) {
        entry = { key: salt, id: this.nextSalt--, pages: 0 }
        this.salts.set(salt, entry)
      }
      parentId = entry.id
    }
    const present = this.find(parentId, tokens, offset)
    if (present !== NONE) return this.content[present]!
    if (this.content[page] !== 0) throw new TensorRTError('ERR_INTERNAL', `Page ${page} is published already`)
    const id = this.nextContent++
    this.content[page] = id
    this.parent[page] = parentId
    const base = page * this.pageSize
    for (let i = 0; i < this.pageSize; i++) this.tokens[base + i] = tokens[offset + i]!
    const bucket = this.lastBucket
    this.bucketOf[page] = bucket
    this.bucketNext[page] = this.bucketHead[bucket]!
    this.bucketHead[bucket] = page
    if (entry !== null) {
      entry.pages++
      this.saltOfPage[page] = entry
    }
    return id
  }

  /**
   * Makes a page unfindable, e.g. because the step that wrote it failed. What was published after it becomes
   * unreachable.
   */
  unpublish(page: number): void {
    if (this.content[page] === 0) return
    this.forget(page)
    if (this.refs[page] === 0) {
      this.unlinkCached(page)
      this.pushFree(page)
    }
  }

  /** Drops one reference now. */
  release(page: number): void {
    const refs = this.refs[page]!
    if (refs <= this.heldRefs[page]!)
      throw new TensorRTError('ERR_INTERNAL', `Page ${page} was released more often than it was taken`)
    this.drop(page, refs)
  }

  /** Drops one reference as soon as step `stepId` has completed; now, if it has. */
  releaseAfter(page: number, stepId: number): void {
    if (stepId <= this.completedStep) {
      this.release(page)
      return
    }
    if (stepId > this.completedStep + this.held.length) {
      throw new TensorRTError('ERR_INTERNAL', `Step ${stepId} is too far ahead of completed step ${this.completedStep}`)
    }
    const refs = this.refs[page]!
    if (refs <= this.heldRefs[page]!)
      throw new TensorRTError('ERR_INTERNAL', `Page ${page} was released more often than it was taken`)
    const ring = stepId % this.held.length
    const count = this.heldCount[ring]!
    let list = this.held[ring]!
    if (count === list.length) {
      const grown = new Int32Array(2 * count)
      grown.set(list)
      this.held[ring] = list = grown
    }
    list[count] = page
    this.heldCount[ring] = count + 1
    if (++this.heldRefs[page]! === refs) this.soonFreeTotal++
  }

  /** Steps complete in order, without gaps: drops the references that were held for this one. */
  completeStep(stepId: number): void {
    if (stepId !== this.completedStep + 1) {
      throw new TensorRTError('ERR_INTERNAL', `Step ${stepId} completed after step ${this.completedStep}`)
    }
    this.completedStep = stepId
    const ring = stepId % this.held.length
    const list = this.held[ring]!
    const count = this.heldCount[ring]!
    this.heldCount[ring] = 0
    for (let i = 0; i < count; i++) {
      const page = list[i]!
      const refs = this.refs[page]!
      if (refs === this.heldRefs[page]!) this.soonFreeTotal--
      this.heldRefs[page]!--
      this.drop(page, refs)
    }
  }

  /**
   * Verifies every invariant; O(pages).
   * @param owned `[numPages]`, references that the caller believes to hold, without those handed to
   * {@link releaseAfter}.
   * @throws ERR_INTERNAL naming the first thing that does not add up.
   */
  check(owned?: Int32Array): void {
    const broken = (what: string): never => {
      throw new TensorRTError('ERR_INTERNAL', `KV pages do not add up: ${what}`)
    }
    const state = new Uint8Array(this.numPages)
    let free = 0
    for (let page = this.freeHead; page !== NONE; page = this.next[page]!) {
      if (state[page] !== 0) broken(`page ${page} is twice in the free list`)
      if (this.refs[page] !== 0 || this.content[page] !== 0) broken(`free page ${page} has a reference or content`)
      state[page] = 1
      free++
    }
    let cached = 0
    for (let page = this.next[this.numPages]!; page !== this.numPages; page = this.next[page]!) {
      if (state[page] !== 0) broken(`page ${page} is in two lists`)
      if (this.refs[page] !== 0 || this.content[page] === 0) broken(`cached page ${page} has a reference or no content`)
      if (this.prev[this.next[page]!] !== page) broken(`links of cached page ${page}`)
      state[page] = 2
      cached++
    }
    if (free !== this.freeTotal || cached !== this.cachedTotal) broken(`counted ${free} free, ${cached} cached pages`)

    const held = new Int32Array(this.numPages)
    this.held.forEach((list, ring) => {
      for (let i = 0; i < this.heldCount[ring]!; i++) held[list[i]!]!++
    })
    let used = 0
    let soon = 0
    let published = 0
    for (let page = 0; page < this.numPages; page++) {
      const refs = this.refs[page]!
      if (refs > 0) used++
      if (refs === 0 && state[page] === 0) broken(`page ${page} is lost`)
      if (held[page] !== this.heldRefs[page]! || held[page]! > refs) broken(`held references of page ${page}`)
      if (refs > 0 && refs === held[page]!) soon++
      if (owned !== undefined && owned[page]! + held[page]! !== refs) {
        broken(`page ${page} has ${refs} references, its holders know of ${owned[page]! + held[page]!}`)
      }
      if (this.content[page] !== 0) {
        published++
        let at = this.bucketHead[this.bucketOf[page]!]!
        while (at !== NONE && at !== page) at = this.bucketNext[at]!
        if (at !== page) broken(`published page ${page} is not in its bucket`)
      }
    }
    if (free + cached + used !== this.numPages) broken(`${free} free + ${cached} cached + ${used} used pages`)
    if (soon !== this.soonFreeTotal) broken(`${soon} pages become available soon, not ${this.soonFreeTotal}`)
    for (const salt of this.salts.values()) {
      const first = this.saltOfPage.filter((other) => other === salt).length
      if (first === 0 || first !== salt.pages) broken(`${first} first pages of a salt, not ${salt.pages}`)
    }
    let listed = 0
    for (const head of this.bucketHead) for (let at = head; at !== NONE; at = this.bucketNext[at]!) listed++
    if (listed !== published) broken(`${listed} pages in buckets, ${published} published`)
  }

  private find(parent: number, tokens: Int32Array, offset: number): number {
    const { pageSize } = this
    const bucket = (this.lastBucket = this.hash(parent, tokens, offset, pageSize) & (this.bucketHead.length - 1))
    search: for (let page = this.bucketHead[bucket]!; page !== NONE; page = this.bucketNext[page]!) {
      if (this.parent[page] !== parent) continue
      const base = page * pageSize
      for (let i = 0; i < pageSize; i++) if (this.tokens[base + i] !== tokens[offset + i]) continue search
      return page
    }
    return NONE
  }

  private drop(page: number, refs: number): void {
    this.refs[page] = refs - 1
    if (refs > 1) {
      if (refs - 1 === this.heldRefs[page]!) this.soonFreeTotal++
      return
    }
    if (this.content[page] !== 0 && this.retain) {
      this.linkCached(page)
    } else {
      if (this.content[page] !== 0) this.forget(page)
      this.pushFree(page)
    }
  }

  private forget(page: number): void {
    this.content[page] = 0
    const bucket = this.bucketOf[page]!
    this.bucketOf[page] = NONE
    let at = this.bucketHead[bucket]!
    if (at === page) {
      this.bucketHead[bucket] = this.bucketNext[page]!
    } else {
      while (this.bucketNext[at] !== page) at = this.bucketNext[at]!
      this.bucketNext[at] = this.bucketNext[page]!
    }
    this.bucketNext[page] = NONE
    const salt = this.saltOfPage[page]!
    if (salt !== null) {
      this.saltOfPage[page] = null
      if (--salt.pages === 0) this.salts.delete(salt.key)
    }
  }

  private pushFree(page: number): void {
    this.next[page] = this.freeHead
    this.freeHead = page
    this.freeTotal++
  }

  /** At the young end. */
  private linkCached(page: number): void {
    const last = this.prev[this.numPages]!
    this.next[last] = page
    this.prev[page] = last
    this.next[page] = this.numPages
    this.prev[this.numPages] = page
    this.cachedTotal++
  }

  private unlinkCached(page: number): void {
    const before = this.prev[page]!
    const after = this.next[page]!
    this.next[before] = after
    this.prev[after] = before
    this.cachedTotal--
  }
}
