/** What clients send beside the usual, and what they are told where it is wrong. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { eventsOf, type ErrorAnswer, type Fixture, type Json, NAME, startServer } from './support'

let fixture: Fixture
beforeAll(async () => {
  fixture = await startServer()
})
afterAll(async () => {
  expect(fixture.failures).toEqual([])
  await fixture.close()
})

const CHAT = '/v1/chat/completions'
const messages = [{ role: 'user', content: 'What is 7 plus 5?' }]
const answered = async (path: string, body: object): Promise<Json> => {
  const response = await fixture.post(path, { model: NAME, temperature: 0, max_tokens: 16, ...body })
  expect(response.status, await response.clone().text()).toBe(200)
  return response.json()
}
const refused = async (path: string, body: object): Promise<{ status: number } & ErrorAnswer['error']> => {
  const response = await fixture.post(path, body)
  return { status: response.status, ...((await response.json()) as ErrorAnswer).error }
}

describe('a request that is wrong is told what was given and what is expected', () => {
  it.each([
    [CHAT, { messages, n: 0 }, 'n', '"n" must be an integer from 1 to 1024, not 0'],
    [CHAT, { messages, temperature: 'hot' }, 'temperature', '"temperature" must be a number from 0 to 100, not "hot"'],
    [CHAT, { messages, stream: 'yes' }, 'stream', '"stream" must be true or false, not "yes"'],
    [CHAT, { messages, user: 5 }, 'user', '"user" must be a string, not 5'],
    [CHAT, { messages: 'hi' }, 'messages', '"messages" must be an array, of at most 16384, not "hi"'],
    [CHAT, { messages: [] }, 'messages', '"messages" must not be empty'],
    [CHAT, { messages: [{ role: 'user', content: 5 }] }, 'messages[0].content', '"messages[0].content" must be a string, or an array of at most 4096 parts, not 5'],
    [CHAT, { messages, response_format: 'json' }, 'response_format', '"response_format" must be an object, not "json"'],
    [CHAT, { messages, tools: [{ type: 'custom', custom: { name: 'f' } }] }, 'tools[0].type', '"tools[0].type" must be "function", not "custom"'],
    ['/v1/completions', { prompt: 'a', logprobs: true }, 'logprobs', '"logprobs" must be an integer from 0 to 256, not true'],
    ['/v1/completions', { prompt: [] }, 'prompt', /none empty, not an array of 0$/],
    ['/v1/completions', { prompt: 'a', stop: 'a'.repeat(2000) }, 'stop[0]', /1 to 1024 UTF-16 units, not one of 2000$/],
  ])('%s %j', async (path, body, param, message) => {
    expect(await refused(path, body)).toEqual({
      status: 400,
      type: 'invalid_request_error',
      param,
      code: 'invalid_value',
      message: typeof message === 'string' ? message : expect.stringMatching(message),
    })
  })

  it('and every refusal has a code', async () => {
    const image = { role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }
    for (const body of [{ messages: [image] }, { messages, logit_bias: { x: 1 } }, { messages, n: 200 }, { messages, stream_options: {} }]) {
      expect(await refused(CHAT, body)).toMatchObject({ status: 400, code: 'invalid_value' })
    }
  })

  it('which route, content type or model', async () => {
    expect((await refused('/v1/v1/models', {})).message).toBe('There is no route POST /v1/v1/models')
    expect((await refused(CHAT, { model: 'other', messages })).message).toMatch(/"other" does not exist; GET \/v1\/models lists/)
    const form = await fixture.post(CHAT, '{}', { 'content-type': 'application/x-www-form-urlencoded' })
    expect(((await form.json()) as ErrorAnswer).error.message).toMatch(/application\/json, not "application\/x-www-form-urlencoded"$/)
  })
})

describe('max_tokens beyond the context', () => {
  it.each([
    [CHAT, { messages, max_tokens: 1024 }, 'max_tokens'],
    [CHAT, { messages, max_completion_tokens: 1024, max_tokens: 4 }, 'max_completion_tokens'],
    ['/v1/completions', { prompt: ['a', 'Once upon a time'], max_tokens: 1020 }, 'max_tokens'],
  ])('%s %j is refused by name', async (path, body, param) => {
    const { status, code, message, ...rest } = await refused(path, body)
    expect({ status, code, param: rest.param }).toEqual({ status: 400, code: 'context_length_exceeded', param })
    expect(message).toMatch(/^"\w+" is 10\d\d, and the prompt has \d+ tokens: together more than the 1024 of the model's context$/)
  })

  it("and beyond the server's own limit is refused by the name that it came by", async () => {
    const small = await startServer({ limits: { maxOutputTokens: 8 } })
    try {
      for (const field of ['max_tokens', 'max_completion_tokens']) {
        const { error } = (await (await small.post(CHAT, { messages, [field]: 9 })).json()) as ErrorAnswer
        expect(error).toMatchObject({ param: field, code: 'max_tokens_too_large', message: 'At most 8 tokens may be generated per choice, not 9' })
      }
    } finally {
      await small.close()
    }
  })

  it('up to it is not', async () => {
    expect((await answered('/v1/completions', { prompt: 'Once upon a time', max_tokens: 1019 })).usage.prompt_tokens).toBe(5)
  })
})

describe('stop_reason', () => {
  const body = { messages: [{ role: 'user', content: 'hi' }], max_tokens: 64 }
  const lastOf = async (path: string, more: object): Promise<Json> => {
    const response = await fixture.post(path, { ...body, prompt: 'hi', temperature: 0, ...more, stream: true })
    return eventsOf(await response.text()).at(-2).choices[0]
  }

  it("is null at the model's own end, and the token where it was asked for", async () => {
    const { choices } = await answered(CHAT, body)
    expect(choices[0]).toMatchObject({ finish_reason: 'stop', stop_reason: null })
    expect(await lastOf(CHAT, {})).toMatchObject({ finish_reason: 'stop', stop_reason: null })
    const end = fixture.llm.tokenizer!.tokenToId('<|end|>')
    expect((await answered(CHAT, { ...body, stop_token_ids: [end] })).choices[0]).toMatchObject({ finish_reason: 'stop', stop_reason: end })
  })

  it.each([CHAT, '/v1/completions'])('is in the last event of %s, too', async (path) => {
    expect(await lastOf(path, { stop: ['e', 'o'] })).toMatchObject({ finish_reason: 'stop', stop_reason: expect.stringMatching(/^[eo]$/) })
    expect(await lastOf(path, { max_tokens: 1 })).toMatchObject({ finish_reason: 'length', stop_reason: null })
  })

  it('no top_logprobs ask for nothing, whether logprobs are there or not', async () => {
    expect((await answered(CHAT, { ...body, top_logprobs: 0 })).choices[0].logprobs).toBeNull()
    expect(await refused(CHAT, { ...body, top_logprobs: 1 })).toMatchObject({ status: 400, param: 'top_logprobs' })
  })

  it('an empty stop string asks for nothing', async () => {
    expect((await answered(CHAT, { ...body, stop: '' })).choices).toEqual((await answered(CHAT, { ...body, stop: [] })).choices)
  })
})

describe("assistants' turns as clients keep them", () => {
  const turn = (assistant: object): object => ({ messages: [{ role: 'user', content: 'hi' }, { role: 'assistant', ...assistant }, ...messages] })
  const plain = (): Promise<Json> => answered(CHAT, turn({ content: 'No.' }))

  it.each([
    ['no calls', { content: 'No.', tool_calls: [], refusal: null, annotations: [], function_call: null }],
    ['a refusal', { content: null, refusal: 'No.' }],
    ['a part that is a refusal', { content: [{ type: 'refusal', refusal: 'No.' }] }],
  ])('%s', async (_, assistant) => {
    const { choices, usage } = await plain()
    const answer = await answered(CHAT, turn(assistant))
    expect({ content: answer.choices[0].message.content, prompt: answer.usage.prompt_tokens }).toEqual({
      content: choices[0].message.content,
      prompt: usage.prompt_tokens,
    })
  })

  it.each([
    ['null', { content: null }],
    ['left out', {}],
  ])('a call, whose content is %s, as if it were empty', async (_, content) => {
    const call = { id: 'call_1', type: 'function', function: { name: 'f', arguments: '{}' } }
    const answer = (assistant: object): Promise<Json> => answered(CHAT, turn({ ...assistant, tool_calls: [call] }))
    const [empty, asked] = [await answer({ content: '' }), await answer(content)]
    expect(asked.usage.prompt_tokens).toBe(empty.usage.prompt_tokens)
    expect(asked.choices[0].message).toEqual(empty.choices[0].message)
  })

  it('with nothing in it, or a call of the older kind, are refused', async () => {
    expect(await refused(CHAT, turn({ tool_calls: [] }))).toMatchObject({ status: 400, param: 'messages[1].content', code: 'missing_required_parameter' })
    expect(await refused(CHAT, turn({ function_call: { name: 'f', arguments: '{}' } }))).toMatchObject({
      status: 400,
      param: 'messages[1].function_call',
      code: 'unsupported_parameter',
    })
  })
})
