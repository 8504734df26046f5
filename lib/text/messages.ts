import { TensorRTError } from '../errors'

export interface TextPart {
  readonly type: 'text'
  readonly text: string
}

/**
 * One message of a chat. Further fields (`tool_calls`, `tool_call_id`, `name` ...) reach the template as they are and
 * must be JSON. `arguments` of `tool_calls` may be an object or, as in OpenAI's API, JSON in a string: the template is given
 * what it works with.
 */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, `tool` or what else the model's template knows. */
  readonly role: string
  /**
   * Text, or parts of text, which are joined by line breaks; null or missing only beside other fields such as `tool_calls`. A template that
   * asks whether it is none is given that, others an empty text.
   */
  readonly content?: string | readonly TextPart[] | null
  readonly [field: string]: unknown
}

export type JsonValue = string | number | boolean | null | JsonValue[] | { [key: string]: JsonValue }

const MAX_MESSAGES = 16_384
const MAX_DEPTH = 64
const ROLE = /^[\p{L}\p{N}_.-]{1,64}$/u

function invalid(message: string, hint?: string): TensorRTError {
  return new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint })
}

/** Counts down the length of the strings of one chat. */
export class SizeBudget {
  private left: number

  constructor(private readonly limit: number) {
    this.left = limit
  }

  /** @throws ERR_INVALID_ARGUMENT when the limit is passed */
  take(length: number): void {
    this.left -= length
    if (this.left < 0) throw invalid(`The chat holds more than ${this.limit} characters`)
  }
}

/**
 * Deep copy of a JSON value.
 * @param where path that an error names
 * @throws ERR_INVALID_ARGUMENT for what is no JSON, nests too deep (or in a circle), or exceeds the budget
 */
export function plainJson(value: unknown, where: string, budget: SizeBudget, depth = 0): JsonValue {
  if (depth > MAX_DEPTH) throw invalid(`"${where}" nests deeper than ${MAX_DEPTH} levels`)
  // Values without text still cost a render time, so each counts one.
  budget.take(1)
  if (value === null || typeof value === 'boolean') return value
  if (typeof value === 'number' && Number.isFinite(value)) return value
  if (typeof value === 'string') {
    budget.take(value.length)
    return value
  }
  if (Array.isArray(value)) {
    return value.map((item, index) => plainJson(item, `${where}[${index}]`, budget, depth + 1))
  }
  if (typeof value === 'object') {
    const entries: [string, JsonValue][] = []
    for (const [key, item] of Object.entries(value)) {
      if (item === undefined) continue
      budget.take(key.length)
      entries.push([key, plainJson(item, `${where}.${key}`, budget, depth + 1)])
    }
    return Object.fromEntries(entries)
  }
  throw invalid(`"${where}" must be JSON, it is a ${typeof value}`)
}

function normalizeContent(content: unknown, where: string, hasOtherFields: boolean): string | null {
  if (typeof content === 'string') return content
  if (content === null || content === undefined) {
    if (hasOtherFields) return null
    throw invalid(`"${where}" must be a string or an array of text parts`)
  }
  if (!Array.isArray(content)) throw invalid(`"${where}" must be a string or an array of text parts`)
  const texts = content.map((part: { type?: unknown; text?: unknown } | null, index) => {
    if (part?.type !== 'text' || typeof part.text !== 'string') {
      throw invalid(`"${where}[${index}]" must be { type: 'text', text }`, 'this model takes text only')
    }
    return part.text
  })
  return texts.join('\n')
}

function mapArguments(message: { [key: string]: JsonValue }, change: (value: JsonValue) => JsonValue): JsonValue {
  const { tool_calls: calls } = message
  if (!Array.isArray(calls)) return message
  const isObject = (value: JsonValue | undefined): value is { [key: string]: JsonValue } =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
  const changed = calls.map((call) => {
    // Hugging Face's templates take a call with and without the object `function` around name and arguments.
    const holder = isObject(call) && isObject(call['function']) ? call['function'] : call
    if (!isObject(holder) || holder['arguments'] === undefined) return call
    const next = { ...holder, arguments: change(holder['arguments']) }
    return holder === call ? next : { ...(call as object), function: next }
  })
  return { ...message, tool_calls: changed }
}

/**
 * OpenAI's API has the arguments of a call as JSON in a string, chat templates take them as an object. A string that holds
 * no object stays as it is.
 */
function parseArguments(where: string, budget: SizeBudget): (value: JsonValue) => JsonValue {
  return (value) => {
    if (typeof value !== 'string') return value
    if (value.trim() === '') return {}
    let parsed: unknown
    try {
      parsed = JSON.parse(value)
    } catch {
      return value
    }
    const isObject = typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)
    return isObject ? plainJson(parsed, `${where}.tool_calls.arguments`, budget) : value
  }
}

/** The same messages with the arguments of calls as JSON in strings, for templates that put text together of them. */
export function withArgumentsAsText(messages: readonly JsonValue[]): JsonValue[] {
  return messages.map((message) =>
    mapArguments(message as { [key: string]: JsonValue }, (value) => (typeof value === 'string' ? value : JSON.stringify(value))),
  )
}

/** The same messages with an empty text for content that is null, for templates that do not expect that. */
export function withContentAsText(messages: readonly JsonValue[]): JsonValue[] {
  return messages.map((message) => {
    const { content, ...rest } = message as { [key: string]: JsonValue }
    return content === null ? { ...rest, content: '' } : message
  })
}

/**
 * Checks messages and copies them as plain JSON, with `content` as one string and the arguments of tool calls as objects.
 * @throws ERR_INVALID_ARGUMENT naming the field that is wrong
 */
export function normalizeMessages(messages: readonly ChatMessage[], budget: SizeBudget): JsonValue[] {
  if (!Array.isArray(messages) || messages.length === 0) throw invalid('"messages" must be a non-empty array')
  if (messages.length > MAX_MESSAGES) throw invalid(`"messages" holds more than ${MAX_MESSAGES} messages`)
  return messages.map((message: unknown, index) => {
    const where = `messages[${index}]`
    if (typeof message !== 'object' || message === null || Array.isArray(message))
      throw invalid(`"${where}" must be an object`)
    const { role, content, ...rest } = message as Record<string, unknown>
    if (typeof role !== 'string' || !ROLE.test(role)) {
      throw invalid(`"${where}.role" must be a string of 1 to 64 letters, digits, "_", "." or "-"`)
    }
    const others = plainJson(rest, where, budget) as { [key: string]: JsonValue }
    const text = normalizeContent(content, `${where}.content`, Object.keys(others).length > 0)
    budget.take(role.length + (text?.length ?? 0))
    return mapArguments({ ...others, role, content: text }, parseArguments(where, budget))
  })
}
