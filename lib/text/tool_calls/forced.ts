import { TensorRTError } from '../../errors'
import type { ToolCallFormatName } from './parser'
import type { ToolDefinition } from './types'

/** `tool_choice` of a request that must end in a call: of any function, or of the one that is named. */
export type ForcedToolChoice = 'required' | { readonly name: string }

export interface ForcedToolCalls {
  /** JSON schema that the output is held to. */
  readonly jsonSchema: Readonly<Record<string, unknown>>
  /** Format to parse the output with. */
  readonly format: ToolCallFormatName
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

/**
 * What a forced tool choice asks of the output: a JSON schema that it is held to (`grammar` of a request), and the format to
 * parse it with. One call is an object with the function's name and its arguments under the key that the model has learnt;
 * several are a list of these. Markers are left out: a grammar cannot ask for special tokens, and nothing needs to be told
 * apart.
 * @param parallel whether several calls are allowed
 * @throws ERR_INVALID_ARGUMENT where the function is not among the tools, or there is no tool
 */
export function forcedToolCalls(
  format: ToolCallFormatName,
  tools: readonly ToolDefinition[],
  choice: ForcedToolChoice,
  parallel = false,
): ForcedToolCalls {
  const allowed = choice === 'required' ? tools : tools.filter((tool) => tool.name === choice.name)
  if (allowed.length === 0) {
    const message = choice === 'required' ? 'A tool call is required, but there are no tools' : `There is no tool "${choice.name}"`
    throw new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint: 'name one of "tools"' })
  }
  const key = format === 'llama3_json' ? 'parameters' : 'arguments'
  const definitions: Record<string, unknown> = {}
  const calls = allowed.map((tool, index) => {
    // Arguments are an object also where a schema leaves that out.
    const typed = COMPOSED.some((keyword) => Object.hasOwn(tool.parameters ?? {}, keyword))
    const parameters = typed ? tool.parameters : { type: 'object', ...tool.parameters }
    return {
      type: 'object',
      properties: {
        name: { const: tool.name },
        [key]: hoist(parameters, `tool${index}`, definitions),
      },
      required: ['name', key],
      additionalProperties: false,
    }
  })
  const call = calls.length === 1 ? calls[0]! : { anyOf: calls }
  const several = parallel && choice === 'required'
  return {
    jsonSchema: {
      ...(several ? { type: 'array', minItems: 1, items: call } : call),
      ...(Object.keys(definitions).length === 0 ? {} : { $defs: definitions }),
    },
    format: 'json',
  }
}
