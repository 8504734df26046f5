/** Requests that end at some moment, wherever they are: those with a deadline or a timeout. */
import { TensorRTError } from '../../errors'
import type { SessionRequest } from './session_request'

export class RequestLimits {
  private readonly requests = new Set<SessionRequest>()
  private earliest = Infinity

  /** No request ends before; milliseconds of `performance.now()`. */
  get nextAt(): number {
    return this.earliest
  }

  add(request: SessionRequest): void {
    const limit = limitOf(request)
    if (limit === Infinity) return
    this.requests.add(request)
    this.earliest = Math.min(this.earliest, limit)
  }

  delete(request: SessionRequest): void {
    if (limitOf(request) !== Infinity) this.requests.delete(request)
  }

  /** Those whose time is over, each with its error. They are no longer known here. */
  takeExpired(now: number): { request: SessionRequest; error: TensorRTError }[] {
    if (this.earliest > now) return []
    this.earliest = Infinity
    const expired: { request: SessionRequest; error: TensorRTError }[] = []
    for (const request of this.requests) {
      const limit = limitOf(request)
      if (limit > now) {
        this.earliest = Math.min(this.earliest, limit)
        continue
      }
      this.requests.delete(request)
      expired.push({ request, error: expiry(request) })
    }
    return expired
  }
}

function limitOf({ deadline, timeoutAt }: SessionRequest): number {
  return Math.min(deadline, timeoutAt)
}

function expiry({ deadline, timeoutAt, arrival }: SessionRequest): TensorRTError {
  if (deadline <= timeoutAt) return new TensorRTError('ERR_DEADLINE_EXCEEDED', 'The deadline has passed before the outputs were there')
  return new TensorRTError('ERR_TIMEOUT', `The request took longer than ${Math.round(timeoutAt - arrival)} ms`)
}
