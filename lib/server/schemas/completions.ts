import { z } from 'zod'
import { flag, integer, optional, parse, prompts, refuseUnsupported, samplingFields, type Unsupported, UNSUPPORTED_ANYWHERE } from './fields'

const completionSchema = z.object({
  ...samplingFields,
  prompt: prompts,
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

const INSTEAD_OF_BEST = 'ask for "n" choices, and choose'

/** @throws ApiError 400 */
export function parseCompletion(body: Record<string, unknown>): CompletionBody {
  const parsed = parse(completionSchema, body)
  refuseUnsupported(body, UNSUPPORTED)
  if (parsed.best_of !== undefined) refuseUnsupported(body, { best_of: { harmless: (value) => value === (parsed.n ?? 1), instead: INSTEAD_OF_BEST } })
  return parsed
}
