import { TensorRTError } from '../../errors'
import { DEEPSEEK, FORMATS, MISTRAL_ARGUMENTS, MISTRAL_CALLS } from './formats'
import type { ToolCallFormatName } from './parser'
import type { ToolDefinition } from './types'

/** `tool_choice` of a request that must end in a call: of any function, or of the one that is named. */
export type ForcedToolChoice = 'required' | { readonly name: string }

/** What an output is held to: `grammar` of a request. */
export type ForcedGrammar =
  | { readonly jsonSchema: Readonly<Record<string, unknown>>; readonly whitespace: number }
  | { readonly structuralTag: Readonly<Record<string, unknown>> }

export interface ForcedToolCalls {
  readonly grammar: ForcedGrammar
  /** Format to parse the output with. */
  readonly format: ToolCallFormatName
  /** A special token that the model begins its calls with. No grammar can ask for it: it goes to the end of the prompt. */
  readonly opening?: string | undefined
}

export interface ForcedToolCallOptions {
  /** Whether several calls are allowed. Default false. */
  parallel?: boolean | undefined
  /** Of the model's vocabulary. Default: none. */
  specialTokens?: readonly string[] | undefined
  /** Source of the chat template, which tells variants of a format apart. */
  template?: string | undefined
}

const COMPOSED = ['type', '$ref', 'anyOf', 'oneOf', 'allOf', 'enum', 'const']

/** Definitions move to the root: references of a schema count from there. Each tool's own get a prefix. */
function hoist(schema: unknown, prefix: string, definitions: Record<string, unknown>): unknown {
  const walk = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(walk)
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => {
        if (key !== '$ref' || typeof inner !== 'string') return [key, walk(inner)]
        const match = /^#(?:\/(?:\$defs|definitions)\/(.+))?$/.exec(inner)
        if (match === null) return [key, inner]
        return [key, `#/$defs/${prefix}${match[1] === undefined ? '' : `_${match[1]}`}`]
      }),
    )
  }
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) return schema
  const { $defs, definitions: old, ...rest } = schema as Record<string, unknown>
  for (const group of [old, $defs]) {
    if (typeof group !== 'object' || group === null) continue
    for (const [name, definition] of Object.entries(group)) definitions[`${prefix}_${name}`] = walk(definition)
  }
  const body = walk(rest)
  if (!JSON.stringify(rest).includes('"$ref":"#"')) return body
  definitions[prefix] = body
  return { $ref: `#/$defs/${prefix}` }
}

/** Calls are written on one line, with a space after colons and commas; more room would only be lost in. */
const WHITESPACE = 1

/** Arguments are an object also where a schema leaves that out. */
function argumentsSchema({ parameters }: ToolDefinition): unknown {
  const typed = COMPOSED.some((keyword) => Object.hasOwn(parameters ?? {}, keyword))
  return typed ? parameters : { type: 'object', ...parameters }
}

/** How a format writes calls: what comes before and behind the arguments of each, between calls, and around them all. */
interface CallWriting {
  begin: (name: string) => string
  end: string
  separator: string
  before?: string
  /** With `before`. */
  after?: string
  /** Those of the format's markers that are in it. */
  markers: readonly string[]
}

const quoted = (name: string): string => JSON.stringify(name)

/** As the templates of these models write calls of earlier turns. */
function writingOf(format: ToolCallFormatName | undefined, template: string): CallWriting | undefined {
  switch (format) {
    case 'hermes':
      return {
        begin: (name) => `<tool_call>\n{"name": ${quoted(name)}, "arguments": `,
        end: '}\n</tool_call>',
        separator: '\n',
        markers: FORMATS.hermes.markers,
      }
    case 'llama3_json':
      return { begin: (name) => `{"name": ${quoted(name)}, "parameters": `, end: '}', separator: '; ', markers: [] }
    case 'deepseek_v3': {
      const { begin, callBegin, separator, callEnd, end } = DEEPSEEK
      const around = { before: `${begin}${callBegin}`, after: end, markers: Object.values(DEEPSEEK) }
      // R1 and V3 fence the arguments, V3.1 does not.
      return template.includes('```json')
        ? { ...around, begin: (name) => `function${separator}${name}\n\`\`\`json\n`, end: `\n\`\`\`${callEnd}`, separator: `\n${callBegin}` }
        : { ...around, begin: (name) => `${name}${separator}`, end: callEnd, separator: callBegin }
    }
    default:
      return undefined
  }
}

function tagOf({ begin, end, separator, before, after }: CallWriting, tools: readonly ToolDefinition[], several: boolean): ForcedGrammar {
  const tags = tools.map((tool) => ({
    type: 'tag',
    begin: begin(tool.name),
    content: { type: 'json_schema', json_schema: argumentsSchema(tool), whitespace: WHITESPACE },
    end,
  }))
  const calls = { type: 'tags_with_separator', tags, separator, at_least_one: true, stop_after_first: !several }
  return { structuralTag: before === undefined ? calls : { type: 'tag', begin: before, content: calls, end: after } }
}

/** Bare JSON: an object of name and arguments, or a list of such. */
function jsonOf(tools: readonly ToolDefinition[], list: boolean, several: boolean): ForcedGrammar {
  const definitions: Record<string, unknown> = {}
  const calls = tools.map((tool, index) => ({
    type: 'object',
    properties: { name: { const: tool.name }, arguments: hoist(argumentsSchema(tool), `tool${index}`, definitions) },
    required: ['name', 'arguments'],
    additionalProperties: false,
  }))
  const call = calls.length === 1 ? calls[0]! : { anyOf: calls }
  return {
    jsonSchema: {
      ...(list ? { type: 'array', minItems: 1, ...(several ? {} : { maxItems: 1 }), items: call } : call),
      ...(Object.keys(definitions).length === 0 ? {} : { $defs: definitions }),
    },
    whitespace: WHITESPACE,
  }
}

/**
 * What a forced tool choice asks of the output: a grammar that it is held to, and the format to parse it with. Calls are
 * written as the model has learnt to, where a grammar can ask for that: it cannot for special tokens, nor for Python's
 * literals. Else they are bare JSON, an object or a list of them.
 * @param format undefined: not known
 * @throws ERR_INVALID_ARGUMENT where the function is not among the tools, or there is no tool
 */
export function forcedToolCalls(
  format: ToolCallFormatName | undefined,
  tools: readonly ToolDefinition[],
  choice: ForcedToolChoice,
  { parallel = false, specialTokens = [], template = '' }: ForcedToolCallOptions = {},
): ForcedToolCalls {
  const allowed = choice === 'required' ? tools : tools.filter((tool) => tool.name === choice.name)
  if (allowed.length === 0) {
    const message = choice === 'required' ? 'A tool call is required, but there are no tools' : `There is no tool "${choice.name}"`
    throw new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint: 'name one of "tools"' })
  }
  const several = parallel && choice === 'required'
  const writing = writingOf(format, template)
  if (writing !== undefined && !writing.markers.some((marker) => specialTokens.includes(marker))) {
    return { grammar: tagOf(writing, allowed, several), format: format!, opening: undefined }
  }
  // Up to version 7 of Mistral's tokenizers; later ones have special tokens within a call.
  const opens = format === 'mistral' && specialTokens.includes(MISTRAL_CALLS) && !specialTokens.includes(MISTRAL_ARGUMENTS)
  return { grammar: jsonOf(allowed, several || opens, several), format: 'json', opening: opens ? MISTRAL_CALLS : undefined }
}
