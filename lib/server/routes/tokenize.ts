/** POST /tokenize and /detokenize, in vLLM's shapes. */
import type { EncodedPrompt } from '../../llm'
import { ApiError } from '../errors'
import { encodeChat, encodePrompts } from '../generation/prompts'
import { claimOf } from '../generation/work'
import type { Exchange } from '../http/exchange'
import type { ServedModel } from '../registry'
import { parseDetokenize, parseTokenize, type TokenizeBody } from '../schemas/tokenize'
import type { TokenizeFacts } from '../seams'
import type { Services } from '../services'
import { limitsOf, readRequest } from './request'

/** Texts and chats up to the model's context. */
export async function tokenize(exchange: Exchange, services: Services): Promise<Response> {
  const { body, served } = await readRequest(exchange, services, parseTokenize)
  const { llm } = served
  if (!llm.info.hasTokenizer) throw withoutTokenizer()
  const claim = claimOf(services, exchange, factsOf('tokenize', exchange, served))
  try {
    const tokens = Array.from((await encoded(served, body, exchange, services)).tokens)
    return exchange.json(200, {
      count: tokens.length,
      max_model_len: llm.info.maxPositions,
      tokens,
      token_strs: body.return_token_strs === true ? tokens.map((token) => llm.tokenizer!.idToToken(token) ?? '') : null,
    })
  } finally {
    claim?.release()
  }
}

async function encoded(served: ServedModel, body: TokenizeBody, exchange: Exchange, services: Services): Promise<EncodedPrompt> {
  const limits = limitsOf(exchange, services)
  if (body.messages === undefined) {
    return (await encodePrompts(served, [body.prompt], 'prompt', { addSpecialTokens: body.add_special_tokens }, exchange, limits))[0]!
  }
  if (body.add_special_tokens === true) {
    throw ApiError.unsupported('add_special_tokens', '"add_special_tokens" is not supported with "messages": the template adds them')
  }
  return encodeChat(served, body, exchange, limits)
}

export async function detokenize(exchange: Exchange, services: Services): Promise<Response> {
  const { body, served } = await readRequest(exchange, services, parseDetokenize)
  const { info } = served.llm
  if (!info.hasTokenizer) throw withoutTokenizer()
  if (body.tokens.length > info.maxPositions) {
    throw ApiError.invalid('tokens', `"tokens" may hold at most ${info.maxPositions} tokens, the model's context`)
  }
  const unknown = body.tokens.findIndex((token) => token >= info.vocabSize)
  if (unknown >= 0) {
    const message = `"tokens[${unknown}]" is ${body.tokens[unknown]}; the vocabulary has ${info.vocabSize} tokens`
    throw ApiError.invalid(`tokens[${unknown}]`, message, 'invalid_token')
  }
  // Done at once: there is nothing that could run beside others.
  claimOf(services, exchange, factsOf('detokenize', exchange, served))?.release()
  return exchange.json(200, { prompt: served.llm.detokenize(body.tokens) })
}

function factsOf(endpoint: TokenizeFacts['endpoint'], exchange: Exchange, served: ServedModel): TokenizeFacts {
  return { id: exchange.id, endpoint, model: served.name, keyName: exchange.caller.keyName }
}

function withoutTokenizer(): ApiError {
  return ApiError.invalid('model', 'The model is served without a tokenizer', 'tokenizer_missing')
}
