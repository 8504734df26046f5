/**
 * Which requests run together, when, and on which lane. Pure policy: no timer, no clock of its own, no I/O. The caller says what time it
 * is, hands batches to lanes, and comes back when a batch has ended or `nextWake` has come.
 *
 * A lane runs one batch after the other, as a CUDA stream does. While it runs one, others may stand by on it (`depth`), so that the device
 * need not wait for the host. What would gain from waiting does not stand by.
 */
import { TensorRTError } from '../../errors'
import { type BatchRequest, type BatchShape, paddedRows, RequestQueue } from './request_queue'

export interface BatcherOptions {
  lanes: number
  /** Batches that a lane holds at most, the running one included. */
  depth: number
  /** Milliseconds that a request may wait for others while a lane is idle. */
  maxDelayMs: number
  /** Requests that may wait. */
  maxQueue: number
  /** Milliseconds of waiting that outweigh one level of priority. */
  agingMs: number
}

/** Requests that run together, in this order along the batch axis. */
export interface Batch<R extends BatchRequest> {
  readonly lane: number
  readonly requests: readonly R[]
  readonly shape: R['shape']
  /** Rows of the requests. */
  readonly rows: number
  /** Rows that run: `rows` and padding. */
  readonly size: number
  /** When it began to run; of one that stands by, when it was taken. */
  startedAt: number
}

export class DynamicBatcher<R extends BatchRequest> {
  /** Batches of each lane, the running one first. */
  private readonly lanes: Batch<R>[][]
  /** Of shapes that requests wait for. */
  private readonly queues = new Map<BatchShape, RequestQueue<R>>()
  /** Requests that run in batches of their own, first come, first served. */
  private readonly solitary: R[] = []
  private refused: R[] = []
  private waiting = 0

  constructor(readonly options: Readonly<BatcherOptions>) {
    this.lanes = Array.from({ length: options.lanes }, () => [])
  }

  /** Requests that wait. */
  get size(): number {
    return this.waiting
  }

  /** Batches that were taken and have not ended. */
  get running(): number {
    return this.lanes.reduce((sum, batches) => sum + batches.length, 0)
  }

  /** @throws ERR_QUEUE_FULL; ERR_DEADLINE_EXCEEDED when the deadline cannot be met, as far as one can tell */
  add(request: R, now: number): void {
    const { maxQueue } = this.options
    if (this.waiting >= maxQueue) {
      throw new TensorRTError('ERR_QUEUE_FULL', `${this.waiting} requests wait, and the queue holds ${maxQueue}`, {
        hint: 'send fewer requests at a time, or raise maxQueue',
      })
    }
    if (request.deadline !== Infinity) {
      if (request.deadline <= now) {
        throw new TensorRTError('ERR_DEADLINE_EXCEEDED', `The deadline passed ${(now - request.deadline).toFixed(1)} ms before the call`, {
          hint: '"deadline" is a Date or milliseconds since the epoch; for a time from now there is "timeoutMs"',
        })
      }
      const start = this.predictedStart(request, now)
      if (start > request.latestStart) {
        const late = request.shape.cost.least(paddedRows(request.shape, request.rows)) + start - request.deadline
        throw new TensorRTError('ERR_DEADLINE_EXCEEDED', `The deadline would be missed by ${late.toFixed(1)} ms or more`, {
          hint: 'the queue is too long for it: send fewer requests, or allow more time',
        })
      }
    }
    this.restore(request)
  }

  /** Takes a request in whatever its deadline and the queue's limit; those of one priority in the order of their arrival. */
  restore(request: R): void {
    this.waiting++
    if (request.alone) {
      this.solitary.push(request)
      return
    }
    let queue = this.queues.get(request.shape)
    if (queue === undefined) {
      queue = new RequestQueue<R>(request.shape, this.options.agingMs)
      this.queues.set(request.shape, queue)
    }
    queue.push(request)
  }

  /** @returns whether it was waiting, which it does no longer */
  remove(request: R): boolean {
    if (request.queue !== null) {
      this.unqueue(request.queue as unknown as RequestQueue<R>, request)
      return true
    }
    const at = request.alone ? this.solitary.indexOf(request) : -1
    if (at < 0) return false
    this.solitary.splice(at, 1)
    this.waiting--
    return true
  }

  /** All that wait, which they do no longer; by arrival. */
  clear(): R[] {
    const all = [...this.solitary]
    for (const queue of this.queues.values()) all.push(...queue)
    for (const request of all) this.remove(request)
    return all.sort((a, b) => a.arrival - b.arrival)
  }

  /** The next batch to be handed to its lane; null: none now. To be called until it is null. */
  take(now: number): Batch<R> | null {
    if (this.waiting === 0) return null
    const lane = this.freeLane(now)
    if (lane < 0) return null
    const startsAt = this.freeAt(lane, now)
    const isIdle = this.lanes[lane]!.length === 0
    const single = this.solitary[0]
    if (single !== undefined) {
      this.remove(single)
      return this.hand(lane, [single], single.rows, now)
    }
    for (;;) {
      const queue = this.choose(now, isIdle)
      if (queue === null) return null
      const { requests, rows } = this.compose(queue, now, startsAt)
      if (requests.length > 0) return this.hand(lane, requests, rows, now)
    }
  }

  /**
   * To be called once for each batch that was taken, when it has ended.
   * @param measured whether it ran as it should, and its time is worth learning from
   */
  done(batch: Batch<R>, now: number, measured: boolean): void {
    const batches = this.lanes[batch.lane]!
    const at = batches.indexOf(batch)
    if (at < 0) throw new TensorRTError('ERR_INTERNAL', 'A batch ended that does not run')
    batches.splice(at, 1)
    if (at > 0) return
    if (measured) batch.shape.cost.observe(batch.size, now - batch.startedAt)
    const next = batches[0]
    if (next !== undefined) next.startedAt = now
  }

