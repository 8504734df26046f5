/** From a request's fields to the options of `generate()`. */
import { createHash } from 'node:crypto'
import type { GenerateOptions } from '../../llm'
import { ApiError } from '../errors'
import { type Exchange } from '../http/exchange'
import { scheduleHeaders } from '../http/request_headers'
import type { ServedModel } from '../registry'
import type { SamplingFields } from '../schemas/fields'
import type { RequestLimits } from '../seams'

/** What the API of completions samples with where neither the request nor the model's generation config says. */
const DEFAULT_TEMPERATURE = 1
const SEEDS = 2n ** 53n

export type SharedOptions = Omit<GenerateOptions, 'prompt' | 'messages' | 'tokens'>

/**
 * Options that all prompts of a request share. All that a request may set has its place in this one literal: spreading an object of so many fields into
 * another takes V8 fifty times as long as writing it.
 * @param field by which the request gives `maxTokens`
 * @throws ApiError 400
 */
export function sharedOptions(
  body: SamplingFields,
  maxTokens: number | undefined,
  { llm }: ServedModel,
  exchange: Exchange,
  limits: RequestLimits,
  field = 'max_tokens',
): SharedOptions {
  const { info } = llm
  if (maxTokens !== undefined && maxTokens > limits.maxOutputTokens) {
    const message = `At most ${limits.maxOutputTokens} tokens may be generated per choice, not ${maxTokens}`
    throw ApiError.invalid(field, message, 'max_tokens_too_large')
  }
  if ((body.prompt_logprobs ?? 0) > limits.maxLogprobs) throw tooManyLogprobs('prompt_logprobs', limits)
  const minTokens = body.min_tokens ?? 0
  if (maxTokens !== undefined && minTokens > maxTokens) {
    throw ApiError.invalid('min_tokens', `"min_tokens" is ${minTokens}, more than the ${maxTokens} tokens at most`)
  }
  for (const token of body.stop_token_ids ?? []) {
    if (token >= info.vocabSize) {
      throw ApiError.invalid('stop_token_ids', `"stop_token_ids": the vocabulary has ${info.vocabSize} tokens, ${token} is none`)
    }
  }
  const configured = info.defaults.temperature
  const { priority, deadlineMs, timeoutMs, cacheSalt } = scheduleOf(body, exchange, limits)
  return {
    temperature: body.temperature ?? (configured > 0 ? configured : DEFAULT_TEMPERATURE),
    // 0 asks for the most probable token alone, which the library calls the smallest share.
    topP: body.top_p === undefined ? undefined : Math.max(body.top_p, 1e-6),
    topK: body.top_k === undefined ? undefined : Math.max(body.top_k, 0),
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    seed: body.seed === undefined ? undefined : seedOf(body.seed),
    // An empty one asks for nothing.
    stop: (typeof body.stop === 'string' ? [body.stop] : body.stop)?.filter((stop) => stop !== ''),
    stopTokenIds: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    includeStop: body.include_stop_str_in_output,
    skipSpecialTokens: body.skip_special_tokens,
    minTokens,
    maxTokens: maxTokens ?? (limits.maxOutputTokens === Infinity ? undefined : limits.maxOutputTokens),
    logprobs: undefined,
    promptLogprobs: body.prompt_logprobs,
    logitBias: logitBiasOf(body.logit_bias, info.vocabSize),
    grammar: undefined,
    n: body.n ?? 1,
    priority,
    deadlineMs,
    timeoutMs,
    cacheSalt,
    encoded: undefined,
  }
}

/**
 * @param field by which the request gives `maxTokens`
 * @param promptTokens of each prompt
 * @throws ApiError 400 where an output of that length does not fit behind a prompt
 */
export function checkContext(field: string, maxTokens: number | undefined, promptTokens: readonly number[], { llm }: ServedModel): void {
  const { maxPositions } = llm.info
  const longest = Math.max(...promptTokens)
  if (maxTokens === undefined || longest + maxTokens <= maxPositions) return
  const message = `"${field}" is ${maxTokens}, and the prompt has ${longest} tokens: together more than the ${maxPositions} of the model's context`
  throw ApiError.invalid(field, message, 'context_length_exceeded')
}

/**
 * When a request runs, and what it may share.
 * @throws ApiError 400
 */
export function scheduleOf(
  body: Pick<SamplingFields, 'priority' | 'cache_salt'>,
  exchange: Exchange,
  limits: RequestLimits,
): Pick<GenerateOptions, 'priority' | 'deadlineMs' | 'timeoutMs' | 'cacheSalt'> {
  const headers = scheduleHeaders(exchange)
  const priority = body.priority ?? headers.priority ?? 0
  if (priority < limits.minPriority) {
    throw ApiError.invalid('priority', `"priority" must be at least ${limits.minPriority}; lower is more urgent`)
  }
  return {
    priority,
    deadlineMs: headers.deadlineMs,
    timeoutMs: limits.requestTimeoutMs === Infinity ? undefined : Math.max(limits.requestTimeoutMs - exchange.heldMs, 1),
    cacheSalt: saltOf(exchange.caller.cacheSalt, body.cache_salt),
  }
}

function logitBiasOf(bias: SamplingFields['logit_bias'], vocabSize: number): Map<number, number> | undefined {
  if (bias === undefined) return undefined
  const entries = Object.entries(bias).map(([key, value]): [number, number] => {
    const token = /^\d{1,10}$/.test(key) ? Number(key) : NaN
    if (token < vocabSize) return [token, value]
    throw ApiError.invalid('logit_bias', `"logit_bias": the keys must be token ids, below ${vocabSize}`)
  })
  return entries.length === 0 ? undefined : new Map(entries)
}

export function tooManyLogprobs(param: string, { maxLogprobs }: RequestLimits): ApiError {
  return ApiError.invalid(param, `"${param}" may be at most ${maxLogprobs}`)
}

/** Any integer, negative ones too, to one that the library takes. The same gives the same. */
function seedOf(seed: number): number {
  const wide = BigInt(seed) % SEEDS
  return Number(wide < 0n ? wide + SEEDS : wide)
}

/** Nobody can name the salt of another caller, as what a request gives only goes into the hash. */
function saltOf(callers: string | undefined, requests: string | undefined): string | undefined {
  if (callers === undefined) return requests
  return createHash('sha256').update(JSON.stringify([callers, requests ?? null])).digest('base64')
}
