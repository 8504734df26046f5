import { TensorRTError } from '../errors'
import {
  type ExecutorInfo,
  LAST_SAMPLED_TOKEN,
  type LogitBias,
  MAX_LOGIT_BIAS,
  MAX_LOGIT_BIAS_VALUE,
  type SlotInit,
  STEP_HEADER_INTS,
  STEP_SEQUENCE_INTS,
  STEP_VERSION,
  StepFlag,
  StepMode,
} from './executor'
import { checkMask } from './token_mask'

/** One sequence of a packed step. */
export interface StepSequenceView {
  slot: number
  /** Position of the first row: this many positions are in the cache already. */
  cached: number
  /** See {@link StepFlag}. */
  flags: number
  /** Views into the packed step. */
  pages: Int32Array
  tokens: Int32Array
}

export interface StepView {
  stepId: number
  sequences: StepSequenceView[]
}

const FLAGS_OWED = StepFlag.SAMPLE | StepFlag.PROMPT_LOGPROBS | StepFlag.LOGITS
const MAX_SEED = 2 ** 53

function ensure(condition: boolean, what: string): void {
  if (!condition) throw new TensorRTError('ERR_INVALID_ARGUMENT', what)
}

/**
 * The checks that an executor written in JavaScript owes its caller: every call that the contract calls malformed
 * throws ERR_INVALID_ARGUMENT or, for a token id, ERR_INVALID_TOKEN, and changes nothing.
 */
export class StepChecker {
  /** Open slots; true once a step has sampled the slot. */
  private readonly sampled = new Map<number, boolean>()
  private readonly flags: number

  constructor(private readonly info: ExecutorInfo) {
    const hidden = info.hiddenRows === true ? StepFlag.HIDDEN | StepFlag.HIDDEN_ROWS : StepFlag.HIDDEN
    this.flags = (info.hiddenSize ?? 0) > 0 ? FLAGS_OWED | hidden : FLAGS_OWED
  }

  openSlot(init: SlotInit): void {
    const { info } = this
    const { slot, prompt, output } = init
    ensure(
      Number.isInteger(slot) && slot >= 0 && slot < info.maxSlots,
      `Slot ${slot} does not exist, there are ${info.maxSlots}`,
    )
    ensure(!this.sampled.has(slot), `Slot ${slot} is open already`)
    ensure(prompt.length > 0, 'The prompt is empty')
    ensure(
      prompt.length + output.length <= info.maxPositions,
      `More than ${info.maxPositions} tokens of prompt and output`,
    )
    this.checkSampling(init.sampling)
    for (const tokens of [prompt, output, init.sampling.bannedTokens])
      for (const token of tokens) this.checkToken(token)
    if (init.sampling.logitBias !== undefined) this.checkBias(init.sampling.logitBias)
    this.sampled.set(slot, false)
  }

  /** Of an executor that has `setMask`. */
  setMask(slot: number, mask: Int32Array | null): void {
    ensure(this.sampled.has(slot), `Slot ${slot} is not open`)
    if (mask !== null) checkMask(mask, this.info.vocabSize)
  }

  closeSlot(slot: number): void {
    ensure(this.sampled.delete(slot), `Slot ${slot} is not open`)
  }

  /** Unpacks a step and checks it completely, against the slots that are open now. */
  parse(packed: Int32Array): StepView {
    const { info } = this
    ensure(packed.length >= STEP_HEADER_INTS, 'The step is shorter than its header')
    const [version, stepId, count, tokenCount, pageCount, modes] = readInts(packed, 0)
    ensure(version === STEP_VERSION, `The step has version ${version}, expected was ${STEP_VERSION}`)
    ensure((modes & ~StepMode.TIME_PARTS) === 0, `The step has modes ${modes}`)
    ensure(count >= 1 && pageCount >= 1, 'The step is empty')
    ensure(
      tokenCount >= count && tokenCount <= info.maxStepTokens,
      `The step has ${tokenCount} tokens, at most ${info.maxStepTokens} fit`,
    )
    const firstPage = STEP_HEADER_INTS + count * STEP_SEQUENCE_INTS
    const firstToken = firstPage + pageCount
    const end = firstToken + tokenCount
    ensure(packed.length === end, `The step has ${packed.length} int32s, its header says ${end}`)

    const sequences: StepSequenceView[] = []
    let pageAt = firstPage
    let tokenAt = firstToken
    for (let i = 0; i < count; i++) {
      const [slot, rows, cached, pages, flags] = readInts(packed, STEP_HEADER_INTS + i * STEP_SEQUENCE_INTS)
      const of = `Sequence ${i} of the step: `
      ensure(this.sampled.has(slot), `${of}slot ${slot} is not open`)
      ensure(!sequences.some((other) => other.slot === slot), `${of}slot ${slot} appears twice`)
      ensure(rows >= 1 && rows <= end - tokenAt, `${of}${rows} tokens`)
      ensure(cached >= 0 && cached + rows <= info.maxPositions, `${of}positions ${cached} to ${cached + rows}`)
      ensure(pages >= 0 && pages <= firstToken - pageAt, `${of}${pages} pages`)
      ensure(pages * info.pageSize >= cached + rows, `${of}${pages} pages do not hold ${cached + rows} tokens`)
      ensure((flags & ~this.flags) === 0, `${of}flags ${flags}`)
      const tokens = packed.subarray(tokenAt, (tokenAt += rows))
      sequences.push({ slot, cached, flags, pages: packed.subarray(pageAt, (pageAt += pages)), tokens })
      if (rows > 1 || tokens[0] !== LAST_SAMPLED_TOKEN || !this.sampled.get(slot))
        for (const token of tokens) this.checkToken(token)
    }
    ensure(pageAt === firstToken && tokenAt === end, 'The sequences do not add up to the counts of the header')
    this.checkPages(sequences)
    for (const seq of sequences) if ((seq.flags & StepFlag.SAMPLE) !== 0) this.sampled.set(seq.slot, true)
    return { stepId, sequences }
  }

