import type { Deadlines } from './deadlines'
import type { Residency } from './residency'
import type { Sequence } from './sequence'
import type { SchedulerCounters } from './types'

interface Group {
  sequences: readonly Sequence[]
  /** Those that have not finished. */
  live: number
}

/** How a sequence ends: the counter of such ends. */
export type EndCounter = 'sequencesFinished' | 'sequencesFailed' | 'sequencesAborted'

/** The requests that live, by their ids, and the end of their sequences. */
export class LiveRequests {
  private readonly groups = new Map<string | number, Group>()

  constructor(
    private readonly residency: Residency,
    private readonly deadlines: Deadlines,
    private readonly counters: SchedulerCounters,
  ) {}

  get size(): number {
    return this.groups.size
  }

  has(id: string | number): boolean {
    return this.groups.has(id)
  }

  /** @param sequences all those of one request, at least one of which has not finished */
  add(sequences: readonly Sequence[]): void {
    this.groups.set(sequences[0]!.id, { sequences, live: sequences.filter((seq) => !seq.finished).length })
  }

  /** @returns undefined where it does not live */
  find(id: string | number, index: number): Sequence | undefined {
    const seq = this.groups.get(id)?.sequences[index]
    return seq === undefined || seq.finished ? undefined : seq
  }

  /** Ends a live sequence, in whatever state. */
  end(seq: Sequence, counter: EndCounter): void {
    this.residency.remove(seq)
    this.deadlines.remove(seq)
    seq.constraint?.close?.()
    this.counters[counter]++
    const group = this.groups.get(seq.id)!
    if (--group.live === 0) this.groups.delete(seq.id)
  }

  /** @returns the sequences that were ended; undefined where no such request lives */
  abort(id: string | number): Sequence[] | undefined {
    const group = this.groups.get(id)
    if (group === undefined) return undefined
    const ended = group.sequences.filter((seq) => !seq.finished)
    for (const seq of ended) this.end(seq, 'sequencesAborted')
    return ended
  }

  /** Aborts everything. @returns the sequences that were ended */
  clear(): Sequence[] {
    return [...this.groups.keys()].flatMap((id) => this.abort(id) ?? [])
  }

  /** Gives up everything, which must be in the queue, without ending it. @returns all sequences of each request */
  release(): (readonly Sequence[])[] {
    const requests = [...this.groups.values()].map((group) => group.sequences)
    this.groups.clear()
    for (const seq of requests.flat()) {
      if (seq.finished) continue
      this.residency.waiting.remove(seq)
      this.deadlines.remove(seq)
      seq.lastStep = seq.taint = -1
    }
    return requests
  }
}
