import { AbortError } from '../errors'

/** A build on a thread of the addon's. */
interface Build<T> {
  promise: Promise<T>
  /** The promise rejects with ABORT_ERR then, once TensorRT has let go. */
  cancel(): void
}

/**
 * Runs a build to its end, or until the signal is aborted.
 * @throws (as a rejection) what the build throws; AbortError after an abort, once TensorRT has let go
 */
export async function abortableBuild<T>(signal: AbortSignal | undefined, start: () => Build<T>): Promise<T> {
  if (signal?.aborted === true) throw new AbortError(signal.reason)
  const build = start()
  const cancel = (): void => build.cancel()
  signal?.addEventListener('abort', cancel, { once: true })
  try {
    return await build.promise
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ABORT_ERR') throw new AbortError(signal?.reason)
    throw error
  } finally {
    signal?.removeEventListener('abort', cancel)
  }
}
