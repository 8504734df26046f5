import { z } from 'zod'
import { ApiError } from '../errors'
import { anyObject, flag, hasOnly, integer, list, optional, parse, plainly, refuseUnsupported, samplingFields, type Unsupported, UNSUPPORTED_ANYWHERE } from './fields'

const MAX_MESSAGES = 16_384
const MAX_PARTS = 4096
const MAX_TOOLS = 1024
const MAX_TEMPLATE_FIELDS = 256

/** A refusal is what an assistant has said, too. */
const textPart = z.union([z.object({ type: z.literal('text'), text: z.string() }), z.object({ type: z.literal('refusal'), refusal: z.string() })])

const toolCall = z.object({
  id: z.string(),
  type: z.literal('function').default('function'),
  function: z.object({ name: z.string(), arguments: z.string() }),
})

const message = z.object({
  role: z.string(),
  // Further kinds of parts are told apart later, to be refused by name.
  content: optional(z.union([z.string(), list(anyObject, MAX_PARTS)], `must be a string, or an array of at most ${MAX_PARTS} parts`)),
  name: optional(z.string()),
  tool_calls: optional(list(toolCall, MAX_TOOLS)),
  tool_call_id: optional(z.string()),
  reasoning_content: optional(z.string()),
  refusal: optional(z.string()),
  function_call: optional(z.unknown()),
})

const PLAIN_MESSAGE = { role: true, content: true }
const isText = (value: unknown): boolean => typeof value === 'string'

/** Texts of roles, as most chats are. */
function isPlainChat(value: unknown): boolean {
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_MESSAGES) return false
  return value.every((message) => hasOnly(message, PLAIN_MESSAGE, isText) && (message as { role?: unknown }).role !== undefined)
}

const tool = z.object({
  type: z.literal('function', 'must be "function"'),
  function: z.object({
    name: z.string().regex(/^[\w.-]{1,128}$/, 'must be 1 to 128 letters, digits, "_", "-" or "."'),
    description: optional(z.string()),
    parameters: optional(anyObject),
    strict: flag,
  }),
})

const toolChoice = z.union(
  [
    z.enum(['none', 'auto', 'required']),
    z.object({ type: z.literal('function'), function: z.object({ name: z.string() }) }),
  ],
  'must be "none", "auto", "required" or { type: "function", function: { name } }',
)

const chatFields = {
  messages: plainly(list(message, MAX_MESSAGES).refine((messages) => messages.length > 0, 'must not be empty'), isPlainChat),
  tools: optional(list(tool, MAX_TOOLS)),
  tool_choice: optional(toolChoice),
  parallel_tool_calls: flag,
  add_generation_prompt: flag,
  continue_final_message: flag,
  chat_template_kwargs: optional(
    anyObject.refine((fields) => Object.keys(fields).length <= MAX_TEMPLATE_FIELDS, `may have at most ${MAX_TEMPLATE_FIELDS} fields`),
  ),
  documents: optional(list(anyObject, MAX_PARTS)),
  reasoning_effort: optional(z.string().max(32)),
}

const chatSchema = z.object({
  ...samplingFields,
  ...chatFields,
  max_tokens: optional(integer(1, 2 ** 31 - 1)),
  max_completion_tokens: optional(integer(1, 2 ** 31 - 1)),
  include_reasoning: flag,
  logprobs: flag,
  top_logprobs: optional(integer(0, 256)),
})

/** What makes a prompt of a chat; of /tokenize, too. */
export const chatInputSchema = z.object(chatFields)

export type ChatInput = z.output<typeof chatInputSchema>
export type ChatBody = z.output<typeof chatSchema>
export type ChatBodyMessage = z.output<typeof message>
export type Tool = z.output<typeof tool>

const TOOLS_INSTEAD = 'use "tools" and "tool_choice"'

const UNSUPPORTED: Unsupported = {
  ...UNSUPPORTED_ANYWHERE,
  functions: { instead: TOOLS_INSTEAD },
  function_call: { instead: TOOLS_INSTEAD },
  audio: {},
  modalities: { harmless: (value) => Array.isArray(value) && value.every((kind) => kind === 'text') },
  web_search_options: {},
  echo: { harmless: (value) => value === false },
}

/** @throws ApiError 400 */
export function parseChat(body: Record<string, unknown>): ChatBody {
  const parsed = parse(chatSchema, body)
  refuseUnsupported(body, UNSUPPORTED)
  if ((parsed.top_logprobs ?? 0) > 0 && parsed.logprobs !== true) {
    throw ApiError.invalid('top_logprobs', '"top_logprobs" goes with "logprobs": true only')
  }
  return parsed
}

/**
 * Text of a message's content.
 * @throws ApiError 400 for parts that are no text
 */
export function contentText(content: ChatBodyMessage['content'], where: string): string | undefined {
  if (content === undefined || typeof content === 'string') return content
  const texts = content.map((part, index) => {
    const parsed = textPart.safeParse(part)
    if (parsed.success) return parsed.data.type === 'text' ? parsed.data.text : parsed.data.refusal
    const type = typeof part['type'] === 'string' ? `"${part['type'].slice(0, 40)}"` : 'without a type'
    throw ApiError.invalid(`${where}[${index}]`, `"${where}[${index}]": parts must be { type: "text", text }, not ${type}: the model takes text only`)
  })
  return texts.join('\n')
}
