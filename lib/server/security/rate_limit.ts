/** A bucket of `amount` tokens that fills up again within `periodMs`: bursts pass, and no period sees more than twice the amount. */
export class RateLimit {
  private tokens: number
  private at: number

  constructor(
    private readonly amount: number,
    private readonly periodMs: number,
    private readonly now: () => number,
  ) {
    this.tokens = amount
    this.at = now()
  }

  /** @returns 0 where one was taken, else milliseconds until there is one */
  take(): number {
    const now = this.now()
    const rate = this.amount / this.periodMs
    this.tokens = Math.min(this.amount, this.tokens + Math.max(0, now - this.at) * rate)
    this.at = now
    if (this.tokens >= 1) {
      this.tokens--
      return 0
    }
    return (1 - this.tokens) / rate
  }
}
