import type { Executor, SlotInit, StepResult } from '../../../lib/scheduler'

/** An executor whose results wait until a test lets them through. What computes them is the executor inside. */
export class GatedExecutor implements Executor {
  submitted = 0
  /** Called before each submit; may throw. */
  onSubmit: (() => void) | undefined
  onOpenSlot: (() => void) | undefined
  /** Replaces results on their way. */
  change: ((result: StepResult) => StepResult) | undefined
  closed = 0
  private readonly held: StepResult[] = []
  private allowed = 0
  private deliver: ((result: StepResult) => void) | undefined
  private waiting: (() => void) | undefined

  constructor(private readonly inner: Executor) {}

  get info(): Executor['info'] {
    return this.inner.info
  }

  start(onResult: (result: StepResult) => void): void {
    this.deliver = onResult
    this.inner.start((result) => {
      this.held.push(this.change?.(result) ?? result)
      this.flush()
    })
  }

  openSlot(init: SlotInit): void {
    this.onOpenSlot?.()
    this.inner.openSlot(init)
  }

  closeSlot(slot: number): void {
    this.inner.closeSlot(slot)
  }

  setMask(slot: number, mask: Int32Array | null): void {
    this.inner.setMask!(slot, mask)
  }

  submit(step: Int32Array): void {
    this.onSubmit?.()
    this.submitted++
    this.inner.submit(step)
  }

  close(): Promise<void> {
    this.closed++
    return this.inner.close()
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

  private flush(): void {
    while (this.allowed > 0 && this.held.length > 0) {
      this.allowed--
      this.deliver!(this.held.shift()!)
    }
    if (this.allowed === 0) this.waiting?.()
  }
}
