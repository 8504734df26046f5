/** Drives a server with a planned load, closed loop or open loop, and reports what its users saw. */
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { type Quantiles, quantiles } from '../llm'
import { ServeClient, type ServedRequest, type ServeTarget } from './bench_serve_client'
import { planServeLoad, type PlannedServeRequest, type ServePlanOptions } from './bench_serve_plan'

/** Bounds in milliseconds that a good request keeps. `itl` holds for 99% of the gaps of each request. */
export interface GoodputBounds {
  ttft?: number
  tpot?: number
  itl?: number
  e2e?: number
}

/** Answers requests one by one; `ServeClient` does over HTTP. */
export interface LoadClient {
  /** Requests in flight. */
  readonly active: number
  /** Never rejects: what goes wrong is in the result. */
  send(planned: PlannedServeRequest): Promise<ServedRequest>
  /** Breaks off what is in flight; the run is over. */
  close(): void
}

export interface ServeLoadOptions extends ServePlanOptions {
  /** A server, or what answers in a server's place. */
  target: ServeTarget | LoadClient
  /** Requests in flight at most; without effect where `rate` is set. */
  concurrency: number
  /** Requests in all; undefined: as many as `durationSeconds` allows. */
  requests: number | undefined
  /** No request is sent later than this; those in flight then go on to their ends. */
  durationSeconds: number | undefined
  goodput: GoodputBounds
  signal: AbortSignal
  onProgress?: ((progress: { done: number; active: number; outputTokens: number; errors: number }) => void) | undefined
}

export interface ServeLoadReport {
  /** Requests a second that were asked for, or null with `concurrency`. */
  rate: number | null
  concurrency: number | null
  requests: number
  completed: number
  failed: number
  /** Broken off by Ctrl-C: neither completed nor failed. */
  aborted: number
  errors: Record<string, { count: number; example: string | undefined }>
  /** From the first request to the last end. */
  seconds: number
  promptTokens: number
  outputTokens: number
  cachedTokens: number
  /** Completed requests whose output had another length than asked for. */
  otherLengths: number
  /** Where a request's tokens were counted by chunks, as the server tells no usage. */
  countedByChunks: number
  requestsPerSecond: number
  outputTokensPerSecond: number
  totalTokensPerSecond: number
  /** Completed requests a second within all bounds; null without bounds. */
  goodput: number | null
  /** Share of all requests that kept all bounds; failed ones did not. */
  goodShare: number | null
  ttftMs: Quantiles
  tpotMs: Quantiles
  itlMs: Quantiles
  e2eMs: Quantiles
  /** Of this process, which must not be what limits the load. */
  client: {
    /** Processor time over wall time. */
    cores: number
    eventLoopDelayMs: { mean: number; p99: number; max: number }
    /** How much later than planned requests were sent; of open loops. */
    sendDelayMs: Quantiles
    maxActive: number
  }
  interrupted: boolean
  /** One value a completed request, for pictures. Not in the JSON report. */
  samples: { ttftMs: Float64Array; itlMs: Float64Array; e2eMs: Float64Array }
}

const DELAY_RESOLUTION_MS = 5

/** A growing list of numbers, eight bytes each. */
class Samples {
  private values = new Float64Array(1024)
  private length = 0

  push(value: number): void {
    if (this.length === this.values.length) {
      const grown = new Float64Array(this.length * 2)
      grown.set(this.values)
      this.values = grown
    }
    this.values[this.length++] = value
  }

  get all(): Float64Array {
    return this.values.subarray(0, this.length)
  }
}

const within = (value: number, bound: number | undefined): boolean => bound === undefined || value <= bound

/** Adds up what the requests of one run were. */
class Tally {
  readonly ttft = new Samples()
  readonly tpot = new Samples()
  readonly itl = new Samples()
  readonly e2e = new Samples()
  completed = 0
  failed = 0
  aborted = 0
  good = 0
  promptTokens = 0
  outputTokens = 0
  cachedTokens = 0
  otherLengths = 0
  countedByChunks = 0
  lastEnd = 0
  readonly errors = new Map<string, { count: number; example: string | undefined }>()

  constructor(private readonly bounds: GoodputBounds) {}

  add(served: ServedRequest, planned: PlannedServeRequest): void {
    this.lastEnd = Math.max(this.lastEnd, served.endedAt)
    if (served.aborted) {
      this.aborted++
      return
    }
    if (served.error !== undefined) {
      this.failed++
      const known = this.errors.get(served.error)
      if (known === undefined) this.errors.set(served.error, { count: 1, example: served.detail })
      else known.count++
      return
    }
    this.completed++
    this.promptTokens += served.promptTokens
    this.outputTokens += served.outputTokens
    this.cachedTokens += served.cachedTokens
    if (served.outputTokens !== planned.outputTokens) this.otherLengths++
    if (served.counted === 'chunks') this.countedByChunks++
    const e2e = served.endedAt - served.startedAt
    const tpot = served.outputTokens > 1 ? (e2e - served.ttftMs) / (served.outputTokens - 1) : NaN
    this.e2e.push(e2e)
    if (!Number.isNaN(served.ttftMs)) this.ttft.push(served.ttftMs)
    if (!Number.isNaN(tpot)) this.tpot.push(tpot)
    for (const gap of served.gapsMs) this.itl.push(gap)
    const { bounds } = this
    const gapsKept = bounds.itl === undefined || served.gapsMs.length === 0 || quantiles(served.gapsMs).p99 <= bounds.itl
    // One token has no time between tokens, and keeps any bound of it.
    const tpotKept = Number.isNaN(tpot) || within(tpot, bounds.tpot)
    if (within(served.ttftMs, bounds.ttft) && tpotKept && gapsKept && within(e2e, bounds.e2e)) this.good++
  }
}

