/** Weight of a new measurement. */
const ALPHA = 0.2
/** `least` is only ever used to refuse work, so it leans to the fast side. */
const OPTIMISM = 0.8

/**
 * How long a batch takes by its size, learnt from what was measured: an exponentially weighted mean per size, linear in between. All
 * times are milliseconds.
 */
export class BatchCost {
  /** Ascending. */
  private readonly sizes: number[] = []
  private readonly means: number[] = []

  /** @param ms the time that a batch of `size` rows took */
  observe(size: number, ms: number): void {
    if (!(ms >= 0) || !Number.isFinite(ms)) return
    const at = this.place(size)
    if (this.sizes[at] === size) {
      this.means[at] = this.means[at]! + ALPHA * (ms - this.means[at]!)
      return
    }
    this.sizes.splice(at, 0, size)
    this.means.splice(at, 0, ms)
  }

  /**
   * What is expected of a batch of `size` rows; 0 while nothing was measured. Below the smallest measured size as much as that one,
   * beyond the largest in proportion to it.
   */
  expected(size: number): number {
    const { sizes, means } = this
    const at = this.place(size)
    if (at === sizes.length) return at === 0 ? 0 : (means[at - 1]! * size) / sizes[at - 1]!
    if (sizes[at] === size || at === 0) return means[at]!
    const share = (size - sizes[at - 1]!) / (sizes[at]! - sizes[at - 1]!)
    return means[at - 1]! + share * (means[at]! - means[at - 1]!)
  }

  /** No more than a batch of `size` rows will take, as far as one can tell. */
  least(size: number): number {
    return OPTIMISM * this.expected(size)
  }

  /** Index of the first known size that is at least `size`. */
  private place(size: number): number {
    const { sizes } = this
    let low = 0
    let high = sizes.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (sizes[middle]! < size) low = middle + 1
      else high = middle
    }
    return low
  }
}
