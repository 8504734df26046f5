/** Prompts of a request, as tokens. */
import { AbortError } from '../../errors'
import type { EncodedPrompt, PromptOptions } from '../../llm'
import type { ChatMessage } from '../../text'
import { ApiError, toApiError } from '../errors'
import type { Exchange } from '../http/exchange'
import type { ServedModel } from '../registry'
import { type ChatBodyMessage, type ChatInput, contentText } from '../schemas/chat'
import type { CompletionBody } from '../schemas/completions'
import type { RequestLimits } from '../seams'

/**
 * @param where the field that the prompt is of
 * @throws ApiError 400, and what else `LLM.encodePrompt` throws
 */
async function encode(
  served: ServedModel,
  where: string,
  options: PromptOptions,
  exchange: Exchange,
  limits: RequestLimits,
): Promise<EncodedPrompt> {
  let encoded: EncodedPrompt
  try {
    if (exchange.abortReason !== undefined) throw new AbortError(exchange.abortReason)
    const encoding = served.llm.encodeAtOnce(options, () => exchange.signal)
    encoded = encoding instanceof Promise ? await encoding : encoding
  } catch (error) {
    throw inField(error, where)
  }
  const { length } = encoded.tokens
  if (length === 0) throw ApiError.invalid(where, `"${where}" has no tokens`)
  if (length > limits.maxPromptTokens) {
    const message = `"${where}" has ${length} tokens, more than the ${limits.maxPromptTokens} that are allowed`
    throw ApiError.invalid(where, message, 'context_length_exceeded')
  }
  return encoded
}

/** The library knows a prompt, and not which of several, nor by what name. */
function inField(error: unknown, where: string): unknown {
  const { status, type, code, message, param } = toApiError(error)
  if (status !== 400) return error
  const named = message.replace(/"prompt((?:\[\d+\])?)"/g, `"${where}$1"`)
  return new ApiError(status, type, code, named, param?.replace(/^prompt/, where) ?? where)
}

/** One entry a prompt; each a text or token ids. */
export function promptList(prompt: CompletionBody['prompt']): (string | number[])[] {
  if (typeof prompt === 'string') return [prompt]
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as (string | number[])[])
}

export function encodePrompts(
  served: ServedModel,
  prompts: readonly (string | number[])[],
  field: string,
  texts: { addSpecialTokens?: boolean | undefined; allowSpecial?: boolean | undefined },
  exchange: Exchange,
  limits: RequestLimits,
): Promise<EncodedPrompt[]> {
  return Promise.all(
    prompts.map((prompt, index) => {
      const where = prompts.length === 1 ? field : `${field}[${index}]`
      const options = typeof prompt === 'string' ? { prompt, ...texts } : { tokens: prompt }
      return encode(served, where, options, exchange, limits)
    }),
  )
}

export function encodeChat(served: ServedModel, input: ChatInput, exchange: Exchange, limits: RequestLimits): Promise<EncodedPrompt> {
  return encode(served, 'messages', chatOptions(served, input), exchange, limits)
}

/**
 * A chat whose answer begins with a special token: the prompt, with that token behind it.
 * @throws ApiError 400, and what else `LLM.encodePrompt` throws
 */
export async function opened(
  served: ServedModel,
  chat: EncodedPrompt,
  opening: string | undefined,
  exchange: Exchange,
  limits: RequestLimits,
): Promise<EncodedPrompt> {
  const token = opening === undefined ? undefined : served.llm.tokenizer?.tokenToId(opening)
  if (token === undefined) return chat
  const tokens = new Int32Array(chat.tokens.length + 1)
  tokens.set(chat.tokens)
  tokens[chat.tokens.length] = token
  return encode(served, 'messages', { tokens }, exchange, limits)
}

/** @throws ApiError 400 */
function chatOptions({ llm }: ServedModel, input: ChatInput): PromptOptions & { messages: readonly ChatMessage[] } {
  if (!llm.info.hasChatTemplate) {
    throw ApiError.invalid('messages', 'The model has no chat template; use /v1/completions', 'chat_template_missing')
  }
  if (input.continue_final_message === true) {
    throw ApiError.unsupported('continue_final_message', '"continue_final_message" is not supported')
  }
  const templateArgs = {
    ...(input.reasoning_effort === undefined ? {} : { reasoning_effort: input.reasoning_effort }),
    ...input.chat_template_kwargs,
  }
  return {
    messages: input.messages.map(toMessage),
    tools: input.tool_choice === 'none' || input.tools?.length === 0 ? undefined : input.tools,
    documents: input.documents,
    templateArgs,
    addGenerationPrompt: input.add_generation_prompt,
  }
}

function toMessage(message: ChatBodyMessage, index: number): ChatMessage {
  const { role, content, refusal, tool_calls: given, function_call: oldCall, ...rest } = message
  const where = `messages[${index}]`
  if (oldCall !== undefined) throw ApiError.unsupported(`${where}.function_call`, `"${where}.function_call" is not supported; use "tool_calls"`)
  const text = contentText(content, `${where}.content`) ?? refusal
  // Templates look whether calls are there, and an empty list is.
  const calls = given?.length === 0 ? undefined : given
  if (text === undefined && calls === undefined) {
    throw ApiError.invalid(`${where}.content`, `"${where}.content" is required`, 'missing_required_parameter')
  }
  const others = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined))
  return {
    ...others,
    // Templates know the older name of this role only.
    role: role === 'developer' ? 'system' : role,
    content: text ?? null,
    ...(calls === undefined ? {} : { tool_calls: calls }),
  }
}
