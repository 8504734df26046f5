import type { TensorRTError } from '../errors'
import { tellListener } from '../runtime'
import type { ExecutorInfo } from '../scheduler'
import type { LLMWarning } from './options'
import type { RestartFailure } from './restart'
import type { Switchover } from './succession'

/** Of a backend that dies and comes back for weeks on end, the last are told. */
const MAX_KEPT = 256

/** Keeps warnings, and tells the one who asked for them, or the process. */
export class Warnings {
  readonly all: LLMWarning[] = []

  constructor(private readonly listener: ((warning: LLMWarning) => void) | undefined) {}

  /** What the listener throws must not come in the way of requests: it is a warning of the process. */
  add(warning: LLMWarning): void {
    if (this.all.length === MAX_KEPT) this.all.shift()
    this.all.push(warning)
    if (this.listener === undefined) process.emitWarning(warning.message, 'NodeTensorRTWarning', warning.code)
    else tellListener('onWarning', this.listener, warning)
  }
}

export function switchoverWarning({ kind, from, to, cause, sequences, durationMs }: Switchover): LLMWarning {
  const details = { cause, sequences, durationMs }
  if (kind === 'return') {
    return {
      code: 'BACKEND_RESTARTED',
      message: `The backend ${to.name} (${to.device}) is back, and goes on with ${sequences} live sequences.`,
      ...details,
    }
  }
  return {
    code: 'BACKEND_FAILED_OVER',
    message:
      `The backend ${from.name} (${from.device}) died, and ${to.name} (${to.device}) has taken over ` +
      `${sequences} live sequences after ${Math.round(durationMs)} ms. ${cause.message}`,
    ...details,
  }
}

export function outageWarning(cause: TensorRTError, { name, device }: ExecutorInfo): LLMWarning {
  return {
    code: 'BACKEND_DOWN',
    message: `The backend ${name} (${device}) died, and requests are refused until it is back. ${cause.message}`,
    cause,
  }
}

export function restartFailureWarning({ error, attempt, nextDelayMs }: RestartFailure): LLMWarning {
  const next =
    nextDelayMs === undefined ? 'No other will be made' : `The next will be made in ${Math.round(nextDelayMs)} ms`
  return {
    code: 'BACKEND_RESTART_FAILED',
    message: `Attempt ${attempt} to restart the backend failed. ${next}. ${error.message}`,
    cause: error,
  }
}
