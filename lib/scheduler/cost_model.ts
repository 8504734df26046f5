import type { StepTimings } from './executor'

/** Weight of a new observation. */
const ALPHA = 0.1
/** Below this many observed steps nothing is predicted. */
const MIN_OBSERVATIONS = 8
/** A prediction is only ever used to refuse work, so it leans to the fast side. */
const OPTIMISM = 0.7

/**
 * How long a step takes: `time = base + perToken * tokens`, a least-squares line through exponentially weighted moments
 * of what was observed. With steps of one size only, the line goes through the origin.
 */
export class StepCostModel {
  private observations = 0
  private meanTokens = 0
  private meanMs = 0
  private varTokens = 0
  private covariance = 0

  observe(tokens: number, timings: StepTimings): void {
    const ms = timings.runUs / 1000
    if (!(ms >= 0) || !Number.isFinite(ms)) return
    const alpha = this.observations === 0 ? 1 : ALPHA
    const dTokens = tokens - this.meanTokens
    const dMs = ms - this.meanMs
    this.meanTokens += alpha * dTokens
    this.meanMs += alpha * dMs
    if (this.observations > 0) {
      this.varTokens = (1 - alpha) * (this.varTokens + alpha * dTokens * dTokens)
      this.covariance = (1 - alpha) * (this.covariance + alpha * dTokens * dMs)
    }
    this.observations++
  }

  /** Milliseconds per additional token in a step, >= 0. */
  get perTokenMs(): number {
    if (this.meanTokens === 0) return 0
    const throughOrigin = this.meanMs / this.meanTokens
    if (this.varTokens <= 1e-9) return throughOrigin
    return Math.min(Math.max(this.covariance / this.varTokens, 0), throughOrigin)
  }

  /** Milliseconds of a step besides its tokens, >= 0. */
  get baseMs(): number {
    return Math.max(this.meanMs - this.perTokenMs * this.meanTokens, 0)
  }

  /**
   * The least time, in ms, in which `prefillTokens` can be computed and `outputTokens` sampled if nothing else runs; 0
   * while too little has been observed.
   */
  leastMs(prefillTokens: number, outputTokens: number, maxStepTokens: number): number {
    if (this.observations < MIN_OBSERVATIONS) return 0
    const steps = Math.ceil(prefillTokens / maxStepTokens) + Math.max(outputTokens - 1, 0)
    const tokens = prefillTokens + Math.max(outputTokens - 1, 0)
    return OPTIMISM * (steps * this.baseMs + tokens * this.perTokenMs)
  }
}