  /** Requests that can no longer meet their deadline, as was found since the last call. They wait no longer. */
  takeRefused(now: number): readonly R[] {
    for (const queue of this.queues.values()) if (queue.overdueAt < now) this.refuseOverdue(queue, now)
    if (this.refused.length === 0) return this.refused
    const refused = this.refused
    this.refused = []
    return refused
  }

  /** When `take` or `takeRefused` may have something although nothing else has happened; Infinity: never. */
  nextWake(): number {
    const someIdle = this.lanes.some((batches) => batches.length === 0)
    let at = Infinity
    for (const queue of this.queues.values()) {
      at = Math.min(at, queue.overdueAt)
      if (someIdle) at = Math.min(at, queue.oldest + this.options.maxDelayMs, queue.hurryAt)
    }
    return at
  }

  /** An idle lane; else, of those where one more may stand by, the one that is free first; -1: none. */
  private freeLane(now: number): number {
    let best = -1
    let bestAt = Infinity
    for (const [lane, { length }] of this.lanes.entries()) {
      if (length === 0) return lane
      if (length >= this.options.depth) continue
      const at = this.freeAt(lane, now)
      if (at < bestAt) {
        best = lane
        bestAt = at
      }
    }
    return best
  }

  /** When the lane's batches will have ended. */
  private freeAt(lane: number, now: number): number {
    let end = now
    for (const [i, { startedAt, shape, size }] of this.lanes[lane]!.entries()) {
      end = Math.max(now, (i === 0 ? startedAt : end) + shape.cost.least(size))
    }
    return end
  }

  private predictedStart(request: R, now: number): number {
    let workMs = 0
    for (const { shape, rows } of this.ahead(request)) {
      const rest = rows % shape.maxRows
      workMs += ((rows - rest) / shape.maxRows) * shape.cost.least(shape.maxRows)
      // The rest of its own queue may ride in its own batch.
      if (shape !== request.shape && rest > 0) workMs += shape.cost.least(paddedRows(shape, rest))
    }
    let free = Infinity
    for (let lane = 0; lane < this.lanes.length; lane++) free = Math.min(free, this.freeAt(lane, now))
    return free + workMs / this.lanes.length
  }

  /** Waiting rows that are as urgent as the request, or more. */
  private *ahead(request: R): Iterable<{ shape: BatchShape; rows: number }> {
    for (const { shape, rows } of this.solitary) yield { shape, rows }
    for (const [shape, queue] of this.queues) yield { shape, rows: queue.rowsAhead(request.priority) }
  }

  /** Whether the requests of a queue have waited for others as long as they may. */
  private hasWaited(queue: RequestQueue<R>, now: number): boolean {
    return queue.oldest + this.options.maxDelayMs <= now || queue.hurryAt <= now
  }

  /** Of the queues that could make a batch now, the one whose first request is to be served first. */
  private choose(now: number, isIdle: boolean): RequestQueue<R> | null {
    let best: RequestQueue<R> | null = null
    let bestRank = Infinity
    let someFull = false
    for (const queue of this.queues.values()) {
      const isFull = queue.rows >= queue.shape.maxRows
      someFull ||= isFull
      const isReady = isFull || (isIdle && queue.rows >= queue.shape.preferredSizes[0]!) || this.hasWaited(queue, now)
      if (!isReady) continue
      const rank = queue.rank(queue.peek()!)
      if (rank < bestRank) {
        best = queue
        bestRank = rank
      }
    }
    // Where no lane is idle and no batch full, requests gain from waiting for more. With a full one behind it, a batch goes its way.
    return isIdle || someFull ? best : null
  }

  /** Takes a batch out of the queue. Empty when all that it has must be refused. */
  private compose(queue: RequestQueue<R>, now: number, startsAt: number): { requests: R[]; rows: number } {
    const { shape } = queue
    let limit = shape.maxRows
    if (!this.hasWaited(queue, now)) for (const size of shape.preferredSizes) if (size <= queue.rows) limit = size
    const requests: R[] = []
    let rows = 0
    let deadline = Infinity
    for (let request = queue.peek(); request !== null; request = queue.peek()) {
      if (request.deadline !== Infinity && request.latestStart < startsAt) {
        this.unqueue(queue, request)
        this.refused.push(request)
        continue
      }
      const together = rows + request.rows
      const first = Math.min(deadline, request.deadline)
      if (requests.length > 0) {
        if (together > limit) break
        // A larger batch takes longer: it must not cost anybody the deadline.
        if (first !== Infinity && startsAt + shape.cost.expected(paddedRows(shape, together)) > first) break
      }
      this.unqueue(queue, request)
      requests.push(request)
      rows = together
      deadline = first
    }
    // Those that made it urgent have left.
    if (queue.count > 0 && queue.hurryAt <= now) this.refuseOverdue(queue, now)
    return { requests, rows }
  }

  private refuseOverdue(queue: RequestQueue<R>, now: number): void {
    const before = this.refused.length
    queue.takeOverdue(now, this.refused)
    this.waiting -= this.refused.length - before
    if (queue.count === 0) this.queues.delete(queue.shape)
  }

  private unqueue(queue: RequestQueue<R>, request: R): void {
    queue.remove(request)
    this.waiting--
    if (queue.count === 0) this.queues.delete(queue.shape)
  }

  private hand(lane: number, requests: R[], rows: number, now: number): Batch<R> {
    const { shape } = requests[0]!
    const batch = { lane, requests, shape, rows, size: paddedRows(shape, rows), startedAt: now }
    this.lanes[lane]!.push(batch)
    return batch
  }
}
