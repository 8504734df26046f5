import type { Executor, SlotInit, StepResult } from '../../lib/scheduler'

/**
 * An executor whose steps fail when `shouldFail` says so. The real step has run by then, so the cache and the slots are in the state
 * that a late failure leaves behind; only the result is taken away.
 */
export class FaultyExecutor implements Executor {
  failures = 0

  constructor(
    private readonly inner: Executor,
    private readonly shouldFail: (stepId: number) => { retryable: boolean } | undefined,
  ) {}

  get info(): Executor['info'] {
    return this.inner.info
  }

  start(onResult: (result: StepResult) => void): void {
    this.inner.start((result) => {
      const fault = this.shouldFail(result.stepId)
      if (fault === undefined || result.error !== undefined) return onResult(result)
      this.failures++
      onResult({
        ...result,
        tokens: new Int32Array(0),
        logprobs: [],
        logits: new Float32Array(0),
        error: { code: 'ERR_STEP_FAILED', message: 'injected', retryable: fault.retryable },
      })
    })
  }

  openSlot(init: SlotInit): void {
    this.inner.openSlot(init)
  }

  closeSlot(slot: number): void {
    this.inner.closeSlot(slot)
  }

  setMask(slot: number, mask: Int32Array | null): void {
    this.inner.setMask!(slot, mask)
  }

  submit(step: Int32Array): void {
    this.inner.submit(step)
  }

  close(): Promise<void> {
    return this.inner.close()
  }
}
