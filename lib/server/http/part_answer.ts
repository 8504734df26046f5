/** Waits for what a part of a caller's own answers: it may take its time, or never come to an end. */
import { AbortError, TensorRTError } from '../../errors'
import { ApiError } from '../errors'
import type { Services } from '../services'
import type { Exchange } from './exchange'

const MAX_TIMER_MS = 2 ** 31 - 1

/**
 * What `given` settles with, as long as the request lasts; what comes later goes nowhere. What came too late is aborted, and told to `onError`.
 *
 * @param timeoutMs Infinity: until the request is aborted
 * @param part names the part in the error
 * @throws (as a rejection) what `given` rejects with; ERR_TIMEOUT; what the request is aborted with, AbortError where its client left
 */
export function partAnswer<T>(exchange: Exchange, services: Pick<Services, 'onError'>, given: T | PromiseLike<T>, timeoutMs: number, part: string): T | Promise<T> {
  if (typeof (given as Partial<PromiseLike<T>> | undefined)?.then !== 'function') return given as T
  return new Promise<T>((resolve, reject) => {
    const since = performance.now()
    const stop = (): void => {
      clearTimeout(timer)
      exchange.heldMs += performance.now() - since
    }
    const onTimeout = (): void => {
      const error = new TensorRTError('ERR_TIMEOUT', `${part} did not answer within the ${timeoutMs} ms of "requestTimeoutMs"`, {
        hint: 'let it end by itself sooner, or when the signal of the request aborts',
      })
      services.onError(error, exchange.id)
      reject(error)
      exchange.abort(error)
    }
    const timer = timeoutMs <= MAX_TIMER_MS ? setTimeout(onTimeout, timeoutMs) : undefined
    exchange.follow(() => {
      clearTimeout(timer)
      const reason = exchange.abortReason
      reject(reason instanceof ApiError ? reason : new AbortError(reason))
    })
    Promise.resolve(given).finally(stop).then(resolve, reject)
  })
}
