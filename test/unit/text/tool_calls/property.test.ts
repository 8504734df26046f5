/** Whatever a model writes, and however it arrives: the same comes out, nothing is lost, and what is a call is read right. */
import { describe, expect, it } from 'vitest'
import { createReasoningParser, TOOL_CALL_FORMATS, type ToolCallFormatName } from '../../../../lib/text'
import { parse } from './parse'
import fc from '../../../support/fast_check'
import { timesAsMuch } from '../../../support/patience'

const formats = fc.constantFrom<ToolCallFormatName[]>(...TOOL_CALL_FORMATS, 'json')
const scraps = fc.constantFrom(
  '<tool_call>', '</tool_call>', '<|python_tag|>', '<|python_start|>', '<|python_end|>', '[TOOL_CALLS]', '[ARGS]', '[CALL_ID]',
  '<｜tool▁calls▁begin｜>', '<｜tool▁call▁begin｜>', '<｜tool▁sep｜>', '<｜tool▁call▁end｜>', '<｜tool▁calls▁end｜>', '```json\n', '```',
  '{"name": "f", "arguments": ', '{"name": "f", "parameters": {"a": [1, "x"]}}', '{"arguments": {}, "name": "g"}', '[f(a=', '[g(), f(b="x\\n")]',
  '{', '}', '[', ']', '(', ')', '"', "'", '"""', ',', ':', ';', '=', '\\', '\\u00', 'e9', '\n', ' ', '-', '1.5e', 'null', 'True', 'f', 'name', '<', '|', 'é😀',
)
const output = fc.array(fc.oneof({ weight: 5, arbitrary: scraps }, fc.string()), { maxLength: 25 }).map((parts) => parts.join(''))

/** Any cut of a text. */
const cut = (text: string, places: readonly number[]): string[] => {
  const at = [0, ...places.map((place) => place % (text.length + 1)), text.length].sort((a, b) => a - b)
  return at.slice(1).map((end, i) => text.slice(at[i], end))
}
const places = fc.array(fc.nat(), { maxLength: 30 })

describe('tool calls', () => {
  it('come out the same however the text is cut', () => {
    fc.assert(
      fc.property(formats, output, places, (format, text, at) => {
        expect(parse(format, cut(text, at))).toEqual(parse(format, [text]))
      }),
      { numRuns: 3000 },
    )
  })

  it('leave a text as it is in which there are none', () => {
    fc.assert(
      fc.property(formats, output, (format, text) => {
        const parsed = parse(format, [text])
        if (!parsed.anyCalls) expect(parsed.content).toBe(text)
      }),
      { numRuns: 3000 },
    )
  })

  it('keep the order of content: it is what is left of the text when calls are taken out', () => {
    fc.assert(
      fc.property(formats, output, (format, text) => {
        let at = 0
        for (const unit of parse(format, [text]).content) {
          at = text.indexOf(unit, at)
          expect(at).toBeGreaterThanOrEqual(0)
          at += unit.length
        }
      }),
      { numRuns: 1000 },
    )
  })

  const argumentsOf = fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 5 }), { maxKeys: 5 })
  const calls = fc.array(fc.record({ name: fc.constantFrom('f', 'g', 'get_weather'), arguments: argumentsOf }), { minLength: 1, maxLength: 4 })
  const spaced = fc.constantFrom(undefined, 2, '\t')
  type Written = { name: string; arguments: unknown }[]
  const writers: [ToolCallFormatName, (calls: Written, space: number | string | undefined) => string][] = [
    ['hermes', (list, space) => list.map((call) => `<tool_call>\n${JSON.stringify(call, null, space)}\n</tool_call>`).join('\n')],
    ['llama3_json', (list, space) => list.map((call) => JSON.stringify({ name: call.name, parameters: call.arguments }, null, space)).join('; ')],
    ['mistral', (list, space) => `[TOOL_CALLS] ${JSON.stringify(list, null, space)}`],
    ['mistral', (list, space) => list.map((call) => `[TOOL_CALLS]${call.name}[ARGS]${JSON.stringify(call.arguments, null, space)}`).join('')],
    ['json', (list, space) => JSON.stringify(list.length === 1 ? list[0] : list, null, space)],
  ]
  it.each(writers)('are read as they were written, %s %#', (format, write) => {
    fc.assert(
      fc.property(calls, spaced, places, (list, space, at) => {
        const parsed = parse(format, cut(write(list, space), at))
        expect(parsed.content).toBe('')
        expect(parsed.calls.map((call) => [call.name, JSON.parse(call.arguments)])).toEqual(
          list.map((call) => [call.name, JSON.parse(JSON.stringify(call.arguments))]),
        )
      }),
    )
  })

  /** As Python's repr has them. */
  const python = (value: unknown): string => {
    if (value === null) return 'None'
    if (typeof value === 'boolean') return value ? 'True' : 'False'
    if (typeof value === 'number') return JSON.stringify(value)
    if (typeof value === 'string') return `'${JSON.stringify(value).slice(1, -1).replaceAll('\\"', '"').replaceAll("'", "\\'")}'`
    if (Array.isArray(value)) return `[${value.map(python).join(', ')}]`
    return `{${Object.entries(value as object).map(([key, item]) => `${python(key)}: ${python(item)}`).join(', ')}}`
  }
  it('are read as they were written, pythonic', () => {
    const named = fc.dictionary(fc.stringMatching(/^[a-z_]{1,8}$/), fc.jsonValue({ maxDepth: 4 }), { maxKeys: 4 })
    fc.assert(
      fc.property(fc.array(named, { minLength: 1, maxLength: 3 }), places, (list, at) => {
        const text = `[${list.map((call) => `f(${Object.entries(call).map(([key, value]) => `${key}=${python(value)}`).join(', ')})`).join(', ')}]`
        const parsed = parse('pythonic', cut(text, at))
        expect(parsed.content).toBe('')
        expect(parsed.calls.map((call) => JSON.parse(call.arguments))).toEqual(list.map((call) => JSON.parse(JSON.stringify(call))))
      }),
    )
  })
})

