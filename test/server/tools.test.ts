/** Tool calls and reasoning over HTTP, as openai 6 and ai 6 see them. */
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ScriptedServer, startScripted } from './scripted'

const HERMES = `{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif -%}
{%- for message in messages -%}
<|{{ message.role }}|>
{%- if message.tool_calls -%}
{%- for call in message.tool_calls %}<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor -%}
{%- else -%}{{ (message.content or '').split('</think>')[-1] }}{%- endif -%}<|end|>
{%- endfor -%}
<|assistant|>`
const MISTRAL = `{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{% if message.tool_calls %}{% for call in message.tool_calls %}{{ '[TOOL_CALLS] [' }}{{ call.function | tojson }}{{ ']' }}{{ call.id | length }}{% endfor %}{% else %}{{ message.content }}{% endif %}{% endfor %}`

const weather = {
  type: 'function' as const,
  function: { name: 'get_weather', description: 'Weather of a city', parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } },
}
const clock = { type: 'function' as const, function: { name: 'get_time', parameters: { type: 'object', properties: {} } } }
const call = (name: string, args: unknown): string => `<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`
const messages = [{ role: 'user' as const, content: 'What is the weather in Paris?' }]

describe('a model of the Hermes format', () => {
  let server: ScriptedServer
  let client: OpenAI
  const create = (more: object = {}) =>
    client.chat.completions.create({ model: 'scripted', messages, tools: [weather, clock], ...more } as OpenAI.ChatCompletionCreateParamsNonStreaming)

  beforeAll(async () => {
    server = await startScripted(HERMES)
    client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 })
  })
  afterAll(async () => {
    expect(server.failures).toEqual([])
    await server.close()
  })

  it('calls functions, whole', async () => {
    server.say(`Let me look.\n${call('get_weather', { city: 'Paris' })}\n${call('get_time', {})}`)
    const { choices } = await create()
    const { message, finish_reason } = choices[0]!
    expect(finish_reason).toBe('tool_calls')
    expect(message.content).toBe('Let me look.\n')
    expect(message.tool_calls).toEqual([
      { id: expect.stringMatching(/^call_\w{24}$/), type: 'function', function: { name: 'get_weather', arguments: '{"city":"Paris"}' } },
      { id: expect.stringMatching(/^call_\w{24}$/), type: 'function', function: { name: 'get_time', arguments: '{}' } },
    ])
    expect(message.tool_calls![0]!.id).not.toBe(message.tool_calls![1]!.id)
    expect(server.lastPrompt).toContain('"name": "get_weather"')
  })

  it('calls functions, streamed, and the arguments stream', async () => {
    server.say(call('get_weather', { city: 'Paris, the capital of France, in the north of the country' }))
    const runner = client.chat.completions.stream({ model: 'scripted', messages, tools: [weather] })
    let pieces = 0
    for await (const chunk of runner) {
      const delta = chunk.choices[0]?.delta.tool_calls?.[0]
      if (delta !== undefined && delta.id === undefined) pieces++
      expect(chunk.choices[0]?.delta.content ?? '').toBe('')
    }
    expect(pieces).toBeGreaterThan(5)
    const { message, finish_reason } = (await runner.finalChatCompletion()).choices[0]!
    expect(finish_reason).toBe('tool_calls')
    expect(JSON.parse((message.tool_calls![0]! as { function: { arguments: string } }).function.arguments)).toEqual({
      city: 'Paris, the capital of France, in the north of the country',
    })
  })

  it('goes through a whole exchange: call, result, answer', async () => {
    server.say(call('get_weather', { city: 'Paris' }), 'It is 21 degrees.')
    const asked: string[] = []
    const runner = client.chat.completions.runTools({
      model: 'scripted',
      messages,
      tools: [
        {
          type: 'function',
          function: {
            ...weather.function,
            parse: JSON.parse,
            function: ({ city }: { city: string }) => {
              asked.push(city)
              return '21 C'
            },
          },
        },
      ],
    })
    expect(await runner.finalContent()).toBe('It is 21 degrees.')
    expect(asked).toEqual(['Paris'])
    // The arguments came back as a string, and the template was given the object.
    expect(server.lastPrompt).toContain('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>')
    expect(server.lastPrompt).toContain('<|tool|>21 C<|end|>')
  })

  it('leaves text alone that is no call', async () => {
    for (const text of ['Two <tool_call> tags', '<tool_call>{"name": 5}</tool_call>', 'a < b']) {
      server.say(text, text)
      const whole = (await create()).choices[0]!
      expect(whole).toMatchObject({ finish_reason: 'stop', message: { content: text } })
      expect(whole.message.tool_calls).toBeUndefined()
      let streamed = ''
      for await (const chunk of client.chat.completions.stream({ model: 'scripted', messages, tools: [weather] })) {
        streamed += chunk.choices[0]?.delta.content ?? ''
      }
      expect(streamed).toBe(text)
    }
  })

  it('says when the length cut a call off', async () => {
    const city = 'Paris, '.repeat(60)
    server.say(call('get_weather', { city }))
    const { choices } = await create({ max_tokens: 90 })
    expect(choices[0]!.finish_reason).toBe('length')
    const [cut] = choices[0]!.message.tool_calls as { function: { name: string; arguments: string } }[]
    expect(cut!.function.name).toBe('get_weather')
    expect(JSON.stringify({ city }).startsWith(cut!.function.arguments)).toBe(true)
    expect(() => JSON.parse(cut!.function.arguments)).toThrow()
  })

  it('parses nothing without tools, and one call where they may not be parallel', async () => {
    const text = `${call('get_time', {})}${call('get_time', {})}`
    server.say(text, text, text)
    expect((await create({ tool_choice: 'none' })).choices[0]!.message.content).toBe(text)
    expect((await create({ tools: undefined })).choices[0]!.message.content).toBe(text)
    expect((await create({ parallel_tool_calls: false })).choices[0]!.message.tool_calls).toHaveLength(1)
  })

  it('tells reasoning from the answer, and calls from both', async () => {
    const text = `<think>\nParis, so <tool_call> is due.\n</think>\n\n${call('get_time', {})}`
    server.say(text, '<think>\nHm.\n</think>\n\nYes.', '<think>\nHm.\n</think>\n\nYes.', '<think>\nHm.\n</think>\n\nYes.')
    const first = (await create()).choices[0]!.message as unknown as Record<string, unknown>
    expect(first).toMatchObject({ content: null, reasoning_content: 'Paris, so <tool_call> is due.', tool_calls: [{ function: { name: 'get_time' } }] })
    expect((await create({ tools: undefined })).choices[0]!.message).toMatchObject({ content: 'Yes.', reasoning_content: 'Hm.' })
    const hidden = (await create({ tools: undefined, include_reasoning: false })).choices[0]!.message
    expect(hidden.content).toBe('Yes.')
    expect(hidden).not.toHaveProperty('reasoning_content')
    const parts = { reasoning: '', content: '' }
    for await (const chunk of await client.chat.completions.create({ model: 'scripted', messages, stream: true })) {
      const delta = chunk.choices[0]?.delta as { content?: string; reasoning_content?: string } | undefined
      parts.reasoning += delta?.reasoning_content ?? ''
      parts.content += delta?.content ?? ''
    }
    expect(parts).toEqual({ reasoning: 'Hm.', content: 'Yes.' })
  })

  it.each([
    [{ tool_choice: { type: 'function', function: { name: 'nope' } } }, 'tool_choice'],
    [{ tools: undefined, tool_choice: 'required' }, 'tool_choice'],
    [{ tools: [weather, weather] }, 'tools'],
    [{ tools: [{ type: 'function', function: { name: 'a b' } }] }, 'tools[0].function.name'],
  ])('refuses %j', async (more, param) => {
    await expect(create(more)).rejects.toMatchObject({ status: 400, param })
  })

  it('serves the AI SDK', async () => {
    const model = createOpenAICompatible({ name: 'scripted', baseURL: `${server.url}/v1` })('scripted')
    const tools = {
      get_weather: tool({
        inputSchema: jsonSchema<{ city: string }>({ type: 'object', properties: { city: { type: 'string' } } }),
        execute: async ({ city }) => `${city}: 21 C`,
      }),
    }
    server.say(`<think>\nHm.\n</think>\n\n${call('get_weather', { city: 'Paris' })}`, 'Warm.', call('get_weather', { city: 'Rome' }), 'Hot.')
    const whole = await generateText({ model, prompt: 'Weather?', tools, stopWhen: stepCountIs(3) })
    expect(whole.text).toBe('Warm.')
    expect(whole.steps[0]!.reasoningText).toBe('Hm.')
    expect(whole.steps[0]!.toolCalls[0]).toMatchObject({ toolName: 'get_weather', input: { city: 'Paris' } })
    const streamed = streamText({ model, prompt: 'Weather?', tools, stopWhen: stepCountIs(3) })
    let text = ''
    for await (const part of streamed.textStream) text += part
    expect(text).toBe('Hot.')
    expect((await streamed.steps)[0]!.toolResults[0]).toMatchObject({ output: 'Rome: 21 C' })
  })
})