/** Resolves after so many milliseconds, or when the signal aborts. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, ms)
    signal.addEventListener('abort', end)
  })
}

/** Ends early, with what was measured so far, when the signal aborts. Never rejects for what a server does. */
export async function runServeLoad(options: ServeLoadOptions): Promise<ServeLoadReport> {
  const { target, signal, rate, durationSeconds } = options
  const client = 'send' in target ? target : new ServeClient(target)
  const tally = new Tally(options.goodput)
  const sendDelay = new Samples()
  const plan = planServeLoad(options)
  const limit = options.requests ?? Infinity
  let sent = 0
  let maxActive = 0

  const delays = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS })
  delays.enable()
  const processor = process.cpuUsage()
  const started = performance.now()
  const elapsed = (): number => (performance.now() - started) / 1000
  const over = (seconds: number): boolean => signal.aborted || sent >= limit || (durationSeconds !== undefined && seconds >= durationSeconds)
  const one = async (planned: PlannedServeRequest): Promise<void> => {
    sent++
    const served = client.send(planned)
    maxActive = Math.max(maxActive, client.active)
    tally.add(await served, planned)
  }
  const progress = setInterval(() => {
    options.onProgress?.({
      done: tally.completed + tally.failed,
      active: client.active,
      outputTokens: tally.outputTokens,
      errors: tally.failed,
    })
  }, 200)
  const stop = (): void => client.close()
  signal.addEventListener('abort', stop)
  try {
    if (rate === undefined) {
      const worker = async (): Promise<void> => {
        while (!over(elapsed())) await one(plan.next().value)
      }
      await Promise.all(Array.from({ length: Math.min(options.concurrency, limit) }, worker))
    } else {
      const pending = new Set<Promise<void>>()
      for (const planned of plan) {
        if (over(planned.arrival)) break
        const wait = planned.arrival * 1000 - (performance.now() - started)
        // Timers count whole milliseconds and fire late rather than early.
        if (wait >= 1) await pause(Math.floor(wait), signal)
        else if (sent % 64 === 63) await new Promise(setImmediate)
        if (signal.aborted) break
        sendDelay.push(Math.max(0, performance.now() - started - planned.arrival * 1000))
        const running = one(planned)
        pending.add(running)
        void running.finally(() => pending.delete(running))
      }
      await Promise.all(pending)
    }
  } finally {
    clearInterval(progress)
    signal.removeEventListener('abort', stop)
    client.close()
    delays.disable()
  }
  const end = Math.max(tally.lastEnd, started)
  const seconds = Math.max((end - started) / 1000, 1e-9)
  const used = process.cpuUsage(processor)
  const bounded = Object.values(options.goodput).some((bound) => bound !== undefined)
  // What is recorded is the time between two timers.
  const ms = (nanoseconds: number): number => Math.max(0, nanoseconds / 1e6 - DELAY_RESOLUTION_MS) || 0
  return {
    rate: rate ?? null,
    concurrency: rate === undefined ? options.concurrency : null,
    requests: sent,
    completed: tally.completed,
    failed: tally.failed,
    aborted: tally.aborted,
    errors: Object.fromEntries(tally.errors),
    seconds,
    promptTokens: tally.promptTokens,
    outputTokens: tally.outputTokens,
    cachedTokens: tally.cachedTokens,
    otherLengths: tally.otherLengths,
    countedByChunks: tally.countedByChunks,
    requestsPerSecond: tally.completed / seconds,
    outputTokensPerSecond: tally.outputTokens / seconds,
    totalTokensPerSecond: (tally.outputTokens + tally.promptTokens) / seconds,
    goodput: bounded ? tally.good / seconds : null,
    goodShare: bounded ? tally.good / Math.max(tally.completed + tally.failed, 1) : null,
    ttftMs: quantiles(tally.ttft.all),
    tpotMs: quantiles(tally.tpot.all),
    itlMs: quantiles(tally.itl.all),
    e2eMs: quantiles(tally.e2e.all),
    client: {
      cores: (used.user + used.system) / 1e6 / seconds,
      eventLoopDelayMs: { mean: ms(delays.mean), p99: ms(delays.percentile(99)), max: ms(delays.max) },
      sendDelayMs: quantiles(sendDelay.all),
      maxActive,
    },
    interrupted: signal.aborted,
    samples: { ttftMs: tally.ttft.all, itlMs: tally.itl.all, e2eMs: tally.e2e.all },
  }
}
