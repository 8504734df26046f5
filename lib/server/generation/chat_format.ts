/** Answers of /v1/chat/completions. */
import type { FinishReason, GenerationChoice, GenerationChunk, GenerationResult, TokenLogprob, Usage } from '../../llm'
import { continuousUsageText, finishText, stopReason, type StopTokens } from './completion_format'
import { chatLogprobs, promptLogprobs } from './logprobs'
import { joinDeltas, type OutputFormat, type OutputParser, type OutputParts } from './output_parser'
import type { AnswerFormat } from './run'
import { streamHead } from './stream_head'
import type { TokenTexts } from './token_text'
import { usageBody } from './usage'

export interface ChatFormatOptions {
  id: string
  created: number
  model: string
  fingerprint: string
  texts: TokenTexts
  promptLogprobs: boolean
  stopTokens: StopTokens
  promptTokens: number
  includeUsage: boolean
  continuousUsage: boolean
  /** How answers are read; undefined: all text is content. */
  output: OutputFormat | undefined
}

export class ChatFormat implements AnswerFormat {
  private readonly head: string
  private readonly generated: number[] = []
  private readonly parsers: OutputParser[] = []

  constructor(private readonly options: ChatFormatOptions) {
    const { id, created, model, fingerprint } = options
    this.head = streamHead('chat.completion.chunk', id, created, model, fingerprint)
  }

  open(choice: number): string {
    return this.event(choice, '{"role":"assistant","content":""}', 'null', 'null')
  }

  chunk(choice: number, chunk: GenerationChunk): string {
    const { text, tokens, logprobs, finishReason } = chunk
    if (this.options.continuousUsage) this.generated[choice] = (this.generated[choice] ?? 0) + tokens.length
    const entries = logprobs === undefined ? 'null' : this.entries(logprobs)
    const { output } = this.options
    if (output !== undefined) return this.parsedChunk(output, choice, chunk, entries)
    const finish = finishReason === undefined ? 'null' : finishText(finishReason, chunk.stop, this.options.stopTokens)
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
    const { message, finish } = this.message(text, finishReason)
    return {
      index,
      message,
      logprobs: logprobs === undefined ? null : chatLogprobs(logprobs, this.options.texts),
      finish_reason: finish,
      stop_reason: stopReason(choice.stop, this.options.stopTokens),
    }
  }

  private message(text: string, reason: FinishReason): { message: unknown; finish: string } {
    const { output } = this.options
    if (output === undefined) return { message: { role: 'assistant', content: text, refusal: null }, finish: reason }
    const parser = output.parser()
    const parts = parser.push(text)
    const last = parser.end()
    return { message: messageOf(joinParts(parts, last)), finish: finishOf(reason, last.anyCalls, output) }
  }

  private parsedChunk(output: OutputFormat, choice: number, { text, finishReason: reason, stop }: GenerationChunk, entries: string): string {
    const parser = (this.parsers[choice] ??= output.parser())
    let parts: OutputParts = parser.push(text)
    let finish = 'null'
    if (reason !== undefined) {
      const last = parser.end()
      parts = joinParts(parts, last)
      finish = finishText(finishOf(reason, last.anyCalls, output), stop, this.options.stopTokens)
    }
    const delta = JSON.stringify({
      ...(parts.reasoning === '' ? {} : { reasoning_content: parts.reasoning }),
      ...(parts.content === '' ? {} : { content: parts.content }),
      ...(parts.calls.length === 0 ? {} : { tool_calls: parts.calls.map(callDelta) }),
    })
    return delta === '{}' && entries === 'null' && finish === 'null' ? '' : this.event(choice, delta, entries, finish)
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

function joinParts(a: OutputParts, b: OutputParts): OutputParts {
  return { reasoning: a.reasoning + b.reasoning, content: a.content + b.content, calls: joinDeltas([...a.calls, ...b.calls]) }
}

/** A call that the length cut off is not finished: its arguments are no JSON yet. */
function finishOf(reason: FinishReason, anyCalls: boolean, { callsFinish }: OutputFormat): string {
  return anyCalls && callsFinish && reason === 'stop' ? 'tool_calls' : reason
}

function callDelta({ index, id, name, arguments: text }: OutputParts['calls'][number]): unknown {
  if (id === undefined) return { index, function: { arguments: text ?? '' } }
  return { index, id, type: 'function', function: { name, arguments: text ?? '' } }
}

function messageOf({ reasoning, content, calls }: OutputParts): Record<string, unknown> {
  return {
    role: 'assistant',
    content: content === '' && (calls.length > 0 || reasoning !== '') ? null : content,
    refusal: null,
    ...(reasoning === '' ? {} : { reasoning_content: reasoning }),
    ...(calls.length === 0
      ? {}
      : { tool_calls: calls.map(({ id, name, arguments: text }) => ({ id, type: 'function', function: { name, arguments: text ?? '' } })) }),
  }
}
