/** What a request says in its headers beside its body. */
import { ApiError } from '../errors'
import type { Exchange } from './exchange'

function integer(exchange: Exchange, name: string, min: number, max: number): number | undefined {
  const text = exchange.header(name)
  if (text === undefined) return undefined
  const value = /^-?\d{1,16}$/.test(text.trim()) ? Number(text) : NaN
  if (value >= min && value <= max) return value
  throw ApiError.invalid(name, `The header "${name}" must be an integer from ${min} to ${max}`)
}

export interface ScheduleHeaders {
  /** Lower is more urgent. */
  priority: number | undefined
  /** Milliseconds from now. */
  deadlineMs: number | undefined
}

/** @throws ApiError 400 */
export function scheduleHeaders(exchange: Exchange): ScheduleHeaders {
  return {
    priority: integer(exchange, 'x-request-priority', -1000, 1000),
    deadlineMs: integer(exchange, 'x-request-deadline-ms', 1, 2 ** 31 - 1),
  }
}

/** W3C Trace Context, level 1: what is not of this form is left out, as the specification asks. */
const TRACEPARENT = /^[\da-f]{2}-[\da-f]{32}-[\da-f]{16}-[\da-f]{2}(?:-.*)?$/
const MAX_TRACESTATE = 512

export function traceContext(exchange: Exchange): { traceparent: string | undefined; tracestate: string | undefined } {
  const parent = exchange.header('traceparent')
  if (parent === undefined || !TRACEPARENT.test(parent)) return { traceparent: undefined, tracestate: undefined }
  const state = exchange.header('tracestate')
  return { traceparent: parent, tracestate: state === undefined || state.length > MAX_TRACESTATE ? undefined : state }
}
