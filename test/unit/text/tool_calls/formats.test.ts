/** Transcripts as the models of each family write them, and what becomes of them. */
import { describe, expect, it } from 'vitest'
import { createToolCallParser, type ToolCallFormatName } from '../../../../lib/text'
import '../../matchers'
import { timesAsMuch } from '../../../support/patience'
import { callsOf, parse, tools } from './parse'

type Case = [what: string, text: string, calls: [string, string][], content: string]

const cases: Partial<Record<ToolCallFormatName, Case[]>> = {
  hermes: [
    ['one call', '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', [['get_weather', '{"city": "Paris"}']], ''],
    [
      'text, two calls, text',
      'Let me look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\nDone.',
      [['f', '{"a": 1}'], ['g', '{}']],
      'Let me look.\n\nDone.',
    ],
    ['arguments before the name', '<tool_call>{"arguments": {"x": [1, {"y": null}]}, "name": "f"}</tool_call>', [['f', '{"x": [1, {"y": null}]}']], ''],
    ['a name that is no tool: the marker says it is a call', '<tool_call>{"name": "other", "arguments": {}}</tool_call>', [['other', '{}']], ''],
    ['no arguments', '<tool_call>{"name": "f"}</tool_call>', [['f', '{}']], ''],
    ['arguments null', '<tool_call>{"name": "f", "arguments": null}</tool_call>', [['f', '{}']], ''],
    ['arguments in a string', String.raw`<tool_call>{"name": "f", "arguments": "{\"a\": \"\u00e9\\n\"}"}</tool_call>`, [['f', String.raw`{"a": "é\n"}`]], ''],
    ['the closing tag in an argument', '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', [['f', '{"a": "</tool_call>"}']], ''],
    ['no closing tag', '<tool_call>{"name": "f", "arguments": {}}', [['f', '{}']], ''],
    ['two calls between two tags', '<tool_call>{"name":"f","arguments":{}}\n{"name":"g","arguments":{}}</tool_call>', [['f', '{}'], ['g', '{}']], ''],
    ['a call after one without closing tag', '<tool_call>{"name":"f","arguments":{}}\n<tool_call>{"name":"g","arguments":{}}</tool_call>', [['f', '{}'], ['g', '{}']], ''],
    ['cut in the arguments', '<tool_call>{"name": "f", "arguments": {"city": "Par', [['f', '{"city": "Par']], ''],
    ['cut before the arguments', '<tool_call>{"name": "f", "arg', [], '<tool_call>{"name": "f", "arg'],
    ['a line break within a string is escaped', '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>', [['f', '{"a": "x\\ny"}']], ''],
    ['no object', '<tool_call> hello </tool_call>', [], '<tool_call> hello </tool_call>'],
    ['a tag that was begun twice', '<tool_call><tool_call>{"name":"f","arguments":{}}</tool_call>', [['f', '{}']], '<tool_call>'],
    ['almost a tag', 'a <tool_cal <tool_call', [], 'a <tool_cal <tool_call'],
    ['arguments that are no object', '<tool_call>{"name": "f", "arguments": 5}</tool_call>', [], '<tool_call>{"name": "f", "arguments": 5}</tool_call>'],
    ['arguments that cease to be JSON', "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 'b'}}</tool_call>", [['f', '{"a": ']], "'b'}}</tool_call>"],
    ['an escaped key', String.raw`<tool_call>{"n\u0061me": "f", "arguments": {}}</tool_call>`, [['f', '{}']], ''],
    ['white space alone is content', ' \n ', [], ' \n '],
    ['leading white space before text is content', '\n\nHi', [], '\n\nHi'],
  ],
  llama3_json: [
    ['one call', '{"name": "get_weather", "parameters": {"city": "Paris"}}', [['get_weather', '{"city": "Paris"}']], ''],
    ['behind the tag', '<|python_tag|>{"name": "f", "parameters": {}}', [['f', '{}']], ''],
    ['with a type', '{"type": "function", "name": "f", "parameters": {"a": "b"}}', [['f', '{"a": "b"}']], ''],
    ['several, by semicolons', '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"q": -1.5e+3}}', [['f', '{}'], ['g', '{"q": -1.5e+3}']], ''],
    ['text, then a tag', 'I look. <|python_tag|>{"name": "search", "parameters": {"q": "x"}}', [['search', '{"q": "x"}']], 'I look. '],
    ['Llama 4', '<|python_start|>{"name": "f", "parameters": {}}<|python_end|>', [['f', '{}']], ''],
    ['JSON that is an answer', '{"name": "Ada", "age": 36}', [], '{"name": "Ada", "age": 36}'],
    ['JSON of other keys streams as content', '{"answer": {"name": "f"}}', [], '{"answer": {"name": "f"}}'],
    ['no known function', '{"name": "nope", "parameters": {}}', [], '{"name": "nope", "parameters": {}}'],
    ['code behind the tag', '<|python_tag|>print(1)', [], '<|python_tag|>print(1)'],
    ['a tag at the end', 'x<|python_tag|>', [], 'x<|python_tag|>'],
    ['two tags', '<|python_start|><|python_tag|>{"name": "f", "parameters": {}}', [['f', '{}']], '<|python_start|>'],
    ['text', 'Hello {"name": "f", "parameters": {}}', [], 'Hello {"name": "f", "parameters": {}}'],
    ['text after a call', '{"name": "f", "parameters": {}}; and so on', [['f', '{}']], '; and so on'],
  ],
  mistral: [
    ['a list', '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', [['get_weather', '{"city": "Paris"}']], ''],
    ['a list of two, with ids', '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}, {"name": "g", "arguments": {"a": [[]]}}]', [['f', '{}'], ['g', '{"a": [[]]}']], ''],
    ['version 11', '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]f[ARGS]{}', [['get_weather', '{"city": "Paris"}'], ['f', '{}']], ''],
    ['version 11 with an id', '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}', [['f', '{"a": 1}']], ''],
    ['version 11 without the special token between', '[TOOL_CALLS]f{"a": 1}', [['f', '{"a": 1}']], ''],
    ['text first', 'Sure.[TOOL_CALLS]f[ARGS]{}', [['f', '{}']], 'Sure.'],
    ['an empty list', '[TOOL_CALLS] []', [], '[TOOL_CALLS] []'],
    ['no call', '[TOOL_CALLS]f[ARG]{}', [], '[TOOL_CALLS]f[ARG]{}'],
    ['a list that breaks off', '[TOOL_CALLS] [{"name": "f", "arguments": {}}, oops', [['f', '{}']], ', oops'],
  ],
  pythonic: [
    ['one call', '[get_weather(city="Paris")]', [['get_weather', '{"city": "Paris"}']], ''],
    ['two', "[f(a=1, b=[True, None, -2.50]), g()]", [['f', '{"a": 1, "b": [true, null, -2.50]}'], ['g', '{}']], ''],
    ['dicts', "[f(a={'k': {'x': 1,}, 'l': []}, b='')]", [['f', '{"a": {"k": {"x": 1}, "l": []}, "b": ""}']], ''],
    ['strings', String.raw`[f(a='it\'s "x"\n\x41\u00e9\U0001F600\101\q', b="""a"b\n""")]`, [['f', String.raw`{"a": "it's \"x\"\nAé😀A\\q", "b": "a\"b\n"}`]], ''],
    ['numbers', '[f(a=.5, b=5., c=1_000, d=0x1F, e=+3, g=1e5, h=007)]', [['f', '{"a": 0.5, "b": 5, "c": 1000, "d": 31, "e": 3, "g": 1e5, "h": 7}']], ''],
    ['behind a tag', 'Text <|python_start|>[other(a=1)]<|python_end|>', [['other', '{"a": 1}']], 'Text '],
    ['a list that is an answer', '[1, 2, 3]', [], '[1, 2, 3]'],
    ['a function that is none', '[nope(a=1)]', [], '[nope(a=1)]'],
    ['arguments by position', '[f(1)]', [['f', '{']], '1)]'],
    ['cut', '[f(a="x', [['f', '{"a": "x']], ''],
    ['text', 'f(a=1)', [], 'f(a=1)'],
  ],
  deepseek_v3: [
    [
      'R1 and V3',
      'Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": "```"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
      [['f', '{"a": "```"}'], ['g', '{}']],
      'Hm.',
    ],
    [
      'V3.1',
      '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
      [['f', '{"a": 1}'], ['g', '{}']],
      '',
    ],
    ['no end of a call', '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁calls▁end｜>', [['f', '{}']], ''],
    ['an end alone', 'x<｜tool▁calls▁end｜>', [], 'x<｜tool▁calls▁end｜>'],
    ['a begin alone', '<｜tool▁calls▁begin｜>', [], '<｜tool▁calls▁begin｜>'],
  ],
  json: [
    ['an object', '{"name": "f", "arguments": {"a": 1}}', [['f', '{"a": 1}']], ''],
    ['a list', ' [{"name": "f", "arguments": {}},\n {"name": "g", "parameters": {}}] ', [['f', '{}'], ['g', '{}']], ''],
    ['text', 'no [] {}', [], 'no [] {}'],
  ],
}

