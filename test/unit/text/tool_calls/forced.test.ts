/** Forced calls: what the grammar takes is what a model of the family has learnt to write, and what its parser reads. */
import { beforeAll, describe, expect, it } from 'vitest'
import { forcedToolCalls } from '../../../../lib/text'
import { Acceptance } from '../../../support/grammar_acceptance'
import '../../matchers'
import { callsOf } from './parse'

const tools = [
  { name: 'f', parameters: { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'], additionalProperties: false } },
  { name: 'g', parameters: { type: 'object', properties: { next: { $ref: '#' }, leaf: { $ref: '#/$defs/leaf' } }, $defs: { leaf: { type: 'string' } }, additionalProperties: false } },
  { name: 'search' },
]
const F = { name: 'f' }
const MANY = { parallel: true }

let acceptance: Acceptance
beforeAll(async () => {
  acceptance = await Acceptance.load()
})
const accepts = (forced: ReturnType<typeof forcedToolCalls>, ...texts: string[]): boolean[] => acceptance.ofGrammar(forced.grammar, texts)

const SEP = '<｜tool▁sep｜>'
const fenced = (name: string, text: string): string => `<｜tool▁call▁begin｜>function${SEP}${name}\n\`\`\`json\n${text}\n\`\`\`<｜tool▁call▁end｜>`
const plain = (name: string, text: string): string => `<｜tool▁call▁begin｜>${name}${SEP}${text}<｜tool▁call▁end｜>`
const around = (calls: string): string => `<｜tool▁calls▁begin｜>${calls}<｜tool▁calls▁end｜>`

/** As the chat templates of the families write calls. */
const WRITTEN = [
  { format: 'hermes', template: '', call: (name: string, text: string) => `<tool_call>\n{"name": "${name}", "arguments": ${text}}\n</tool_call>`, join: (calls: string[]) => calls.join('\n') },
  { format: 'llama3_json', template: '', call: (name: string, text: string) => `{"name": "${name}", "parameters": ${text}}`, join: (calls: string[]) => calls.join('; ') },
  { format: 'deepseek_v3', template: 'so: ```json', call: fenced, join: (calls: string[]) => around(calls.join('\n')) },
  { format: 'deepseek_v3', template: '', call: plain, join: (calls: string[]) => around(calls.join('')) },
] as const

describe.each(WRITTEN)('$format', ({ format, template, call, join }) => {
  it('holds a named call to its own schema, and to one call', () => {
    const forced = forcedToolCalls(format, tools, F, { template })
    expect(forced).toMatchObject({ format, opening: undefined })
    const good = join([call('f', '{"a": 1}')])
    expect(accepts(forced, good, join([call('f', '{"a": "x"}')]), join([call('search', '{}')]), join([call('f', '{"a": 1}'), call('f', '{"a": 2}')]), '')).toEqual([true, false, false, false, false])
    expect(callsOf(format, good)).toEqual([['f', '{"a": 1}']])
    // As tight as models may write it.
    expect(accepts(forced, join([call('f', '{"a":1}')]))).toEqual([true])
  })

  it('lets one be chosen, or several, where they may be; references are those of each schema', () => {
    const calls = join([call('g', '{"next": {"next": {}, "leaf": "x"}}'), call('search', '{"anything": [1]}')])
    const several = forcedToolCalls(format, tools, 'required', { ...MANY, template })
    expect(accepts(several, calls, join([call('search', '{}')]), join([call('g', '{"next": {"leaf": 5}}')]), `${calls} and more`)).toEqual([true, true, false, false])
    expect(callsOf(format, calls).map(([name]) => name)).toEqual(['g', 'search'])
    expect(accepts(forcedToolCalls(format, tools, 'required', { template }), calls, join([call('search', '{}')]))).toEqual([false, true])
    // A name leaves no choice of how many.
    expect(accepts(forcedToolCalls(format, tools, F, { ...MANY, template }), join([call('f', '{"a": 1}'), call('f', '{"a": 2}')]))).toEqual([false])
  })

  it('has objects for arguments where a schema does not say so', () => {
    const forced = forcedToolCalls(format, [{ name: 'f', parameters: {} }], 'required', { template })
    expect(accepts(forced, join([call('f', '{}')]), join([call('f', '"x"')]))).toEqual([true, false])
  })
})

describe('where a grammar cannot write the format', () => {
  it.each([
    ['pythonic', []],
    ['hermes', ['<tool_call>', '</tool_call>']],
    ['deepseek_v3', ['<｜tool▁sep｜>']],
    // Version 11 of Mistral's tokenizers and later: special tokens within a call.
    ['mistral', ['[TOOL_CALLS]', '[ARGS]']],
    [undefined, []],
  ] as const)('%s with %j is bare JSON', (format, specialTokens) => {
    const one = forcedToolCalls(format, tools, F, { specialTokens })
    expect(one).toMatchObject({ format: 'json', opening: undefined })
    expect(accepts(one, '{"name": "f", "arguments": {"a": 1}}', '{"name": "f", "arguments": {}}', '[]')).toEqual([true, false, false])
    const several = forcedToolCalls(format, tools, 'required', { ...MANY, specialTokens })
    const list = '[{"name": "g", "arguments": {"next": {"leaf": "x"}}}, {"name": "search", "arguments": {}}]'
    expect(accepts(several, list, '[]', '{"name": "search", "arguments": {}}')).toEqual([true, false, false])
    expect(callsOf('json', list).map(([name]) => name)).toEqual(['g', 'search'])
  })

  it('a special token that begins the calls goes to the prompt, and a list follows', () => {
    const specialTokens = ['<s>', '[TOOL_CALLS]']
    const one = forcedToolCalls('mistral', tools, F, { specialTokens })
    expect(one).toMatchObject({ format: 'json', opening: '[TOOL_CALLS]' })
    const call = '{"name": "f", "arguments": {"a": 1}}'
    expect(accepts(one, `[${call}]`, `[${call}, ${call}]`, '[]', call)).toEqual([true, false, false, false])
    expect(accepts(forcedToolCalls('mistral', tools, 'required', { ...MANY, specialTokens }), `[${call}, ${call}]`)).toEqual([true])
    // Without the token there is nothing to begin with.
    expect(forcedToolCalls('mistral', tools, F).opening).toBeUndefined()
  })
})

it('refuses a function that is none of the tools', () => {
  expect(() => forcedToolCalls('hermes', tools, { name: 'x' })).toThrowCode('ERR_INVALID_ARGUMENT', /no tool "x"/)
  expect(() => forcedToolCalls('hermes', [], 'required')).toThrowCode('ERR_INVALID_ARGUMENT', /no tools/)
})
