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

  describe('content that is null', () => {
    const call = { id: 'c1', type: 'function', function: { name: 'f', arguments: { x: 1 } } }
    const calling = { role: 'assistant', content: null, tool_calls: [call] }
    const said = { ...calling, content: '' }
    const missing = { role: 'assistant', tool_calls: [call] }

    it.each([
      ['the demo model', storyTokenizerConfig.chat_template as string],
      ['ChatML', `{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}`],
      ['one that looks for reasoning', `{% for m in messages %}{% if '</think>' in m.content %}{% set content = m.content.split('</think>')[-1] %}{% else %}{% set content = m.content %}{% endif %}{{ content.lstrip() + '<|end|>' }}{% endfor %}`],
      ['one that strips', `{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m['content'] | trim }}<end_of_turn>{% endfor %}`],
      ['one that takes parts', `{% for m in messages %}{% if m.content is string %}{{ m.content }}.{% elif m.content is iterable %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}`],
      ['one that asks for the reasoning', `{% for m in messages %}{{ m.content + '.' }}{% if m.reasoning_content is not none %}?{% endif %}{% endfor %}`],
    ])('is an empty text for %s', (_, source) => {
      const template = new ChatTemplate(source, storyTokenizer().specialTokens)
      const chat = (assistant: ChatMessage): ChatMessage[] => [user('Hi'), assistant, user('And?')]
      const text = template.render(chat(said))
      expect(template.render(chat(calling))).toBe(text)
      expect(template.render(chat(missing))).toBe(text)
      expect(text).not.toMatch(/none|null/i)
    })

    it.each([
      `message['content'] is none`,
      `message["content"] is  none`,
      `not message.content is not none`,
      `message.content == None`,
      `message.get('content') is none`,
      `not (message['content']) != none`,
    ])('is none for a template that asks for it: %s', (question) => {
      // As DeepSeek's: none tells a message of calls.
      const template = new ChatTemplate(
        `{% for message in messages %}{% if ${question} %}<calls>{{ message.tool_calls[0].function.name }}{% else %}{{ message['content'] + '<end>' }}{% endif %}{% endfor %}`,
      )
      expect(template.render([user('Hi'), calling])).toBe('Hi<end><calls>f')
      expect(template.render([missing, said])).toBe('<calls>f<end>')
    })

    it('is what each of several templates expects', () => {
      const template = new ChatTemplate([
        { name: 'default', template: `{{ messages[0].content + '.' }}` },
        { name: 'tool_use', template: `{% set content = messages[0].content %}{{ content is none }}` },
      ])
      expect(template.render([calling])).toBe('.')
      expect(template.render([calling], { tools: [{ name: 'f' }] })).toBe('true')
    })
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
