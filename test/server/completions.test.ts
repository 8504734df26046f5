import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { createKeySecurity, hashApiKey } from '../../lib/server'
import { PATIENTLY } from '../support/patience'
import { eventsOf, type ErrorAnswer, type Fixture, type Json, NAME, startServer } from './support'

let fixture: Fixture
beforeAll(async () => {
  fixture = await startServer({ modelName: [NAME, 'gpt-alias', 'org/with-slash'] })
})
afterAll(async () => {
  expect(fixture.failures).toEqual([])
  await fixture.close()
})

const PROMPT = 'Once upon a time'
const complete = async (body: object): Promise<Json> => {
  const response = await fixture.post('/v1/completions', { model: NAME, temperature: 0, ...body })
  expect(response.status, await response.clone().text()).toBe(200)
  return response.json()
}
const refused = async (path: string, body: unknown, headers?: Record<string, string>) => {
  const response = await fixture.post(path, body, headers)
  return { status: response.status, ...((await response.json()) as ErrorAnswer).error, headers: response.headers }
}

describe('/v1/models', () => {
  it('lists the model by all its names', async () => {
    const list = (await (await fetch(`${fixture.url}/v1/models`)).json()) as Json
    expect(list.object).toBe('list')
    expect(list.data.map(({ id, root, parent }: Json) => [id, root, parent])).toEqual([
      [NAME, NAME, null],
      ['gpt-alias', NAME, NAME],
      ['org/with-slash', NAME, NAME],
    ])
    expect(list.data[0].max_model_len).toBe(1024)
  })

  it('shows one, also where its name has a slash, and none that is not there', async () => {
    for (const name of ['gpt-alias', 'org/with-slash', 'org%2Fwith-slash']) {
      const shown = await fetch(`${fixture.url}/v1/models/${name}`)
      expect(shown.status).toBe(200)
      expect(((await shown.json()) as Json).root).toBe(NAME)
    }
    const missing = await fetch(`${fixture.url}/v1/models/other`)
    expect(missing.status).toBe(404)
    expect(((await missing.json()) as ErrorAnswer).error).toMatchObject({ code: 'model_not_found', param: 'model' })
  })
})

