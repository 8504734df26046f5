/**
 * An executor of one's own, without a model: the next token is a hash of all tokens before it. They are read back
 * through the paged cache, so a page that was freed too early, shared wrongly or lost changes the output.
 *
 * It shows everything that an executor owes the scheduler: checks that throw before anything changes, order of slots
 * and steps, the last sampled token, one result per step and never from within `submit`, and an end.
 */
import { TensorRTError } from '../../lib/errors'
import {
  type Executor,
  type ExecutorInfo,
  LAST_SAMPLED_TOKEN,
  NOTHING_ALLOWED,
  type SlotInit,
  StepChecker,
  StepFlag,
  type StepResult,
  type StepSequenceView,
  type StepView,
} from '../../lib/scheduler'
import { logitsAfter, logprobRow, sample } from './hash_model'

interface Slot {
  init: SlotInit
  sampled: number
  last: number
  mask: Int32Array | null
}

type Command =
  | { open: SlotInit }
  | { close: number }
  | { slot: number; mask: Int32Array | null }
  | { step: StepView }

export class HashExecutor implements Executor {
  readonly info: ExecutorInfo
  /** "Keys and values": the token of each position, `[numPages, pageSize]`. */
  protected readonly cache: Int32Array
  protected readonly slots = new Map<number, Slot>()
  private readonly checker: StepChecker
  private readonly queue: Command[] = []
  private onResult: ((result: StepResult) => void) | undefined
  private closed = false

  constructor(sizes: Partial<ExecutorInfo> = {}) {
    this.info = {
      name: 'hash',
      device: 'a hash function',
      batchInvariant: true,
      vocabSize: 97,
      maxPositions: 256,
      pageSize: 4,
      numPages: 256,
      maxSlots: 16,
      maxStepTokens: 64,
      kvCacheBytes: 0,
      weightBytes: 0,
      ...sizes,
    }
    this.checker = new StepChecker(this.info)
    this.cache = new Int32Array(this.info.numPages * this.info.pageSize)
  }

  start(onResult: (result: StepResult) => void): void {
    this.onResult = onResult
  }

  openSlot(init: SlotInit): void {
    this.ensureOpen()
    this.checker.openSlot(init)
    this.queue.push({ open: { ...init, output: init.output.slice() } })
  }

  closeSlot(slot: number): void {
    this.ensureOpen()
    this.checker.closeSlot(slot)
    this.queue.push({ close: slot })
  }

  setMask(slot: number, mask: Int32Array | null): void {
    this.ensureOpen()
    this.checker.setMask(slot, mask)
    this.queue.push({ slot, mask: mask === null ? null : mask.slice() })
  }

  submit(step: Int32Array): void {
    this.ensureOpen()
    if (this.onResult === undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', 'start() comes before submit()')
    this.queue.push({ step: this.checker.parse(step) })
    this.defer(() => this.runNext())
  }

  close(): Promise<void> {
    this.closed = true
    for (let step = this.nextStep(); step !== undefined; step = this.nextStep()) {
      this.onResult?.({
        ...emptyResult(step),
        error: { code: 'ERR_DISPOSED', message: 'The executor was closed', retryable: false },
      })
    }
    return Promise.resolve()
  }

  private ensureOpen(): void {
    if (this.closed) throw new TensorRTError('ERR_DISPOSED', 'The executor is closed')
  }

  /** Takes effect of the slots' commands up to the next step. */
  private nextStep(): StepView | undefined {
    for (let command = this.queue.shift(); command !== undefined; command = this.queue.shift()) {
      if ('step' in command) return command.step
      if ('close' in command) this.slots.delete(command.close)
      else if ('mask' in command) this.slots.get(command.slot)!.mask = command.mask
      else
        this.slots.set(command.open.slot, {
          init: command.open,
          sampled: command.open.output.length,
          last: command.open.output.at(-1) ?? 0,
          mask: null,
        })
    }
    return undefined
  }

  protected defer(work: () => void): void {
    setImmediate(work)
  }

  private runNext(): void {
    const step = this.nextStep()
    if (step !== undefined) this.onResult!(this.run(step))
  }

  protected run(step: StepView): StepResult {
    const tokens: number[] = []
    const logits: Float32Array[] = []
    const result = emptyResult(step)
    step.sequences.forEach((seq, index) => {
      const slot = this.slots.get(seq.slot)!
      const { prompt, sampling } = slot.init
      let row = new Float32Array(0)
      seq.tokens.forEach((token, i) => {
        const position = seq.cached + i
        this.cache[this.address(seq, position)] = token === LAST_SAMPLED_TOKEN ? slot.last : token
        const reportsNext = (seq.flags & StepFlag.PROMPT_LOGPROBS) !== 0 && position + 1 < prompt.length
        if (reportsNext || i === seq.tokens.length - 1) row = this.logitsAt(seq, position)
        if (reportsNext)
          result.logprobs.push(logprobRow(index, position + 1, prompt[position + 1]!, row, sampling.promptLogprobs))
      })
      if ((seq.flags & StepFlag.LOGITS) !== 0) logits.push(row)
      if ((seq.flags & StepFlag.SAMPLE) === 0) return
      slot.last = sample(row, sampling, slot.sampled, slot.mask)
      tokens.push(slot.last)
      if (slot.last === NOTHING_ALLOWED) return
      slot.sampled++
      if (sampling.logprobs >= 0)
        result.logprobs.push(logprobRow(index, seq.cached + seq.tokens.length, slot.last, row, sampling.logprobs))
    })
    result.tokens = Int32Array.from(tokens)
    result.logits = Float32Array.from(logits.flatMap((row) => [...row]))
    return result
  }

  protected address(seq: StepSequenceView, position: number): number {
    const { pageSize } = this.info
    return seq.pages[Math.floor(position / pageSize)]! * pageSize + (position % pageSize)
  }

  /** `[vocabSize]`, from what the cache holds of the sequence up to `position`. */
  private logitsAt(seq: StepSequenceView, position: number): Float32Array<ArrayBuffer> {
    const tokens = Int32Array.from({ length: position + 1 }, (_, p) => this.cache[this.address(seq, p)]!)
    return logitsAfter(tokens, this.info.vocabSize)
  }
}

export function emptyResult(step: StepView): StepResult {
  const none = new Float32Array(0)
  return {
    stepId: step.stepId,
    tokens: new Int32Array(0),
    logprobs: [],
    logits: none,
    timings: { queueUs: 0, runUs: 0 },
  }
}
