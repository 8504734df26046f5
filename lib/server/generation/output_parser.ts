/** What the text of an answer consists of: reasoning, content and tool calls. */
import { randomBytes } from 'node:crypto'
import {
  createReasoningParser,
  createToolCallParser,
  type ForcedToolCalls,
  forcedToolCalls,
  formatToolCallId,
  needsSpecialTokens,
  promptOpensReasoning,
  REASONING_MARKERS,
  type ReasoningOutput,
  type ToolCallDelta,
  type ToolCallFormatName,
  toolCallMarkers,
  type ToolDefinition,
} from '../../text'
import { ApiError } from '../errors'
import type { ServedModel } from '../registry'
import type { ChatBody } from '../schemas/chat'

export interface OutputParts {
  reasoning: string
  content: string
  calls: ToolCallDelta[]
}

/** Of one choice. */
export interface OutputParser {
  push(text: string): OutputParts
  /** Ends the text: what was held back. */
  end(): OutputParts & { anyCalls: boolean }
}

/** How the answers of one request are read. */
export interface OutputFormat {
  /** Markers are special tokens: the text must have them. */
  specialTokens: boolean
  /** What the output is held to, of a forced tool choice. */
  forced: ForcedToolCalls | undefined
  /** Ends an answer in calls with the finish reason `tool_calls`; with a named function it is `stop`, as in OpenAI's API. */
  callsFinish: boolean
  parser(): OutputParser
}

const NO_CALLS: ToolCallDelta[] = []
/** A tag at the end of a prompt has fewer tokens, and no template has more behind it. */
const TAIL_TOKENS = 24

/**
 * @param tokens of the prompt
 * @param held the output is held to a grammar of the request's own, in which there is no room for reasoning
 * @returns undefined where all text is content
 * @throws ApiError 400 for tools that cannot be had
 */
export function outputFormatOf(served: ServedModel, body: ChatBody, tokens: Int32Array, held: boolean): OutputFormat | undefined {
  const { tool_choice: choice = 'auto' } = body
  const tools: ToolDefinition[] = (body.tools ?? []).map((tool) => tool.function)
  const names = new Set(tools.map((tool) => tool.name))
  if (names.size < tools.length) throw ApiError.invalid('tools', '"tools" has a function twice')
  if (tools.length === 0 && choice !== 'auto' && choice !== 'none') throw ApiError.invalid('tool_choice', '"tool_choice" goes with "tools" only')
  if (typeof choice === 'object' && !names.has(choice.function.name)) {
    throw ApiError.invalid('tool_choice', `"tool_choice": "${choice.function.name.slice(0, 64)}" is none of "tools"`)
  }
  const { toolCallFormat, reasoningFormat } = served
  let format: ToolCallFormatName | undefined
  let forced: ForcedToolCalls | undefined
  if (tools.length > 0 && choice !== 'none') {
    format = toolCallFormat
    if (choice !== 'auto') {
      const wanted = choice === 'required' ? choice : choice.function
      forced = forcedToolCalls(toolCallFormat, tools, wanted, {
        parallel: body.parallel_tool_calls !== false,
        specialTokens: served.llm.tokenizer?.specialContents,
        template: served.llm.chatTemplate?.toolSource,
      })
      format = forced.format
    } else if (format === undefined) {
      throw ApiError.unsupported('tools', '"tools": it is not known how this model writes tool calls; the server can be told with --tool-call-parser')
    }
  }
  // A forced call begins with the first token.
  const reasons = reasoningFormat !== undefined && forced === undefined && !held
  if (format === undefined && !reasons) return undefined
  const { tokenizer } = served.llm
  // Where the prompt does not open it, the model does so itself, if it reasons at all.
  const open = reasons && tokenizer !== undefined && promptOpensReasoning(tokenizer.decode(tokens.slice(-TAIL_TOKENS))) === true
  const markers = [...(reasons ? REASONING_MARKERS : []), ...(format === undefined ? [] : toolCallMarkers(format))]
  const shown = body.include_reasoning !== false
  const oneCall = body.parallel_tool_calls === false
  const shownOf = (thought: ReasoningOutput): ReasoningOutput => (shown ? thought : { reasoning: '', content: thought.content })
  const newId = (): string => formatToolCallId(toolCallFormat ?? 'hermes', randomBytes(32))
  return {
    // No grammar lets one through.
    specialTokens: forced === undefined && needsSpecialTokens(markers, tokenizer?.specialContents ?? []),
    forced,
    callsFinish: typeof choice !== 'object',
    parser: () => {
      const reasoning = reasons ? createReasoningParser(reasoningFormat, { open }) : undefined
      const calls = format === undefined ? undefined : createToolCallParser(format, { tools, newId })
      // What a forced answer has beside its calls is their markup, cut off by the length.
      const prose = (content: string): string => (forced === undefined ? content : '')
      const allowed = (list: ToolCallDelta[]): ToolCallDelta[] => (oneCall ? list.filter((call) => call.index === 0) : list)
      return {
        push: (text) => {
          const thought = shownOf(reasoning?.push(text) ?? { reasoning: '', content: text })
          if (calls === undefined) return { ...thought, calls: NO_CALLS }
          const called = calls.push(thought.content)
          return { reasoning: thought.reasoning, content: prose(called.content), calls: allowed(called.calls) }
        },
        end: () => {
          const thought = shownOf(reasoning?.end() ?? { reasoning: '', content: '' })
          if (calls === undefined) return { ...thought, calls: NO_CALLS, anyCalls: false }
          const called = calls.push(thought.content)
          const last = calls.end()
          return {
            reasoning: thought.reasoning,
            content: prose(called.content + last.content),
            calls: joinDeltas(allowed([...called.calls, ...last.calls])),
            anyCalls: last.anyCalls,
          }
        },
      }
    },
  }
}

/** At most one delta a call, in their order. */
export function joinDeltas(deltas: readonly ToolCallDelta[]): ToolCallDelta[] {
  const joined: ToolCallDelta[] = []
  for (const delta of deltas) {
    const last = joined.at(-1)
    if (last?.index === delta.index) last.arguments = (last.arguments ?? '') + (delta.arguments ?? '')
    else joined.push({ ...delta })
  }
  return joined
}
