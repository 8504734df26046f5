const MAX_TIMER_MS = 2 ** 31 - 1

/** One timer for all timeouts and deadlines. */
export class WakeupTimer {
  private timer: NodeJS.Timeout | undefined
  private at = Infinity

  constructor(private readonly onWakeup: () => void) {}

  /**
   * The next wake-up is due `wait` ms after `now`, or there is none. It may come too early, which does no harm, and is cheaper
   * than setting a timer with each step.
   */
  set(wait: number | null, now: number): void {
    if (wait === null) {
      this.clear()
      return
    }
    if (this.at <= now + wait) return
    clearTimeout(this.timer)
    const delay = Math.min(Math.ceil(wait), MAX_TIMER_MS)
    this.at = now + delay
    this.timer = setTimeout(() => {
      this.timer = undefined
      this.at = Infinity
      this.onWakeup()
    }, delay)
  }

  clear(): void {
    clearTimeout(this.timer)
    this.timer = undefined
    this.at = Infinity
  }
}
