/** Stands for a GPU: steps take their time on a clock of their own, and none of the processor's. */
import {
  type Executor,
  type ExecutorInfo,
  STEP_HEADER_INTS,
  STEP_SEQUENCE_INTS,
  StepFlag,
  type StepResult,
} from '../../lib/scheduler'

const none = new Float32Array(0)

/**
 * A step begins when it is submitted and the one before it has ended, whether or not anybody has looked at that one's result, as on
 * a device. Results come by a timer, so up to a millisecond late; lateness does not add up. Steps that take no time are answered one
 * in each turn of the event loop.
 */
export class TimedExecutor implements Executor {
  readonly info: ExecutorInfo
  private readonly queue: { result: StepResult; endsAt: number }[] = []
  private timer: NodeJS.Timeout | undefined
  private turn: NodeJS.Immediate | undefined
  private endsAt = 0
  private sampled = 0
  private onResult: (result: StepResult) => void = () => {}

  /** @param tokens are sampled in turn; @param sizes are in the names of {@link ExecutorInfo} */
  constructor(
    private readonly stepMs: number,
    private readonly tokens: Int32Array,
    sizes: Pick<ExecutorInfo, 'vocabSize' | 'maxSlots' | 'maxStepTokens'>,
  ) {
    const common = { batchInvariant: true, maxPositions: 8192, pageSize: 16, numPages: 65_536, kvCacheBytes: 0, weightBytes: 0 }
    this.info = { name: 'timed', device: `a clock, ${stepMs} ms a step`, ...common, ...sizes }
  }

  start(onResult: (result: StepResult) => void): void {
    this.onResult = onResult
  }

  openSlot(): void {}

  closeSlot(): void {}

  submit(packed: Int32Array): void {
    let samples = 0
    for (let row = 0, at = STEP_HEADER_INTS + 4; row < packed[2]!; row++, at += STEP_SEQUENCE_INTS) samples += packed[at]! & StepFlag.SAMPLE
    const tokens = new Int32Array(samples)
    for (let i = 0; i < samples; i++) tokens[i] = this.tokens[this.sampled++ % this.tokens.length]!
    this.endsAt = Math.max(performance.now(), this.endsAt) + this.stepMs
    const timings = { queueUs: 0, runUs: this.stepMs * 1000 }
    this.queue.push({ result: { stepId: packed[1]!, tokens, logprobs: [], logits: none, timings }, endsAt: this.endsAt })
    this.arm()
  }

  close(): Promise<void> {
    clearTimeout(this.timer)
    clearImmediate(this.turn)
    return Promise.resolve()
  }

  private arm(): void {
    const [next] = this.queue
    if (this.timer !== undefined || this.turn !== undefined || next === undefined) return
    if (this.stepMs === 0) this.turn = setImmediate(() => this.answer())
    else this.timer = setTimeout(() => this.fire(), next.endsAt - performance.now())
  }

  private answer(): void {
    this.turn = undefined
    this.onResult(this.queue.shift()!.result)
    this.arm()
  }

  private fire(): void {
    this.timer = undefined
    // A timer knows whole milliseconds.
    const now = performance.now() + 0.5
    while (this.queue.length > 0 && this.queue[0]!.endsAt <= now) this.onResult(this.queue.shift()!.result)
    this.arm()
  }
}