for (const [format, list] of Object.entries(cases)) {
  describe(format, () => {
    it.each(list)('%s', (_what, text, calls, content) => {
      const whole = parse(format as ToolCallFormatName, [text])
      expect(whole.calls.map((call) => [call.name, call.arguments])).toEqual(calls)
      expect(whole.content).toBe(content)
      expect(parse(format as ToolCallFormatName, text.split(''))).toEqual(whole)
    })
  })
}

describe('streaming', () => {
  it('hands arguments out as they come', () => {
    const parser = createToolCallParser('hermes', { tools, newId: () => 'call_1' })
    expect(parser.push('Hi <tool')).toEqual({ content: 'Hi ', calls: [] })
    expect(parser.push('_call>{"name": "f", "arg')).toEqual({ content: '', calls: [] })
    expect(parser.push('uments": {"ci')).toEqual({ content: '', calls: [{ index: 0, id: 'call_1', name: 'f', arguments: '{"ci' }] })
    expect(parser.push('ty": ')).toEqual({ content: '', calls: [{ index: 0, arguments: 'ty": ' }] })
    expect(parser.push('"P"}')).toEqual({ content: '', calls: [{ index: 0, arguments: '"P"}' }] })
    expect(parser.push('}\n</tool_call>')).toEqual({ content: '', calls: [] })
    expect(parser.end()).toEqual({ content: '', calls: [], anyCalls: true })
  })

  it('holds back no more of the text than may be a marker', () => {
    const parser = createToolCallParser('mistral', { tools, newId: () => '' })
    expect(parser.push('a [b] [TOOL').content).toBe('a [b] ')
    expect(parser.push('S]').content).toBe('[TOOLS]')
  })

  it('begins to stream JSON that is an answer at its first strange key', () => {
    const parser = createToolCallParser('llama3_json', { tools, newId: () => '' })
    expect(parser.push('{"answer"').content).toBe('')
    expect(parser.push(': "long').content).toBe('{"answer": "long')
  })

  it('gives each call an id of its own', () => {
    expect(parse('llama3_json', ['{"name":"f","parameters":{}};{"name":"g","parameters":{}}']).calls.map((call) => call.id)).toEqual(['id0', 'id1'])
  })
})

