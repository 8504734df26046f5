/** Closes the connection of a reader that takes next to nothing of an answer that is all there. */
import type { ServerResponse } from 'node:http'

/** A reader that takes less in a whole period keeps a connection, and memory, for nothing. */
const LEAST_BYTES = 1024

/** @param periodMs how often progress is looked at */
export function watchReader(outgoing: ServerResponse, periodMs: number): void {
  let left = outgoing.writableLength
  const timer = setInterval(() => {
    // Behind another answer on its connection, which the reader has to take first.
    if (outgoing.socket === null) return
    const now = outgoing.writableLength
    if (left - now < LEAST_BYTES) outgoing.destroy()
    left = now
  }, periodMs)
  outgoing.once('close', () => clearInterval(timer))
}
