/** How far forecasts are off, and what was measured last. */

/** Forecasts below this share of the bound say nothing of those at the bound. */
const INFORMATIVE = 0.5
const WINDOW = 512
/** What is later than that is no error of a forecast, but a pause, or a machine that has become another. */
const MOST_RATIO = 2
/** Assumed of forecasts until the window is full of what came true. */
const FIRST_RATIO = 1.2
const RECENT = 1024

/** The last values of something, for their percentiles. */
export class Recent {
  private readonly values: Float64Array
  private count = 0

  constructor(size = RECENT, first?: number) {
    this.values = new Float64Array(size)
    if (first === undefined) return
    this.values.fill(first)
    this.count = size
  }

  add(value: number): void {
    this.values[this.count++ % this.values.length] = value
  }

  /** NaN without a value. */
  get mean(): number {
    const { count, values } = this
    let sum = 0
    for (let i = 0; i < Math.min(count, values.length); i++) sum += values[i]!
    return sum / Math.min(count, values.length)
  }

  /** Nearest-rank; NaN without a value. */
  percentile(q: number): number {
    const sorted = this.values.slice(0, Math.min(this.count, this.values.length)).sort()
    return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] ?? NaN
  }
}

/**
 * Corrects forecasts by what came true: by a percentile of observed to forecast, over the last requests whose forecasts came near
 * the bound. So the correction is as large as the forecasts are bad where it matters, and no larger.
 */
export class Feedback {
  /** Observed by forecast, at the percentile. */
  factor = FIRST_RATIO
  private readonly ratios = new Recent(WINDOW, FIRST_RATIO)

  private readonly percentile: number

  /** @param percentile that is promised; a third of the misses is aimed at, as the window is small */
  constructor(
    private readonly boundMs: number,
    percentile: number,
  ) {
    this.percentile = 1 - (1 - percentile) / 3
  }

  corrected(forecastMs: number): number {
    return forecastMs * this.factor
  }

  observe(forecastMs: number, observedMs: number): void {
    if (this.corrected(forecastMs) < INFORMATIVE * this.boundMs && observedMs <= this.boundMs) return
    this.ratios.add(Math.min(observedMs / Math.max(forecastMs, 1e-9), MOST_RATIO))
    this.factor = this.ratios.percentile(this.percentile)
  }
}
