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

const MESSAGES = [{ role: 'user', content: 'Write a short story about a shy robot.' }]
const chat = async (body: object): Promise<Json> => {
  const response = await fixture.post('/v1/chat/completions', { model: NAME, temperature: 0, messages: MESSAGES, ...body })
  expect(response.status, await response.clone().text()).toBe(200)
  return response.json()
}
const refused = async (body: object) => {
  const response = await fixture.post('/v1/chat/completions', { messages: MESSAGES, ...body })
  return { status: response.status, ...((await response.json()) as ErrorAnswer).error }
}

it('gives what the library gives', async () => {
  const own = await fixture.llm.generate({ messages: MESSAGES, temperature: 0, maxTokens: 32 }).result()
  const answer = await chat({ max_tokens: 32 })
  expect(answer).toMatchObject({
    object: 'chat.completion',
    model: NAME,
    choices: [{ index: 0, message: { role: 'assistant', content: own.text, refusal: null }, finish_reason: 'length', logprobs: null }],
    usage: { prompt_tokens: own.usage.promptTokens, completion_tokens: 32 },
  })
  expect(answer.id).toMatch(/^chatcmpl-/)
  expect((await chat({ max_tokens: 900, max_completion_tokens: 32 })).choices).toEqual(answer.choices)
})

it('samples with the temperature of the API or the model where none is given, never greedily', async () => {
  const configured = fixture.llm.info.defaults.temperature
  expect(configured).toBeGreaterThan(0)
  const given = await chat({ temperature: configured, max_tokens: 24, seed: 5 })
  const left = await chat({ temperature: undefined, max_tokens: 24, seed: 5 })
  expect(left.choices).toEqual(given.choices)
})

it('takes content in parts, and the developer role for system', async () => {
  const parts = [{ role: 'user', content: [{ type: 'text', text: 'Write a short story' }, { type: 'text', text: 'about a robot.' }] }]
  const joined = [{ role: 'user', content: 'Write a short story\nabout a robot.' }]
  expect((await chat({ messages: parts, max_tokens: 8 })).choices).toEqual((await chat({ messages: joined, max_tokens: 8 })).choices)
  const developer = [{ role: 'developer', content: 'Begin with: Ahoy!' }, ...MESSAGES]
  const system = [{ role: 'system', content: 'Begin with: Ahoy!' }, ...MESSAGES]
  expect((await chat({ messages: developer, max_tokens: 8 })).choices).toEqual((await chat({ messages: system, max_tokens: 8 })).choices)
})

it('streams the role first, then what it answers in one', async () => {
  const body = { n: 3, max_tokens: 16, temperature: 1, seed: 11, logprobs: true, top_logprobs: 2, stop: ['.'] }
  const whole = await chat(body)
  const response = await fixture.post('/v1/chat/completions', {
    messages: MESSAGES,
    ...body,
    stream: true,
    stream_options: { include_usage: true },
  })
  const events = eventsOf(await response.text())
  expect(events.at(-1)).toBe('[DONE]')
  expect(events.at(-2)).toMatchObject({ object: 'chat.completion.chunk', choices: [], usage: { completion_tokens: whole.usage.completion_tokens } })
  for (const choice of whole.choices) {
    const own = events.slice(0, -2).map((event) => event.choices[0]).filter(({ index }) => index === choice.index)
    expect(own[0].delta).toEqual({ role: 'assistant', content: '' })
    expect(own.map(({ delta }) => delta.content ?? '').join('')).toBe(choice.message.content)
    expect(own.flatMap(({ logprobs }) => logprobs?.content ?? [])).toEqual(choice.logprobs.content)
    expect(own.at(-1).finish_reason).toBe(choice.finish_reason)
    expect(own.slice(0, -1).every(({ finish_reason: reason }) => reason === null)).toBe(true)
  }
})

it('tells log-probabilities with bytes that make up the text', async () => {
  const { choices } = await chat({ max_tokens: 12, logprobs: true, top_logprobs: 3 })
  const { content } = choices[0].logprobs
  expect(content).toHaveLength(12)
  expect(Buffer.from(content.flatMap(({ bytes }: Json) => bytes)).toString()).toBe(choices[0].message.content)
  for (const entry of content) {
    expect(entry.top_logprobs).toHaveLength(3)
    expect(entry.top_logprobs[0].logprob).toBe(entry.logprob)
  }
})

it('tells log-probabilities of the prompt in the way of vLLM, and names tokens by id where asked', async () => {
  const answer = await chat({ max_tokens: 1, prompt_logprobs: 1, logprobs: true, return_tokens_as_token_ids: true })
  expect(answer.prompt_logprobs).toHaveLength(answer.usage.prompt_tokens)
  expect(answer.prompt_logprobs[0]).toBeNull()
  const ids = fixture.llm.applyChatTemplate(MESSAGES).tokens
  answer.prompt_logprobs.slice(1).forEach((entry: Json, i: number) => {
    expect(entry[ids[i + 1]!]).toMatchObject({ logprob: expect.any(Number), rank: expect.any(Number), decoded_token: expect.any(String) })
  })
  expect(answer.choices[0].logprobs.content[0].token).toMatch(/^token_id:\d+$/)
})

it('takes the length of the context for granted where no limit is given', async () => {
  const answer = await chat({ temperature: 0 })
  expect(['stop', 'length']).toContain(answer.choices[0].finish_reason)
})

describe('refuses', () => {
  it.each([
    [{ messages: undefined }, 'messages'],
    [{ messages: [] }, 'messages'],
    [{ messages: 'hi' }, 'messages'],
    [{ messages: [{ content: 'hi' }] }, 'messages[0].role'],
    [{ messages: [{ role: 'user' }] }, 'messages[0].content'],
    [{ messages: [{ role: 'user', content: 7 }] }, 'messages[0].content'],
    [{ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://a' } }] }] }, 'messages[0].content[0]'],
    [{ messages: [{ role: 'assistant', tool_calls: [{ id: 'a', function: { name: 'f', arguments: {} } }] }] }, 'messages[0].tool_calls[0].function.arguments'],
    [{ max_tokens: 0 }, 'max_tokens'],
    [{ top_logprobs: 2 }, 'top_logprobs'],
    [{ functions: [] , function_call: 'auto' }, 'functions'],
    [{ modalities: ['text', 'audio'] }, 'modalities'],
    [{ chat_template: '{{ 1 }}' }, 'chat_template'],
    [{ chat_template_kwargs: { range: 1 } }, 'chat_template_kwargs'],
    [{ chat_template_kwargs: [1] }, 'chat_template_kwargs'],
    [{ tool_choice: 'maybe' }, 'tool_choice'],
    [{ stream: true, prompt_logprobs: 1 }, 'prompt_logprobs'],
  ])('%j by name', async (body, param) => {
    expect(await refused(body)).toMatchObject({ status: 400, type: 'invalid_request_error', param })
  })

  it('what the template refuses, in its words', async () => {
    const answer = await refused({ messages: [{ role: 'wizard', content: 'hi' }] })
    expect(answer).toMatchObject({ status: 400 })
    expect(answer.message).toContain('Unknown role: wizard')
  })
})

it('takes a __proto__ for a key like any other', async () => {
  const body = `{"messages":[{"role":"user","content":"hi","__proto__":{"role":"x"}}],"max_tokens":2,"__proto__":{"polluted":true},"chat_template_kwargs":{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}}}}`
  expect((await fixture.post('/v1/chat/completions', body)).status).toBe(200)
  expect(({} as Json).polluted).toBeUndefined()
})
