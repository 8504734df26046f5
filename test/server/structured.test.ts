/** Outputs that are held to a grammar, over HTTP: OpenAI's response_format and forced calls, vLLM's structured outputs. */
import { Ajv } from 'ajv'
import type OpenAI from 'openai'
import { describe, expect, it } from 'vitest'
import { useServer } from './client_fixture'
import { eventsOf, type ErrorAnswer, type Json, NAME } from './support'

const served = useServer()

const messages = [{ role: 'user' as const, content: 'Describe a robot.' }]
const schema = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 12 }, age: { type: 'integer', minimum: 0, maximum: 99 }, kind: { enum: ['shy', 'loud'] } },
  required: ['name', 'age', 'kind'],
  additionalProperties: false,
}
const isValid = new Ajv().compile(schema)
const chat = async (body: object): Promise<Json> => {
  const response = await served.fixture.post('/v1/chat/completions', { messages, max_tokens: 200, temperature: 0.7, seed: 1, ...body })
  expect(response.status, await response.clone().text()).toBe(200)
  return ((await response.json()) as Json).choices[0]
}

it('is a value of the schema, whole and streamed', async () => {
  const response_format = { type: 'json_schema' as const, json_schema: { name: 'robot', schema, strict: true } }
  const { choices } = await served.client.chat.completions.create({ model: NAME, messages, response_format, max_tokens: 200, seed: 2 })
  expect(choices[0]!.finish_reason).toBe('stop')
  expect(isValid(JSON.parse(choices[0]!.message.content!)), choices[0]!.message.content!).toBe(true)
  let text = ''
  const stream = await served.client.chat.completions.create({ model: NAME, messages, response_format, max_tokens: 200, seed: 2, stream: true })
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
  expect(text).toBe(choices[0]!.message.content)
})

it('is JSON where only that is asked for', async () => {
  const choice = await chat({ response_format: { type: 'json_object' }, max_tokens: 400, logit_bias: { [String(served.fixture.llm.tokenize('}', { addSpecialTokens: false })[0])]: 20 } })
  expect(choice.finish_reason).toBe('stop')
  expect(typeof JSON.parse(choice.message.content)).toBe('object')
})

it.each([
  ['structured_outputs', { structured_outputs: { choice: ['red', 'green'] } }, /^(red|green)$/],
  ['structured_outputs', { structured_outputs: { regex: '[a-c]{3}-[0-9]{2}' } }, /^[a-c]{3}-\d{2}$/],
  ['structured_outputs', { structured_outputs: { grammar: 'root ::= "a" | "b" root' }, seed: 5 }, /^b*a$/],
  ['guided_choice', { guided_choice: ['red', 'green'] }, /^(red|green)$/],
  ['guided_regex', { guided_regex: '[a-c]{3}' }, /^[a-c]{3}$/],
  ['guided_grammar', { guided_grammar: 'root ::= "x" "y"' }, /^xy$/],
])('takes the forms of vLLM: %s %j', async (_, body, pattern) => {
  expect((await chat(body)).message.content).toMatch(pattern)
  const completion = (await (await served.fixture.post('/v1/completions', { prompt: 'The colour is', max_tokens: 100, ...body })).json()) as Json
  expect(completion.choices[0].text).toMatch(pattern)
})

it('takes a schema as text', async () => {
  const choice = await chat({ guided_json: JSON.stringify(schema) })
  expect(isValid(JSON.parse(choice.message.content))).toBe(true)
})