describe('a model whose marker is a special token', () => {
  it('has it kept in the text, and ids of nine letters', async () => {
    const server = await startScripted(MISTRAL)
    try {
      const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 })
      server.say('[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', 'Done.')
      const first = await client.chat.completions.create({ model: 'scripted', messages, tools: [weather] })
      const [made] = first.choices[0]!.message.tool_calls!
      expect(made).toMatchObject({ id: expect.stringMatching(/^\w{9}$/), function: { name: 'get_weather', arguments: '{"city": "Paris"}' } })
      const history = [...messages, first.choices[0]!.message, { role: 'tool' as const, tool_call_id: made!.id, content: '21 C' }]
      await client.chat.completions.create({ model: 'scripted', messages: history, tools: [weather] })
      expect(server.lastPrompt).toContain('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]9')
      expect(server.failures).toEqual([])
    } finally {
      await server.close()
    }
  })
})

describe('parsers of the server', () => {
  it('are what it is told, against the template', async () => {
    const server = await startScripted(HERMES, { toolCallParser: 'pythonic', reasoningParser: 'none' })
    try {
      const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 })
      server.say('[get_weather(city="Paris")]', '<think>x</think>y')
      const ask = () => client.chat.completions.create({ model: 'scripted', messages, tools: [weather] })
      expect((await ask()).choices[0]!.message.tool_calls![0]).toMatchObject({ function: { name: 'get_weather', arguments: '{"city": "Paris"}' } })
      expect((await ask()).choices[0]!.message.content).toBe('<think>x</think>y')
    } finally {
      await server.close()
    }
  })

  it('are refused where there are none', async () => {
    const server = await startScripted('{{ messages[0].content }}')
    try {
      const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 })
      const asking = client.chat.completions.create({ model: 'scripted', messages, tools: [weather] })
      await expect(asking).rejects.toMatchObject({ status: 400, param: 'tools' })
    } finally {
      await server.close()
    }
  })
})
