/**
 * A server in virtual time: the real scheduler and the real admission over an executor that takes as long as a cost model says.
 * Deterministic, and some hundred times faster than what it stands for.
 */
import { seededRandom } from '../../lib/llm'
import type { LLMLoad } from '../../lib/llm'
import { GREEDY_SAMPLING, Scheduler, type SchedulerOptions, STEP_HEADER_INTS, STEP_SEQUENCE_INTS, StepFlag, type StepResult } from '../../lib/scheduler'
import { createSlaAdmission, type SlaAdmission, type SlaOptions } from '../../lib/server/admission'
import type { AdmissionTicket } from '../../lib/server/seams'
import { requestFacts } from '../../test/support/request_facts'

/** Times are milliseconds. */
export interface MachineModel {
  slots: number
  pages: number
  maxStepTokens: number
  /**
   * A step takes `base + perToken * max(tokens - free, 0)`, `perContext` for each position that a decode row reads and `perPair`
   * for each that a prompt's row does, times noise.
   */
  base: number
  free: number
  perToken: number
  perContext: number
  perPair: number
  /** Standard deviation of the logarithm. */
  noise: number
  /** Share of steps that take three times as long. */
  hiccups: number
  /** What the host adds to each step before the next one begins, and no step's own time has in it; mean of an exponential distribution. */
  hostMs?: number
  /** Requests wait before they are asked about, in the mean so long, and so long that admission does not see; exponential too. */
  waitMs?: number
  unreadMs?: number
}

/**
 * Near what an 8B model in BF16 does on one H200: 16 GB of weights and 128 KiB of keys and values a position at 4.8 TB/s with
 * some overhead, 16 GFLOP a token and 0.5 MFLOP a pair at 40% of the peak.
 */
export const H200_8B: MachineModel = {
  slots: 256,
  pages: 24_000,
  maxStepTokens: 8192,
  base: 5,
  free: 128,
  perToken: 0.04,
  perContext: 2.6e-5,
  perPair: 1.3e-6,
  noise: 0.04,
  hiccups: 0.001,
}

/**
 * As measured with the Llama-3-8B shape on one H200 (docs/benchmarks/serving.md): 13.8 ms a step of 256 rows at 1000 positions,
 * 13.9 ms for a prompt of 512 tokens, 4.1 ms a step of one row; beyond some dozen rows about 21 us a token.
 */
export const H200_MEASURED: MachineModel = { ...H200_8B, base: 4.1, free: 48, perToken: 0.0205, perContext: 2.2e-5 }

export interface Arrival {
  /** ms */
  at: number
  prompt: number
  maxTokens: number
  /** Tokens after which the output ends by itself; at most `maxTokens`. */
  output: number
  priority: number
  deadlineMs?: number | undefined
}

export interface Served {
  arrival: Arrival
  /** Undefined: let in. */
  refused: string | undefined
  retryAfterSeconds: number
  /** ms from arrival; NaN: none. */
  ttftMs: number
  /** Gaps between tokens, ms. */
  gaps: number[]
  endMs: number
  error: string | undefined
}

export interface SimulationOptions {
  machine?: MachineModel
  scheduler?: SchedulerOptions
  /** Undefined: everything is let in that the queue takes. */
  sla?: SlaOptions | undefined
  /**
   * Instead of `sla`: lets in whoever will have the first token in time without making another late, as it knows all lengths and
   * step times. It tries in a copy of the whole server.
   */
  clairvoyant?: { ttftMs: number } | undefined
  seed?: number
  /** Multiplies the step times from a moment on: the machine becomes slower. */
  slowdown?: { at: number; factor: number }
}

export interface SimulationResult {
  served: Served[]
  /** Virtual ms until the last request had ended. */
  endMs: number
  admission: SlaAdmission | undefined
  steps: number
  preemptions: number
}

const ZEROS = new Int32Array(1 << 17)
const NO_LOGITS = new Float32Array(0)

