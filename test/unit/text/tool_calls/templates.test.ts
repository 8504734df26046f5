/** Formats are told from chat templates, and calls go back into them. */
import { describe, expect, it } from 'vitest'
import {
  ChatTemplate,
  detectReasoningFormat,
  detectToolCallFormat,
  formatToolCallId,
  needsSpecialTokens,
  promptOpensReasoning,
  toolCallMarkers,
} from '../../../../lib/text'
import '../../matchers'
import { callsOf } from './parse'

// Each writes a call as the templates of its family do.
const each = (body: string): string =>
  `{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.tool_calls %}{% for tool_call in m.tool_calls %}${body}{% endfor %}{% else %}{{ m.role }}: {{ m.content }}{% endif %}{% endfor %}`
const templates = {
  hermes: each(
    `<tool_call>\n{"name": "{{ tool_call.function.name }}", "arguments": {{ tool_call.function.arguments | tojson }}}\n</tool_call>`,
  ),
  llama3_json: each(
    `{{- '{"name": "' + tool_call.function.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.function.arguments | tojson }}{{- '}' }}`,
  ),
  mistral: each(`{{ '[TOOL_CALLS] [' }}{{ tool_call.function | tojson }}{{ ']' }}`),
  pythonic: each(
    `[{{ tool_call.function.name }}({% for key, value in tool_call.function.arguments.items() %}{{ key }}={{ value | tojson }}{% endfor %})]{# [func(name=value)] #}`,
  ),
  deepseek_v3: each(
    `{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + tool_call['function']['name'] + '\n\`\`\`json\n' + tool_call['function']['arguments'] + '\n\`\`\`<｜tool▁call▁end｜>' }}`,
  ),
} as const

describe('chat templates', () => {
  const call = { id: 'call_1', type: 'function', function: { name: 'f', arguments: '{"city": "Paris"}' } }

  it.each(Object.entries(templates))('%s: detected, and reads what its template writes of a call as OpenAI has it', (format, source) => {
    expect(detectToolCallFormat(source)).toBe(format)
    const template = new ChatTemplate(source)
    for (const given of [call, { ...call, function: { name: 'f', arguments: { city: 'Paris' } } }]) {
      const text = template.render([{ role: 'assistant', content: null, tool_calls: [given] }])
      const [[name, args] = ['', '']] = callsOf(format as keyof typeof templates, text)
      expect([name, JSON.parse(args)]).toEqual(['f', { city: 'Paris' }])
    }
  })

  it('knows no format where the template says nothing of tools, or writes calls as XML', () => {
    expect(detectToolCallFormat('{{ messages[0].content }}')).toBeUndefined()
    expect(detectToolCallFormat('{% if tools %}<tool_call><function=f><parameter=a>{% endif %}')).toBeUndefined()
  })

  it('tells reasoning', () => {
    expect(detectReasoningFormat("<｜Assistant｜>{% set content = content.split('</think>')[-1] %}")).toBe('deepseek_r1')
    expect(detectReasoningFormat("<|im_start|>{{ content.split('</think>')[-1] }}")).toBe('qwen3')
    expect(detectReasoningFormat('{{ messages }}')).toBeUndefined()
    expect(promptOpensReasoning('<|im_start|>assistant\n<think>\n')).toBe(true)
    expect(promptOpensReasoning('<|im_start|>assistant\n<think>\n\n</think>\n\n')).toBe(false)
    expect(promptOpensReasoning('<|im_start|>assistant\n')).toBeUndefined()
  })

  it('passes results of tools, their ids, and arguments that are no object as they are', () => {
    const template = new ChatTemplate(
      '{% for m in messages %}{{ m.role }}/{{ m.tool_call_id }}/{{ m.content }}/{{ m.tool_calls[0].function.arguments if m.tool_calls }};{% endfor %}',
    )
    const odd = { role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: '[1]' } }] }
    expect(template.render([{ role: 'tool', tool_call_id: 'c1', content: [{ type: 'text', text: '21 C' }] }, odd])).toBe(
      'tool/c1/21 C/;assistant///[1];',
    )
    const none = { role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: '' } }] }
    expect(template.render([none])).toBe('assistant///{};')
  })

  it('takes calls without the object around them, and what is no call', () => {
    const template = new ChatTemplate('{{ messages[0].tool_calls | tojson }}')
    const render = (tool_calls: unknown): unknown => JSON.parse(template.render([{ role: 'assistant', tool_calls }]))
    expect(render([{ name: 'f', arguments: '{"a": 1}' }])).toEqual([{ name: 'f', arguments: { a: 1 } }])
    expect(render([null, 5, { function: null }])).toEqual([null, 5, { function: null }])
    expect(render('no list')).toBe('no list')
  })

  it('refuses arguments that nest too deep, also within a string', () => {
    const template = new ChatTemplate('{{ messages }}')
    const deep = `{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`
    const message = { role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: deep } }] }
    expect(() => template.render([message])).toThrowCode('ERR_INVALID_ARGUMENT', /nests deeper/)
    const proto = { role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: '{"__proto__": {"x": 1}}' } }] }
    new ChatTemplate('{{ messages | tojson }}').render([proto])
    expect(({} as { x?: unknown }).x).toBeUndefined()
  })
})

describe('special tokens and ids', () => {
  it('says whether a marker would be lost', () => {
    expect(needsSpecialTokens(toolCallMarkers('mistral'), ['<s>', '</s>', '[TOOL_CALLS]'])).toBe(true)
    expect(needsSpecialTokens(toolCallMarkers('hermes'), ['<|im_end|>'])).toBe(false)
  })

  it('has ids in the forms of OpenAI and of Mistral', () => {
    const random = Uint8Array.from({ length: 24 }, (_, i) => i * 11)
    expect(formatToolCallId('hermes', random)).toMatch(/^call_[A-Za-z0-9]{24}$/)
    expect(formatToolCallId('mistral', random)).toMatch(/^[A-Za-z0-9]{9}$/)
  })
})
