/** What the scheduler is asked for, and the checks at its edge. */
import { TensorRTError } from '../errors'
import type { ExecutorInfo, SlotSampling } from './executor'
import type { TokenConstraint } from './token_mask'

export const MAX_SEQUENCES_PER_REQUEST = 1024

/** Sampling parameters of a request; the scheduler derives `bannedTokens` and each sibling's seed. */
export type RequestSampling = Omit<SlotSampling, 'bannedTokens'>

export interface GenerationRequest {
  /** Unique among the live requests. */
  id: string | number
  /** Token ids, at least one. Kept, not copied: must not change while the request lives. */
  prompt: Int32Array
  sampling: RequestSampling
  /**
   * Most tokens to sample, >= 0; clipped to the context. 0 only runs the prompt (its log-probabilities, or to warm the
   * cache). Undefined: as many as context and pool allow.
   */
  maxTokens?: number | undefined
  /**
   * Sequences to sample from the prompt (default 1). Sibling `i` samples with a seed derived from `sampling.seed` and
   * `i`.
   */
  n?: number | undefined
  /** Tokens that end a sequence. The ending token counts as output. */
  stopTokenIds?: Int32Array | undefined
  /** End of sequence as the model defines it; left out of account when `ignoreEos`. */
  eosTokenIds?: Int32Array | undefined
  ignoreEos?: boolean | undefined
  /** Lower is more urgent (default 0). Integer in [-1000, 1000]. */
  priority?: number | undefined
  /** Moment, on the caller's clock in ms, at which the whole output must exist. */
  deadline?: number | undefined
  /** Milliseconds from `add` to the end of the output. */
  timeoutMs?: number | undefined
  /** Requests share cached pages only with those of equal salt (default ''). */
  cacheSalt?: string | undefined
  /**
   * Makes the constraint of sequence `index`, when the request is added. What it throws, `add` throws. Sequences with a
   * constraint are never run ahead.
   */
  constrain?: ((index: number) => TokenConstraint) | undefined
  /**
   * Report the hidden state of the prompt's last token, or those of all its tokens, for which the prompt is computed whole: none of it
   * comes from the prefix cache. Goes with `maxTokens` 0 and one sequence.
   */
  embed?: 'last' | 'all' | undefined
}

/** The limits that follow from an executor. */
export type SchedulerLimits = Pick<
  ExecutorInfo,
  'vocabSize' | 'hiddenSize' | 'hiddenRows' | 'maxPositions' | 'pageSize' | 'numPages' | 'maxSlots' | 'maxStepTokens'
> & {
  /** Whether the executor has `setMask` (default true). */
  takesMasks?: boolean | undefined
}

/**
 * Checks a request against the executor's limits.
 * @returns the tokens that may be sampled.
 * @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN, ERR_PROMPT_TOO_LONG, ERR_REQUEST_TOO_LARGE
 */
export function checkRequest(request: GenerationRequest, limits: SchedulerLimits): number {
  const { prompt, maxTokens, n = 1, priority = 0, deadline, timeoutMs } = request
  const invalid = (what: string): never => {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', what)
  }
  if (!(prompt instanceof Int32Array) || prompt.length === 0) invalid('The prompt needs at least one token')
  if (!Number.isInteger(n) || n < 1 || n > MAX_SEQUENCES_PER_REQUEST) {
    invalid(`n must be an integer from 1 to ${MAX_SEQUENCES_PER_REQUEST}, not ${n}`)
  }
  if (!Number.isInteger(priority) || Math.abs(priority) > 1000)
    invalid(`priority must be an integer from -1000 to 1000, not ${priority}`)
  if (maxTokens !== undefined && (!Number.isInteger(maxTokens) || maxTokens < 0)) {
    invalid(`maxTokens must be an integer of at least 0, not ${maxTokens}`)
  }
  if (deadline !== undefined && !Number.isFinite(deadline))
    invalid(`deadline must be a finite time in ms, not ${deadline}`)
  if (timeoutMs !== undefined && !(timeoutMs > 0 && Number.isFinite(timeoutMs))) {
    invalid(`timeoutMs must be a finite number above 0, not ${timeoutMs}`)
  }
  if (request.constrain !== undefined && limits.takesMasks === false)
    invalid('The executor takes no token masks: it cannot follow a grammar')
  if (request.embed !== undefined) {
    if ((limits.hiddenSize ?? 0) < 1) invalid('The executor gives no hidden states: it cannot embed')
    if (maxTokens !== 0 || n !== 1) invalid('An embedding goes with maxTokens 0 and n 1')
  }

  const room = limits.maxPositions - prompt.length
  if (room < 0 || (room === 0 && maxTokens !== 0)) {
    throw new TensorRTError(
      'ERR_PROMPT_TOO_LONG',
      `The prompt has ${prompt.length} tokens, the context ${limits.maxPositions}, and the output needs at least one`,
      { hint: 'shorten the prompt' },
    )
  }
  for (let i = 0; i < prompt.length; i++) {
    const token = prompt[i]!
    if (token < 0 || token >= limits.vocabSize) {
      throw new TensorRTError(
        'ERR_INVALID_TOKEN',
        `Token ${token} at position ${i} of the prompt is not in [0, ${limits.vocabSize})`,
      )
    }
  }

  // The last sampled token is never computed, so it takes no place in the cache.
  const poolTokens = limits.numPages * limits.pageSize
  const wanted = Math.min(maxTokens ?? Math.max(1, poolTokens - prompt.length + 1), room)
  if (prompt.length + Math.max(wanted - 1, 0) > poolTokens) {
    throw new TensorRTError(
      'ERR_REQUEST_TOO_LARGE',
      `${prompt.length} prompt tokens and up to ${wanted} new ones do not fit into the whole KV cache of ${poolTokens} tokens`,
      { hint: 'lower maxTokens, shorten the prompt, or load the model with a larger KV cache' },
    )
  }
  return wanted
}

/** Checks an option. @throws ERR_INVALID_ARGUMENT for what is no integer of at least `least` */
export function atLeast(name: string, value: number, least: number): number {
  if (!Number.isInteger(value) || value < least) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${name} must be an integer of at least ${least}, not ${value}`)
  }
  return value
}
