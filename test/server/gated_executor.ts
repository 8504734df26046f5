import type { Executor, SlotInit, StepResult } from '../../lib/scheduler'

/** An executor whose results wait while it is held, so that a test can stop the world at a step. The steps themselves run. */
export class GatedExecutor implements Executor {
  /** Every step from this number on fails in a way that cannot be retried. */
  failFrom = Infinity
  private held = false
  private readonly waiting: StepResult[] = []
  private onResult: (result: StepResult) => void = () => {}

  constructor(private readonly inner: Executor) {}

  get info(): Executor['info'] {
    return this.inner.info
  }

  get waitingResults(): number {
    return this.waiting.length
  }

  hold(): void {
    this.held = true
  }

  release(): void {
    this.held = false
    for (const result of this.waiting.splice(0)) this.onResult(result)
  }

  start(onResult: (result: StepResult) => void): void {
    this.onResult = onResult
    this.inner.start((result) => {
      const told = result.stepId >= this.failFrom ? failed(result) : result
      if (this.held) this.waiting.push(told)
      else onResult(told)
    })
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
    return this.inner.close()
  }
}

function failed(result: StepResult): StepResult {
  return {
    ...result,
    tokens: new Int32Array(0),
    logprobs: [],
    logits: new Float32Array(0),
    error: { code: 'ERR_STEP_FAILED', message: 'device 0x7fff at /secret/path', retryable: false },
  }
}
