import { TensorRTError } from '../errors'
import { JinjaTemplateClass, type JinjaNode, type JinjaTemplate } from './hf_libraries'
import { normalizeMessages, plainJson, SizeBudget, withArgumentsAsText, withContentAsText, type ChatMessage, type JsonValue } from './messages'

/** What a render takes beside the messages. */
export interface RenderOptions {
  /** End with the opening of the assistant's turn. Default true. */
  addGenerationPrompt?: boolean | undefined
  /** Tool definitions, as JSON schemas, for templates that take them. */
  tools?: readonly unknown[] | undefined
  /** Documents for templates of retrieval models. */
  documents?: readonly unknown[] | undefined
  /** Further variables of the template, such as `enable_thinking`. They cannot replace the variables named here. */
  templateArgs?: Readonly<Record<string, unknown>> | undefined
}

/** Input of a render after validation: plain JSON, nothing of the caller's own objects. */
export interface RenderInput {
  readonly messages: JsonValue[]
  readonly tools: JsonValue
  readonly documents: JsonValue
  readonly templateArgs: { [key: string]: JsonValue }
  readonly addGenerationPrompt: boolean
}

/** Most UTF-16 units that all strings of one chat may hold together: a render is synchronous. */
export const MAX_CHAT_LENGTH = 4 * 1024 * 1024

const DEFAULT_TEMPLATE = 'default'
const TOOL_TEMPLATE = 'tool_use'

/** Names that the template language defines itself. */
const RESERVED = new Set('true false none True False None namespace range raise_exception strftime_now'.split(' '))

const RAISE = 'raise_exception_of_host'
const RANGE = 'range_of_host'
const TICK = 'tick_of_host'

/** Most numbers of one `range()`: the library makes a list of them. */
const MAX_RANGE = 20_000

/**
 * Called in each turn of a template's loops and each call of its macros, and with the text before it is encoded. What it
 * throws ends the work, and is thrown.
 */
export type RenderGuard = (text?: string) => void

/** Thrown by a template's own `raise_exception`, to tell its judgement of the messages from a fault of the template. */
class RaisedByTemplate extends Error {}

function templateError(error: unknown): TensorRTError {
  if (error instanceof TensorRTError) return error
  const { message } = error as Error
  if (error instanceof RaisedByTemplate) {
    return new TensorRTError('ERR_INVALID_ARGUMENT', `The chat template refuses these messages: ${message}`, {
      cause: error,
    })
  }
  return new TensorRTError('ERR_CHAT_TEMPLATE', `The chat template failed: ${message}`, { cause: error })
}

const nodesOf = (source: string): JinjaNode[] => new JinjaTemplateClass(source).parsed.body

/** Kinds of nodes whose body may run any number of times. */
const REPEATED = new Set(['For', 'Macro', 'CallStatement'])

/** Has every body that may run again and again begin with `tick`. A body that is never run again ends by itself. */
function insertTicks(value: unknown, tick: readonly JinjaNode[]): void {
  if (Array.isArray(value)) {
    for (const item of value) insertTicks(item, tick)
    return
  }
  if (typeof value !== 'object' || value === null) return
  for (const field of Object.values(value)) insertTicks(field, tick)
  const { type, body } = value as { type?: unknown; body?: unknown }
  if (typeof type === 'string' && REPEATED.has(type) && Array.isArray(body)) body.unshift(...tick)
}

/**
 * The library's raise_exception throws an error like any other, its range() makes lists of any length, and nothing ends a
 * render that takes too long: the template is made to call ours.
 */
function compile(source: string): JinjaTemplate {
  const template = new JinjaTemplateClass(source)
  insertTicks(template.parsed.body, nodesOf(`{% set ${TICK}_done = ${TICK}() %}`))
  template.parsed.body.unshift(...nodesOf(`{% set raise_exception = ${RAISE} %}{% set range = ${RANGE} %}`))
  return template
}

/** Python's `range`. */
function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop]
  const length = Math.max(Math.ceil((to - from) / step), 0)
  // A step of 0, or what is no number.
  if (!Number.isFinite(length)) throw new Error('range() takes integers, and a step other than 0')
  if (length > MAX_RANGE) throw new Error(`range() of more than ${MAX_RANGE} numbers`)
  return Array.from({ length }, (_, i) => from + i * step)
}

function namedTemplates(value: unknown): Map<string, string> {
  if (value === undefined || value === null) return new Map()
  if (typeof value === 'string') return new Map([[DEFAULT_TEMPLATE, value]])
  const entries = Array.isArray(value)
    ? value.map((entry: { name?: unknown; template?: unknown } | null) => [entry?.name, entry?.template] as const)
    : undefined
  if (!entries || entries.some(([name, source]) => typeof name !== 'string' || typeof source !== 'string')) {
    throw new TensorRTError('ERR_CHAT_TEMPLATE', '"chat_template" must be a string or a list of { name, template }')
  }
  return new Map(entries as [string, string][])
}

/**
 * Checks the messages and options of a chat, and copies them as plain JSON.
 * @throws ERR_INVALID_ARGUMENT for bad messages, and for more than {@link MAX_CHAT_LENGTH} UTF-16 units of strings
 */
