/**
 * An LLM whose model computes nothing, and which shares no more than tokenizer and chat template with the one that it is like: all the code around a model
 * can be run with it, and is compiled then, before there are requests.
 */
import { type Executor, type ExecutorInfo, STEP_HEADER_INTS, STEP_SEQUENCE_INTS, StepFlag, type StepResult } from '../scheduler'
import { LLM } from './llm'

const SLOTS = 64
const POSITIONS = 1024
const PAGE_SIZE = 16
/** Tokens of outputs are so far apart in the vocabulary: their texts are of all kinds. */
const TOKEN_STRIDE = 7

const NO_LOGITS = new Float32Array(0)

/** @returns one whose outputs are tokens of `llm`'s vocabulary in turn, and whose steps take no time. It is the caller's to close */
export function dryRunOf({ tokenizer, chatTemplate, info }: LLM): LLM {
  return LLM.fromExecutor(new DryRunExecutor(info.vocabSize), { tokenizer, chatTemplate, eosTokenIds: [] })
}

/** Each step's result comes in a later turn of the event loop, as a device's do. */
class DryRunExecutor implements Executor {
  readonly info: ExecutorInfo
  private readonly due: StepResult[] = []
  private onResult: (result: StepResult) => void = () => {}
  private lastToken = 0
  private closed = false

  constructor(private readonly vocabSize: number) {
    this.info = {
      name: 'dry-run',
      device: 'none',
      batchInvariant: true,
      vocabSize,
      maxPositions: POSITIONS,
      pageSize: PAGE_SIZE,
      numPages: (SLOTS * POSITIONS) / PAGE_SIZE,
      maxSlots: SLOTS,
      maxStepTokens: SLOTS * POSITIONS,
      kvCacheBytes: 0,
      weightBytes: 0,
    }
  }

  start(onResult: (result: StepResult) => void): void {
    this.onResult = onResult
  }

  openSlot(): void {}

  closeSlot(): void {}

  submit(step: Int32Array): void {
    const sequences = step[2]!
    const tokens: number[] = []
    for (let i = 0, flags = STEP_HEADER_INTS + 4; i < sequences; i++, flags += STEP_SEQUENCE_INTS) {
      if ((step[flags]! & StepFlag.SAMPLE) !== 0) tokens.push((this.lastToken = (this.lastToken + TOKEN_STRIDE) % this.vocabSize))
    }
    this.due.push({ stepId: step[1]!, tokens: Int32Array.from(tokens), logprobs: [], logits: NO_LOGITS, timings: { queueUs: 0, runUs: 1 } })
    setImmediate(() => this.answer())
  }

  close(): Promise<void> {
    this.closed = true
    while (this.due.length > 0) this.answer()
    return Promise.resolve()
  }

  private answer(): void {
    const result = this.due.shift()
    if (result === undefined) return
    if (this.closed) Object.assign(result, { tokens: new Int32Array(0), error: { code: 'ERR_DISPOSED', message: 'The executor was closed', retryable: false } })
    this.onResult(result)
  }
}
