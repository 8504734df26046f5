/** What a session counts. Everything is plain numbers, for a metrics exporter to read. */
import type { LaneCounters, SessionBackend } from './session_backend'

/** Times of one kind, over all requests or batches since the session was ready. */
export interface DurationStats {
  count: number
  /** Milliseconds, as the rest. */
  sum: number
  max: number
  /** Quantiles are exact to 9%, as they come of a histogram with buckets that wide. 0 while nothing was measured. */
  p50: number
  p90: number
  p99: number
}

export interface LaneStats {
  /** Share of the time since the session was ready, in which a batch was on the lane. 0 to 1. */
  utilisation: number
  /** Time in which a batch was on the lane, milliseconds: of its growth between two readings follows the utilisation between them. */
  busyMs: number
  /** Batches that have ended. */
  batches: number
  /** GPU: host time in TensorRT's enqueue and in graph launches, milliseconds. */
  enqueueMs: number
  /** GPU: runs that were enqueued one command after the other. */
  enqueues: number
  /** GPU: runs that were replayed as CUDA graphs. */
  graphLaunches: number
  /** GPU: changes of a context's shape or profile that TensorRT had to take in. */
  contextSwitches: number
  /** GPU: context switches of the stream's threads, as the operating system counts them. */
  voluntarySwitches: number
  involuntarySwitches: number
}

/** See `session.stats()`. Counters only grow, and begin when the session is ready. */
export interface SessionStats {
  /** Which backend runs the model now. */
  backend: 'tensorrt' | 'onnxruntime'
  /** Requests that wait. */
  queued: number
  /** Requests that run. */
  running: number
  /** Requests that were answered. */
  completed: number
  /** Requests that were rejected with an error after they were taken in: failed runs, timeouts, missed deadlines. */
  failed: number
  /** Requests that their callers aborted. */
  aborted: number
  /** Requests that were never queued: invalid inputs, a full queue, a deadline that could not be met. */
  refused: number
  /** Batches that have ended, with or without an error. */
  batches: number
  /** Batches by their rows, padding not counted. */
  batchSizes: Readonly<Record<number, number>>
  /** Rows that ran in batches, padding not counted. */
  rows: number
  /** Rows that ran to fill batches up to a size. */
  paddedRows: number
  /** Requests that ran again by themselves after their batch had failed. */
  retried: number
  /** Requests that another backend ran after the first one had died. */
  failedOver: number
  /** From the call of `run` to the start of the batch, by request. */
  queueTime: DurationStats
  /** From the start of the batch to its outputs, by batch: copies, inference, and waiting behind the batch before. */
  runTime: DurationStats
  /** Copying inputs into the batch and handing it to the device, by batch: time of the event loop. */
  submitTime: DurationStats
  /** GPU: calls of cudaMalloc and its kin since the session was ready, by the whole process. */
  deviceAllocations: number
  /** By lane. */
  lanes: LaneStats[]
}

/** Buckets of a histogram grow by 2^(1/8). */
const STEPS = 8
/** Milliseconds of the first bucket. */
const FIRST = 0.0005
const BUCKETS = 33 * STEPS

export class DurationHistogram {
  private readonly counts = new Float64Array(BUCKETS)
  private count = 0
  private sum = 0
  private max = 0

  add(ms: number): void {
    const bucket = ms <= FIRST ? 0 : Math.min(BUCKETS - 1, Math.ceil(Math.log2(ms / FIRST) * STEPS))
    this.counts[bucket]!++
    this.count++
    this.sum += ms
    if (ms > this.max) this.max = ms
  }

  stats(): DurationStats {
    const { count, sum, max } = this
    return { count, sum, max, p50: this.quantile(0.5), p90: this.quantile(0.9), p99: this.quantile(0.99) }
  }

  reset(): void {
    this.counts.fill(0)
    this.count = this.sum = this.max = 0
  }