describe('a forced call', () => {
  const tools = [
    { type: 'function' as const, function: { name: 'make_robot', parameters: schema } },
    { type: 'function' as const, function: { name: 'stop_robot', parameters: { type: 'object', properties: { hard: { type: 'boolean' } }, required: ['hard'] } } },
  ]

  it('of a named function has arguments of its schema', async () => {
    const { choices } = await served.client.chat.completions.create({
      model: NAME,
      messages,
      tools,
      tool_choice: { type: 'function', function: { name: 'make_robot' } },
      max_tokens: 200,
      seed: 3,
    })
    const [call, ...others] = choices[0]!.message.tool_calls! as OpenAI.ChatCompletionMessageFunctionToolCall[]
    expect(others).toEqual([])
    expect(call!.function.name).toBe('make_robot')
    expect(isValid(JSON.parse(call!.function.arguments)), call!.function.arguments).toBe(true)
    expect(choices[0]!.message.content).toBeNull()
  })

  it('of any function is one of them, and streams', async () => {
    for (let seed = 0; seed < 4; seed++) {
      const body = { messages, tools, tool_choice: 'required', parallel_tool_calls: false, max_tokens: 300, seed }
      const whole = await chat(body)
      expect(whole.finish_reason).toBe('tool_calls')
      expect(whole.message.tool_calls).toHaveLength(1)
      const [{ function: called }] = whole.message.tool_calls
      expect(['make_robot', 'stop_robot']).toContain(called.name)
      const response = await served.fixture.post('/v1/chat/completions', { ...body, temperature: 0.7, stream: true })
      const deltas = eventsOf(await response.text()).flatMap((event) => event.choices?.[0]?.delta.tool_calls ?? [])
      expect(deltas[0]).toMatchObject({ index: 0, type: 'function', function: { name: called.name } })
      expect(deltas.map(({ function: { arguments: text } }: Json) => text).join('')).toBe(called.arguments)
    }
  })
})

describe('refuses', () => {
  it.each([
    [{ response_format: { type: 'xml' } }, 'response_format.type'],
    [{ response_format: { type: 'json_schema' } }, 'response_format.json_schema.schema'],
    [{ response_format: { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'nothing' } } } }, 'response_format'],
    [{ structured_outputs: {} }, 'structured_outputs'],
    [{ structured_outputs: { regex: '(' } }, 'structured_outputs.regex'],
    [{ structured_outputs: { regex: 7 } }, 'structured_outputs.regex'],
    [{ structured_outputs: { choice: [] } }, 'structured_outputs.choice'],
    [{ structured_outputs: { regex: 'a', choice: ['a'] } }, 'structured_outputs.choice'],
    [{ guided_regex: 'a', response_format: { type: 'json_object' } }, 'guided_regex'],
    [{ guided_grammar: 'root ::= other' }, 'guided_grammar'],
    [{ guided_json: '{"type":' }, 'guided_json'],
    [{ tool_choice: 'required' }, 'tool_choice'],
    [{ logit_bias: { a: 1 } }, 'logit_bias'],
    [{ logit_bias: { 99999: 1 } }, 'logit_bias'],
    [{ logit_bias: { 5: 101 } }, 'logit_bias.5'],
    [{ structured_outputs: { choice: ['a', ''] } }, 'structured_outputs.choice'],
    [{ structured_outputs: { structural_tag: { format: { type: 'regex', pattern: 7 } } } }, 'structured_outputs.structural_tag'],
    [{ guided_choice: ['\ud800'] }, 'guided_choice'],
  ])('%j by name, and serves on', async (body, param) => {
    const response = await served.fixture.post('/v1/chat/completions', { messages, max_tokens: 5, ...body })
    const { error } = (await response.json()) as ErrorAnswer
    // The library's option is no name of the API's.
    expect(error.message).not.toMatch(/"grammar\.|jsonSchema|structuralTag/)
    expect({ status: response.status, param: error.param }, error.message).toEqual({ status: 400, param })
  })
})

it('a bias bans and forces tokens', async () => {
  const own = await served.fixture.llm.generate({ messages, temperature: 0, maxTokens: 1 }).result()
  const first = own.tokens[0]!
  const banned = await chat({ temperature: 0, max_tokens: 1, logit_bias: { [first]: -100 }, logprobs: true })
  expect(banned.message.content).not.toBe(own.text)
  const [forced] = served.fixture.llm.tokenize('robot', { addSpecialTokens: false })
  const text = await chat({ temperature: 0, max_tokens: 3, logit_bias: { [forced!]: 100 } })
  expect(text.message.content).toBe(served.fixture.llm.detokenize([forced!, forced!, forced!]))
})
