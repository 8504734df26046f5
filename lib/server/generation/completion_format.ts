/** Answers of /v1/completions. */
import type { GenerationChoice, GenerationChunk, GenerationResult, TokenLogprob, Usage } from '../../llm'
import { completionLogprobs, promptLogprobs } from './logprobs'
import type { AnswerFormat } from './run'
import { streamHead } from './stream_head'
import type { TokenTexts } from './token_text'
import { usageBody } from './usage'

export interface CompletionFormatOptions {
  id: string
  created: number
  model: string
  fingerprint: string
  texts: TokenTexts
  n: number
  /** Per prompt, where it is echoed: its text and tokens. */
  echo: readonly { text: string; tokens: readonly number[] }[] | undefined
  logprobs: boolean
  promptLogprobs: boolean
  stopTokens: StopTokens
  /** Tokens of each prompt. */
  promptTokens: readonly number[]
  includeUsage: boolean
  continuousUsage: boolean
}

const PADDING: readonly null[] = []

export class CompletionFormat implements AnswerFormat {
  private readonly head: string
  /** Where the next token of a choice stands in its text. */
  private readonly offsets: number[] = []
  private readonly generated: number[] = []

  constructor(private readonly options: CompletionFormatOptions) {
    const { id, created, model, fingerprint } = options
    this.head = streamHead('text_completion', id, created, model, fingerprint)
  }

  open(choice: number): string {
    const { echo, logprobs, n } = this.options
    if (echo === undefined) return ''
    const prompt = echo[Math.floor(choice / n)]!
    // Log-probabilities of a prompt come with the whole answer only.
    const entries = logprobs ? this.entries(choice, prompt.tokens, PADDING) : null
    return this.event(choice, prompt.text, JSON.stringify(entries), 'null')
  }

  chunk(choice: number, { text, tokens, logprobs, finishReason, stop }: GenerationChunk): string {
    if (this.options.continuousUsage) this.generated[choice] = (this.generated[choice] ?? 0) + tokens.length
    if (text === '' && logprobs === undefined && finishReason === undefined) return ''
    const entries = logprobs === undefined ? 'null' : JSON.stringify(this.entries(choice, tokens, logprobs))
    return this.event(choice, text, entries, finishReason === undefined ? 'null' : finishText(finishReason, stop, this.options.stopTokens))
  }

  close(usage: Usage): string {
    return this.options.includeUsage ? `${this.head}],"usage":${JSON.stringify(usageBody(usage))}}\n\n` : ''
  }

  body(results: readonly GenerationResult[], usage: Usage): unknown {
    const { id, created, model, fingerprint, n } = this.options
    return {
      id,
      object: 'text_completion',
      created,
      model,
      system_fingerprint: fingerprint,
      choices: results.flatMap((result, prompt) => result.choices.map((choice) => this.choice(choice, result, prompt, prompt * n + choice.index))),
      usage: usageBody(usage),
    }
  }

  private choice(choice: GenerationChoice, result: GenerationResult, prompt: number, index: number): unknown {
    const { echo, logprobs, texts, promptLogprobs: withPrompt } = this.options
    const echoed = echo?.[prompt]
    let entries: unknown = null
    if (logprobs) {
      const tokens = echoed === undefined ? choice.tokens : [...echoed.tokens, ...choice.tokens]
      const before = echoed === undefined ? [] : (result.promptLogprobs ?? [])
      entries = this.entries(index, tokens, [...before, ...(choice.logprobs ?? [])])
    }
    return {
      index,
      text: echoed === undefined ? choice.text : echoed.text + choice.text,
      logprobs: entries,
      finish_reason: choice.finishReason,
      stop_reason: stopReason(choice.stop, this.options.stopTokens),
      ...(withPrompt ? { prompt_logprobs: promptLogprobs(result.promptLogprobs ?? [], texts) } : {}),
    }
  }

  private entries(choice: number, tokens: readonly number[], logprobs: readonly (TokenLogprob | null)[]): unknown {
    const piece = completionLogprobs(tokens, logprobs, this.options.texts, this.offsets[choice] ?? 0)
    this.offsets[choice] = piece.offset
    return piece.logprobs
  }

  private event(choice: number, text: string, logprobs: string, finish: string): string {
    return `${this.head}{"index":${choice},"text":${JSON.stringify(text)},"logprobs":${logprobs},"finish_reason":${finish}}]${this.usage(choice)}}\n\n`
  }

  private usage(choice: number): string {
    const { includeUsage, continuousUsage, n, promptTokens } = this.options
    if (!includeUsage) return ''
    if (!continuousUsage) return ',"usage":null'
    const prompt = promptTokens[Math.floor(choice / n)]!
    return continuousUsageText(prompt, this.generated[choice] ?? 0)
  }
}

/** Those that the request names as `stop_token_ids`. */
export type StopTokens = readonly number[] | undefined

/** vLLM's `stop_reason`: the stop string or token that was asked for; null for the model's own end. */
export function stopReason(stop: GenerationChoice['stop'], asked: StopTokens): string | number | null {
  return typeof stop === 'number' && asked?.includes(stop) !== true ? null : (stop ?? null)
}

/** `finish_reason` of a choice's last event, and the `stop_reason` that goes with it. */
export function finishText(reason: string, stop: GenerationChunk['stop'], asked: StopTokens): string {
  return `"${reason}","stop_reason":${JSON.stringify(stopReason(stop, asked))}`
}

/** Of one choice up to now. */
export function continuousUsageText(prompt: number, completion: number): string {
  return `,"usage":{"prompt_tokens":${prompt},"completion_tokens":${completion},"total_tokens":${prompt + completion}}`
}