export function simulate(arrivals: readonly Arrival[], options: SimulationOptions = {}): SimulationResult {
  return new Simulation(arrivals, options).run()
}

interface Live {
  at: number
  ttftMs: number
  gaps: number[]
  lastAt: number
  output: number
}

class Simulation {
  private readonly machine: MachineModel
  private readonly scheduler: Scheduler
  private readonly admission: SlaAdmission | undefined
  private now = 0
  /** Steps handed over: when they start and end, and what they answer. */
  private readonly steps: { from: number; to: number; result: StepResult }[] = []
  private readonly live = new Map<number, Live>()
  private readonly tickets = new Map<number, AdmissionTicket>()
  private readonly served: Served[] = []
  private stepCount = 0
  private freeAt = 0
  /** When each arrival is asked about, and how much of the wait until then is known. */
  private readonly asked: readonly { at: number; waitedMs: number }[]

  constructor(
    private readonly arrivals: readonly Arrival[],
    private readonly options: SimulationOptions,
  ) {
    const machine = (this.machine = options.machine ?? H200_8B)
    const random = seededRandom(options.seed ?? 1)
    let last = 0
    this.asked = arrivals.map(({ at }) => {
      const readAt = at + exponential(random, machine.unreadMs)
      last = Math.max(last, readAt + exponential(random, machine.waitMs))
      return { at: last, waitedMs: last - readAt }
    })
    this.scheduler = new Scheduler(
      {
        vocabSize: 32_000,
        maxPositions: 16_384,
        pageSize: 16,
        numPages: machine.pages,
        maxSlots: machine.slots,
        maxStepTokens: machine.maxStepTokens,
      },
      { prefixCache: false, maxQueue: 4096, ...options.scheduler },
    )
    const load = (): LLMLoad => ({
      ...this.scheduler.load(),
      oldestStepMs: this.steps.length === 0 ? 0 : Math.max(this.now - this.steps[0]!.from, 0),
    })
    if (options.sla !== undefined) this.admission = createSlaAdmission({ load }, options.sla, () => this.now, () => -Math.log(0.01) * (machine.unreadMs ?? 0))
  }

  run(): SimulationResult {
    const { arrivals, scheduler, steps } = this
    for (let next = 0; next < arrivals.length || steps.length > 0 || scheduler.hasWork; ) {
      const arrivalAt = this.asked[next]?.at ?? Infinity
      if (this.advance(arrivalAt)) this.arrive(arrivals[next]!, this.asked[next++]!.waitedMs)
      this.pump()
    }
    const { served, now: endMs, admission, stepCount } = this
    return { served, endMs, admission, steps: stepCount, preemptions: scheduler.stats().preemptions }
  }

  /** To the next thing that happens. @returns whether that is the arrival */
  private advance(arrivalAt: number): boolean {
    const { scheduler, steps } = this
    const stepAt = steps[0]?.to ?? Infinity
    const wake = scheduler.nextWakeup(this.now)
    const next = Math.min(arrivalAt, stepAt, wake === null ? Infinity : this.now + wake)
    if (next === Infinity) throw new Error('The simulation is stuck')
    this.now = Math.max(this.now, next)
    const arrives = stepAt > this.now && arrivalAt <= this.now
    if (stepAt <= this.now) this.complete()
    this.expire()
    return arrives
  }

  private arrive(arrival: Arrival, waitedMs: number): void {
    const id = this.served.length
    const of: Served = { arrival, refused: undefined, retryAfterSeconds: 0, ttftMs: NaN, gaps: [], endMs: NaN, error: undefined }
    this.served.push(of)
    const { clairvoyant } = this.options
    if (clairvoyant !== undefined && !this.wouldKeep(id, arrival, clairvoyant.ttftMs)) {
      of.refused = 'clairvoyant'
      return
    }
    const { prompt, maxTokens, priority, deadlineMs } = arrival
    const decision = this.admission?.admit(requestFacts({ id: String(id), promptTokens: prompt, maxTokens, priority, deadlineMs, waitedMs }))
    if (decision?.admitted === false) {
      of.refused = decision.reason
      of.retryAfterSeconds = decision.retryAfterSeconds
      return
    }
    if (decision !== undefined) this.tickets.set(id, decision.ticket)
    try {
      this.add(id, arrival)
    } catch (error) {
      this.end(id, (error as { code: string }).code)
    }
  }

