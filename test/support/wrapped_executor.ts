import type { Executor, SlotInit, StepResult } from '../../lib/scheduler'

/** Passes everything on to the executor inside; what a test wants otherwise, it overrides. */
export class WrappedExecutor implements Executor {
  /** Calls of `close`. */
  closed = 0
  readonly setMask?: NonNullable<Executor['setMask']>

  /** @param masks whether it has `setMask`, where the one inside does */
  constructor(
    protected readonly inner: Executor,
    masks = true,
  ) {
    if (masks && inner.setMask !== undefined) this.setMask = (slot, mask) => inner.setMask!(slot, mask)
  }

  get info(): Executor['info'] {
    return this.inner.info
  }

  start(onResult: (result: StepResult) => void): void {
    this.inner.start(onResult)
  }

  openSlot(init: SlotInit): void {
    this.inner.openSlot(init)
  }

  closeSlot(slot: number): void {
    this.inner.closeSlot(slot)
  }

  submit(step: Int32Array): void {
    this.inner.submit(step)
  }

  close(): Promise<void> {
    this.closed++
    return this.inner.close()
  }
}

/** What a step that ran would say had it failed. */
export function failedResult(result: StepResult, error: NonNullable<StepResult['error']>): StepResult {
  return { ...result, tokens: new Int32Array(0), logprobs: [], logits: new Float32Array(0), error }
}
