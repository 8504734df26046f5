import {
  createToolCallParser,
  type ToolCallDelta,
  type ToolCallFormatName,
  type ToolDefinition,
} from '../../../../lib/text'

export interface Parsed {
  content: string
  calls: { id: string; name: string; arguments: string }[]
  anyCalls: boolean
}

export const tools: ToolDefinition[] = ['get_weather', 'search', 'f', 'g'].map((name) => ({ name, parameters: { type: 'object' } }))

/** All that comes out of the parts put together as a client does it, with what every stream must keep to. */
export function parse(format: ToolCallFormatName, parts: readonly string[]): Parsed {
  let ids = 0
  const parser = createToolCallParser(format, { tools, newId: () => `id${ids++}` })
  const parsed: Parsed = { content: '', calls: [], anyCalls: false }
  const take = (output: { content: string; calls: ToolCallDelta[] }): void => {
    parsed.content += output.content
    for (const delta of output.calls) {
      if (delta.index === parsed.calls.length) {
        if (delta.id === undefined || delta.name === undefined) throw new Error('a call begins without id or name')
        parsed.calls.push({ id: delta.id, name: delta.name, arguments: delta.arguments ?? '' })
      } else {
        if (delta.index !== parsed.calls.length - 1) throw new Error(`delta of call ${delta.index} out of order`)
        if (delta.id !== undefined || delta.name !== undefined) throw new Error('a call begins twice')
        parsed.calls[delta.index]!.arguments += delta.arguments ?? ''
      }
    }
  }
  for (const part of parts) take(parser.push(part))
  const end = parser.end()
  take(end)
  parsed.anyCalls = end.anyCalls
  if (parsed.anyCalls !== parsed.calls.length > 0) throw new Error('anyCalls is wrong')
  return parsed
}

/** The calls without their ids, arguments as text. */
export function callsOf(format: ToolCallFormatName, text: string): [string, string][] {
  return parse(format, [text]).calls.map((call) => [call.name, call.arguments])
}
