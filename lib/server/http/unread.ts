/** What is left of a request's body once it has been answered. */
import type { IncomingMessage } from 'node:http'

/** A client that goes on sending for longer, or more, loses its connection. */
const PATIENCE_MS = 500
const MOST_BYTES = 64 * 1024 * 1024

/** Reads the rest of a body away, as the next request of the connection comes behind it. */
export function discardBody(incoming: IncomingMessage): void {
  if (incoming.destroyed || incoming.readableEnded) return
  let length = 0
  const end = (): void => {
    clearTimeout(timer)
    incoming.off('data', onData).off('end', end).off('error', end)
  }
  const close = (): void => {
    end()
    incoming.socket.destroySoon()
  }
  const onData = (chunk: Buffer): void => {
    length += chunk.length
    if (length > MOST_BYTES) close()
  }
  const timer = setTimeout(close, PATIENCE_MS).unref()
  incoming.on('data', onData).on('end', end).on('error', end).resume()
}
