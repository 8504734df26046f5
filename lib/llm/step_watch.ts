/** Knows for how long the oldest step in flight has been running, and calls out when that is too long. */
export class StepWatch {
  private since: number | undefined
  private timer: NodeJS.Timeout | undefined

  constructor(
    /** Undefined: nobody is called. */
    private readonly timeoutMs: number | undefined,
    private readonly onTimeout: (ms: number) => void,
    private readonly now: () => number,
  ) {}

  /** Milliseconds since the oldest step in flight became that: was submitted, or saw the end of the one before. 0 without one. */
  get ms(): number {
    return this.since === undefined ? 0 : Math.max(0, this.now() - this.since)
  }

  /** There is another oldest step, or none any more. */
  restart(inFlight: number): void {
    this.since = inFlight === 0 ? undefined : this.now()
    this.arm()
  }

  /** A step was submitted. */
  submitted(): void {
    this.since ??= this.now()
    this.arm()
  }

  stop(): void {
    this.since = undefined
    clearTimeout(this.timer)
    this.timer = undefined
  }

  /** One timer serves many steps: it is set again when it comes, not with each of them. */
  private arm(): void {
    const { timeoutMs } = this
    if (timeoutMs === undefined || this.timer !== undefined || this.since === undefined) return
    const due = Math.max(0, timeoutMs - this.ms)
    this.timer = setTimeout(() => {
      // After an event loop that was blocked, the result may be there already: it comes before an immediate does.
      setImmediate(() => {
        this.timer = undefined
        if (this.since !== undefined && this.ms >= timeoutMs) this.onTimeout(this.ms)
        else this.arm()
      })
    }, due)
    this.timer.unref()
  }
}