export function validateChat(messages: readonly ChatMessage[], options: RenderOptions = {}): RenderInput {
  const budget = new SizeBudget(MAX_CHAT_LENGTH)
  const list = (value: unknown, name: string) => {
    if (value === undefined || value === null) return null
    if (!Array.isArray(value)) throw new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" must be an array`)
    return plainJson(value, name, budget)
  }
  const templateArgs = plainJson(options.templateArgs ?? {}, 'templateArgs', budget)
  if (typeof templateArgs !== 'object' || templateArgs === null || Array.isArray(templateArgs)) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', '"templateArgs" must be an object')
  }
  const reserved = Object.keys(templateArgs).find((name) => RESERVED.has(name))
  if (reserved !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"templateArgs" must not define "${reserved}"`)
  }
  return {
    messages: normalizeMessages(messages, budget),
    tools: list(options.tools, 'tools'),
    documents: list(options.documents, 'documents'),
    templateArgs,
    addGenerationPrompt: options.addGenerationPrompt ?? true,
  }
}

/** `... + tool['function']['arguments'] + ...` (DeepSeek): of an object, that would fail. */
const CONCATENATES_ARGUMENTS = /\barguments['"]?\]?\s*\+|\+\s*[\w.'"[\]]*\barguments['"]?\]?\s*-?\}\}/

/**
 * `message['content'] is none`, `content is not none`, `message.get('content') == None` (DeepSeek, where it tells a message of calls): such a
 * template is to see null. Others put content into text, search it or strip it, which fails on null.
 */
const ASKS_FOR_NONE = /\bcontent\b['"]?[\s\])]*(?:\bis\s+(?:not\s+)?none\b|[!=]=\s*none\b)/i

/** What a template expects of messages. */
interface Expectations {
  /** Arguments of calls as JSON in a string. */
  argumentsAsText: boolean
  /** Content that is null as an empty text. */
  contentAsText: boolean
}

interface Compiled extends Expectations {
  template: JinjaTemplate
}

function expectedBy(source: string): Expectations {
  return { argumentsAsText: CONCATENATES_ARGUMENTS.test(source), contentAsText: !ASKS_FOR_NONE.test(source) }
}

function adapted(messages: JsonValue[], { argumentsAsText, contentAsText }: Expectations): JsonValue[] {
  const texts = contentAsText ? withContentAsText(messages) : messages
  return argumentsAsText ? withArgumentsAsText(texts) : texts
}

/** A model's chat template: Jinja as transformers renders it, `raise_exception` and `strftime_now` included. */
export class ChatTemplate {
  private readonly sources: ReadonlyMap<string, string>
  private readonly compiled = new Map<string, Compiled>()

  /**
   * @param chatTemplate `chat_template` of tokenizer_config.json (a string, or a list of named templates), or the text
   *   of chat_template.jinja; undefined for a model without one, which fails at the first render
   * @param specialTokens strings that the template sees as `bos_token`, `eos_token` and so on
   * @throws ERR_CHAT_TEMPLATE for a template that does not parse
   */
  constructor(
    chatTemplate: unknown,
    private readonly specialTokens: ReadonlyMap<string, string> = new Map(),
  ) {
    this.sources = namedTemplates(chatTemplate)
    for (const [name, source] of this.sources) {
      try {
        this.compiled.set(name, { template: compile(source), ...expectedBy(source) })
      } catch (cause) {
        const message = `Chat template "${name}" does not parse: ${(cause as Error).message}`
        throw new TensorRTError('ERR_CHAT_TEMPLATE', message, { cause })
      }
    }
  }

  /**
   * What it was made of, for another of the same kind.
   * @internal
   */
  get definition(): { templates: { name: string; template: string }[]; specialTokens: [string, string][] } {
    return {
      templates: Array.from(this.sources, ([name, template]) => ({ name, template })),
      specialTokens: [...this.specialTokens],
    }
  }

  /** Source of the template that a chat with tools is rendered with, where the model has one. */
  get toolSource(): string | undefined {
    return this.sources.get(TOOL_TEMPLATE) ?? this.sources.get(DEFAULT_TEMPLATE)
  }

  /** Whether the model has a template at all. */
  get available(): boolean {
    return this.compiled.size > 0
  }

  /**
   * The prompt's text for a chat.
   * @throws ERR_INVALID_ARGUMENT for bad messages, or with the template's own words where it raises an exception
   * @throws ERR_CHAT_TEMPLATE where there is no template, or it fails
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    return this.renderInput(validateChat(messages, options))
  }

  /**
   * Same as {@link render}, for input that {@link validateChat} made.
   * @internal
   */
  renderInput(input: RenderInput, guard?: RenderGuard): string {
    let stopped: { reason: unknown } | undefined
    const chosen = this.choose(input.tools !== null)
    try {
      return chosen.template.render({
        ...Object.fromEntries(this.specialTokens),
        ...input.templateArgs,
        messages: adapted(input.messages, chosen),
        tools: input.tools,
        documents: input.documents,
        add_generation_prompt: input.addGenerationPrompt,
        [RAISE]: (message: unknown) => {
          throw new RaisedByTemplate(String(message))
        },
        [RANGE]: range,
        [TICK]: () => {
          try {
            guard?.()
          } catch (reason) {
            stopped = { reason }
            throw reason
          }
        },
      })
    } catch (error) {
      throw stopped === undefined ? templateError(error) : stopped.reason
    }
  }

  private choose(withTools: boolean): Compiled {
    const chosen = (withTools ? this.compiled.get(TOOL_TEMPLATE) : undefined) ?? this.compiled.get(DEFAULT_TEMPLATE)
    if (chosen) return chosen
    throw new TensorRTError('ERR_CHAT_TEMPLATE', 'This model has no chat template', {
      hint: 'use a prompt instead of messages, or add "chat_template" to tokenizer_config.json',
    })
  }
}