describe('/v1/completions', () => {
  it('gives what the library gives', async () => {
    const own = await fixture.llm.generate({ prompt: PROMPT, temperature: 0, maxTokens: 24 }).result()
    const answer = await complete({ prompt: PROMPT, max_tokens: 24 })
    expect(answer).toMatchObject({
      object: 'text_completion',
      model: NAME,
      choices: [{ index: 0, text: own.text, finish_reason: 'length', logprobs: null, stop_reason: null }],
      usage: { prompt_tokens: own.usage.promptTokens, completion_tokens: 24, total_tokens: own.usage.promptTokens + 24 },
    })
    expect(answer.id).toMatch(/^cmpl-/)
    expect(answer.system_fingerprint).toMatch(/^fp_/)
  })

  it('has the fingerprint of model and backend: the same after a new start, another where outputs may be others', async () => {
    const own = (await complete({ prompt: PROMPT, max_tokens: 1 })).system_fingerprint as string
    const of = async (...options: Parameters<typeof startServer>): Promise<string> => {
      const other = await startServer({ modelName: NAME, ...options[0] }, options[1])
      const answer = (await (await other.post('/v1/completions', { prompt: PROMPT, max_tokens: 1 })).json()) as Json
      await other.close()
      return answer.system_fingerprint as string
    }
    expect(await of()).toBe(own)
    const others = [await of({}, { simd: 'portable' }), await of({ toolCallParser: 'hermes' }), await of({ modelName: 'other' })]
    expect(new Set([own, ...others]).size).toBe(4)
  })

  it('generates 16 tokens where nothing is said', async () => {
    expect((await complete({ prompt: PROMPT })).usage.completion_tokens).toBe(16)
  })

  it('takes texts, token ids and lists of either', async () => {
    const tokens = fixture.llm.tokenize(PROMPT)
    const other = 'The robot'
    const text = (await complete({ prompt: PROMPT, max_tokens: 8 })).choices[0].text
    const otherText = (await complete({ prompt: other, max_tokens: 8 })).choices[0].text
    const texts = async (prompt: unknown): Promise<string[]> =>
      (await complete({ prompt, max_tokens: 8 })).choices.map((choice: Json) => choice.text)
    expect(await texts(tokens)).toEqual([text])
    expect(await texts([PROMPT, other])).toEqual([text, otherText])
    expect(await texts([fixture.llm.tokenize(other), tokens])).toEqual([otherText, text])
  })

  it('numbers the choices of several prompts one after the other', async () => {
    const answer = await complete({ prompt: [PROMPT, 'The robot'], n: 2, max_tokens: 4, temperature: 1, seed: 1 })
    expect(answer.choices.map(({ index }: Json) => index)).toEqual([0, 1, 2, 3])
    expect(answer.usage.completion_tokens).toBe(16)
  })

  it('gives the same for the same seed, also a negative one', async () => {
    const sample = async (seed: number): Promise<string> =>
      (await complete({ prompt: PROMPT, max_tokens: 24, temperature: 1, seed })).choices[0].text
    expect(await sample(7)).toBe(await sample(7))
    expect(await sample(-7)).toBe(await sample(-7))
    expect(await sample(7)).not.toBe(await sample(8))
  })

  it('echoes the prompt, with log-probabilities of all of it', async () => {
    const { choices } = await complete({ prompt: PROMPT, max_tokens: 4, echo: true, logprobs: 2 })
    const [{ text, logprobs }] = choices
    expect(text.startsWith(PROMPT)).toBe(true)
    const count = fixture.llm.tokenize(PROMPT).length + 4
    for (const field of ['tokens', 'token_logprobs', 'top_logprobs', 'text_offset']) expect(logprobs[field]).toHaveLength(count)
    expect(logprobs.token_logprobs[0]).toBeNull()
    expect(logprobs.top_logprobs[0]).toBeNull()
    // The text of each token stands where its offset says; the special token before it is no text.
    logprobs.tokens.slice(1).forEach((token: string, i: number) => {
      expect(text.slice(logprobs.text_offset[i + 1]).startsWith(token)).toBe(true)
    })
    for (const top of logprobs.top_logprobs.slice(1)) expect(Object.keys(top).length).toBeGreaterThanOrEqual(2)
  })

  it('scores a prompt without generating', async () => {
    const { choices, usage } = await complete({ prompt: PROMPT, max_tokens: 0, echo: true, logprobs: 0 })
    expect(choices[0].text).toBe(PROMPT)
    expect(choices[0].logprobs.token_logprobs.slice(1).every((value: number) => value <= 0)).toBe(true)
    expect(usage.completion_tokens).toBe(0)
  })

  it('ends at a stop string, and says at which', async () => {
    const { choices } = await complete({ prompt: PROMPT, max_tokens: 64, stop: ['.', 'zzz'] })
    expect(choices[0]).toMatchObject({ finish_reason: 'stop', stop_reason: '.' })
    expect(choices[0].text).not.toContain('.')
    const kept = await complete({ prompt: PROMPT, max_tokens: 64, stop: '.', include_stop_str_in_output: true })
    expect(kept.choices[0].text).toBe(`${choices[0].text}.`)
  })

  it('streams what it answers in one', async () => {
    const body = { prompt: [PROMPT, 'The robot'], n: 2, max_tokens: 12, temperature: 1, seed: 3, logprobs: 1 }
    const whole = await complete(body)
    const response = await fixture.post('/v1/completions', { model: NAME, ...body, stream: true, stream_options: { include_usage: true } })
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    expect(response.headers.get('x-accel-buffering')).toBe('no')
    expect(response.headers.get('x-node-tensorrt-backend')).toBe('cpu')
    const events = eventsOf(await response.text())
    expect(events.at(-1)).toBe('[DONE]')
    expect(events.at(-2)).toMatchObject({ choices: [], usage: { ...whole.usage, prompt_tokens_details: expect.anything() } })
    const chunks = events.slice(0, -2)
    for (const choice of whole.choices) {
      const own = chunks.filter((chunk) => chunk.choices[0].index === choice.index).map((chunk) => chunk.choices[0])
      expect(own.map(({ text }) => text).join('')).toBe(choice.text)
      expect(own.flatMap(({ logprobs }) => logprobs?.text_offset ?? [])).toEqual(choice.logprobs.text_offset)
      expect(own.flatMap(({ logprobs }) => logprobs?.tokens ?? [])).toEqual(choice.logprobs.tokens)
      expect(own.map(({ finish_reason: reason }) => reason).filter(Boolean)).toEqual([choice.finish_reason])
    }
    for (const chunk of chunks) expect(chunk).toMatchObject({ usage: null, object: 'text_completion', model: NAME, id: events[0].id })
  })

  it('tells the usage with each chunk where asked', async () => {
    const response = await fixture.post('/v1/completions', {
      prompt: PROMPT,
      max_tokens: 6,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    })
    const events = eventsOf(await response.text()).slice(0, -1)
    const counts = events.map(({ usage }) => usage.completion_tokens)
    expect(counts).toEqual([...counts].sort((a, b) => a - b))
    expect(counts.at(-1)).toBe(6)
    for (const { usage } of events) expect(usage.total_tokens).toBe(usage.prompt_tokens + usage.completion_tokens)
  })

  it('streams an echo first', async () => {
    const events = eventsOf(await (await fixture.post('/v1/completions', { prompt: PROMPT, max_tokens: 3, echo: true, stream: true })).text())
    expect(events[0].choices[0].text).toBe(PROMPT)
  })

  it('takes null for left out, and ignores what it does not know', async () => {
    const nothing = { suffix: null, stop: null, logprobs: null, best_of: null, logit_bias: null, seed: null, stream: null, stream_options: null }
    const plain = await complete({ prompt: PROMPT, max_tokens: 4 })
    const noisy = await complete({ prompt: PROMPT, max_tokens: 4, ...nothing, unheard_of: { a: [1] }, user: 'u', constructor: 1 })
    expect(noisy.choices).toEqual(plain.choices)
  })

  it.each([
    [{ prompt: 1 }, 'prompt'],
    [{}, 'prompt'],
    [{ prompt: [] }, 'prompt'],
    [{ prompt: PROMPT, temperature: -1 }, 'temperature'],
    [{ prompt: PROMPT, temperature: 'hot' }, 'temperature'],
    [{ prompt: PROMPT, n: 0 }, 'n'],
    [{ prompt: PROMPT, n: 129 }, 'n'],
    [{ prompt: Array.from({ length: 65 }, () => 'a'), n: 2 }, 'n'],
    [{ prompt: PROMPT, max_tokens: 1.5 }, 'max_tokens'],
    [{ prompt: PROMPT, top_p: 2 }, 'top_p'],
    [{ prompt: PROMPT, stop: [1] }, 'stop'],
    [{ prompt: PROMPT, suffix: 'end' }, 'suffix'],
    [{ prompt: PROMPT, best_of: 3 }, 'best_of'],
    [{ prompt: PROMPT, use_beam_search: true }, 'use_beam_search'],
    [{ prompt: PROMPT, stream_options: {} }, 'stream_options'],
    [{ prompt: PROMPT, stop_token_ids: [4096] }, 'stop_token_ids'],
    [{ prompt: PROMPT, min_tokens: 9, max_tokens: 8 }, 'min_tokens'],
    [{ prompt: PROMPT, priority: 2000 }, 'priority'],
    [{ prompt: PROMPT, logprobs: 21 }, 'logprobs'],
    [{ prompt: PROMPT, prompt_logprobs: 21 }, 'prompt_logprobs'],
    [{ prompt: PROMPT, stop: Array.from({ length: 65 }, () => 'a') }, 'stop'],
    [{ prompt: ['a', 1] }, 'prompt'],
    [{ prompt: [[1], 'a'] }, 'prompt'],
    [{ prompt: [[]] }, 'prompt'],
    [{ prompt: [999_999] }, 'prompt[0]'],
    [{ prompt: PROMPT, model: 'other' }, 'model'],
  ])('refuses %j and names the parameter', async (body, param) => {
    const answer = await refused('/v1/completions', body)
    expect(answer).toMatchObject({ param, type: 'invalid_request_error' })
    expect(answer.status).toBe(param === 'model' ? 404 : 400)
    expect(answer.message).not.toBe('')
  })

  it('says by code that a prompt is too long', async () => {
    expect(await refused('/v1/completions', { prompt: 'word '.repeat(3000) })).toMatchObject({ status: 400, code: 'context_length_exceeded' })
    expect(await refused('/v1/completions', { prompt: Array.from({ length: 1100 }, () => 7) })).toMatchObject({
      status: 400,
      code: 'context_length_exceeded',
    })
  })

  it('takes priority and deadline from headers, checked', async () => {
    const body = { prompt: PROMPT, max_tokens: 2 }
    const good = await fixture.post('/v1/completions', body, { 'x-request-priority': '-5', 'x-request-deadline-ms': '60000' })
    expect(good.status).toBe(200)
    expect(await refused('/v1/completions', body, { 'x-request-priority': 'high' })).toMatchObject({ status: 400, param: 'x-request-priority' })
    expect(await refused('/v1/completions', body, { 'x-request-deadline-ms': '-1' })).toMatchObject({ status: 400, param: 'x-request-deadline-ms' })
  })

  it('answers a deadline that cannot be met with 504, and that it is no use to try again', async () => {
    const answer = await refused('/v1/completions', { prompt: PROMPT, max_tokens: 900, ignore_eos: true }, { 'x-request-deadline-ms': '1' })
    expect(answer).toMatchObject({ status: 504, type: 'timeout_error', code: 'deadline_exceeded' })
    expect(answer.headers.get('x-should-retry')).toBe('false')
  })

  it('keeps cached prefixes apart by salt', async () => {
    const prompt = 'Some long prefix that fills more than two pages of sixteen tokens each, as it goes on and on about nothing in particular, again and again.'
    const cached = async (salt: string): Promise<number> =>
      (await complete({ prompt, max_tokens: 1, cache_salt: salt })).usage.prompt_tokens_details.cached_tokens
    expect(await cached('a')).toBe(0)
    expect(await cached('a')).toBeGreaterThan(0)
    expect(await cached('b')).toBe(0)
  })
})