describe('reasoning', () => {
  const think = (format: 'deepseek_r1' | 'qwen3', open: boolean | undefined, parts: readonly string[]) => {
    const parser = createReasoningParser(format, { open })
    const whole = { reasoning: '', content: '' }
    for (const output of [...parts.map((part) => parser.push(part)), parser.end()]) {
      whole.reasoning += output.reasoning
      whole.content += output.content
    }
    return whole
  }
  const text = fc
    .array(fc.oneof(fc.constantFrom('<think>', '</think>', '<', '</thi', '\n', ' ', 'x'), fc.string()), { maxLength: 15 })
    .map((parts) => parts.join(''))

  it('comes out the same however the text is cut, and nothing but tags and white space goes', () => {
    fc.assert(
      fc.property(fc.constantFrom('deepseek_r1' as const, 'qwen3' as const), fc.constantFrom(undefined, true, false), text, places, (format, open, written, at) => {
        const whole = think(format, open, [written])
        expect(think(format, open, cut(written, at))).toEqual(whole)
        const bare = (part: string): string => part.replaceAll(/<\/?think>|\s/g, '')
        if (!/<\/?th?i?n?k?<?/.test(written.replaceAll(/<\/?think>/g, ''))) expect(bare(whole.reasoning + whole.content)).toBe(bare(written))
      }),
      { numRuns: 3000 },
    )
  })

  it.each([
    ['deepseek_r1', undefined, '<think>\nWhy?\n</think>\n\nSo.', 'Why?', 'So.'],
    ['deepseek_r1', undefined, 'Why?\n</think>\nSo.', 'Why?', 'So.'],
    ['deepseek_r1', undefined, '</think>So.', '', 'So.'],
    ['deepseek_r1', undefined, 'never closed\n', 'never closed\n', ''],
    ['deepseek_r1', false, 'So.', '', 'So.'],
    ['qwen3', undefined, '<think>\nWhy?\n\n</think>\n\nSo.', 'Why?', 'So.'],
    ['qwen3', undefined, 'So. <think> stays', '', 'So. <think> stays'],
    ['qwen3', undefined, '\n So.', '', '\n So.'],
    ['qwen3', true, 'Why?</think>So.', 'Why?', 'So.'],
    ['qwen3', undefined, '<think>a\n\n<b </thin\n</think>x</think>', 'a\n\n<b </thin', 'x</think>'],
    ['qwen3', undefined, '<think>\n\n</think>\n\n<tool_call>', '', '<tool_call>'],
  ] as const)('%s %s %j', (format, open, written, reasoning, content) => {
    expect(think(format, open, [written])).toEqual({ reasoning, content })
    expect(think(format, open, written.split(''))).toEqual({ reasoning, content })
  })

  it('takes time in proportion to line breaks', () => {
    const parse = (breaks: number) => (): void => {
      expect(think('qwen3', true, '\n'.repeat(breaks).split('')).reasoning).toHaveLength(breaks)
      expect(think('qwen3', true, `x${'\n'.repeat(breaks)}`.split('')).reasoning).toHaveLength(breaks + 1)
      expect(think('qwen3', false, ' '.repeat(breaks).split('')).content).toHaveLength(breaks)
    }
    // Quadratic work: 900 times as much.
    expect(timesAsMuch(parse(16_000), parse(480_000), 200)).toBeLessThan(200)
  })
})
