/** What ends an executor, and the errors that tell of it. */
import { TensorRTError } from '../errors'
import type { Executor, StepResult } from '../scheduler'

/** How long anything waits for the end of a dead executor, whose device may never answer. */
export const DEAD_CLOSE_MS = 5000

/** Failures after which an executor runs no more steps. */
export function isDeath({ code, retryable }: NonNullable<StepResult['error']>): boolean {
  return code === 'ERR_BACKEND_DEAD' || code === 'ERR_DISPOSED' || (code === 'ERR_CUDA' && !retryable)
}

export function deathOf(cause: unknown): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `The executor has ended: ${messageOf(cause)}`, { cause })
}

/** @param ms how long the step has been in flight */
export function deathByTimeout(stepId: number, ms: number): TensorRTError {
  const cause = new TensorRTError('ERR_TIMEOUT', `Step ${stepId} did not end within ${Math.round(ms)} ms`, {
    hint: 'the device hangs, or "stepTimeoutMs" is too short for it',
  })
  return deathOf(cause)
}

export function noneLeft(death: TensorRTError, failure: unknown): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `${death.message}; and no other took over: ${messageOf(failure)}`, {
    cause: new AggregateError([death.cause, failure], 'A backend died, and so did the attempt to replace it'),
  })
}

/** For requests that come while a backend is down and on its way back. */
export function outage(death: TensorRTError): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `The backend is down, and is being restarted: ${death.message}`, {
    hint: 'retry later',
    cause: death,
  })
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** What stands in for the result of a step that an executor refused to take. */
export function refusedResult(
  stepId: number,
  error: unknown,
): StepResult & { error: NonNullable<StepResult['error']> } {
  const { code, message } =
    error instanceof TensorRTError ? error : { code: 'ERR_STEP_FAILED' as const, message: String(error) }
  return {
    stepId,
    error: { code, message, retryable: false },
    tokens: new Int32Array(0),
    logprobs: [],
    logits: new Float32Array(0),
    timings: { queueUs: 0, runUs: 0 },
  }
}

/** Closes an executor whose end interests nobody: one that has died, or came too late. @returns when it has ended */
export async function closeQuietly(executor: Executor): Promise<void> {
  try {
    await executor.close()
  } catch {
    // That it does not work any more is known.
  }
}

/** Settles with `work`, or after `ms` milliseconds without it. */
export async function atMost(ms: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const over = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))
  try {
    await Promise.race([work, over])
  } finally {
    clearTimeout(timer)
  }
}