describe('/tokenize and /detokenize', () => {
  it('give what the library gives', async () => {
    const tokens = fixture.llm.tokenize(PROMPT)
    const answer = (await (await fixture.post('/tokenize', { prompt: PROMPT, return_token_strs: true })).json()) as Json
    expect(answer).toMatchObject({ count: tokens.length, max_model_len: 1024, tokens })
    expect(answer.token_strs).toHaveLength(tokens.length)
    const without = (await (await fixture.post('/tokenize', { prompt: PROMPT, add_special_tokens: false })).json()) as Json
    expect(without.tokens).toEqual(tokens.slice(1))
    const back = (await (await fixture.post('/detokenize', { tokens: without.tokens })).json()) as Json
    expect(back.prompt).toBe(PROMPT)
  })

  it('render chats', async () => {
    const messages = [{ role: 'user', content: 'Hi' }]
    const answer = (await (await fixture.post('/tokenize', { messages })).json()) as Json
    expect(answer.tokens).toEqual(fixture.llm.applyChatTemplate(messages).tokens)
    const open = (await (await fixture.post('/tokenize', { messages, add_generation_prompt: false })).json()) as Json
    expect(open.tokens).toEqual(fixture.llm.applyChatTemplate(messages, { addGenerationPrompt: false }).tokens)
  })

  it('refuse what is no token', async () => {
    expect(await refused('/detokenize', { tokens: [5000] })).toMatchObject({ status: 400, param: 'tokens[0]' })
    expect(await refused('/detokenize', { tokens: ['a'] })).toMatchObject({ status: 400, param: 'tokens' })
    expect(await refused('/tokenize', { prompt: 7 })).toMatchObject({ status: 400, param: 'prompt' })
  })

  it("count for a key's limits as requests for work do", async () => {
    const secret = 'ntk_tokenize-0123456789abcdef'
    const keys = [
      { name: 'few', sha256: hashApiKey(secret), requestsPerMinute: 3 },
      { name: 'other', sha256: hashApiKey(`${secret}-other`), models: ['another-model'] },
    ]
    const limited = await startServer({ security: createKeySecurity({ keys, now: () => 0 }) })
    const ask = async (path: string, body: object, key = secret) => {
      const response = await limited.post(path, body, { 'x-api-key': key })
      return [response.status, ((await response.json()) as Partial<ErrorAnswer>).error?.code, response.headers.get('retry-after')]
    }
    const ok = [200, undefined, null]
    expect(await ask('/tokenize', { prompt: PROMPT })).toEqual(ok)
    expect(await ask('/detokenize', { tokens: [7] })).toEqual(ok)
    // What is refused for its own faults takes nothing.
    expect((await ask('/detokenize', { tokens: [5000] }))[0]).toBe(400)
    expect(await ask('/v1/completions', { prompt: PROMPT, max_tokens: 1 })).toEqual(ok)
    const spent = [429, 'rate_limit_exceeded', '20']
    expect(await ask('/tokenize', { prompt: PROMPT })).toEqual(spent)
    expect(await ask('/detokenize', { tokens: [7] })).toEqual(spent)
    expect(await ask('/v1/completions', { prompt: PROMPT, max_tokens: 1 })).toEqual(spent)
    for (const [path, body] of [['/tokenize', { prompt: 'a' }], ['/detokenize', { tokens: [7] }]] as const) {
      expect(await ask(path, body, `${secret}-other`)).toEqual([403, 'model_not_allowed', null])
    }
    await limited.close()
  })

  it('release what they took of a limit of requests at once, also where they fail', async () => {
    const secret = 'ntk_tokenize-0123456789abcdef'
    const limited = await startServer({ security: createKeySecurity({ keys: [{ name: 'one', sha256: hashApiKey(secret), maxConcurrent: 1 }] }) })
    const ask = async (body: object) => (await limited.post('/tokenize', body, { 'x-api-key': secret })).status
    const { llm } = limited
    const encode = llm.encodeAtOnce.bind(llm)
    let goOn!: () => void
    const others = new Promise<void>((resolve) => (goOn = resolve))
    const encoding = vi.spyOn(llm, 'encodeAtOnce').mockImplementation(async (...given) => {
      await others
      return encode(...given)
    })
    const first = ask({ prompt: 'word '.repeat(900) })
    await vi.waitFor(() => expect(encoding).toHaveBeenCalledTimes(1), PATIENTLY)
    expect(await Promise.all([ask({ prompt: 'a' }), ask({ prompt: 'a' })])).toEqual([429, 429])
    goOn()
    expect(await first).toBe(200)
    expect(await ask({ prompt: 'word '.repeat(3000) })).toBe(400)
    expect(await ask({ prompt: 'a' })).toBe(200)
    await limited.close()
  })
})
