import { AbortError } from '../errors'
import { followSignal } from '../runtime'

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new AbortError(signal.reason)
}

/**
 * What `work` comes to, or an AbortError as soon as the signal says so.
 * @param discard takes what arrives after that; its failures interest nobody
 */
export async function orAbort<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  discard: (late: T) => unknown,
): Promise<T> {
  if (signal === undefined) return work
  let unfollow: (() => void) | undefined
  const aborted = new Promise<never>((_, reject) => {
    unfollow = followSignal(signal, () => reject(new AbortError(signal.reason)))
  })
  let taken = false
  try {
    const value = await Promise.race([work, aborted])
    taken = true
    return value
  } finally {
    unfollow!()
    if (!taken) work.then(discard).catch(() => {})
  }
}
