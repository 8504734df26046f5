/**
 * Callbacks per signal. A signal gets one listener however many requests follow it: adding the n-th listener takes time
 * in proportion to n, and Node warns of a leak from the eleventh on.
 */
const followers = new WeakMap<AbortSignal, Followers>()

interface Followers {
  callbacks: Set<() => void>
  listener: () => void
}

/**
 * Calls back once when the signal aborts; at once, if it has.
 * @param onAbort must not throw
 * @returns ends it; may be called at any time
 */
export function followSignal(signal: AbortSignal, onAbort: () => void): () => void {
  if (signal.aborted) {
    onAbort()
    return () => {}
  }
  // The same function may follow twice.
  const callback = (): void => onAbort()
  const { callbacks } = followers.get(signal) ?? listen(signal)
  callbacks.add(callback)
  return () => {
    callbacks.delete(callback)
    if (callbacks.size === 0) ignore(signal, callbacks)
  }
}

function listen(signal: AbortSignal): Followers {
  const callbacks = new Set<() => void>()
  const listener = (): void => {
    followers.delete(signal)
    for (const callback of callbacks) callback()
  }
  const entry = { callbacks, listener }
  followers.set(signal, entry)
  signal.addEventListener('abort', listener, { once: true })
  return entry
}

function ignore(signal: AbortSignal, callbacks: Set<() => void>): void {
  const entry = followers.get(signal)
  if (entry?.callbacks !== callbacks) return
  followers.delete(signal)
  signal.removeEventListener('abort', entry.listener)
}
