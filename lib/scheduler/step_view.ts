import { TensorRTError } from '../errors'
import { type ExecutorInfo, LAST_SAMPLED_TOKEN, STEP_HEADER_INTS, STEP_SEQUENCE_INTS, STEP_VERSION, StepFlag } from './executor'

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

const ALL_FLAGS = StepFlag.SAMPLE | StepFlag.PROMPT_LOGPROBS | StepFlag.LOGITS

/**
 * Unpacks a step and checks it completely; for executors written in JavaScript.
 * @param isOpen tells whether a slot is open at this point of the order of calls.
 * @throws ERR_INVALID_ARGUMENT or ERR_INVALID_TOKEN naming the sequence and what is wrong with it.
 */
export function parseStep(packed: Int32Array, info: ExecutorInfo, isOpen: (slot: number) => boolean): StepView {
  const require = (condition: boolean, what: string): void => {
    if (!condition) throw new TensorRTError('ERR_INVALID_ARGUMENT', `Malformed step: ${what}`)
  }
  require(packed.length >= STEP_HEADER_INTS, 'shorter than its header')
  const [version, stepId, count, tokenCount, pageCount, reserved] = packed as unknown as [number, number, number, number, number, number]
  require(version === STEP_VERSION && reserved === 0, `version ${version}, expected ${STEP_VERSION}`)
  require(stepId >= 0 && count >= 1 && tokenCount >= 1 && pageCount >= 1, 'a count or the id is out of range')
  require(tokenCount <= info.maxStepTokens, `${tokenCount} tokens, at most ${info.maxStepTokens} are allowed`)
  const firstPage = STEP_HEADER_INTS + count * STEP_SEQUENCE_INTS
  const firstToken = firstPage + pageCount
  require(packed.length === firstToken + tokenCount, `${packed.length} numbers, ${firstToken + tokenCount} expected`)

  const sequences: StepSequenceView[] = []
  const seen = new Set<number>()
  let pageAt = firstPage
  let tokenAt = firstToken
  for (let i = 0; i < count; i++) {
    const at = STEP_HEADER_INTS + i * STEP_SEQUENCE_INTS
    const [slot, rows, cached, pages, flags] = packed.subarray(at) as unknown as [number, number, number, number, number]
    const of = `sequence ${i}: `
    require(slot >= 0 && slot < info.maxSlots && isOpen(slot), `${of}slot ${slot} is not open`)
    require(!seen.has(slot), `${of}slot ${slot} appears twice`)
    seen.add(slot)
    require(rows >= 1 && rows <= firstToken + tokenCount - tokenAt, `${of}${rows} tokens`)
    require(cached >= 0 && cached + rows <= info.maxPositions, `${of}positions ${cached} to ${cached + rows}`)
    require(pages >= 0 && pages <= firstToken - pageAt, `${of}${pages} pages`)
    require(pages * info.pageSize >= cached + rows, `${of}${pages} pages do not hold ${cached + rows} tokens`)
    require((flags & ~ALL_FLAGS) === 0, `${of}flags ${flags}`)
    sequences.push({
      slot,
      cached,
      flags,
      pages: packed.subarray(pageAt, (pageAt += pages)),
      tokens: packed.subarray(tokenAt, (tokenAt += rows)),
    })
  }
  require(pageAt === firstToken && tokenAt === firstToken + tokenCount, 'the counts of the sequences do not add up')
  checkPages(sequences, info, require)
  sequences.forEach(({ tokens }, i) => {
    if (tokens.length === 1 && tokens[0] === LAST_SAMPLED_TOKEN) return
    for (const token of tokens) {
      if (token >= 0 && token < info.vocabSize) continue
      throw new TensorRTError('ERR_INVALID_TOKEN', `Malformed step: sequence ${i}: token ${token} is not in [0, ${info.vocabSize})`)
    }
  })
  return { stepId, sequences }
}

/** Ids in range, and no page that one sequence writes is listed by another, or twice. */
function checkPages(sequences: StepSequenceView[], info: ExecutorInfo, require: (condition: boolean, what: string) => void): void {
  const listedBy = new Map<number, number>()
  const written = new Set<number>()
  sequences.forEach(({ pages, cached, tokens }, i) => {
    const last = Math.ceil((cached + tokens.length) / info.pageSize)
    pages.forEach((page, j) => {
      require(page >= 0 && page < info.numPages, `sequence ${i}: page ${page}`)
      const writes = j >= Math.floor(cached / info.pageSize) && j < last
      require(!written.has(page) && !(writes && listedBy.has(page)), `sequence ${i}: page ${page} is written and listed elsewhere`)
      listedBy.set(page, i)
      if (writes) written.add(page)
    })
  })
}
