/** POST /v1/embeddings. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { EmbeddingDefaults } from '../../llm'
import { ApiError } from '../errors'
import { encodePrompts, promptList } from '../generation/prompts'
import { scheduleOf } from '../generation/sampling'
import { Work } from '../generation/work'
import type { Exchange } from '../http/exchange'
import { parseEmbedding } from '../schemas/embeddings'
import type { Services } from '../services'
import { factsOf, limitsOf, readRequest } from './request'

/** Numbers that are written at a time; the event loop turns between them. */
const NUMBERS_PER_TURN = 20_000

export async function embeddings(exchange: Exchange, services: Services): Promise<Response> {
  const limits = limitsOf(exchange, services)
  const { body, served } = await readRequest(exchange, services, parseEmbedding)
  const { llm } = served
  const { hiddenSize = 0, embedding } = llm.info
  if (hiddenSize < 1) throw ApiError.unsupported('model', 'The backend of this model gives no embeddings')
  if (embedding.unsupported !== undefined) {
    throw ApiError.unsupported('model', `The model makes embeddings in a way that is not supported: ${embedding.unsupported}`)
  }
  if (body.dimensions !== undefined) checkDimensions(body.dimensions, hiddenSize, embedding)
  const inputs = promptList(body.input)
  if (inputs.length > limits.maxInputs) throw ApiError.invalid('input', `"input" may hold at most ${limits.maxInputs} inputs`)
  const schedule = scheduleOf(body, exchange, limits)
  // Special tokens spelt out in a text are text: what is embedded is data.
  const encoded = await encodePrompts(served, inputs, 'input', { addSpecialTokens: body.add_special_tokens, allowSpecial: false }, exchange, limits)
  const promptTokens = encoded.map(({ tokens }) => tokens.length)
  const facts = factsOf(exchange, served, 'embeddings', { ...schedule, n: 1, maxTokens: 0 }, promptTokens, false)
  const work = Work.admit(services, exchange, facts)
  let text: string
  try {
    const { deadlineMs, timeoutMs, ...options } = schedule
    const result = await llm.embed(
      encoded.map(({ tokens }) => tokens),
      {
        ...options,
        signal: exchange.signal,
        timeoutMs: earlier(deadlineMs, timeoutMs),
        dimensions: body.dimensions,
        normalize: body.use_activation ?? body.normalize,
      },
    )
    exchange.usage = work.embedded(result.usage)
    const { promptTokens: count } = exchange.usage
    const data = await serialize(result.embeddings, body.encoding_format === 'base64')
    const usage = JSON.stringify({ prompt_tokens: count, total_tokens: count })
    text = `{"object":"list","data":[${data.join(',')}],"model":${JSON.stringify(served.name)},"usage":${usage}}`
  } catch (error) {
    throw work.fail(error)
  }
  return exchange.text(200, text, { 'content-type': 'application/json' })
}

/** @throws ApiError 400 */
function checkDimensions(dimensions: number, hiddenSize: number, { matryoshkaDimensions: all }: EmbeddingDefaults): void {
  if (dimensions > hiddenSize) throw ApiError.invalid('dimensions', `"dimensions" may be at most ${hiddenSize}`)
  if (dimensions === hiddenSize || all === 'any' || all.includes(dimensions)) return
  const message =
    all.length === 0
      ? `"dimensions": the model does not support matryoshka representation, its embeddings have ${hiddenSize} numbers`
      : `"dimensions" may be ${[...all, hiddenSize].join(', ')}`
  throw ApiError.invalid('dimensions', message)
}

function earlier(a: number | undefined, b: number | undefined): number | undefined {
  return a === undefined || b === undefined ? (a ?? b) : Math.min(a, b)
}

async function serialize(embeddings: readonly Float32Array[], base64: boolean): Promise<string[]> {
  const entries: string[] = []
  let written = 0
  for (const [index, embedding] of embeddings.entries()) {
    // Little-endian float32, as the machine has them.
    const value = base64
      ? `"${Buffer.from(embedding.buffer, embedding.byteOffset, embedding.byteLength).toString('base64')}"`
      : `[${embedding.join(',')}]`
    entries.push(`{"object":"embedding","index":${index},"embedding":${value}}`)
    written += embedding.length
    if (written < NUMBERS_PER_TURN) continue
    written = 0
    await nextTurn()
  }
  return entries
}
