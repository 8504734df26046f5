import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks'

const RESOLUTION_MS = 10
/** Milliseconds of which the percentile is taken; of the time before that nothing is said. */
const WINDOW_MS = 2000

/**
 * How late the event loop is lately: for so long what has come may wait in the system's buffers, which nobody can ask. The longer the
 * loop's turns, the more requests come in them, so that of requests more than of samples wait long.
 */
export class LoopDelay {
  private readonly histogram: IntervalHistogram
  private since = performance.now()
  /** 99th percentile of the last window, in ms. */
  private last = 0

  constructor() {
    this.histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS })
    this.histogram.enable()
  }

  /** 99th percentile, in ms, at most some seconds old. */
  get ms(): number {
    const now = performance.now()
    if (now - this.since >= WINDOW_MS) {
      // Samples have the interval between them in them.
      this.last = this.histogram.count === 0 ? 0 : Math.max(this.histogram.percentile(99) / 1e6 - RESOLUTION_MS, 0)
      this.histogram.reset()
      this.since = now
    }
    return this.last
  }

  close(): void {
    this.histogram.disable()
  }
}
