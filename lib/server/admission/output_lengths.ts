const BINS = 20
/** Weight of a new observation among those before. */
const ALPHA = 0.02
/** Tokens of an output whose request says nothing, until some have been seen. */
const FIRST_OUTPUT = 256

/** How long outputs turn out to be, by what their requests allow. */
export class OutputLengths {
  /** Share of outputs by the share of `maxTokens` that they used; at first all are thought to use all of it. */
  private readonly shares = new Float64Array(BINS)
  private mean = FIRST_OUTPUT

  constructor() {
    this.shares[BINS - 1] = 1
  }

  observe(tokens: number, maxTokens: number | undefined): void {
    this.mean += ALPHA * (tokens - this.mean)
    if (maxTokens === undefined || maxTokens <= 0) return
    const bin = Math.min(Math.floor((tokens / maxTokens) * BINS), BINS - 1)
    for (let i = 0; i < BINS; i++) this.shares[i]! *= 1 - ALPHA
    this.shares[bin]! += ALPHA
  }

  /** Tokens that an output which has `produced` is still expected to get, at least one. */
  expectedLeft(produced: number, maxTokens: number | undefined): number {
    // Nothing is known of when it ends: it is as far from its end as any.
    if (maxTokens === undefined) return Math.max(this.mean, 1)
    let weight = 0
    let sum = 0
    for (let bin = 0; bin < BINS; bin++) {
      const tokens = ((bin + (bin === BINS - 1 ? 1 : 0.5)) / BINS) * maxTokens
      if (tokens <= produced) continue
      weight += this.shares[bin]!
      sum += this.shares[bin]! * tokens
    }
    const expected = weight > 1e-6 ? sum / weight : maxTokens
    return Math.max(expected - produced, 1)
  }
}
