/** Who has which page of a paged KV cache. Numbers alone: no device is involved. */
import { TensorRTError } from '../errors'
import { invalidArgument } from './argument_reader'

/** A sequence of tokens with the pages that hold their keys and values. Made by `cache.allocate()` and `cache.fork()`. */
export interface KvSequence {
  readonly id: number
  /** Tokens. */
  readonly length: number
  /** Pages in the order of the tokens; the last one may be filled in part. */
  readonly pages: readonly number[]
}

/** Page tables of several sequences in compressed rows (CSR), as FlashInfer and its like take them. */
export interface KvPageTables {
  /** `[sequences + 1]`: sequence i has the entries from `indptr[i]` up to `indptr[i + 1]`. */
  indptr: Int32Array
  /** Pages, one sequence after the other. */
  indices: Int32Array
  /** `[sequences]`: tokens in the last page, 1 to the page size; 0 for an empty sequence. */
  lastPageLen: Int32Array
}

export interface KvCacheStats {
  totalPages: number
  freePages: number
  /** In at least one sequence. `freePages + usedPages = totalPages`. */
  usedPages: number
  /** Of the used ones, those in several sequences. */
  sharedPages: number
  sequences: number
  /** Over all sequences; a shared page's tokens count for each. */
  tokens: number
  /** Places of used pages without a token: those behind the ends of sequences. */
  wastedTokens: number
  /** Share of the places of used pages that hold a token; 1 when none is used. */
  utilisation: number
}

/** A page that must be copied before its sequence writes to it, as others have it too. */
export interface PageCopy {
  from: number
  to: number
}

class Sequence implements KvSequence {
  length = 0
  readonly pages: number[] = []

  constructor(
    readonly id: number,
    readonly owner: KvPages,
  ) {}
}

export class KvPages {
  /** Free pages, the next one last. */
  readonly #free: number[]
  /** Sequences that have the page. */
  readonly #users: Int32Array
  readonly #sequences = new Set<KvSequence>()
  #nextId = 0

  constructor(
    readonly total: number,
    readonly pageSize: number,
  ) {
    this.#free = Array.from({ length: total }, (_, i) => total - 1 - i)
    this.#users = new Int32Array(total)
  }

  get freePages(): number {
    return this.#free.length
  }

