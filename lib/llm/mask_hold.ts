/** Of a step's time: how long the next step waits for masks. */
const SHARE = 0.5
/** Weight of a step's time in the mean. */
const ALPHA = 0.25

/**
 * Masks are on their way: the next step waits for them, so that those who need them come along. It waits for at most half the
 * time of a step, and not longer than for the next result: those who need none must not notice.
 */
export class MaskHold {
  private timer: NodeJS.Timeout | undefined
  private stepMs = 0

  /** @param onOver called when the time is over */
  constructor(private readonly onOver: () => void) {}

  get holds(): boolean {
    return this.timer !== undefined
  }

  /** A step took `runUs`. @returns whether the next one waits, where masks are awaited */
  stepEnded(runUs: number, awaited: boolean): boolean {
    this.stepMs += ALPHA * (runUs / 1000 - this.stepMs)
    if (this.timer !== undefined || !awaited) {
      this.end()
      return false
    }
    this.timer = setTimeout(() => {
      this.timer = undefined
      this.onOver()
    }, Math.max(1, SHARE * this.stepMs))
    return true
  }

  end(): void {
    clearTimeout(this.timer)
    this.timer = undefined
  }
}
