import { IndexedHeap } from './heap'
import { before, type Sequence, SequenceState } from './sequence'

/**
 * Sequences without a slot, most urgent first. Waiting makes urgent: the rank falls by one each `agingMs` since
 * arrival, which bounds how long anything can be overtaken.
 */
export class WaitingQueue {
  private readonly heap = new IndexedHeap<Sequence>(before, 'waitingIndex')
  private readonly promotions = new IndexedHeap<Sequence>((a, b) => a.promoteAt < b.promoteAt, 'promotionIndex')
  private readonly aside: Sequence[] = []
  /** Those that await a mask: they have no turn until {@link resume}. */
  private readonly held = new Set<Sequence>()

  constructor(private readonly agingMs: number) {}

  get size(): number {
    return this.heap.size + this.aside.length + this.held.size
  }

  push(seq: Sequence, now: number): void {
    seq.state = SequenceState.WAITING
    if (seq.awaitsMask) {
      this.held.add(seq)
      return
    }
    this.setRank(seq, now)
    this.heap.push(seq)
    this.promotions.push(seq)
  }

  peek(): Sequence | undefined {
    return this.heap.peek()
  }

  /** The mask of one that awaited it is there. */
  resume(seq: Sequence, now: number): void {
    if (this.held.delete(seq)) this.push(seq, now)
  }

  get heldCount(): number {
    return this.held.size
  }

  remove(seq: Sequence): void {
    if (this.held.delete(seq)) return
    this.heap.remove(seq)
    this.promotions.remove(seq)
  }

  /** Passes over the first sequence until {@link restore}. */
  setAside(): void {
    const seq = this.heap.pop()
    if (seq !== undefined) this.aside.push(seq)
  }

  get setAsideCount(): number {
    return this.aside.length
  }

  restore(): void {
    for (const seq of this.aside) this.heap.push(seq)
    this.aside.length = 0
  }

  /** Brings the ranks up to date. */
  promote(now: number): void {
    for (let seq = this.promotions.peek(); seq !== undefined && seq.promoteAt <= now; seq = this.promotions.peek()) {
      this.setRank(seq, now)
      this.promotions.update(seq)
      this.heap.update(seq)
    }
  }

  private setRank(seq: Sequence, now: number): void {
    const levels = Math.max(0, Math.floor((now - seq.arrival) / this.agingMs))
    seq.rank = seq.priority - levels
    seq.promoteAt = seq.arrival + (levels + 1) * this.agingMs
  }
}
