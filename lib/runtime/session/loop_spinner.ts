/**
 * Keeps this thread's event loop turning while a batch is about to end: one that sleeps takes 20 to 200 microseconds to wake up. Turns of the
 * loop serve everything else as ever; they only find nothing to do and do not wait.
 */
class LoopSpinner {
  /** When it stops at the latest, in milliseconds of `performance.now()`. */
  private until = 0
  private inFlight = 0
  private turning = false

  /** A batch was handed to the device: turn for so many microseconds, or until all batches have ended. */
  began(spinUs: number): void {
    this.inFlight++
    if (spinUs === 0) return
    const until = performance.now() + spinUs / 1000
    if (until > this.until) this.until = until
    if (this.turning) return
    this.turning = true
    setImmediate(this.turn)
  }

  ended(): void {
    if (--this.inFlight === 0) this.until = 0
  }

  private readonly turn = (): void => {
    if (performance.now() < this.until) setImmediate(this.turn)
    else this.turning = false
  }
}

/** Of all sessions of this thread. */
export const loopSpinner = new LoopSpinner()