  private quantile(q: number): number {
    if (this.count === 0) return 0
    const wanted = Math.ceil(q * this.count)
    let seen = 0
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.counts[bucket]!
      if (seen >= wanted) return Math.min(this.max, FIRST * 2 ** (bucket / STEPS))
    }
    return this.max
  }
}

/** The counters behind {@link SessionStats}. */
export class SessionCounters {
  completed = 0
  failed = 0
  aborted = 0
  refused = 0
  retried = 0
  failedOver = 0
  batches = 0
  rows = 0
  paddedRows = 0
  readonly batchSizes = new Map<number, number>()
  readonly queueTime = new DurationHistogram()
  readonly runTime = new DurationHistogram()
  readonly submitTime = new DurationHistogram()
  private lanes: { batches: number; busyMs: number; busySince: number; running: number }[] = []
  private readyAt = 0

  /** Starts anew, with the lanes of this backend. */
  reset(lanes: number, now: number): void {
    this.completed = this.failed = this.aborted = this.refused = this.retried = this.failedOver = 0
    this.batches = this.rows = this.paddedRows = 0
    this.batchSizes.clear()
    for (const histogram of [this.queueTime, this.runTime, this.submitTime]) histogram.reset()
    this.useLanes(lanes, now)
  }

  /** Lanes of another backend. */
  useLanes(lanes: number, now: number): void {
    this.readyAt = now
    this.lanes = Array.from({ length: lanes }, () => ({ batches: 0, busyMs: 0, busySince: 0, running: 0 }))
  }

  batchTaken(lane: number, now: number): void {
    const counted = this.lanes[lane]!
    if (counted.running++ === 0) counted.busySince = now
  }

  batchEnded(lane: number, rows: number, size: number, runMs: number, submitMs: number, now: number): void {
    const counted = this.lanes[lane]!
    counted.batches++
    if (--counted.running === 0) counted.busyMs += now - counted.busySince
    this.batches++
    this.rows += rows
    this.paddedRows += size - rows
    this.batchSizes.set(rows, (this.batchSizes.get(rows) ?? 0) + 1)
    this.runTime.add(runMs)
    this.submitTime.add(submitMs)
  }

  laneStats(device: DeviceReadings, now: number): LaneStats[] {
    return this.lanes.map(({ batches, busyMs, busySince, running }, lane) => {
      const busy = busyMs + (running > 0 ? now - busySince : 0)
      return {
        utilisation: now > this.readyAt ? Math.min(1, busy / (now - this.readyAt)) : 0,
        busyMs: busy,
        batches,
        enqueueMs: device.of(lane, 'enqueueUs') / 1000,
        enqueues: device.of(lane, 'enqueues'),
        graphLaunches: device.of(lane, 'graphLaunches'),
        contextSwitches: device.of(lane, 'contextSwitches'),
        voluntarySwitches: device.of(lane, 'voluntarySwitches'),
        involuntarySwitches: device.of(lane, 'involuntarySwitches'),
      }
    })
  }
}

interface Reading {
  lanes: readonly LaneCounters[]
  allocations: number
}

/** What a backend counts itself, since `start`. */
export class DeviceReadings {
  private first: Reading = { lanes: [], allocations: 0 }
  private last = this.first

  /** Counts from here on. */
  start(backend: SessionBackend): void {
    this.read(backend)
    this.first = this.last
  }

  /** A backend that is closed or dead may say nothing any more: what it said last stays. */
  read(backend: SessionBackend): void {
    try {
      this.last = { lanes: backend.counters(), allocations: backend.deviceAllocations() }
    } catch {
      // Kept as it is.
    }
  }

  /** Calls of cudaMalloc and its kin. */
  get allocations(): number {
    return this.last.allocations - this.first.allocations
  }

  of(lane: number, name: keyof LaneCounters): number {
    return (this.last.lanes[lane]?.[name] ?? 0) - (this.first.lanes[lane]?.[name] ?? 0)
  }
}