  allocate(): KvSequence {
    const sequence = new Sequence(this.#nextId++, this)
    this.#sequences.add(sequence)
    return sequence
  }

  /** @throws ERR_INVALID_ARGUMENT for what is no live sequence of this cache */
  check(name: string, sequence: unknown): Sequence {
    if (sequence instanceof Sequence && this.#sequences.has(sequence)) return sequence
    const freed = sequence instanceof Sequence && sequence.owner === this
    throw invalidArgument(name, freed ? `a sequence that is there: number ${sequence.id} was freed` : 'a sequence of this cache', sequence)
  }

  /** @throws ERR_INVALID_ARGUMENT */
  checkPage(name: string, page: unknown): number {
    if (typeof page === 'number' && Number.isInteger(page) && page >= 0 && page < this.total) return page
    throw invalidArgument(name, `a page, an integer from 0 to ${this.total - 1}`, page)
  }

  /**
   * Room for more tokens: all of it, or none.
   *
   * @returns the copy to be made first, where the last page is shared and gets new tokens
   * @throws ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY where too few pages are free
   */
  append(given: KvSequence, tokens: number): PageCopy | null {
    const sequence = this.check('sequence', given)
    if (!Number.isSafeInteger(tokens) || tokens < 0) throw invalidArgument('tokens', 'a number of tokens from 0', tokens)
    if (tokens === 0) return null
    const { pages, length } = sequence
    const last = pages.at(-1)
    const ownsLast = last === undefined || length % this.pageSize === 0 || this.#users[last] === 1
    const needed = Math.ceil((length + tokens) / this.pageSize) - pages.length + (ownsLast ? 0 : 1)
    if (needed > this.#free.length) {
      throw new TensorRTError(
        'ERR_OUT_OF_DEVICE_MEMORY',
        `${tokens} more tokens need ${needed} pages, and ${this.#free.length} of the KV cache's ${this.total} are free`,
        { hint: 'free a sequence, or make a cache with more pages' },
      )
    }
    let copy: PageCopy | null = null
    if (!ownsLast) {
      copy = { from: last, to: this.#take() }
      this.#leave(last)
      pages[pages.length - 1] = copy.to
    }
    sequence.length += tokens
    while (pages.length * this.pageSize < sequence.length) pages.push(this.#take())
    return copy
  }

  /** The last `tokens` go, with the pages that become empty. @throws ERR_INVALID_ARGUMENT */
  truncate(given: KvSequence, length: number): void {
    const sequence = this.check('sequence', given)
    if (!Number.isSafeInteger(length) || length < 0 || length > sequence.length) {
      throw invalidArgument('length', `a number of tokens from 0 to ${sequence.length}`, length)
    }
    sequence.length = length
    while ((sequence.pages.length - 1) * this.pageSize >= length && sequence.pages.length > 0) this.#leave(sequence.pages.pop()!)
  }

  /** Another sequence with the same tokens, on the same pages. @throws ERR_INVALID_ARGUMENT */
  fork(given: KvSequence): KvSequence {
    const source = this.check('sequence', given)
    const sequence = new Sequence(this.#nextId++, this)
    sequence.length = source.length
    for (const page of source.pages) {
      this.#users[page]!++
      sequence.pages.push(page)
    }
    this.#sequences.add(sequence)
    return sequence
  }

  /** @throws ERR_INVALID_ARGUMENT */
  free(given: KvSequence): void {
    const sequence = this.check('sequence', given)
    this.#sequences.delete(sequence)
    // In reverse, so that the next sequence gets them in their order.
    for (const page of sequence.pages.splice(0).reverse()) this.#leave(page)
    sequence.length = 0
  }

  /** @throws ERR_INVALID_ARGUMENT */
  tables(given: readonly KvSequence[]): KvPageTables {
    if (!Array.isArray(given)) throw invalidArgument('sequences', 'an array of sequences', given)
    const sequences = given.map((sequence, i) => this.check(`sequences[${i}]`, sequence))
    const indptr = new Int32Array(sequences.length + 1)
    sequences.forEach(({ pages }, i) => (indptr[i + 1] = indptr[i]! + pages.length))
    const indices = new Int32Array(indptr[sequences.length]!)
    sequences.forEach(({ pages }, i) => indices.set(pages, indptr[i]))
    return { indptr, indices, lastPageLen: Int32Array.from(sequences, (sequence) => this.#lastPageLen(sequence)) }
  }

  stats(): KvCacheStats {
    let tokens = 0
    const filled = new Int32Array(this.total)
    for (const sequence of this.#sequences) {
      tokens += sequence.length
      sequence.pages.forEach((page, i) => {
        const count = i === sequence.pages.length - 1 ? this.#lastPageLen(sequence) : this.pageSize
        filled[page] = Math.max(filled[page]!, count)
      })
    }
    const freePages = this.#free.length
    const usedPages = this.total - freePages
    const filledPlaces = filled.reduce((sum, count) => sum + count, 0)
    return {
      totalPages: this.total,
      freePages,
      usedPages,
      sharedPages: this.#users.reduce((count, users) => count + (users > 1 ? 1 : 0), 0),
      sequences: this.#sequences.size,
      tokens,
      wastedTokens: usedPages * this.pageSize - filledPlaces,
      utilisation: usedPages === 0 ? 1 : filledPlaces / (usedPages * this.pageSize),
    }
  }

  /**
   * Counts all pages anew.
   * @throws ERR_INTERNAL where a page is neither free nor used, or both, or its users are counted wrongly
   */
  checkPages(): void {
    const users = new Int32Array(this.total)
    for (const { pages } of this.#sequences) for (const page of pages) users[page]!++
    const free = new Int32Array(this.total)
    for (const page of this.#free) free[page]!++
    for (let page = 0; page < this.total; page++) {
      if (users[page] === this.#users[page] && free[page] === (users[page] === 0 ? 1 : 0)) continue
      const found = `in ${users[page]} sequences, counted as in ${this.#users[page]}, and ${free[page]} times free`
      throw new TensorRTError('ERR_INTERNAL', `Page ${page} of the KV cache is ${found}`)
    }
  }

  #lastPageLen({ length, pages }: KvSequence): number {
    return pages.length === 0 ? 0 : length - (pages.length - 1) * this.pageSize
  }

  #take(): number {
    const page = this.#free.pop()!
    this.#users[page] = 1
    return page
  }

  #leave(page: number): void {
    if (--this.#users[page]! === 0) this.#free.push(page)
  }
}
