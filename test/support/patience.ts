/** Waiting without a guess at how fast the machine is. */
import { setImmediate as turn } from 'node:timers/promises'

/** For `vi.waitFor`: what is to happen happens at once, but on a machine that is slow, and busy with something else. */
export const PATIENTLY = { timeout: 45_000, interval: 5 } as const

/**
 * The answer to something measured, which a busy machine spoils now and then: tried until it holds, at most `attempts` times.
 * What never holds never passes.
 */
export async function inOneOf(attempts: number, measure: () => void | Promise<void>): Promise<void> {
  for (let left = attempts - 1; ; left--) {
    try {
      return await measure()
    } catch (error) {
      if (left === 0) throw error
    }
  }
}

/** Counts turns of the event loop. A call that blocks it lets none pass, however fast it is. */
export class TurnCounter {
  turns = 0
  private running = true

  constructor() {
    void this.count()
  }

  stop(): number {
    this.running = false
    return this.turns
  }

  private async count(): Promise<void> {
    while (this.running) {
      await turn()
      this.turns++
    }
  }
}

/**
 * How many times as much of the processor `large` takes as `small`, by the least of several runs each: the first are of code that
 * is not optimised yet, and what else the machine does costs caches. No more runs than it takes to come down to `enough`.
 */
export function timesAsMuch(small: () => unknown, large: () => unknown, enough: number, runs = 7): number {
  let [least, most] = [Infinity, Infinity]
  for (let run = 0; run < runs; run++) {
    least = Math.min(least, cpuOf(small), cpuOf(small), cpuOf(small))
    most = Math.min(most, cpuOf(large))
    if (most <= enough * least) break
  }
  return most / least
}

/** Microseconds of the processor, of the whole process; at least one. */
export function cpuOf(work: () => unknown): number {
  const from = process.cpuUsage()
  work()
  const { user, system } = process.cpuUsage(from)
  return Math.max(1, user + system)
}

/** Milliseconds. */
export function timeOf(work: () => unknown): number {
  const from = performance.now()
  work()
  return performance.now() - from
}
