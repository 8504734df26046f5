import { TensorRTError } from '../../lib'
import type { Executor, SlotInit, StepResult } from '../../lib/scheduler'
import { failedResult, WrappedExecutor } from '../support/wrapped_executor'

/** How the executor says that it is dead: in a result, as a device error or as its own end; by refusing calls; or not at all. */
export type Death = 'ERR_CUDA' | 'ERR_BACKEND_DEAD' | 'submit' | 'openSlot' | 'hang'

/**
 * An executor that dies at a step, like a GPU does: from the result of step `at` on nothing is of use. With 'ERR_CUDA' that
 * result carries the device's error and later ones ERR_BACKEND_DEAD; with 'submit' and 'openSlot' the call that follows
 * step `at` throws; with 'hang' no result comes any more. The executor inside lives on, so that results of steps in flight still arrive, late.
 */
export class DyingExecutor extends WrappedExecutor {
  /** Results that arrived after the death. */
  late = 0
  diedAt = NaN
  /** Steps submitted and not answered when it died, the one that failed among them. */
  inFlightAtDeath = 0
  /** Good results are still delivered after the death. */
  zombie = false
  onDeath: (() => void) | undefined
  /** `close` never settles, as with a driver that hangs. */
  hangs = false
  private submitted = 0
  private answered = 0

  constructor(
    inner: Executor,
    private at: number,
    private readonly how: Death = 'ERR_CUDA',
  ) {
    super(inner)
  }

  override get info(): Executor['info'] {
    return { ...super.info, name: 'mortal' }
  }

  /** It dies now: at the next result, or call, that can tell. */
  kill(): void {
    this.at = 0
  }

  override start(onResult: (result: StepResult) => void): void {
    super.start((result) => {
      this.answered++
      if (this.dead) {
        this.late++
        if (this.how !== 'hang') onResult(this.zombie ? result : failed(result, 'ERR_BACKEND_DEAD'))
      } else if (result.stepId >= this.at && this.how === 'hang') {
        this.die()
      } else if (result.stepId >= this.at && (this.how === 'ERR_CUDA' || this.how === 'ERR_BACKEND_DEAD')) {
        this.die()
        onResult(failed(result, this.how))
      } else {
        onResult(result)
      }
    })
  }

  override openSlot(init: SlotInit): void {
    this.fail('openSlot')
    super.openSlot(init)
  }

  override submit(step: Int32Array): void {
    this.fail('submit')
    this.submitted++
    super.submit(step)
  }

  override async close(): Promise<void> {
    await super.close()
    if (this.hangs) await new Promise(() => {})
  }

  private get dead(): boolean {
    return !Number.isNaN(this.diedAt)
  }

  private die(): void {
    this.diedAt = performance.now()
    this.inFlightAtDeath = this.submitted - this.answered + 1
    this.onDeath?.()
  }

  private fail(call: Death): void {
    if (!this.dead && this.how === call && this.submitted >= this.at) this.die()
    if (this.dead && this.how !== 'hang') throw new TensorRTError('ERR_BACKEND_DEAD', 'an illegal memory access was encountered')
  }
}

function failed(result: StepResult, code: 'ERR_CUDA' | 'ERR_BACKEND_DEAD'): StepResult {
  return failedResult(result, { code, message: 'an illegal memory access was encountered', retryable: false })
}