  private add(id: number, { at, prompt, maxTokens, output, priority, deadlineMs }: Arrival): void {
    this.live.set(id, { at, ttftMs: NaN, gaps: [], lastAt: NaN, output })
    const deadline = deadlineMs === undefined ? {} : { deadline: this.now + deadlineMs }
    const request = { id, prompt: ZEROS.subarray(0, prompt), sampling: GREEDY_SAMPLING, maxTokens, priority, ...deadline }
    this.scheduler.add(request, this.now)
  }

  /** Whether the arrival and all that wait would have their first tokens in time if nothing else came. Nothing changes. */
  private wouldKeep(id: number, arrival: Arrival, ttftMs: number): boolean {
    const fork = deepClone(this as Simulation, new Map<object, unknown>([[this.options, this.options], [this.arrivals, this.arrivals], [this.asked, this.asked], [this.served, []]]))
    const waiting = [...fork.live].flatMap(([other, { ttftMs: had }]) => (Number.isNaN(had) ? [other] : []))
    fork.add(id, arrival)
    waiting.push(id)
    const late = (other: number): boolean => {
      const of = fork.live.get(other)
      return of !== undefined && (Number.isNaN(of.ttftMs) ? fork.now - of.at : of.ttftMs) > ttftMs
    }
    const open = (other: number): boolean => Number.isNaN(fork.live.get(other)?.ttftMs ?? 0)
    fork.pump()
    while (waiting.some(open)) {
      fork.advance(Infinity)
      if (waiting.some(late)) return false
      fork.pump()
    }
    return true
  }

  private end(id: number, error: string | undefined): void {
    const of = this.served[id]
    const { ttftMs = NaN, gaps = [] } = this.live.get(id) ?? {}
    if (of !== undefined) Object.assign(of, { ttftMs, gaps, endMs: this.now, error })
    this.tickets.get(id)?.end()
    this.tickets.delete(id)
    // A fork looks at what was late after its end.
    if (of !== undefined) this.live.delete(id)
  }

  private pump(): void {
    const { scheduler } = this
    for (let step = scheduler.plan(this.now); step !== null; step = scheduler.plan(this.now)) this.submit(step.packed, step.tokens)
  }

  private submit(packed: Int32Array, tokens: number): void {
    const { machine, options, now } = this
    let attentionMs = 0
    let samples = 0
    for (let row = 0, at = STEP_HEADER_INTS; row < packed[2]!; row++, at += STEP_SEQUENCE_INTS) {
      const rows = packed[at + 1]!
      const positions = packed[at + 2]! + rows / 2
      attentionMs += rows === 1 ? machine.perContext * positions : machine.perPair * rows * positions
      samples += packed[at + 4]! & StepFlag.SAMPLE
    }
    const random = seededRandom((options.seed ?? 1) * 7919 + this.stepCount++)
    const gauss = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
    const from = Math.max(this.freeAt, now)
    let ms = machine.base + machine.perToken * Math.max(tokens - machine.free, 0) + attentionMs
    ms *= Math.exp(machine.noise * gauss) * (random() < machine.hiccups ? 3 : 1)
    if (options.slowdown !== undefined && from >= options.slowdown.at) ms *= options.slowdown.factor
    const runMs = ms
    ms += exponential(random, machine.hostMs)
    this.freeAt = from + ms
    const timings = { queueUs: (from - now) * 1000, runUs: runMs * 1000 }
    const result = { stepId: packed[1]!, tokens: new Int32Array(samples).fill(7), logprobs: [], logits: NO_LOGITS, timings }
    this.steps.push({ from, to: this.freeAt, result })
  }

