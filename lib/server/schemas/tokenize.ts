import { z } from 'zod'
import { chatInputSchema } from './chat'
import { flag, optional, parse, refuseUnsupported, tokenIds, UNSUPPORTED_ANYWHERE } from './fields'

const shared = { model: optional(z.string()), add_special_tokens: flag, return_token_strs: flag }
const textSchema = z.object({ ...shared, prompt: z.string() })
const chatSchema = z.object({ ...shared, ...chatInputSchema.shape })
const detokenizeSchema = z.object({ model: optional(z.string()), tokens: tokenIds })

export type TokenizeBody =
  | (z.output<typeof textSchema> & { messages?: never })
  | (z.output<typeof chatSchema> & { prompt?: never })
export type DetokenizeBody = z.output<typeof detokenizeSchema>

/** @throws ApiError 400 */
export function parseTokenize(body: Record<string, unknown>): TokenizeBody {
  refuseUnsupported(body, UNSUPPORTED_ANYWHERE)
  return Object.hasOwn(body, 'messages') ? parse(chatSchema, body) : parse(textSchema, body)
}

/** @throws ApiError 400 */
export function parseDetokenize(body: Record<string, unknown>): DetokenizeBody {
  return parse(detokenizeSchema, body)
}
