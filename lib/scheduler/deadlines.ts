import { TensorRTError } from '../errors'
import { IndexedHeap } from './heap'
import { type Sequence, SequenceState } from './sequence'

/** When sequences must be looked at next: their timeouts, their deadlines, and when a deadline cannot be met any more. */
export class Deadlines {
  private readonly timers = new IndexedHeap<Sequence>((a, b) => a.wakeAt < b.wakeAt, 'timerIndex')

  /** @param leastServiceMs the least time that the rest of a sequence takes if nothing else runs */
  constructor(private readonly leastServiceMs: (seq: Sequence) => number) {}

  /** Sets when the sequence must be looked at next, and puts it among the timers if it is not there. */
  set(seq: Sequence): void {
    const waits = seq.deadline < Infinity && seq.state === SequenceState.WAITING
    seq.wakeAt = Math.min(seq.timeoutAt, waits ? seq.deadline - this.leastServiceMs(seq) : seq.deadline)
    if (seq.wakeAt < Infinity && !this.timers.has(seq)) this.timers.push(seq)
  }

  remove(seq: Sequence): void {
    this.timers.remove(seq)
  }

  /** Milliseconds until there is something to look at; null = nothing is timed. */
  nextWakeup(now: number): number | null {
    const seq = this.timers.peek()
    return seq === undefined ? null : Math.max(0, seq.wakeAt - now)
  }

  /** Calls `fail`, which must remove it, for each sequence that has run out of time. */
  expire(now: number, fail: (seq: Sequence, error: TensorRTError) => void): void {
    for (let seq = this.timers.peek(); seq !== undefined && seq.wakeAt <= now; seq = this.timers.peek()) {
      const error = this.overdue(seq, now)
      if (error === undefined) {
        this.set(seq)
        // A wake-up that changed nothing must not come again at once.
        if (seq.wakeAt <= now) seq.wakeAt = Math.min(seq.timeoutAt, seq.deadline)
        this.timers.update(seq)
      } else {
        fail(seq, error)
      }
    }
  }

  /** Whether the deadline of a waiting sequence cannot be met even if nothing else ran. */
  isHopeless(seq: Sequence, now: number): boolean {
    return seq.deadline < Infinity && now + this.leastServiceMs(seq) >= seq.deadline
  }

  private overdue(seq: Sequence, now: number): TensorRTError | undefined {
    if (now >= seq.timeoutAt)
      return new TensorRTError('ERR_TIMEOUT', `The request did not end within ${seq.request.timeoutMs} ms`)
    if (now >= seq.deadline) return new TensorRTError('ERR_DEADLINE_EXCEEDED', 'The deadline has passed')
    if (seq.state === SequenceState.WAITING && this.isHopeless(seq, now))
      return new TensorRTError('ERR_DEADLINE_EXCEEDED', 'The deadline cannot be met any more')
    return undefined
  }
}