describe('hostile output', () => {
  it('refuses nesting that no chat takes back, without a stack of it', () => {
    const deep = '['.repeat(500_000)
    const [call] = parse('hermes', [`<tool_call>{"name": "f", "arguments": {"a": ${deep}`]).calls
    expect(call!.arguments.length).toBeLessThan(100)
    expect(callsOf('pythonic', `[f(a=${deep}`)[0]![1].length).toBeLessThan(100)
  })

  it.each([
    ['hermes', `<tool_call>{"name": "f", "arguments": {"a": "${'x'.repeat(500_000)}"}}</tool_call>`],
    ['hermes', `<tool_call>${' '.repeat(500_000)}`],
    ['hermes', '<tool_call'.repeat(200_000)],
    ['hermes', '<tool_call>'.repeat(200_000)],
    ['hermes', `<tool_call>{"name": "${'\\u0041'.repeat(300_000)}`],
    ['llama3_json', `{"parameters": {"a": "${'x'.repeat(500_000)}`],
    ['llama3_json', `{"name": "f", "parameters": {}}${';'.repeat(500_000)}`],
    ['mistral', '[TOOL_CALLS'.repeat(200_000)],
    ['mistral', `[TOOL_CALLS]${'f'.repeat(500_000)}`],
    ['pythonic', `[f(a=${'9'.repeat(500_000)})]`],
    ['pythonic', `[f(a="${'"'.repeat(500_000)}`],
    ['deepseek_v3', '<｜tool▁calls▁begin｜>'.repeat(100_000)],
  ] as [ToolCallFormatName, string][])('takes time in proportion to the text, %s %#', (format, text) => {
    const parts = text.match(/[^]{1,3}/g)!
    const take = (count: number) => (): void => {
      const parsed = parse(format, parts.slice(0, count))
      const length = parsed.content.length + parsed.calls.reduce((sum, call) => sum + call.arguments.length, 0)
      expect(length).toBeGreaterThan(0)
    }
    // Quadratic work: 900 times as much.
    expect(timesAsMuch(take(parts.length / 30), take(parts.length), 200)).toBeLessThan(200)
  }, 600_000)

  it('refuses a format that it does not know', () => {
    expect(() => createToolCallParser('__proto__' as 'hermes', { tools, newId: () => '' })).toThrowCode('ERR_INVALID_ARGUMENT', /hermes, llama3_json/)
  })
})
