import { z } from 'zod'
import { flag, integer, optional, parse, refuseUnsupported, samplingFields, tokenIds, type Unsupported, UNSUPPORTED_ANYWHERE } from './fields'

const completionSchema = z.object({
  ...samplingFields,
  prompt: z.union(
    [z.string(), tokenIds.min(1), z.array(z.string()).min(1), z.array(tokenIds.min(1)).min(1)],
    'must be a string, an array of strings, an array of token ids, or an array of arrays of token ids, none empty',
  ),
  max_tokens: optional(integer(0, 2 ** 31 - 1)),
  echo: flag,
  logprobs: optional(integer(0, 256)),
  best_of: optional(integer(1, 1024)),
})

export type CompletionBody = z.output<typeof completionSchema>

const UNSUPPORTED: Unsupported = {
  ...UNSUPPORTED_ANYWHERE,
  suffix: { harmless: (value) => value === '' },
  prompt_embeds: {},
}

/** @throws ApiError 400 */
export function parseCompletion(body: Record<string, unknown>): CompletionBody {
  const parsed = parse(completionSchema, body)
  const n = parsed.n ?? 1
  refuseUnsupported(body, { ...UNSUPPORTED, best_of: { harmless: (value) => value === n, instead: 'ask for "n" choices, and choose' } })
  return parsed
}
