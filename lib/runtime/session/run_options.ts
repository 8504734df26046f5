/** Options of one request, checked. */
import { isDate } from 'node:util/types'
import { AbortError, TensorRTError } from '../../errors'
import { ArgumentReader, describeValue, invalidArgument } from '../argument_reader'
import type { RunOptions } from './options'
import type { ModelSignature } from './signature'

/** Times are milliseconds of `performance.now()`, Infinity = never. */
export interface CheckedRun {
  signal: AbortSignal | undefined
  priority: number
  deadline: number
  timeoutAt: number
  /** Indices of the outputs that are wanted; null: all. */
  wanted: readonly number[] | null
}

export const DEFAULT_RUN: CheckedRun = { signal: undefined, priority: 0, deadline: Infinity, timeoutAt: Infinity, wanted: null }

const RUN_OPTIONS = ['signal', 'priority', 'deadline', 'timeoutMs', 'outputs'] as const

/** @throws ERR_INVALID_ARGUMENT; AbortError where the signal has aborted */
export function readRunOptions(options: RunOptions, signature: ModelSignature, now: number): CheckedRun {
  const reader = new ArgumentReader(options, RUN_OPTIONS, 'run()')
  const signal = reader.signal('signal')
  if (signal?.aborted === true) throw new AbortError(signal.reason)
  return {
    signal,
    priority: reader.integer('priority', -1000, 1000) ?? 0,
    deadline: readDeadline(reader.get('deadline'), now),
    timeoutAt: now + (reader.positive('timeoutMs') ?? Infinity),
    wanted: readOutputs(reader.get('outputs'), signature),
  }
}

function readDeadline(value: unknown, now: number): number {
  if (value === undefined) return Infinity
  const at = isDate(value) ? value.getTime() : value
  if (typeof at !== 'number' || !Number.isFinite(at)) throw invalidArgument('deadline', 'a Date or milliseconds since the epoch', value)
  return now + (at - Date.now())
}

function readOutputs(value: unknown, { outputs }: ModelSignature): number[] | null {
  if (value === undefined) return null
  if (!Array.isArray(value)) throw invalidArgument('outputs', 'an array of names', value)
  return value.map((name: unknown) => {
    const index = outputs.findIndex((output) => output.name === name)
    if (index >= 0) return index
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `The model has no output ${describeValue(name)}`, {
      hint: `it gives ${outputs.map(({ name }) => name).join(', ')}`,
    })
  })
}
