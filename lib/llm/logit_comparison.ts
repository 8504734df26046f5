/** How far the numbers of one executor are from those of another, position by position. */
import { excesses, type EngineVerification, type VerificationLimits } from '../runtime'
import type { Precision } from '../native'

/** A reference's logits after some tokens. */
export interface ReferenceRow {
  /** The tokens that `logits` are of; undefined = all of the vocabulary. */
  ids: Int32Array | undefined
  logits: Float32Array
  /** The token that the reference went on with, and its natural log-probability. */
  token: number
  logprob: number
  /** Most probable token. */
  best: number
}

/** What a reference makes of a prompt. */
export interface PromptReference {
  prompt: Int32Array
  /** Log-probability of each token of the prompt given those before it; NaN for the first. */
  promptLogprobs: Float64Array
  /** After the prompt, and after each further token but the last. */
  rows: ReferenceRow[]
}

/** The position where log-probabilities differ most. */
export interface WorstPosition {
  /** Index of the prompt. */
  prompt: number
  /** Of the token in prompt and output. */
  position: number
  token: number
  /** Natural log-probabilities. */
  reference: number
  engine: number
}

/**
 * Tokens of a prompt that the reference itself holds for less likely are not judged: what the rounding of a 16-bit type
 * leaves of tokens that are never drawn says nothing. What it generated is judged whatever its probability.
 */
const LEAST_LOGPROB = Math.log(1e-3)

/**
 * Limits for an engine against float32. Logits of a 16-bit engine are rounded to 11 (fp16) or 8 (bf16) bits, so they are
 * judged by log-probability. Log-probabilities move by twice the logits' difference at most.
 */
export const DEFAULT_LIMITS: Readonly<Record<Precision, VerificationLimits>> = {
  fp32: { maxLogitDifference: 1e-3, maxDifference: 2e-3 },
  fp16: { meanDifference: 0.005, maxDifference: 0.1 },
  bf16: { meanDifference: 0.02, maxDifference: 0.5 },
}

/** Index of the largest of them, the first of equals; -1 where one is no finite number. */
export function argmax(logits: Float32Array): number {
  let best = 0
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i]!
    if (!Number.isFinite(logit)) return -1
    if (logit > logits[best]!) best = i
  }
  return best
}

/** Natural log of the softmax at `token`, in double precision. */
export function logprobOf(logits: Float32Array, token: number): number {
  let max = -Infinity
  for (let i = 0; i < logits.length; i++) max = Math.max(max, logits[i]!)
  let sum = 0
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - max)
  return logits[token]! - max - Math.log(sum)
}

/** The row of a reference that goes on with its best token, or undefined where a logit is no finite number. */
export function greedyRow(logits: Float32Array): ReferenceRow | undefined {
  const best = argmax(logits)
  return best < 0 ? undefined : { ids: undefined, logits, token: best, logprob: logprobOf(logits, best), best }
}

/** Adds up differences. Positions come in any order. */
export class LogitComparison {
  worst: WorstPosition | undefined
  private positions = 0
  private sum = 0
  private max = 0
  private rows = 0
  private agreed = 0
  private maxLogit = 0
  private invalid = 0

  constructor(private readonly prompts: readonly PromptReference[]) {}

  /** A token of a prompt. */
  addPrompt(prompt: number, position: number, logprob: number): void {
    const { promptLogprobs, prompt: tokens } = this.prompts[prompt]!
    const reference = promptLogprobs[position]!
    if (reference >= LEAST_LOGPROB) this.add({ prompt, position, token: tokens[position]!, reference, engine: logprob })
  }

  /** The logits after a prompt and `index` tokens more. */
  addRow(prompt: number, index: number, logits: Float32Array): void {
    const reference = this.prompts[prompt]!
    const row = reference.rows[index]!
    const best = argmax(logits)
    if (best < 0) {
      this.invalid++
      return
    }
    const position = reference.prompt.length + index
    this.add({ prompt, position, token: row.token, reference: row.logprob, engine: logprobOf(logits, row.token) })
    this.rows++
    if (best === row.best) this.agreed++
    const { ids } = row
    for (let i = 0; i < row.logits.length; i++) {
      const difference = Math.abs(logits[ids === undefined ? i : ids[i]!]! - row.logits[i]!)
      if (difference > this.maxLogit) this.maxLogit = difference
    }
  }

  /** Positions that could not be computed. */
  addInvalid(positions: number): void {
    this.invalid += positions
  }

  /** What was found, judged. */
  judge(limits: VerificationLimits, facts: Pick<EngineVerification, 'at' | 'packageVersion' | 'against'>): EngineVerification {
    const figures = {
      ...facts,
      prompts: this.prompts.length,
      positions: this.positions,
      meanDifference: this.positions === 0 ? 0 : this.sum / this.positions,
      maxDifference: this.max,
      maxLogitDifference: this.maxLogit,
      top1Agreement: this.rows === 0 ? 0 : this.agreed / this.rows,
      invalidPositions: this.invalid,
      limits,
    }
    return { ...figures, fit: this.positions > 0 && excesses(figures).length === 0 }
  }

  private add(at: WorstPosition): void {
    const difference = Math.abs(at.engine - at.reference)
    if (!Number.isFinite(difference)) {
      this.invalid++
      return
    }
    this.positions++
    this.sum += difference
    if (this.worst === undefined || difference > this.max) this.worst = at
    if (difference > this.max) this.max = difference
  }
}