  private complete(): void {
    const { now, scheduler } = this
    const { count, sequences, finish, errors, tokens } = scheduler.complete(this.steps.shift()!.result, now)
    const happened = Array.from({ length: count }, (_, i) => ({
      id: sequences[i]!.id as number,
      output: sequences[i]!.outputLength,
      token: tokens[i]!,
      over: finish[i] !== null,
      error: errors[i]?.code,
    }))
    for (const { id, output, token, over, error } of happened) {
      const of = this.live.get(id)!
      if (token >= 0) {
        const ticket = this.tickets.get(id)
        if (Number.isNaN(of.ttftMs)) {
          of.ttftMs = now - of.at
          ticket?.firstToken()
        } else {
          of.gaps.push(now - of.lastAt)
        }
        of.lastAt = now
        ticket?.tokens(0, 1)
      }
      const stops = token >= 0 && output >= of.output
      if (stops && !over) scheduler.finish(id, 'stop')
      if (over || stops || error !== undefined) this.end(id, error)
    }
  }

  private expire(): void {
    const { count, sequences, errors } = this.scheduler.expire(this.now)
    for (let i = 0; i < count; i++) this.end(sequences[i]!.id as number, errors[i]!.code)
  }
}

/** Nothing is drawn where the mean is nothing. */
function exponential(random: () => number, mean = 0): number {
  return mean === 0 ? 0 : -mean * Math.log(1 - random())
}

/** A copy of everything that can be reached; functions, and prompts, which all lie in one array, are shared. */
function deepClone<T>(value: T, seen: Map<object, unknown>): T {
  if (typeof value !== 'object' || value === null) return value
  const known = seen.get(value)
  if (known !== undefined) return known as T
  let copy: unknown
  if (ArrayBuffer.isView(value)) {
    const view = value as unknown as Int32Array
    copy = view.buffer === ZEROS.buffer ? value : view.slice()
    seen.set(value, copy)
  } else if (Array.isArray(value)) {
    const items: unknown[] = []
    seen.set(value, items)
    for (const item of value) items.push(deepClone(item, seen))
    copy = items
  } else if (value instanceof Map) {
    const map = new Map<unknown, unknown>()
    seen.set(value, map)
    for (const [key, item] of value) map.set(deepClone(key, seen), deepClone(item, seen))
    copy = map
  } else if (value instanceof Set) {
    const set = new Set<unknown>()
    seen.set(value, set)
    for (const item of value) set.add(deepClone(item, seen))
    copy = set
  } else {
    const object = Object.create(Object.getPrototypeOf(value) as object) as Record<string, unknown>
    seen.set(value, object)
    for (const [key, item] of Object.entries(value)) object[key] = deepClone(item, seen)
    copy = object
  }
  return copy as T
}

// --- arrivals ---

export interface Lengths {
  /** Medians and spreads of lognormal distributions. */
  prompt: { median: number; sigma: number; most: number }
  output: { median: number; sigma: number; most: number }
}

export const CHAT: Lengths = {
  prompt: { median: 400, sigma: 0.9, most: 6000 },
  output: { median: 120, sigma: 0.7, most: 800 },
}

export interface ArrivalOptions {
  count: number
  /** Requests a second. */
  rate: number
  seed: number
  lengths?: Lengths
  /** Times `rate` in bursts of some seconds, with so much less between that the mean is `rate`. 1: Poisson. */
  burst?: number
  priority?: number
  deadlineMs?: number
  /** ms */
  from?: number
}

const BURST_MS = 2000
const BURST_SHARE = 0.2

