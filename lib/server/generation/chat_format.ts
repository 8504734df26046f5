/** Answers of /v1/chat/completions. */
import type { GenerationChoice, GenerationChunk, GenerationResult, TokenLogprob, Usage } from '../../llm'
import { continuousUsageText, stopReason } from './completion_format'
import { chatLogprobs, promptLogprobs } from './logprobs'
import type { AnswerFormat } from './run'
import type { TokenTexts } from './token_text'
import { usageBody } from './usage'

export interface ChatFormatOptions {
  id: string
  created: number
  model: string
  fingerprint: string
  texts: TokenTexts
  promptLogprobs: boolean
  promptTokens: number
  includeUsage: boolean
  continuousUsage: boolean
}

export class ChatFormat implements AnswerFormat {
  private readonly head: string
  private readonly generated: number[] = []

  constructor(private readonly options: ChatFormatOptions) {
    const { id, created, model, fingerprint } = options
    const fields = { id, object: 'chat.completion.chunk', created, model, system_fingerprint: fingerprint }
    this.head = `data: ${JSON.stringify(fields).slice(0, -1)},"choices":[`
  }

  open(choice: number): string {
    return this.event(choice, '{"role":"assistant","content":""}', 'null', 'null')
  }

  chunk(choice: number, { text, tokens, logprobs, finishReason }: GenerationChunk): string {
    if (this.options.continuousUsage) this.generated[choice] = (this.generated[choice] ?? 0) + tokens.length
    const entries = logprobs === undefined ? 'null' : this.entries(logprobs)
    const finish = finishReason === undefined ? 'null' : `"${finishReason}"`
    if (text !== '') return this.event(choice, `{"content":${JSON.stringify(text)}}`, entries, finish)
    return entries === 'null' && finish === 'null' ? '' : this.event(choice, '{}', entries, finish)
  }

  close(usage: Usage): string {
    return this.options.includeUsage ? `${this.head}],"usage":${JSON.stringify(usageBody(usage))}}\n\n` : ''
  }

  body(results: readonly GenerationResult[], usage: Usage): unknown {
    const { id, created, model, fingerprint, texts } = this.options
    const result = results[0]!
    return {
      id,
      object: 'chat.completion',
      created,
      model,
      system_fingerprint: fingerprint,
      choices: result.choices.map((choice) => this.choice(choice)),
      usage: usageBody(usage),
      ...(this.options.promptLogprobs ? { prompt_logprobs: promptLogprobs(result.promptLogprobs ?? [], texts) } : {}),
    }
  }

  private choice(choice: GenerationChoice): unknown {
    const { index, text, logprobs, finishReason } = choice
    return {
      index,
      message: { role: 'assistant', content: text, refusal: null },
      logprobs: logprobs === undefined ? null : chatLogprobs(logprobs, this.options.texts),
      finish_reason: finishReason,
      stop_reason: stopReason(choice),
    }
  }

  private entries(logprobs: readonly TokenLogprob[]): string {
    return JSON.stringify(chatLogprobs(logprobs, this.options.texts))
  }

  private event(choice: number, delta: string, logprobs: string, finish: string): string {
    return `${this.head}{"index":${choice},"delta":${delta},"logprobs":${logprobs},"finish_reason":${finish}}]${this.usage(choice)}}\n\n`
  }

  private usage(choice: number): string {
    const { includeUsage, continuousUsage, promptTokens } = this.options
    if (!includeUsage) return ''
    return continuousUsage ? continuousUsageText(promptTokens, this.generated[choice] ?? 0) : ',"usage":null'
  }
}
