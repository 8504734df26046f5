/** Log-probabilities in the shapes of the two APIs, and vLLM's of prompts. */
import type { TokenLogprob } from '../../llm'
import type { TokenTexts } from './token_text'

/** JSON has no infinity; this stands for a token of no probability, as in OpenAI's API. */
const LEAST_LOGPROB = -9999

const finite = (logprob: number): number => Math.max(logprob, LEAST_LOGPROB)

export interface ChatTokenLogprob {
  token: string
  logprob: number
  bytes: number[] | null
}

export interface ChatLogprobs {
  content: (ChatTokenLogprob & { top_logprobs: ChatTokenLogprob[] })[]
  refusal: null
}

export function chatLogprobs(logprobs: readonly TokenLogprob[], texts: TokenTexts): ChatLogprobs {
  const entry = (id: number, logprob: number): ChatTokenLogprob => {
    const { token, bytes } = texts.of(id)
    return { token, logprob: finite(logprob), bytes: bytes ?? null }
  }
  return {
    content: logprobs.map(({ token, logprob, top }) => ({
      ...entry(token, logprob),
      top_logprobs: top.map((other) => entry(other.token, other.logprob)),
    })),
    refusal: null,
  }
}

export interface CompletionLogprobs {
  tokens: string[]
  token_logprobs: (number | null)[]
  top_logprobs: (Record<string, number> | null)[]
  text_offset: number[]
}

/**
 * @param tokens of a piece of output, or of the prompt
 * @param logprobs one entry a token; null where there is none, as of a prompt's first token
 * @param offset of the piece in the choice's text, in UTF-16 units, the sum of its tokens' texts before it
 * @returns the piece's entries, and the offset behind them
 */
export function completionLogprobs(
  tokens: readonly number[],
  logprobs: readonly (TokenLogprob | null)[],
  texts: TokenTexts,
  offset: number,
): { logprobs: CompletionLogprobs; offset: number } {
  const result: CompletionLogprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] }
  let at = offset
  tokens.forEach((id, index) => {
    const { token, length } = texts.of(id)
    const given = logprobs[index] ?? null
    result.tokens.push(token)
    result.token_logprobs.push(given === null ? null : finite(given.logprob))
    result.top_logprobs.push(given === null ? null : topRecord(given, texts))
    result.text_offset.push(at)
    at += length
  })
  return { logprobs: result, offset: at }
}

/** The most probable tokens and the sampled one. Two that read the same are one entry: the more probable one's. */
function topRecord({ token, logprob, top }: TokenLogprob, texts: TokenTexts): Record<string, number> {
  const entries = new Map<string, number>()
  for (const { token: id, logprob: value } of [...top, { token, logprob }]) {
    const text = texts.of(id).token
    if (!entries.has(text)) entries.set(text, finite(value))
  }
  return Object.fromEntries(entries)
}

type PromptEntry = Record<string, { logprob: number; rank: number; decoded_token: string }>

/** vLLM's `prompt_logprobs`: by token id, null for the first token. */
export function promptLogprobs(logprobs: readonly (TokenLogprob | null)[], texts: TokenTexts): (PromptEntry | null)[] {
  return logprobs.map((given) => {
    if (given === null) return null
    const entry: PromptEntry = {}
    given.top.forEach(({ token, logprob }, index) => {
      entry[token] = { logprob: finite(logprob), rank: index + 1, decoded_token: texts.of(token).token }
    })
    entry[given.token] = { logprob: finite(given.logprob), rank: given.rank, decoded_token: texts.of(given.token).token }
    return entry
  })
}
