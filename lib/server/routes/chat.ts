/** POST /v1/chat/completions. */
import { randomUUID } from 'node:crypto'
import { ApiError } from '../errors'
import { ChatFormat } from '../generation/chat_format'
import { grammarOf } from '../generation/grammar'
import { outputFormatOf } from '../generation/output_parser'
import { encodeChat, opened } from '../generation/prompts'
import { answer } from '../generation/run'
import { checkContext, sharedOptions, tooManyLogprobs } from '../generation/sampling'
import { TokenTexts } from '../generation/token_text'
import { Work } from '../generation/work'
import type { Exchange } from '../http/exchange'
import { parseChat } from '../schemas/chat'
import type { Services } from '../services'
import { checkStreaming, factsOf, limitsOf, readRequest } from './request'

export async function chatCompletions(exchange: Exchange, services: Services): Promise<Response> {
  const limits = limitsOf(exchange, services)
  const { body, served } = await readRequest(exchange, services, parseChat)
  const { stream, includeUsage, continuousUsage } = checkStreaming(body)
  const asked = grammarOf(body)
  if ((body.n ?? 1) > limits.maxChoices) throw ApiError.invalid('n', `"n" may be at most ${limits.maxChoices}`)
  if ((body.top_logprobs ?? 0) > limits.maxLogprobs) throw tooManyLogprobs('top_logprobs', limits)
  const maxTokens = body.max_completion_tokens ?? body.max_tokens
  const maxTokensField = body.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens'
  const options = sharedOptions(body, maxTokens, served, exchange, limits, maxTokensField)
  if (body.logprobs === true) options.logprobs = body.top_logprobs ?? 0
  const chat = await encodeChat(served, body, exchange, limits)
  const output = outputFormatOf(served, body, chat.tokens, asked !== undefined)
  const forced = output?.forced
  const encoded = await opened(served, chat, forced?.opening, exchange, limits)
  const promptTokens = encoded.tokens.length
  checkContext(maxTokensField, maxTokens, [promptTokens], served)
  if (forced !== undefined && asked !== undefined) {
    throw ApiError.invalid('tool_choice', `A call that "tool_choice" asks for cannot be held to "${asked.param}", too`)
  }
  options.grammar = forced?.grammar ?? asked?.grammar
  if (output?.specialTokens === true) options.skipSpecialTokens = false
  const work = Work.admit(services, exchange, factsOf(exchange, served, 'chat', options, [promptTokens], stream))
  const format = new ChatFormat({
    id: `chatcmpl-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: served.name,
    fingerprint: served.fingerprint,
    texts: new TokenTexts(served.llm.tokenizer, body.return_tokens_as_token_ids === true),
    promptLogprobs: body.prompt_logprobs !== undefined,
    stopTokens: body.stop_token_ids,
    promptTokens,
    includeUsage,
    continuousUsage,
    output,
  })
  return answer({ services, exchange, served, work, prompts: [encoded], options, stream, format, grammarParam: asked?.param ?? 'tools' })
}
