import { LAST_SAMPLED_TOKEN, STEP_HEADER_INTS, STEP_SEQUENCE_INTS, STEP_VERSION, StepFlag } from './executor'
import type { Sequence } from './sequence'

/**
 * One step as the scheduler remembers it while it is in flight: whose rows it has, and its packed form. Records are
 * reused; the packed form that goes to the executor is a copy, as the executor takes that over.
 */
export class StepRecord {
  /** Counts up without wrapping; the executor sees its low 31 bits. */
  stepId = -1
  /** Sequences that have rows, `rows` of them. */
  readonly sequences: Sequence[] = []
  /** 1 = the row's result must be ignored: it was computed from undefined cache content. */
  readonly dropped: Uint8Array
  rows = 0
  tokens = 0
  pages = 0
  samples = 0
  /** Hidden states that were asked for. */
  hiddens = 0
  /** ms */
  plannedAt = 0

  private packed = new Int32Array(4096)

  /** @param hiddenRows whether the executor reports several hidden states of a sequence at once */
  constructor(
    maxRows: number,
    private readonly hiddenRows: boolean,
  ) {
    this.dropped = new Uint8Array(maxRows)
  }

  reset(stepId: number): void {
    this.stepId = stepId
    this.rows = this.tokens = this.pages = this.samples = this.hiddens = 0
    this.sequences.length = 0
  }

  wireId(): number {
    return this.stepId % 0x8000_0000
  }

  tokensOf(row: number): number {
    return this.packed[STEP_HEADER_INTS + row * STEP_SEQUENCE_INTS + 1]!
  }

  cachedOf(row: number): number {
    return this.packed[STEP_HEADER_INTS + row * STEP_SEQUENCE_INTS + 2]!
  }

  pagesOf(row: number): number {
    return this.packed[STEP_HEADER_INTS + row * STEP_SEQUENCE_INTS + 3]!
  }

  flagsOf(row: number): number {
    return this.packed[STEP_HEADER_INTS + row * STEP_SEQUENCE_INTS + 4]!
  }

  samplesRow(row: number): boolean {
    return (this.flagsOf(row) & StepFlag.SAMPLE) !== 0
  }

  /** Hidden states of `row`. */
  hiddensOf(row: number): number {
    const flags = this.flagsOf(row)
    if ((flags & StepFlag.HIDDEN_ROWS) !== 0) return this.tokensOf(row)
    return (flags & StepFlag.HIDDEN) !== 0 ? 1 : 0
  }

  /**
   * A copy of those of `row`'s hidden states that were not reported before, as a prompt that is computed again reports them again.
   * @param hidden `[hiddensOf(row), hiddenSize]`
   */
  takeHidden(row: number, hidden: Float32Array): Float32Array | null {
    const seq = this.sequences[row]!
    if (seq.request.embed !== 'all') return hidden.slice()
    const begin = this.cachedOf(row)
    const end = begin + this.tokensOf(row)
    const known = Math.max(0, seq.nextHidden - begin)
    if (begin + known >= end) return null
    seq.nextHidden = end
    return hidden.slice((known * hidden.length) / (end - begin))
  }

  /** Where the page list of `row` 0 starts; lists follow each other. */
  get firstPage(): number {
    return STEP_HEADER_INTS + this.rows * STEP_SEQUENCE_INTS
  }

  page(at: number): number {
    return this.packed[at]!
  }

  /** Adds `most` rows of a sequence, or fewer, from the first position that is not computed yet. The slot must be set. */
  add(seq: Sequence, most: number, pageSize: number): void {
    const allRows = seq.request.embed === 'all'
    const tokens = allRows && !this.hiddenRows ? 1 : most
    const end = seq.computed + tokens
    const pages = Math.ceil(end / pageSize)
    let flags = 0
    if (allRows) {
      flags |= this.hiddenRows ? StepFlag.HIDDEN_ROWS : StepFlag.HIDDEN
      this.hiddens += tokens
    } else if (end === seq.known + seq.pending) {
      if (seq.maxTokens > 0) {
        flags |= StepFlag.SAMPLE
        this.samples++
      } else if (seq.request.embed === 'last') {
        flags |= StepFlag.HIDDEN
        this.hiddens++
      }
    }
    // Row p reports the token at p + 1.
    if (
      seq.nextPromptLogprob < seq.promptLength &&
      seq.computed + 1 < seq.promptLength &&
      end >= seq.nextPromptLogprob
    ) {
      flags |= StepFlag.PROMPT_LOGPROBS
    }
    const at = STEP_HEADER_INTS + this.rows * STEP_SEQUENCE_INTS
    if (at + STEP_SEQUENCE_INTS > this.packed.length) this.reserve(2 * this.packed.length)
    const { packed } = this
    packed[at] = seq.slot
    packed[at + 1] = tokens
    packed[at + 2] = seq.computed
    packed[at + 3] = pages
    packed[at + 4] = flags
    this.dropped[this.rows] = 0
    this.sequences.push(seq)
    this.rows++
    this.tokens += tokens
    this.pages += pages
  }

  /**
   * Completes the packed form and returns a copy of it.
   * @param table block table, `[slots, stride]`
   */
  pack(table: Int32Array, stride: number): Int32Array {
    const firstToken = this.firstPage + this.pages
    const total = firstToken + this.tokens
    if (total > this.packed.length) this.reserve(total)
    const { packed, sequences, rows } = this
    packed[0] = STEP_VERSION
    packed[1] = this.wireId()
    packed[2] = rows
    packed[3] = this.tokens
    packed[4] = this.pages
    packed[5] = 0
    let pageAt = this.firstPage
    let tokenAt = firstToken
    for (let row = 0, at = STEP_HEADER_INTS; row < rows; row++, at += STEP_SEQUENCE_INTS) {
      const seq = sequences[row]!
      const pageEnd = pageAt + packed[at + 3]!
      for (let from = seq.slot * stride; pageAt < pageEnd; pageAt++, from++) packed[pageAt] = table[from]!
      const { tokens, known } = seq
      const cached = packed[at + 2]!
      const end = cached + packed[at + 1]!
      if (cached >= known) {
        packed[tokenAt++] = LAST_SAMPLED_TOKEN
      } else {
        for (let position = cached; position < end; position++) packed[tokenAt++] = tokens[position]!
      }
    }
    return packed.slice(0, total)
  }

  private reserve(ints: number): void {
    const grown = new Int32Array(Math.max(ints, 2 * this.packed.length))
    grown.set(this.packed)
    this.packed = grown
  }
}
