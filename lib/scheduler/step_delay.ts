import type { StepTimings } from './executor'

/** Weight of a new observation. */
const ALPHA = 0.05
/** Of what is expected a step is taken to be late by at most so many times: a process that was stopped for a second says nothing of the next. */
const MOST = 4

/**
 * What the host adds to the times of steps. An executor tells how long a step ran; from result to result it takes longer where the thread
 * that takes results and plans steps is busy with other things, or does not get a processor. One that is taken late makes the next
 * one seem early, so it is the mean that counts.
 */
export class StepDelay {
  /** Mean, >= 0. */
  ms = 0
  private mean = 0
  private meanRunMs = 0
  private completedAt = -Infinity

  /** @param plannedAt and @param now on one clock, in ms */
  observe(timings: StepTimings, plannedAt: number, now: number): void {
    const runMs = timings.runUs / 1000
    const tookMs = now - Math.max(plannedAt, this.completedAt)
    this.completedAt = now
    if (!(runMs >= 0) || !Number.isFinite(runMs)) return
    this.meanRunMs += ALPHA * (runMs - this.meanRunMs)
    const late = Math.min(tookMs - runMs, MOST * (Math.max(runMs, this.meanRunMs) + this.ms))
    this.mean += ALPHA * (late - this.mean)
    this.ms = Math.max(this.mean, 0)
  }
}
