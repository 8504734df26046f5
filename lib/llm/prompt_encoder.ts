/** Encodes prompts: short ones at once, long ones on a thread, as rendering and encoding block theirs. */
import { TensorRTError } from '../errors'
import { ChatTemplate, encodeChatInput, type Tokenizer, validateChat } from '../text'
import type { EncoderSource } from './encoder_messages'
import { EncoderThread, type PendingPrompt } from './encoder_thread'
import { type PromptSource, toTokenArray } from './validate'

/**
 * UTF-16 units up to which a prompt is encoded at once: within 1 to 5 ms at the worst, which is text of many rare
 * characters, and in a tenth of that for English. A thread takes about 0.2 ms more than the work itself.
 */
const SHORT = 2048
/** How long a template may run on the event loop before the thread takes over. */
const RENDER_SLICE_MS = 4
/** How long short prompts may take within one turn of the event loop before the thread takes the rest of them. */
const TURN_MS = 8

/** Thrown by a guard: the thread is to do it. */
class TooMuch extends Error {}

/** UTF-16 units of a JSON value's strings, and one for each value. */
function lengthOf(value: unknown): number {
  if (typeof value === 'string') return value.length + 1
  if (typeof value !== 'object' || value === null) return 1
  let length = 1
  if (Array.isArray(value)) for (const item of value) length += lengthOf(item)
  else for (const [key, item] of Object.entries(value)) length += key.length + lengthOf(item)
  return length
}

/** @throws ERR_INVALID_ARGUMENT: there is none */
export function requireTokenizer(tokenizer: Tokenizer | undefined): Tokenizer {
  if (tokenizer !== undefined) return tokenizer
  throw new TensorRTError('ERR_INVALID_ARGUMENT', 'This LLM has no tokenizer', {
    hint: 'give "tokens", or a tokenizer when the LLM is made',
  })
}

export interface EncoderLimits {
  /** The context, in tokens. */
  maxPositions: number
  vocabSize: number
}

export class PromptEncoder {
  private readonly template: ChatTemplate
  private readonly thread: EncoderThread
  /** In this turn of the event loop. */
  private spentMs = 0
  private turnEnd: NodeJS.Immediate | undefined

  /**
   * @param tokenizerJson text of tokenizer.json, where it is at hand
   * @param maxQueue requests that may wait in the LLM's queue
   */
  constructor(
    private readonly tokenizer: Tokenizer | undefined,
    chatTemplate: ChatTemplate | undefined,
    tokenizerJson: string | undefined,
    maxQueue?: number,
  ) {
    const template = chatTemplate ?? new ChatTemplate(undefined)
    this.template = template
    const source = (): EncoderSource => {
      const definition = requireTokenizer(tokenizer).definition
      return {
        tokenizerJson: tokenizerJson ?? definition.tokenizerJson,
        tokenizerConfig: definition.tokenizerConfig,
        chatTemplate: template.definition,
      }
    }
    this.thread = new EncoderThread(source, maxQueue)
  }

  /**
   * Token ids of a prompt. A text that is far too long is refused before it is encoded.
   *
   * @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN, ERR_PROMPT_TOO_LONG, ERR_CHAT_TEMPLATE, ERR_QUEUE_FULL, ERR_DISPOSED;
   * what the thread finds wrong rejects
   */
  encode(source: PromptSource, { maxPositions: maxTokens, vocabSize }: EncoderLimits): Int32Array | PendingPrompt {
    switch (source.kind) {
      case 'tokens':
      case 'encoded':
        return ownTokens(source.tokens, maxTokens, vocabSize)
      case 'prompt':
        return this.encodeText(source, maxTokens)
      default:
        return this.encodeChat(source, maxTokens)
    }
  }

  close(reason: TensorRTError): Promise<void> {
    return this.thread.close(reason)
  }

  private encodeText(input: PromptSource & { kind: 'prompt' }, maxTokens: number): Int32Array | PendingPrompt {
    const tokenizer = requireTokenizer(this.tokenizer)
    const { prompt, addSpecialTokens, allowSpecial } = input
    if (prompt.length <= SHORT && this.spentMs < TURN_MS) {
      return this.atOnce(() => tokenizer.encode(prompt, { addSpecialTokens, allowSpecial, maxTokens }))
    }
    tokenizer.assertMayFit(prompt, maxTokens)
    return this.thread.encode({ input, maxTokens }, prompt.length)
  }

  private encodeChat({ options, allowSpecial }: PromptSource & { kind: 'messages' }, maxTokens: number): Int32Array | PendingPrompt {
    const tokenizer = requireTokenizer(this.tokenizer)
    const chat = validateChat(options.messages ?? [], options)
    const length = lengthOf([chat.messages, chat.tools, chat.documents, chat.templateArgs])
    if (length <= SHORT && this.spentMs < TURN_MS) {
      const until = performance.now() + RENDER_SLICE_MS
      const guard = (text = ''): void => {
        if (text.length > SHORT || performance.now() > until) throw new TooMuch()
      }
      try {
        return this.atOnce(() => encodeChatInput(tokenizer, this.template, chat, { allowSpecial, maxTokens, guard }).ids)
      } catch (error) {
        if (!(error instanceof TooMuch)) throw error
      }
    }
    return this.thread.encode({ input: { kind: 'chat', chat, allowSpecial }, maxTokens }, length)
  }

  private atOnce(encode: () => number[]): Int32Array {
    const from = performance.now()
    try {
      return Int32Array.from(encode())
    } finally {
      this.spentMs += performance.now() - from
      this.turnEnd ??= setImmediate(() => {
        this.spentMs = 0
        this.turnEnd = undefined
      }).unref()
    }
  }
}

function ownTokens(tokens: ArrayLike<number>, maxTokens: number, vocabSize: number): Int32Array {
  if (tokens.length <= maxTokens) return toTokenArray('tokens', tokens, vocabSize)
  throw new TensorRTError(
    'ERR_PROMPT_TOO_LONG',
    `The prompt has ${tokens.length} tokens, the context ${maxTokens}, and the output needs at least one`,
    { hint: 'shorten the prompt' },
  )
}
