import type { StepTimings } from './executor'
import { StepCurve } from './step_curve'
import { StepDelay } from './step_delay'

/** Prompts go on by so many tokens in a step, however long decoding alone takes. */
const LEAST_PREFILL = 16
/** Of the longest step that is aimed at: contexts grow faster than what is known of the times of steps. */
const AIM = 0.95
/** Of that: how long a step of nothing but decode rows may take, so that there is room for prompts. */
const DECODE_SHARE = 0.8

/** Of the bound: steps are not made shorter than that because the host is slow, as shorter ones would be more work for it. */
const LEAST_RUN = 0.5

/** How much goes into one step. */
export class StepLimits {
  readonly curve = new StepCurve()
  readonly delay = new StepDelay()

  constructor(
    private readonly maxTokens: number,
    /** Undefined: steps take as long as their tokens need. */
    readonly maxMs: number | undefined,
  ) {}

  /** A step has ended that was planned and taken at these times. */
  observe(tokens: number, timings: StepTimings, plannedAt: number, now: number): void {
    this.curve.observe(tokens, timings)
    this.delay.observe(timings, plannedAt, now)
  }

  /** Tokens that a step may have which `decodeRows` sequences wait for. A step that nobody's output waits for may be long. */
  tokens(decodeRows: number): number {
    if (this.maxMs === undefined || decodeRows === 0) return this.maxTokens
    return Math.min(Math.max(this.curve.tokensWithin(this.runMs), decodeRows + LEAST_PREFILL), this.maxTokens)
  }

  /** Sequences that may run at once, at least one. */
  get sequences(): number {
    if (this.maxMs === undefined) return Infinity
    return Math.max(this.curve.tokensWithin(DECODE_SHARE * this.runMs), 1)
  }

  /** How long a step may run: from token to token it is longer by what the host adds. */
  private get runMs(): number {
    return Math.max(AIM * this.maxMs! - this.delay.ms, LEAST_RUN * this.maxMs!)
  }
}
