/** POST /v1/completions. */
import { randomUUID } from 'node:crypto'
import { ApiError } from '../errors'
import { CompletionFormat } from '../generation/completion_format'
import { grammarOf } from '../generation/grammar'
import { encodePrompts, promptList } from '../generation/prompts'
import { answer } from '../generation/run'
import { checkContext, sharedOptions, tooManyLogprobs } from '../generation/sampling'
import { TokenTexts } from '../generation/token_text'
import { Work } from '../generation/work'
import type { Exchange } from '../http/exchange'
import { parseCompletion } from '../schemas/completions'
import type { Services } from '../services'
import { checkStreaming, factsOf, limitsOf, readRequest } from './request'

/** OpenAI's, and vLLM's. */
const DEFAULT_MAX_TOKENS = 16

export async function completions(exchange: Exchange, services: Services): Promise<Response> {
  const limits = limitsOf(exchange, services)
  const { body, served } = await readRequest(exchange, services, parseCompletion)
  const { stream, includeUsage, continuousUsage } = checkStreaming(body)
  const asked = grammarOf(body)
  const prompts = promptList(body.prompt)
  const n = body.n ?? 1
  if (n * prompts.length > limits.maxChoices) {
    throw ApiError.invalid('n', `"n" times the number of prompts may be at most ${limits.maxChoices}`)
  }
  if ((body.logprobs ?? 0) > limits.maxLogprobs) throw tooManyLogprobs('logprobs', limits)
  const maxTokens = body.max_tokens ?? Math.min(DEFAULT_MAX_TOKENS, limits.maxOutputTokens)
  const options = sharedOptions(body, maxTokens, served, exchange, limits)
  options.logprobs = body.logprobs
  // An echo has log-probabilities as the rest of the text does.
  if (body.echo === true && !stream) options.promptLogprobs ??= body.logprobs
  options.grammar = asked?.grammar
  const encoded = await encodePrompts(served, prompts, 'prompt', { addSpecialTokens: body.add_special_tokens }, exchange, limits)
  const promptTokens = encoded.map(({ tokens }) => tokens.length)
  checkContext('max_tokens', body.max_tokens, promptTokens, served)
  const work = Work.admit(services, exchange, factsOf(exchange, served, 'completions', options, promptTokens, stream))
  const format = new CompletionFormat({
    id: `cmpl-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: served.name,
    fingerprint: served.fingerprint,
    texts: new TokenTexts(served.llm.tokenizer, body.return_tokens_as_token_ids === true),
    n,
    echo:
      body.echo === true
        ? prompts.map((prompt, index) => {
            const tokens = Array.from(encoded[index]!.tokens)
            return { text: typeof prompt === 'string' ? prompt : served.llm.detokenize(tokens), tokens }
          })
        : undefined,
    logprobs: body.logprobs !== undefined,
    promptLogprobs: body.prompt_logprobs !== undefined,
    stopTokens: body.stop_token_ids,
    promptTokens,
    includeUsage,
    continuousUsage,
  })
  return answer({ services, exchange, served, work, prompts: encoded, options, stream, format, grammarParam: asked?.param })
}
