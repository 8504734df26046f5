import type { SlotInit, StepResult } from '../../lib/scheduler'
import { WrappedExecutor } from './wrapped_executor'

/** An executor whose results wait until a test lets them through. The steps themselves run. */
export class GatedExecutor extends WrappedExecutor {
  submitted = 0
  /** Called before each submit; may throw. */
  onSubmit: (() => void) | undefined
  onOpenSlot: (() => void) | undefined
  /** Replaces results on their way. */
  change: ((result: StepResult) => StepResult) | undefined
  private readonly held: StepResult[] = []
  private allowed = 0
  private deliver: ((result: StepResult) => void) | undefined
  private waiting: (() => void) | undefined

  /** Results that wait. */
  get heldResults(): number {
    return this.held.length
  }

  override start(onResult: (result: StepResult) => void): void {
    this.deliver = onResult
    this.inner.start((result) => {
      this.held.push(this.change?.(result) ?? result)
      this.flush()
    })
  }

  override openSlot(init: SlotInit): void {
    this.onOpenSlot?.()
    super.openSlot(init)
  }

  override submit(step: Int32Array): void {
    this.onSubmit?.()
    this.submitted++
    super.submit(step)
  }

  /** Lets `count` results through. @returns a promise of the moment when the last of them was delivered */
  release(count = 1): Promise<void> {
    this.allowed += count
    return new Promise((resolve) => {
      this.waiting = resolve
      this.flush()
    })
  }

  /** From now on all results go through. */
  open(): void {
    this.allowed = Infinity
    this.flush()
  }

  /** From now on none goes through. */
  hold(): void {
    this.allowed = 0
  }

  private flush(): void {
    while (this.allowed > 0 && this.held.length > 0) {
      this.allowed--
      this.deliver!(this.held.shift()!)
    }
    if (this.allowed === 0) this.waiting?.()
  }
}
