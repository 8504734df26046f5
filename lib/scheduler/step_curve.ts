import type { StepTimings } from './executor'

/** Weight of a new observation once a bucket has seen `1 / ALPHA` of them; before that the plain mean. */
const ALPHA = 0.1
const SPREAD_ALPHA = 0.05
const FIRST_SPREAD = 0.1
const MAX_SPREAD = 0.5
/**
 * From mean absolute deviation to the 99th percentile. Of a normal distribution: 2.326 sigma, and sigma = MAD * sqrt(pi / 2).
 */
const P99_DEVIATIONS = 2.9
/** Buckets per doubling of the tokens. */
const PER_DOUBLING = 2
/** Steps after which it is known how long they take: {@link StepCurve.isKnown}. */
const LEAST_OBSERVATIONS = 8

interface Bucket {
  tokens: number
  ms: number
  count: number
}

/**
 * How long a step takes by the number of its tokens, where {@link StepCostModel}'s straight line is too coarse: a GPU's steps
 * take the same time up to some hundred tokens and grow from there. Means by size, two sizes to a doubling, with straight
 * lines between; sizes that have not run for a while keep what was seen of them. Never falls with the tokens.
 */
export class StepCurve {
  private readonly buckets: (Bucket | undefined)[] = []
  private spread = FIRST_SPREAD
  observations = 0

  observe(tokens: number, timings: StepTimings): void {
    const ms = timings.runUs / 1000
    if (!(ms >= 0) || !Number.isFinite(ms) || !(tokens >= 1)) return
    const at = Math.round(PER_DOUBLING * Math.log2(tokens))
    const bucket = (this.buckets[at] ??= { tokens, ms, count: 0 })
    if (bucket.count > 0) {
      const expected = this.meanMs(tokens)
      if (expected > 0) {
        const off = Math.min(Math.abs(ms - expected) / expected, 1)
        this.spread += SPREAD_ALPHA * (off - this.spread)
      }
    }
    bucket.count++
    const weight = Math.max(ALPHA, 1 / bucket.count)
    bucket.tokens += weight * (tokens - bucket.tokens)
    bucket.ms += weight * (ms - bucket.ms)
    this.observations++
  }

  /** Whether enough steps have run to forecast by; before that, times are what the first ones happened to take. */
  get isKnown(): boolean {
    return this.observations >= LEAST_OBSERVATIONS
  }

  /**
   * Expected time of a step of `tokens` tokens, in ms; NaN before anything was observed. Below the smallest size seen it is
   * that one's time, above the largest it grows in proportion, which is more than it turns out to be.
   */
  meanMs(tokens: number): number {
    let last: Bucket | undefined
    let lastMs = 0
    for (const bucket of this.buckets) {
      if (bucket === undefined) continue
      const ms = Math.max(bucket.ms, lastMs)
      if (tokens <= bucket.tokens) {
        if (last === undefined || bucket.tokens === last.tokens) return ms
        return lastMs + ((ms - lastMs) * (tokens - last.tokens)) / (bucket.tokens - last.tokens)
      }
      last = bucket
      lastMs = ms
    }
    return last === undefined ? NaN : (lastMs * tokens) / last.tokens
  }

  /** Time within which about 99 of 100 steps of that size end, in ms; NaN before anything was observed. */
  p99Ms(tokens: number): number {
    return this.meanMs(tokens) * this.p99Factor
  }

  private get p99Factor(): number {
    return 1 + P99_DEVIATIONS * Math.min(this.spread, MAX_SPREAD)
  }

  /** The most tokens in a step whose {@link p99Ms} is at most `ms`; 0 when there is no such step, Infinity before anything was observed. */
  tokensWithin(ms: number): number {
    const limit = ms / this.p99Factor
    let last: Bucket | undefined
    let lastMs = 0
    for (const bucket of this.buckets) {
      if (bucket === undefined) continue
      const bucketMs = Math.max(bucket.ms, lastMs)
      if (bucketMs > limit) {
        if (last === undefined) return 0
        return Math.floor(last.tokens + ((bucket.tokens - last.tokens) * (limit - lastMs)) / (bucketMs - lastMs))
      }
      last = bucket
      lastMs = bucketMs
    }
    if (last === undefined) return Infinity
    return lastMs === 0 ? Infinity : Math.floor((last.tokens * limit) / lastMs)
  }
}
