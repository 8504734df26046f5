import { describe, expect, it } from 'vitest'
import { ChatTemplate, MAX_CHAT_LENGTH, type ChatMessage } from '../../../lib/text'
import { readJson, storyTokenizer, storyTokenizerConfig } from './fixtures'

const goldens = readJson('test', 'fixtures', 'tiny-storyteller-goldens', 'tokenizer-goldens.json')
const story = new ChatTemplate(storyTokenizerConfig.chat_template, storyTokenizer().specialTokens)
const user = (content: NonNullable<ChatMessage['content']> | null): ChatMessage => ({ role: 'user', content })

const invalid = (text: string) =>
  expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining(text) })
const broken = (text: string) =>
  expect.objectContaining({ code: 'ERR_CHAT_TEMPLATE', message: expect.stringContaining(text) })

describe('rendering', () => {
  it.each(goldens.chats.map((chat: any, i: number) => [i, chat]) as [unknown, any][])('equals transformers, chat %i', (_i, chat: any) => {
    expect(story.render(chat.messages, { addGenerationPrompt: chat.add_generation_prompt })).toBe(chat.text)
  })

  it('opens the assistant turn by default', () => {
    expect(story.render([user('Hi')])).toBe('<|begin_of_text|><|user|>\nHi<|end|>\n<|assistant|>\n')
  })

  it('joins text parts by line breaks', () => {
    const parts = [
      { type: 'text', text: 'a' },
      { type: 'text', text: 'b' },
    ] as const
    expect(story.render([user(parts)], { addGenerationPrompt: false })).toBe('<|begin_of_text|><|user|>\na\nb<|end|>\n')
  })

  it('chooses the named template for tools, and passes tools, documents, arguments and further fields', () => {
    const template = new ChatTemplate([
      { name: 'default', template: '{{ mode }}{{ documents }}{{ tools is none }}' },
      {
        name: 'tool_use',
        template: '{{ tools[0].name }}:{{ messages[0].tool_calls[0].id }}:{{ messages[0].content is none }}',
      },
    ])
    const call = { role: 'assistant', tool_calls: [{ id: 'c1' }] }
    expect(template.render([user('x')], { templateArgs: { mode: 'brief' }, documents: ['d'] })).toBe('brief["d"]true')
    expect(template.render([call], { tools: [{ name: 'f' }] })).toBe('f:c1:true')
  })

  it('keeps the variables of a render from being replaced', () => {
    const template = new ChatTemplate('{{ messages[0].content }}', new Map())
    expect(template.render([user('mine')], { templateArgs: { messages: [{ content: 'other' }] } })).toBe('mine')
  })

  it('knows strftime_now and trims blocks as transformers does', () => {
    const template = new ChatTemplate("{% if true %}\n{{ strftime_now('%Y') }}\n  {% endif %}\n")
    expect(template.render([user('x')])).toMatch(/^\d{4}\n$/)
  })
})

describe('errors', () => {
  it("carries the template's own words", () => {
    expect(() => story.render([{ role: 'wizard', content: 'x' }])).toThrow(invalid('Unknown role: wizard'))
  })

  it('tells a fault of the template from bad messages', () => {
    expect(() => new ChatTemplate('{{ nope() }}').render([user('x')])).toThrow(broken('failed'))
    expect(() => new ChatTemplate('{% if %}')).toThrow(broken('does not parse'))
    expect(() => new ChatTemplate([{ name: 1 }])).toThrow(broken('chat_template'))
    expect(() => new ChatTemplate(7)).toThrow(broken('chat_template'))
  })

  it('says what to do where there is no template', () => {
    for (const missing of [undefined, null, []]) {
      const template = new ChatTemplate(missing)
      expect(template.available).toBe(false)
      expect(() => template.render([user('x')])).toThrow(
        expect.objectContaining({ code: 'ERR_CHAT_TEMPLATE', hint: expect.stringContaining('prompt') }),
      )
    }
    expect(story.available).toBe(true)
  })

  const circle: Record<string, unknown> = {}
  circle['self'] = circle
  it.each<[string, any, string]>([
    ['no array', 'Hi', '"messages"'],
    ['an empty array', [], '"messages"'],
    ['a message that is no object', ['Hi'], 'messages[0]'],
    ['null', [null], 'messages[0]'],
    ['no role', [{ content: 'x' }], 'messages[0].role'],
    ['a role that spells a token', [{ role: '<|end|>', content: 'x' }], 'messages[0].role'],
    ['no content', [user('a'), { role: 'user' }], 'messages[1].content'],
    ['a number as content', [user(5 as never)], 'messages[0].content'],
    ['an image', [user([{ type: 'image_url', image_url: 'x' } as never])], 'messages[0].content[0]'],
    ['a function', [{ ...user('x'), name: () => 1 }], 'messages[0].name'],
    ['a circle', [{ ...user('x'), circle }], 'nests deeper'],
    ['too many messages', Array.from({ length: 16_385 }, () => user('x')), 'more than'],
    ['too much text', [user('x'.repeat(MAX_CHAT_LENGTH + 1))], 'more than'],
  ])('refuses %s', (_name, messages, words) => {
    expect(() => story.render(messages)).toThrow(invalid(words))
  })

  it('refuses arguments that would replace what the language defines', () => {
    for (const name of ['range', 'raise_exception', 'true', 'namespace']) {
      expect(() => story.render([user('x')], { templateArgs: { [name]: 1 } })).toThrow(invalid(name))
    }
    expect(() => story.render([user('x')], { templateArgs: [] as never })).toThrow(invalid('templateArgs'))
  })

  it('refuses tools that are no array, and too many of them', () => {
    expect(() => story.render([user('x')], { tools: {} as never })).toThrow(invalid('tools'))
    expect(() => story.render([user('x')], { tools: ['t'.repeat(MAX_CHAT_LENGTH)] })).toThrow(invalid('more than'))
  })
})
