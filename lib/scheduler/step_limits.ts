import { StepCurve } from './step_curve'

/** Prompts go on by so many tokens in a step, however long decoding alone takes. */
const LEAST_PREFILL = 16
/** Of the longest step that is aimed at: contexts grow faster than what is known of the times of steps. */
const AIM = 0.95
/** Of that: how long a step of nothing but decode rows may take, so that there is room for prompts. */
const DECODE_SHARE = 0.8

/** How much goes into one step. */
export class StepLimits {
  readonly curve = new StepCurve()

  constructor(
    private readonly maxTokens: number,
    /** Undefined: steps take as long as their tokens need. */
    readonly maxMs: number | undefined,
  ) {}

  /** Tokens that a step may have which `decodeRows` sequences wait for. A step that nobody's output waits for may be long. */
  tokens(decodeRows: number): number {
    if (this.maxMs === undefined || decodeRows === 0) return this.maxTokens
    return Math.min(Math.max(this.curve.tokensWithin(AIM * this.maxMs), decodeRows + LEAST_PREFILL), this.maxTokens)
  }

  /** Sequences that may run at once, at least one. */
  get sequences(): number {
    if (this.maxMs === undefined) return Infinity
    return Math.max(this.curve.tokensWithin(DECODE_SHARE * AIM * this.maxMs), 1)
  }
}
