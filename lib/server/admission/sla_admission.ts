import { TensorRTError } from '../../errors'
import type { LLM, LLMLoad } from '../../llm'
import { ArgumentReader } from '../../runtime'
import type { Admission, AdmissionDecision, AdmissionTicket, RefusalReason, RequestFacts } from '../seams'
import { Feedback, Recent } from './feedback'
import { type Forecast, forecast, type Machine } from './forecast'
import { before, type Entry, Ledger } from './ledger'
import { LoopDelay } from './loop_delay'

/** What is promised to requests that are let in. Times are milliseconds. */
export interface SlaOptions {
  /** Bound on the time to first token, from the moment when all of the request has come. */
  ttftMs: number
  /** Bound on the inter-token latency. Give the LLM the same as `maxStepMs`: the scheduler keeps it. */
  itlMs: number
  /** Share of requests, and of tokens, that keep the bounds. In [0.5, 1). Default 0.99. */
  percentile?: number | undefined
  /**
   * Requests of this priority and of more urgent ones are promised the bounds. Others are batch work: they wait for as long as
   * it takes, and are refused for a deadline that cannot be met, or where too many of them wait. Default 0.
   */
  interactivePriority?: number | undefined
  /** Share of the LLM's queue that batch work may fill. In (0, 1]. Default 0.5. */
  batchQueueShare?: number | undefined
}

/** For dashboards; times are milliseconds. */
export interface SlaSnapshot {
  /** Of the last 1024 requests and tokens that were promised something; NaN without any. */
  ttftMs: number
  itlMs: number
  admitted: number
  refused: number
  /** Observed by forecast times to first token, at the percentile: forecasts are corrected by it. */
  correction: number
}

export interface SlaAdmission extends Admission {
  snapshot(): SlaSnapshot
}

/** Tokens of prompts that may wait while it is not known how long steps take. */
const BLIND_TOKENS = 4096
/** Forecasts go so many times the bound into the future. */
const HORIZON = 8
const MAX_RETRY_SECONDS = 120
/** Of the bound: who has waited less has seen too little. */
const SLIP_SHARE = 0.2
const MOST_SLIP = 2
/** Of the bound, what the event loop's delay may take: it is a pause that takes more. */
const MOST_UNREAD_SHARE = 0.25

export type CheckedSla = { readonly [K in keyof SlaOptions]-?: NonNullable<SlaOptions[K]> }

/** A refusal that holds for whoever asks for as much, and comes behind, until something else has changed than the time. */
interface StandingRefusal {
  entry: Entry
  version: number
  /** Steps that had ended, and tokens of prompts that had begun to run. */
  steps: number
  prefilled: number
  overMs: number
  refuse: (overMs: number) => Refused
}

type Refused = AdmissionDecision & { admitted: false }

interface Policy extends CheckedSla {
  load: () => LLMLoad
  now: () => number
  loopDelayMs: () => number
  close: () => void
}

/**
 * Lets in what can be served as promised. A request's time to first token is forecast from the queue, the sequences that
 * decode and the step times as the scheduler has seen them; what was measured corrects the forecasts. Whoever would miss the
 * bound, or make an admitted one miss it, is refused with the time after which it would not.
 */
class SlaPolicy implements SlaAdmission {
  private readonly ledger = new Ledger()
  private readonly ttft: Feedback
  private readonly recentTtft = new Recent()
  private readonly recentItl = new Recent()
  /** Of tokens that were promised nothing, too. */
  private readonly gaps = new Recent()
  private admitted = 0
  private refused = 0
  private standing: StandingRefusal | undefined

  constructor(private readonly policy: Policy) {
    this.ttft = new Feedback(policy.ttftMs, policy.percentile)
  }