export function makeArrivals(options: ArrivalOptions): Arrival[] {
  const { count, rate, seed, lengths = CHAT, burst = 1, priority = 0, deadlineMs, from = 0 } = options
  const random = seededRandom(seed)
  const draw = ({ median, sigma, most }: Lengths['prompt']): number => {
    const gauss = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
    return Math.min(Math.max(Math.round(median * Math.exp(sigma * gauss)), 1), most)
  }
  const calm = Math.max((1 - BURST_SHARE * burst) / (1 - BURST_SHARE), 0.05)
  let at = from
  return Array.from({ length: count }, () => {
    const inBurst = at % (BURST_MS / BURST_SHARE) < BURST_MS
    at += (-Math.log(1 - random()) / (rate * (burst === 1 ? 1 : inBurst ? burst : calm))) * 1000
    const output = draw(lengths.output)
    // Clients ask for some more than they get.
    const maxTokens = Math.min(Math.ceil(output * (1 + random())), lengths.output.most)
    return { at, prompt: draw(lengths.prompt), maxTokens, output, priority, deadlineMs }
  })
}

/** Of several streams one, in order of time. */
export function merge(...streams: Arrival[][]): Arrival[] {
  return streams.flat().sort((a, b) => a.at - b.at)
}

/** Requests a second that the machine ends when there is always one more. */
export function saturation(options: SimulationOptions = {}, lengths: Lengths = CHAT): number {
  const arrivals = makeArrivals({ count: 1500, rate: 1e5, seed: 77, lengths })
  const { served } = simulate(arrivals, { ...options, sla: undefined })
  const ends = served.map(({ endMs }) => endMs).sort((a, b) => a - b)
  // Without the first and last part, where the machine fills and drains.
  const first = Math.floor(0.2 * ends.length)
  const last = Math.floor(0.8 * ends.length)
  return ((last - first) / (ends[last]! - ends[first]!)) * 1000
}

// --- what came of it ---

/** A request is good when it had its first token in time and its mean inter-token latency is within the bound. */
export interface Outcome {
  offered: number
  admitted: number
  ttftP99: number
  ttftP50: number
  itlP99: number
  /** Share of the admitted. */
  good: number
  /** Good ones a second. */
  goodput: number
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] ?? NaN
}

/** Of the requests of one class. */
export function judge(served: readonly Served[], sla: Pick<SlaOptions, 'ttftMs' | 'itlMs'>): Outcome {
  const admitted = served.filter(({ refused }) => refused === undefined)
  const good = admitted.filter((of) => isGood(of, sla)).length
  const seconds = (served.at(-1)!.arrival.at - served[0]!.arrival.at) / 1000
  return {
    offered: served.length,
    admitted: admitted.length,
    ttftP50: quantile(admitted.map(({ ttftMs }) => ttftMs), 0.5),
    ttftP99: quantile(admitted.map(({ ttftMs }) => ttftMs), 0.99),
    itlP99: quantile(admitted.flatMap(({ gaps }) => gaps), 0.99),
    good: good / Math.max(admitted.length, 1),
    goodput: good / seconds,
  }
}

export function isGood({ ttftMs, gaps, error }: Served, sla: Pick<SlaOptions, 'ttftMs' | 'itlMs'>): boolean {
  const mean = gaps.reduce((sum, gap) => sum + gap, 0) / Math.max(gaps.length, 1)
  return error === undefined && ttftMs <= sla.ttftMs && mean <= sla.itlMs
}

/**
 * Refusals that were wrong: how many more were refused than a clairvoyant admission has to refuse of the same arrivals, as a
 * share of them.
 */
export function wrongRefusals(arrivals: readonly Arrival[], served: readonly Served[], options: SimulationOptions & { sla: SlaOptions }): number {
  const admits = (of: readonly Served[]): number => of.filter(({ refused }) => refused === undefined).length
  const { ttftMs } = options.sla
  const best = simulate(arrivals, { ...options, sla: undefined, clairvoyant: { ttftMs } }).served
  return Math.max(admits(best) - admits(served), 0) / arrivals.length
}
