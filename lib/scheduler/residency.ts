import { TensorRTError } from '../errors'
import { before, keepIf, type Sequence, SequenceState } from './sequence'
import type { SequencePages } from './sequence_pages'
import { WaitingQueue } from './waiting_queue'

/**
 * Where each live sequence is: in the queue, in a slot with pages, or parked on the way back to the queue. All that moves a
 * sequence from one to another goes through here, so that slots, pages and queue agree.
 */
export class Residency {
  /** In order of admission. Those that have left stay until {@link sweep}. */
  readonly running: Sequence[] = []
  readonly waiting: WaitingQueue
  private readonly parked = new Set<Sequence>()
  private readonly freeSlots: number[] = []
  private left: number[] = []
  private awaited = 0

  /** @param agingMs see {@link WaitingQueue} */
  constructor(
    readonly pages: SequencePages,
    private readonly slots: number,
    private readonly vocabSize: number,
    agingMs: number,
  ) {
    this.waiting = new WaitingQueue(agingMs)
    for (let slot = slots - 1; slot >= 0; slot--) this.freeSlots.push(slot)
  }

  get freeSlotCount(): number {
    return this.freeSlots.length
  }

  get usedSlotCount(): number {
    return this.slots - this.freeSlots.length
  }

  /** Sequences without a slot. */
  get queued(): number {
    return this.waiting.size + this.parked.size
  }

  /** Sequences with a slot whose constraint is not ready. */
  get masksAwaited(): number {
    return this.awaited
  }

  /** From the queue to a slot, with the cached prefix that {@link SequencePages.lookUp} has just found for it. */
  admit(seq: Sequence): void {
    this.waiting.remove(seq)
    seq.state = SequenceState.RUNNING
    seq.slot = this.freeSlots.pop()!
    this.pages.admit(seq)
    this.running.push(seq)
    if (seq.awaitsMask) this.awaited++
  }

  /** Takes slot and pages of a running sequence: it goes on from its output when it is admitted again. */
  suspend(seq: Sequence, now: number): void {
    this.leaveSlot(seq)
    if (seq.inFlight === 0) {
      this.waiting.push(seq, now)
    } else {
      seq.state = SequenceState.PARKED
      this.parked.add(seq)
    }
  }

  /** A sequence has ended, wherever it is. */
  remove(seq: Sequence): void {
    if (seq.state === SequenceState.RUNNING) this.leaveSlot(seq)
    else if (seq.state === SequenceState.PARKED) this.parked.delete(seq)
    else this.waiting.remove(seq)
    seq.state = SequenceState.FINISHED
  }

  /** A step that these sequences had rows in is over. */
  stepEnded(sequences: readonly Sequence[], now: number): void {
    for (const seq of sequences) {
      seq.inFlight--
      if (seq.state === SequenceState.PARKED && seq.inFlight === 0) {
        this.parked.delete(seq)
        this.waiting.push(seq, now)
      }
    }
  }

  /** The executor and its slots are gone, and no step is in flight any more: everything is in the queue. */
  vacate(now: number): void {
    for (const seq of this.running) {
      if (seq.state !== SequenceState.RUNNING) continue
      this.leaveSlot(seq)
      this.waiting.push(seq, now)
    }
    this.running.length = 0
    for (const seq of this.parked) this.waiting.push(seq, now)
    this.parked.clear()
    this.left = []
  }

  /** Forgets in {@link running} those that have left. */
  sweep(): void {
    keepIf(this.running, (seq) => seq.state === SequenceState.RUNNING)
  }

  /** Whether a sequence that only waits for its last step to end comes first: it must not lose its turn to a newcomer. */
  parkedBefore(seq: Sequence): boolean {
    for (const parked of this.parked) if (before(parked, seq)) return true
    return false
  }

  /** Slots that were left since the last call. */
  takeLeftSlots(): readonly number[] {
    const { left } = this
    this.left = []
    return left
  }

  /** Tells a sequence's constraint of a sampled token. @returns why the sequence cannot go on */
  follow(seq: Sequence, token: number): TensorRTError | undefined {
    const before = seq.awaitsMask
    const error = seq.follow(token, this.vocabSize)
    this.recount(seq, before)
    return error
  }

  /** The mask that a sequence awaits may be there. @returns why the sequence cannot go on */
  resume(seq: Sequence, now: number): TensorRTError | undefined {
    const before = seq.awaitsMask
    const error = seq.resume(this.vocabSize)
    this.recount(seq, before)
    if (error === undefined && !seq.awaitsMask) this.waiting.resume(seq, now)
    return error
  }

  /** @throws ERR_INTERNAL where pages, slots or masks that are awaited do not add up; O(pages) */
  check(): void {
    const running = this.running.filter((seq) => seq.state === SequenceState.RUNNING)
    this.pages.check(running)
    const slots = new Set([...this.freeSlots, ...running.map((seq) => seq.slot)])
    if (slots.size !== this.slots)
      throw new TensorRTError('ERR_INTERNAL', `${slots.size} of ${this.slots} slots are accounted for`)
    const awaited = running.filter((seq) => seq.awaitsMask).length
    if (awaited !== this.awaited)
      throw new TensorRTError('ERR_INTERNAL', `${awaited} sequences await masks, ${this.awaited} were counted`)
  }

  private recount(seq: Sequence, before: boolean): void {
    if (seq.state === SequenceState.RUNNING && seq.awaitsMask !== before) this.awaited += before ? -1 : 1
  }

  private leaveSlot(seq: Sequence): void {
    if (seq.awaitsMask) this.awaited--
    this.pages.release(seq)
    this.left.push(seq.slot)
    this.freeSlots.push(seq.slot)
    seq.slot = -1
  }
}
