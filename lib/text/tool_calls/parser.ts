import { TensorRTError } from '../../errors'
import { FORMATS } from './formats'
import { Cursor, END, Output } from './machine'
import type { ToolCallParser, ToolCallParserOptions } from './types'

/** Names of the formats, vLLM's; `json` is the output of a forced call. */
export type ToolCallFormatName = keyof typeof FORMATS

/** Formats that a model may have learnt, for options of a command line. */
export const TOOL_CALL_FORMATS: readonly ToolCallFormatName[] = (Object.keys(FORMATS) as ToolCallFormatName[]).filter(
  (name) => name !== 'json',
)

const formatOf = (name: ToolCallFormatName) => {
  const format = Object.hasOwn(FORMATS, name) ? FORMATS[name] : undefined
  if (format !== undefined) return format
  throw new TensorRTError('ERR_INVALID_ARGUMENT', `There is no tool call format "${String(name)}"`, {
    hint: `one of ${TOOL_CALL_FORMATS.join(', ')}`,
  })
}

/**
 * A parser for one output of a model.
 *
 * A call begins when its name and the beginning of its arguments are there; from then on these stream. What follows the unit
 * at which arguments cease to be JSON (or Python, in `pythonic`) is content. White space is dropped where it stands between
 * the beginning or a call and the next call or the end.
 * @throws ERR_INVALID_ARGUMENT for a name that is none of the formats
 */
export function createToolCallParser(name: ToolCallFormatName, options: ToolCallParserOptions): ToolCallParser {
  const names = new Set(options.tools.map((tool) => tool.name))
  const output = new Output(options.newId)
  const cursor = new Cursor(output, (tool) => names.has(tool))
  const machine = formatOf(name).parse(cursor)
  machine.next()
  return {
    push(text) {
      for (let i = 0; i < text.length; i++) {
        if (cursor.awaited !== undefined) {
          const next = text.indexOf(cursor.awaited, i)
          const to = next < 0 ? text.length : next
          output.text(text.slice(i, to))
          i = to
          if (i === text.length) break
        }
        machine.next(text.charCodeAt(i))
      }
      return output.take()
    },
    end() {
      machine.next(END)
      output.end()
      return { ...output.take(), anyCalls: output.anyCalls }
    },
  }
}

/** Strings by which the format tells calls from text. */
export function toolCallMarkers(name: ToolCallFormatName): readonly string[] {
  return formatOf(name).markers
}

/**
 * Whether the output must be detokenized with `skipSpecialTokens: false`: one of the markers is a special token of the
 * model, which would be missing from the text. So it is with Mistral (`[TOOL_CALLS]`) and with Llama (`<|python_tag|>`,
 * `<|python_start|>`); `<tool_call>` and `<think>` of Qwen and DeepSeek are tokens of their own, but not special.
 * @param specialTokens text of the model's special tokens
 */
export function needsSpecialTokens(markers: readonly string[], specialTokens: Iterable<string>): boolean {
  const special = new Set(specialTokens)
  return markers.some((marker) => special.has(marker))
}

const BASE62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'

/**
 * An id that the format's chat templates take back: OpenAI's `call_` and 24 letters or digits, Mistral's 9.
 * @param random 24 random bytes or more
 */
export function formatToolCallId(name: ToolCallFormatName, random: Uint8Array): string {
  const { idPrefix, idLength } = formatOf(name)
  let id: string = idPrefix
  for (let i = 0; i < idLength; i++) id += BASE62[random[i]! % BASE62.length]!
  return id
}
