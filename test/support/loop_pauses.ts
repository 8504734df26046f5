/** How long the event loop does not turn, by no fault of what else the machine does. */
import { readFileSync } from 'node:fs'
import { isMainThread } from 'node:worker_threads'

/**
 * Milliseconds for which this thread was ready to run and had no processor, so far. Linux tells; elsewhere it is 0, and pauses are
 * those of the machine as well.
 */
function queuedMs(): number {
  if (process.platform !== 'linux' || !isMainThread) return 0
  try {
    return Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6
  } catch {
    return 0
  }
}

const clock = (): number => performance.now() - queuedMs()

/** From one tick of a timer of 1 ms to the next, from its making to `stop`. */
export class LoopPauses {
  private readonly pauses: number[] = []
  private last = clock()
  private readonly timer = setInterval(() => {
    const now = clock()
    this.pauses.push(now - this.last)
    this.last = now
  }, 1)

  /** Pauses in milliseconds, the longest at the end. */
  stop(): number[] {
    clearInterval(this.timer)
    return this.pauses.sort((a, b) => a - b)
  }
}
