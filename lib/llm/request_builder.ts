/** From what a caller asked for to what the scheduler takes. */
import type { GenerationRequest, RequestSampling, SchedulerLimits } from '../scheduler'
import type { Tokenizer } from '../text'
import type { GenerationPlan } from './generation'
import type { GenerationDefaults } from './generation_config'
import { type CheckedRequest, type CheckedSampling, continues } from './validate'

/** What a request is built with; the same for all requests of an LLM. */
export interface RequestContext {
  tokenizer: Tokenizer | undefined
  defaults: GenerationDefaults
  limits: Readonly<SchedulerLimits>
}

/** Below this, a distribution is its most probable token, and the division by it would overflow. */
const LEAST_TEMPERATURE = 1e-4
/** Below this, float32 has no room for the difference; the most probable token is left either way. */
const LEAST_TOP_P = 1e-6

function resolveSampling(given: CheckedSampling, defaults: GenerationDefaults): RequestSampling {
  const temperature = given.temperature ?? defaults.temperature
  return {
    temperature: temperature < LEAST_TEMPERATURE ? 0 : temperature,
    topK: given.topK ?? defaults.topK,
    topP: Math.max(given.topP ?? defaults.topP, LEAST_TOP_P),
    minP: given.minP ?? defaults.minP,
    repetitionPenalty: given.repetitionPenalty ?? defaults.repetitionPenalty,
    presencePenalty: given.presencePenalty,
    frequencyPenalty: given.frequencyPenalty,
    seed: given.seed ?? Math.floor(Math.random() * 2 ** 53),
    logprobs: given.logprobs,
    promptLogprobs: given.promptLogprobs,
    minTokens: given.minTokens,
    logitBias: given.logitBias,
  }
}

/**
 * The model's own limit is a suggestion, so it gives way to the size of the KV cache; a caller's limit is refused
 * instead.
 */
function resolveMaxTokens(
  given: number | undefined,
  promptTokens: number,
  { defaults, limits }: RequestContext,
): number | undefined {
  if (given !== undefined || defaults.maxTokens === undefined) return given
  return Math.max(1, Math.min(defaults.maxTokens, limits.numPages * limits.pageSize - promptTokens + 1))
}

export function buildRequest(
  id: number,
  checked: CheckedRequest,
  prompt: Int32Array,
  context: RequestContext,
  startedAt: number,
): { request: GenerationRequest; plan: GenerationPlan } {
  const sampling = resolveSampling(checked.sampling, context.defaults)
  const maxTokens = resolveMaxTokens(checked.maxTokens, prompt.length, context)
  const { n, deadlineIn } = checked
  return {
    request: {
      id,
      prompt,
      sampling: { ...sampling, minTokens: Math.min(sampling.minTokens, maxTokens ?? Infinity) },
      maxTokens,
      n,
      constrain: checked.constrain,
      stopTokenIds: checked.stopTokenIds,
      eosTokenIds: context.defaults.eosTokenIds,
      ignoreEos: checked.ignoreEos,
      priority: checked.priority,
      deadline: deadlineIn === undefined ? undefined : startedAt + deadlineIn,
      timeoutMs: checked.timeoutMs,
      cacheSalt: checked.cacheSalt,
    },
    plan: {
      n,
      promptTokens: prompt.length,
      promptLogprobs: sampling.promptLogprobs >= 0,
      seed: sampling.seed,
      choice: {
        tokenizer: context.tokenizer,
        skipSpecialTokens: checked.skipSpecialTokens,
        continuation: continues(checked.source),
        stops: checked.stops,
        includeStop: checked.includeStop,
        minTokens: sampling.minTokens,
        logprobs: sampling.logprobs >= 0,
      },
    },
  }
}
