import { TensorRTError } from '../errors'
import type { BlockManager } from './block_manager'
import type { Sequence } from './sequence'

/**
 * The block table: which pages each slot's sequence holds, in order of position. `[maxSlots, pages of the longest
 * sequence]`
 */
export class SequencePages {
  readonly table: Int32Array
  /** Pages per row of the table. */
  readonly stride: number
  private readonly prefix: Int32Array
  private prefixLength = 0

  constructor(
    readonly blocks: BlockManager,
    maxSlots: number,
    maxPositions: number,
  ) {
    this.stride = Math.min(Math.ceil(maxPositions / blocks.pageSize), blocks.numPages)
    this.table = new Int32Array(maxSlots * this.stride)
    this.prefix = new Int32Array(this.stride)
  }

  /**
   * Full pages at the start of the sequence that need no computing if they are found: at least one row must run to
   * sample from, and rows whose log-probabilities or hidden states are still to be reported must run too.
   */
  shareable(seq: Sequence): number {
    if (seq.salt === null || seq.request.embed === 'all') return 0
    const positions = seq.nextPromptLogprob < seq.promptLength ? seq.nextPromptLogprob - 1 : seq.known - 1
    return Math.floor(positions / this.blocks.pageSize)
  }

  /** Looks up the sequence's cached prefix for a following {@link admit}. @returns its length in pages. */
  lookUp(seq: Sequence): number {
    const pages = this.shareable(seq)
    this.prefixLength = pages === 0 ? 0 : this.blocks.match(seq.tokens, pages, seq.salt!, this.prefix)
    return this.prefixLength
  }

  /** Available pages that admitting the sequence would take, after {@link lookUp}. */
  cost(seq: Sequence): number {
    let cost = Math.ceil(seq.known / this.blocks.pageSize) - this.prefixLength
    for (let i = 0; i < this.prefixLength; i++) if (this.blocks.refCount(this.prefix[i]!) === 0) cost++
    return cost
  }

  /** Gives the sequence, which has a slot, the prefix that was looked up and new pages for all its known tokens. */
  admit(seq: Sequence): void {
    const { blocks, table, prefix, prefixLength } = this
    const row = seq.slot * this.stride
    const total = Math.ceil(seq.known / blocks.pageSize)
    // First the shared pages: taking a new page could otherwise evict one of them.
    for (let i = 0; i < prefixLength; i++) {
      blocks.retainPage(prefix[i]!)
      table[row + i] = prefix[i]!
    }
    for (let i = prefixLength; i < total; i++) table[row + i] = this.take()
    seq.pageCount = total
    seq.computed = prefixLength * blocks.pageSize
    seq.published = prefixLength
    seq.chain = prefixLength > 0 ? blocks.contentOf(prefix[prefixLength - 1]!) : 0
  }

  grow(seq: Sequence): void {
    this.table[seq.slot * this.stride + seq.pageCount] = this.take()
    seq.pageCount++
  }

  /** Makes the pages findable whose tokens are known and whose keys and values a submitted step has written. */
  publish(seq: Sequence): void {
    if (seq.salt === null) return
    const { pageSize } = this.blocks
    const end = Math.min(seq.computed, seq.known)
    while ((seq.published + 1) * pageSize <= end) {
      const page = this.table[seq.slot * this.stride + seq.published]!
      seq.chain = this.blocks.publish(page, seq.chain, seq.tokens, seq.published * pageSize, seq.salt)
      seq.published++
    }
  }

  /** Last page first: the deeper a page, the sooner its content is given up. */
  release(seq: Sequence): void {
    const row = seq.slot * this.stride
    for (let i = seq.pageCount - 1; i >= 0; i--) this.blocks.releaseAfter(this.table[row + i]!, seq.lastStep)
    seq.pageCount = 0
    seq.computed = 0
    seq.published = 0
    seq.chain = 0
  }

  /** See {@link BlockManager.check}; `holders` are all sequences that hold pages. */
  check(holders: Iterable<Sequence>): void {
    const owned = new Int32Array(this.blocks.numPages)
    for (const seq of holders) {
      const row = seq.slot * this.stride
      for (let i = 0; i < seq.pageCount; i++) owned[this.table[row + i]!]!++
    }
    this.blocks.check(owned)
  }

  private take(): number {
    const page = this.blocks.allocate()
    if (page < 0) throw new TensorRTError('ERR_INTERNAL', 'A page was granted that is not available')
    return page
  }
}