  admit(facts: RequestFacts): AdmissionDecision {
    const load = this.policy.load()
    const now = this.policy.now()
    this.ledger.advance(load)
    const promised = facts.priority <= this.policy.interactivePriority
    const entry = this.ledger.entry(facts, promised, now)
    const refusal = this.weigh(entry, load, now)
    if (refusal !== undefined) {
      this.refused++
      return refusal
    }
    this.admitted++
    this.ledger.add(entry)
    return { admitted: true, ticket: this.ticket(entry) }
  }

  retryAfterSeconds(facts: RequestFacts): number {
    const load = this.policy.load()
    const now = this.policy.now()
    this.ledger.advance(load)
    const entry = this.ledger.entry(facts, facts.priority <= this.policy.interactivePriority, now)
    const { own } = this.look(entry, load, now)
    return seconds(own - this.limitMs)
  }

  snapshot(): SlaSnapshot {
    const { percentile } = this.policy
    return {
      ttftMs: this.recentTtft.percentile(percentile),
      itlMs: this.recentItl.percentile(percentile),
      admitted: this.admitted,
      refused: this.refused,
      correction: this.ttft.factor,
    }
  }

  close(): void {
    this.policy.close()
  }

  /** Bound on what is known of a request's time to first token: some goes by before it is read. */
  private get limitMs(): number {
    const { ttftMs, loopDelayMs } = this.policy
    return ttftMs - Math.min(loopDelayMs(), MOST_UNREAD_SHARE * ttftMs)
  }

  private weigh(entry: Entry, load: LLMLoad, now: number): Refused | undefined {
    const { facts, promised } = entry
    const { batchQueueShare, itlMs, percentile, ttftMs } = this.policy
    const refuse = (reason: RefusalReason, overMs: number, message: string) =>
      ({ admitted: false, reason, retryAfterSeconds: seconds(overMs), message }) as const

    if (!promised && load.waiting + facts.n > batchQueueShare * load.maxQueue) {
      return refuse('queue_full', ttftMs, 'Too many requests of low priority wait')
    }
    if (!load.stepTimes.isKnown) {
      const waiting = this.ledger.waiting.reduce((sum, { left }) => sum + left, 0)
      if (!promised || waiting === 0 || waiting + entry.size <= BLIND_TOKENS) return undefined
      return refuse('sla', 1000, 'The server has just started, and does not know yet how fast it is')
    }
    if (!promised && entry.deadlineAt === Infinity) return undefined
    const standing = this.stillRefused(entry, load, now)
    if (standing !== undefined) return standing

    const { forecastMs, own, behind, rows } = this.look(entry, load, now)
    entry.forecastMs = forecastMs
    if (entry.deadlineAt < Infinity) {
      // While prompts wait, steps are as long as they were lately; else as long as decoding alone takes.
      const decodeMs = load.stepTimes.meanMs(Math.max(Math.min(rows, load.maxRunning), 1))
      const gapMs = this.ledger.waiting.length > 0 ? Math.max(decodeMs, this.gaps.mean || 0) : decodeMs
      const restMs = (entry.output - 1) * gapMs
      const overMs = now + forecastMs + restMs - entry.deadlineAt
      if (overMs > 0) return refuse('deadline', overMs, 'The deadline cannot be met with what is ahead of this request')
    }
    if (!promised) return undefined
    const overMs = own - this.limitMs
    if (overMs > 0) {
      const tooLate = (overMs: number): Refused => refuse('sla', overMs, `No first token within ${ttftMs} ms can be promised at the moment`)
      const { version } = this.ledger
      this.standing = { entry, version, steps: load.stepTimes.observations, prefilled: load.prefillTokens, overMs, refuse: tooLate }
      return tooLate(overMs)
    }
    if (behind > 0) return refuse('sla', behind, 'Requests that were promised a first token in time would miss it')
    // Under `maxStepMs` the scheduler runs no more at once than the bound allows: who is too many waits, which the forecast knows.
    const bounded = load.maxStepMs !== undefined && load.maxStepMs <= itlMs
    if (!bounded) {
      const rowsThen = Math.max(Math.min(rows, load.maxRunning), 1)
      const measuredMs = this.recentItl.percentile(percentile)
      if (rowsThen > facts.n && (load.stepTimes.p99Ms(rowsThen) > itlMs || measuredMs > itlMs)) {
        return refuse('sla', 1000, `No ${itlMs} ms between tokens can be promised at the moment`)
      }
    }
    return undefined
  }

