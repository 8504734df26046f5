/** The requests that wait and could ride in one batch, in the order in which they are served. */
import type { BatchCost } from './batch_cost'

/** By as much a timer may be late. */
const TIMER_SLACK_MS = 2

/** What requests must have in common to ride in one batch: the same shape but for the batch axis. Compared by identity. */
export interface BatchShape {
  /** Most rows of a batch. */
  readonly maxRows: number
  /** Row counts at which a batch is sent off without waiting for more, ascending; the last one is `maxRows`. */
  readonly preferredSizes: readonly number[]
  /** Row counts that are run, ascending, up to `maxRows`; a batch in between is padded. Empty: every count is run as it is. */
  readonly runSizes: readonly number[]
  readonly cost: BatchCost
}

/** A request as the batcher sees it. All times are milliseconds of one monotonic clock. */
export class BatchRequest {
  /** Runs in a batch of its own, before all others. */
  alone = false
  /** @internal Where it waits; null: it doesn't. */
  queue: RequestQueue<BatchRequest> | null = null
  /** @internal */
  level: PriorityLevel | null = null
  /** @internal */
  previous: BatchRequest | null = null
  /** @internal */
  next: BatchRequest | null = null

  constructor(
    /** Positions along the batch axis, from 1 to `shape.maxRows`. */
    readonly rows: number,
    public shape: BatchShape,
    readonly arrival: number,
    /** Lower is more urgent. */
    readonly priority = 0,
    /** When it must be done; Infinity: whenever. */
    readonly deadline = Infinity,
  ) {}

  /** The moment at which it must start at the latest, as far as one can tell. */
  get latestStart(): number {
    return this.deadline - this.shape.cost.least(paddedRows(this.shape, this.rows))
  }
}

/** The rows that run when a batch has `rows`. */
export function paddedRows(shape: BatchShape, rows: number): number {
  for (const size of shape.runSizes) if (size >= rows) return size
  return rows
}

/** Requests of one priority, in the order of their arrival. */
class PriorityLevel {
  first: BatchRequest | null = null
  last: BatchRequest | null = null
  rows = 0

  constructor(readonly priority: number) {}
}

/**
 * Within a priority first come, first served. Between priorities by rank: the arrival, as if a request of priority p had come `agingMs`
 * milliseconds later for each level. So a request is overtaken by later ones for so long and no longer.
 */
export class RequestQueue<R extends BatchRequest> {
  count = 0
  rows = 0
  /** No later than the first `latestStart`: by then a request may have to be refused. */
  overdueAt = Infinity
  /** No later than the first moment at which a request that waits for others longer would risk its deadline. */
  hurryAt = Infinity
  /** Requests with a deadline. */
  private bounded = 0
  /** By priority, the most urgent first. Few, so that a scan beats a heap. */
  private readonly levels: PriorityLevel[] = []

  constructor(
    readonly shape: BatchShape,
    private readonly agingMs: number,
  ) {}

  push(request: R): void {
    const level = this.levelOf(request.priority)
    request.queue = this as unknown as RequestQueue<BatchRequest>
    request.level = level
    request.previous = level.last
    if (level.last === null) level.first = request
    else level.last.next = request
    level.last = request
    level.rows += request.rows
    this.rows += request.rows
    this.count++
    if (request.deadline !== Infinity) {
      this.bounded++
      this.bound(request)
    }
  }

  remove(request: R): void {
    const level = request.level!
    const { previous, next } = request
    if (previous === null) level.first = next
    else previous.next = next
    if (next === null) level.last = previous
    else next.previous = previous
    request.queue = request.level = request.previous = request.next = null
    level.rows -= request.rows
    this.rows -= request.rows
    this.count--
    if (request.deadline !== Infinity && --this.bounded === 0) this.overdueAt = this.hurryAt = Infinity
    if (level.first === null) this.levels.splice(this.levels.indexOf(level), 1)
  }

  /** The next one to be served. */
  peek(): R | null {
    let best: BatchRequest | null = null
    let bestRank = Infinity
    for (const { first } of this.levels) {
      const rank = this.rank(first!)
      // Of equal ranks the more urgent priority.
      if (rank < bestRank) {
        best = first
        bestRank = rank
      }
    }
    return best as R | null
  }

  /** Lower is served first. */
  rank(request: BatchRequest): number {
    return request.arrival + request.priority * this.agingMs
  }

  /** Arrival of the request that waits longest. */
  get oldest(): number {
    let oldest = Infinity
    for (const { first } of this.levels) oldest = Math.min(oldest, first!.arrival)
    return oldest
  }

  /** Rows of requests that are as urgent as `priority`, or more. */
  rowsAhead(priority: number): number {
    let rows = 0
    for (const level of this.levels) {
      if (level.priority > priority) break
      rows += level.rows
    }
    return rows
  }

  /** Moves requests that cannot meet their deadline any more to `overdue`, and makes `overdueAt` and `hurryAt` exact. */
  takeOverdue(now: number, overdue: R[]): void {
    this.overdueAt = this.hurryAt = Infinity
    if (this.bounded === 0) return
    for (const request of this) {
      if (request.deadline === Infinity) continue
      if (request.latestStart < now) {
        overdue.push(request)
        this.remove(request)
      } else {
        this.bound(request)
      }
    }
  }

  private bound(request: BatchRequest): void {
    this.overdueAt = Math.min(this.overdueAt, request.latestStart)
    // It may ride in the largest batch.
    const comfortable = request.deadline - this.shape.cost.expected(this.shape.maxRows) - TIMER_SLACK_MS
    this.hurryAt = Math.min(this.hurryAt, comfortable)
  }

  /** In no particular order. The one that is handed out may be removed. */
  *[Symbol.iterator](): Iterator<R> {
    for (const level of this.levels.slice()) {
      for (let request = level.first, next: BatchRequest | null; request !== null; request = next) {
        next = request.next
        yield request as R
      }
    }
  }

  private levelOf(priority: number): PriorityLevel {
    const { levels } = this
    let at = 0
    while (at < levels.length && levels[at]!.priority < priority) at++
    if (levels[at]?.priority === priority) return levels[at]!
    const level = new PriorityLevel(priority)
    levels.splice(at, 0, level)
    return level
  }
}
