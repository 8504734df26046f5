import { z } from 'zod'
import { flag, integer, optional, parse, refuseUnsupported, tokenIds, UNSUPPORTED_ANYWHERE } from './fields'

const embeddingSchema = z.object({
  model: optional(z.string()),
  input: z.union(
    [z.string().min(1), tokenIds.min(1), z.array(z.string().min(1)).min(1), z.array(tokenIds.min(1)).min(1)],
    'must be a string, an array of strings, an array of token ids, or an array of arrays of token ids, none empty',
  ),
  encoding_format: optional(z.enum(['float', 'base64'], 'must be "float" or "base64"')),
  dimensions: optional(integer(1, 2 ** 31 - 1)),
  user: optional(z.string()),
  add_special_tokens: flag,
  normalize: flag,
  priority: optional(integer(-1000, 1000)),
  cache_salt: optional(z.string().min(1).max(1024)),
})

export type EmbeddingBody = z.output<typeof embeddingSchema>

/** @throws ApiError 400 */
export function parseEmbedding(body: Record<string, unknown>): EmbeddingBody {
  refuseUnsupported(body, UNSUPPORTED_ANYWHERE)
  return parse(embeddingSchema, body)
}