  /** Beyond saturation most are refused for the same reason as the last one was, which is known without another forecast. */
  private stillRefused(entry: Entry, load: LLMLoad, now: number): Refused | undefined {
    const { standing } = this
    if (standing === undefined || !entry.promised || entry.deadlineAt < Infinity) return undefined
    const { entry: other, version, steps, prefilled, overMs, refuse } = standing
    if (version !== this.ledger.version || steps !== load.stepTimes.observations || prefilled !== load.prefillTokens) return undefined
    if (before(entry, other) < 0 || entry.size < other.size || entry.facts.n < other.facts.n) return undefined
    // What is in flight has gone on in the meantime.
    const passedMs = (now - other.askedAt) * Math.max(this.ttft.factor, 1)
    const waitedMs = entry.askedAt - entry.cameAt - (other.askedAt - other.cameAt)
    const left = overMs - passedMs + waitedMs
    return left > 0 ? refuse(left) : undefined
  }

  /**
   * Milliseconds from the arrival of the entry to its first token, forecast and corrected; by how much the worst of those behind it would miss the bound because of it; and
   * sequences that decode then.
   */
  private look(entry: Entry, load: LLMLoad, now: number): { forecastMs: number; own: number; behind: number; rows: number } {
    const { ledger, ttft } = this
    const at = ledger.position(entry)
    const behind = ledger.waiting.slice(at).filter(({ promised }) => promised)
    const ahead = ledger.waiting.slice(0, at)
    const run = (entries: readonly Entry[]): Forecast => this.forecast(entries, entry, load)
    const withIt = run([...ahead, entry, ...behind])
    const forecastMs = withIt.firstTokenMs[at]!
    const factor = Math.max(ttft.factor, this.slip(ahead, withIt, now))
    let over = 0
    if (behind.length > 0) {
      const limit = this.limitMs
      const without = run([...ahead, ...behind])
      behind.forEach(({ cameAt }, i) => {
        const waited = now - cameAt
        const late = waited + factor * withIt.firstTokenMs[at + 1 + i]! - limit
        if (late > 0 && waited + factor * without.firstTokenMs[at + i]! <= limit) over = Math.max(over, late)
      })
    }
    return { forecastMs, own: now - entry.cameAt + factor * forecastMs, behind: over, rows: withIt.rows }
  }

  /**
   * What passes of the time by what passes of the queue, as those who wait have seen it since they were let in. It says that forecasts are too short
   * before any of them has come true: after the start, and when the machine becomes slower.
   */
  private slip(ahead: readonly Entry[], { firstTokenMs }: Forecast, now: number): number {
    let passed = 0
    let worked = 0
    for (let i = 0; i < ahead.length; i++) {
      const { forecastMs, askedAt } = ahead[i]!
      const left = firstTokenMs[i]!
      if (!(now - askedAt > SLIP_SHARE * this.policy.ttftMs) || !Number.isFinite(forecastMs) || left === Infinity) continue
      passed += now - askedAt
      worked += forecastMs - left
    }
    if (passed === 0) return 1
    return passed < MOST_SLIP * worked ? passed / worked : MOST_SLIP
  }

