/** Closes the connection of a reader that takes next to nothing of an answer that is all there. */
import type { ServerResponse } from 'node:http'

/** A reader that takes less in a whole period keeps a connection, and memory, for nothing. */
const LEAST_BYTES = 1024

/** @param periodMs how often progress is looked at */
export function watchReader(outgoing: ServerResponse, periodMs: number): void {
  // At the beginning of the period; undefined while the reader has another answer on the connection to take first, and in the
  // period in which that one ends: what is left of it may be an instant.
  let left = outgoing.socket === null ? undefined : outgoing.writableLength
  const timer = setInterval(() => {
    if (outgoing.socket === null) {
      left = undefined
      return
    }
    const now = outgoing.writableLength
    if (left !== undefined && left - now < LEAST_BYTES) outgoing.destroy()
    left = now
  }, periodMs)
  outgoing.once('close', () => clearInterval(timer))
}
