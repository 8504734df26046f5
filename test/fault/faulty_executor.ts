import type { Executor, StepResult } from '../../lib/scheduler'
import { failedResult, WrappedExecutor } from '../support/wrapped_executor'

/**
 * An executor whose steps fail when `shouldFail` says so. The real step has run by then, so the cache and the slots are in the state
 * that a late failure leaves behind; only the result is taken away.
 */
export class FaultyExecutor extends WrappedExecutor {
  failures = 0

  constructor(
    inner: Executor,
    private readonly shouldFail: (stepId: number) => { retryable: boolean } | undefined,
  ) {
    super(inner)
  }

  override start(onResult: (result: StepResult) => void): void {
    super.start((result) => {
      const fault = this.shouldFail(result.stepId)
      if (fault === undefined || result.error !== undefined) return onResult(result)
      this.failures++
      onResult(failedResult(result, { code: 'ERR_STEP_FAILED', message: 'injected', retryable: fault.retryable }))
    })
  }
}