  private forecast(entries: readonly Entry[], of: Entry, load: LLMLoad): Forecast {
    const { stepTimes, stepDelayMs, inFlightTokens } = load
    const stepMs = (tokens: number): number => (stepTimes.meanMs(tokens) || 0) + stepDelayMs
    let inFlightMs = 0
    inFlightTokens.forEach((tokens, i) => {
      inFlightMs += Math.max(stepMs(tokens) - (i === 0 ? load.oldestStepMs : 0), 0)
    })
    const machine: Machine = {
      stepMs,
      stepTokens: load.stepTokens,
      maxRunning: load.maxRunning,
      freeTokens: load.availablePages * load.pageSize,
      inFlightMs,
      stepsInFlight: inFlightTokens.length,
    }
    const yields = (entry: Entry): boolean => load.preemptForPriority && entry.facts.priority > of.facts.priority
    const decodes = this.ledger.decodes(yields)
    const deadline = of.deadlineAt === Infinity ? 0 : of.deadlineAt - of.askedAt
    const horizonMs = Math.max(HORIZON * this.policy.ttftMs, Math.min(deadline, HORIZON * HORIZON * this.policy.ttftMs))
    return forecast(machine, decodes, this.ledger.prompts(entries), horizonMs)
  }

  private ticket(entry: Entry): AdmissionTicket {
    const { ledger, policy } = this
    const lastAt = new Map<number, number>()
    let ended = false
    return {
      firstToken: () => {
        if (ended || !Number.isNaN(entry.firstAt)) return
        const now = policy.now()
        ledger.firstToken(entry, now)
        if (!entry.promised) return
        this.recentTtft.add(now - entry.cameAt)
        if (!Number.isNaN(entry.forecastMs)) this.ttft.observe(entry.forecastMs, now - entry.askedAt)
      },
      tokens: (choice, count) => {
        if (ended || count <= 0) return
        const now = policy.now()
        entry.produced += count
        const last = lastAt.get(choice)
        lastAt.set(choice, now)
        if (last === undefined) return
        const gapMs = (now - last) / count
        this.gaps.add(gapMs)
        if (entry.promised) this.recentItl.add(gapMs)
      },
      end: () => {
        if (ended) return
        ended = true
        ledger.end(entry)
      },
    }
  }
}

function seconds(overMs: number): number {
  const whole = Math.ceil(overMs / 1000)
  return Number.isFinite(whole) ? Math.min(Math.max(whole, 1), MAX_RETRY_SECONDS) : MAX_RETRY_SECONDS
}

const SLA_OPTIONS = ['ttftMs', 'itlMs', 'percentile', 'interactivePriority', 'batchQueueShare'] as const

/** @throws ERR_INVALID_ARGUMENT */
export function checkSlaOptions(options: unknown): CheckedSla {
  const reader = new ArgumentReader(options, SLA_OPTIONS, '"sla"')
  const ttftMs = reader.positive('ttftMs')
  const itlMs = reader.positive('itlMs')
  if (ttftMs === undefined || itlMs === undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', '"sla" needs "ttftMs" and "itlMs", both in milliseconds')
  }
  return {
    ttftMs,
    itlMs,
    percentile: reader.number('percentile', 0.5, 0.9999) ?? 0.99,
    interactivePriority: reader.integer('interactivePriority', -1000, 1000) ?? 0,
    batchQueueShare: reader.positive('batchQueueShare', 1) ?? 0.5,
  }
}

/**
 * Admission that keeps a bound on time to first token and inter-token latency. For the latter load the LLM with `maxStepMs:
 * itlMs`; where batch work runs beside interactive requests, with `preemptForPriority` too.
 *
 * @param now in ms; of the same clock as nothing else: only its differences count
 * @param loopDelayMs the time that requests may have waited before they were read, in ms; by default the 99th percentile of the event loop's delay
 * @throws ERR_INVALID_ARGUMENT
 */
export function createSlaAdmission(
  llm: Pick<LLM, 'load'>,
  options: SlaOptions,
  now: () => number = () => performance.now(),
  loopDelayMs?: () => number,
): SlaAdmission {
  const policy = { ...checkSlaOptions(options), load: () => llm.load(), now }
  if (loopDelayMs !== undefined) return new SlaPolicy({ ...policy, loopDelayMs, close: () => {} })
  const delay = new LoopDelay()
  return new SlaPolicy({ ...policy, loopDelayMs: () => delay.ms, close: () => delay.close() })
}
