/** Whether a step's result is what the step asked for. */
import { TensorRTError } from '../errors'
import { NOTHING_ALLOWED, type StepResult } from './executor'
import type { SchedulerLimits } from './request'
import type { StepRecord } from './step_record'

/** @throws ERR_INTERNAL for what is no result at all: an executor that breaks the contract so may have lost any step */
export function assertResult(result: StepResult): void {
  const { stepId, error, tokens, logprobs, timings } = (result ?? {}) as Partial<StepResult>
  const ran = error !== undefined || (tokens?.length !== undefined && Array.isArray(logprobs))
  if (ran && typeof stepId === 'number' && typeof timings?.runUs === 'number') return
  throw new TensorRTError('ERR_INTERNAL', 'The executor reported what is no result of a step: stepId, tokens, logprobs and timings are in each')
}

/** @returns the failure that stands for a result that cannot be used; undefined for a good one */
export function malformed(
  record: StepRecord,
  { tokens, hidden }: StepResult,
  { vocabSize, hiddenSize = 0 }: SchedulerLimits,
): StepResult['error'] {
  if (record.hiddens > 0 && hidden?.length !== record.hiddens * hiddenSize) {
    return internal(`The executor returned ${hidden?.length ?? 0} numbers for ${record.hiddens} hidden states`)
  }
  let valid = tokens.length === record.samples
  for (let i = 0; valid && i < tokens.length; i++) valid = tokens[i]! >= 0 && tokens[i]! < vocabSize
  if (valid || onlyMasked(record, tokens, vocabSize)) return undefined
  return internal(
    `The executor returned ${tokens.length} tokens for ${record.samples} sampled rows, or one outside the vocabulary`,
  )
}

function internal(message: string): StepResult['error'] {
  return { code: 'ERR_INTERNAL', message, retryable: false }
}

/** Whether every token is one of the vocabulary, but for constrained sequences whose mask left none. */
function onlyMasked(record: StepRecord, tokens: Int32Array, vocabSize: number): boolean {
  if (tokens.length !== record.samples) return false
  for (let row = 0, at = 0; row < record.rows; row++) {
    if (!record.samplesRow(row)) continue
    const token = tokens[at++]!
    if (token >= 0 && token < vocabSize) continue
    if (token !== NOTHING_ALLOWED || record.sequences[row]!.constraint === null) return false
  }
  return true
}