  /** Comparisons are written so that NaN fails them. */
  private checkSampling(sampling: SlotInit['sampling']): void {
    const { vocabSize } = this.info
    const check = (name: keyof typeof sampling, valid: boolean): void => {
      ensure(valid, `${name} must not be ${String(sampling[name])}`)
    }
    const integer = (value: number, least: number, below: number): boolean =>
      Number.isInteger(value) && value >= least && value < below
    check('temperature', Number.isFinite(sampling.temperature) && sampling.temperature >= 0)
    check('topK', integer(sampling.topK, 0, 2 ** 31))
    check('topP', sampling.topP > 0 && sampling.topP <= 1)
    check('minP', sampling.minP >= 0 && sampling.minP <= 1)
    check('repetitionPenalty', Number.isFinite(sampling.repetitionPenalty) && sampling.repetitionPenalty > 0)
    check('presencePenalty', Number.isFinite(sampling.presencePenalty))
    check('frequencyPenalty', Number.isFinite(sampling.frequencyPenalty))
    check('seed', integer(sampling.seed, 0, MAX_SEED))
    check('logprobs', integer(sampling.logprobs, -1, vocabSize + 1))
    check('promptLogprobs', integer(sampling.promptLogprobs, -1, vocabSize + 1))
    check('minTokens', integer(sampling.minTokens, 0, 2 ** 31))
    ensure(sampling.bannedTokens.length < vocabSize, 'Every token is banned')
  }

  private checkBias(bias: LogitBias): void {
    const given = bias as Partial<LogitBias> | null
    ensure(
      given?.ids instanceof Int32Array && given.values instanceof Float32Array,
      'logitBias must hold an Int32Array of ids and a Float32Array of values',
    )
    const { ids, values } = bias
    ensure(ids.length === values.length, `logitBias has ${ids.length} tokens and ${values.length} values`)
    ensure(ids.length <= MAX_LOGIT_BIAS, `logitBias has ${ids.length} tokens, at most ${MAX_LOGIT_BIAS} are allowed`)
    ensure(new Set(ids).size === ids.length, 'logitBias names a token twice')
    for (const id of ids) this.checkToken(id)
    // Written so that NaN fails.
    for (const value of values) ensure(Math.abs(value) <= MAX_LOGIT_BIAS_VALUE, `logitBias must not be ${value}`)
  }

  private checkToken(token: number): void {
    const { vocabSize } = this.info
    if (token >= 0 && token < vocabSize) return
    throw new TensorRTError('ERR_INVALID_TOKEN', `Token ${token} is not in [0, ${vocabSize})`)
  }

  /** Ids in range, none twice in a sequence, and no page that one sequence writes listed by another. */
  private checkPages(sequences: readonly StepSequenceView[]): void {
    const { pageSize, numPages } = this.info
    /** Page to the sequence that listed it last, and pages that some sequence writes. */
    const listedBy = new Map<number, number>()
    const written = new Set<number>()
    sequences.forEach(({ pages, cached, tokens }, i) => {
      const last = Math.ceil((cached + tokens.length) / pageSize)
      pages.forEach((page, j) => {
        ensure(page >= 0 && page < numPages, `Sequence ${i} of the step: page ${page} does not exist`)
        const writes = j >= Math.floor(cached / pageSize) && j < last
        const other = listedBy.get(page)
        ensure(
          other === undefined || (other !== i && !writes && !written.has(page)),
          `Page ${page} is written and listed elsewhere`,
        )
        listedBy.set(page, i)
        if (writes) written.add(page)
      })
    })
  }
}

function readInts(packed: Int32Array, at: number): [number, number, number, number, number, number] {
  return [packed[at]!, packed[at + 1]!, packed[at + 2]!, packed[at + 3]!, packed[at + 4]!, packed[at + 5] ?? 0]
}
