import { z } from 'zod'
import { flag, integer, optional, parse, prompts, refuseUnsupported, type Unsupported, UNSUPPORTED_ANYWHERE } from './fields'

const embeddingSchema = z.object({
  model: optional(z.string()),
  input: prompts.refine((input) => typeof input === 'string' ? input !== '' : !(input as unknown[]).includes(''), 'must have no empty text'),
  encoding_format: optional(z.enum(['float', 'base64'], 'must be "float" or "base64"')),
  dimensions: optional(integer(1, 2 ** 31 - 1)),
  user: optional(z.string()),
  add_special_tokens: flag,
  use_activation: flag,
  normalize: flag,
  priority: optional(integer(-1000, 1000)),
  cache_salt: optional(z.string().min(1).max(1024)),
})

/** vLLM's, whose embeddings may also be other numbers than little-endian float32. */
const UNSUPPORTED: Unsupported = {
  ...UNSUPPORTED_ANYWHERE,
  messages: { instead: 'render the chat, and give it as "input"' },
  embed_dtype: { harmless: (value) => value === 'float32' },
  endianness: { harmless: (value) => value === 'native' || value === 'little' },
}

export type EmbeddingBody = z.output<typeof embeddingSchema>

/** @throws ApiError 400 */
export function parseEmbedding(body: Record<string, unknown>): EmbeddingBody {
  refuseUnsupported(body, UNSUPPORTED)
  return parse(embeddingSchema, body)
}
