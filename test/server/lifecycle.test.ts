/** Requests that do not go the easy way: refused, abandoned, failed under way, cut off by the end of the server. */
import { connect } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { LLM } from '../../lib'
import type { StepResult } from '../../lib/scheduler'
import { createServer, type RequestFacts, type RequestOutcome, type Server, type ServerOptions, type Telemetry } from '../../lib/server'
import { cpu, type Sizes, tokenizer } from '../fault/storyteller'
import { GatedExecutor } from '../support/gated_executor'
import { failedResult } from '../support/wrapped_executor'
import { eventsOf, type ErrorAnswer, type Json, until } from './support'

class Recorder implements Telemetry {
  readonly started: RequestFacts[] = []
  readonly refusals: string[] = []
  readonly outcomes: RequestOutcome[] = []
  readonly counts = new Map<number, number>()
  open = 0

  start(facts: RequestFacts) {
    this.started.push(facts)
    return {
      tokens: (choice: number, count: number) => void this.counts.set(choice, (this.counts.get(choice) ?? 0) + count),
      end: (outcome: RequestOutcome) => void this.outcomes.push(outcome),
    }
  }

  refused(_: RequestFacts, reason: string): void {
    this.refusals.push(reason)
  }

  httpStarted(): void {
    this.open++
  }

  http(): void {
    this.open--
  }

  async metrics() {
    return { contentType: 'text/plain', body: '' }
  }

  async close(): Promise<void> {}
}

interface World {
  llm: LLM
  executor: GatedExecutor
  server: Server
  url: string
  telemetry: Recorder
  failures: unknown[]
  post(body: object, init?: RequestInit): Promise<Response>
}

const worlds: World[] = []
afterEach(async () => {
  for (const { server, llm, executor } of worlds.splice(0)) {
    executor.open()
    await server.close()
    await llm.close()
  }
})

/** Every result from now on is a failure that cannot be retried, in words that are nobody's business. */
const failing = (result: StepResult): StepResult =>
  failedResult(result, { code: 'ERR_STEP_FAILED', message: 'device 0x7fff at /secret/path', retryable: false })

async function world(options: ServerOptions = {}, sizes: Sizes = {}, engine: { maxQueue?: number; stuckAfterMs?: number } = {}): Promise<World> {
  const executor = new GatedExecutor(await cpu(sizes))
  executor.open()
  const llm = LLM.fromExecutor(executor, { tokenizer, ...engine })
  const telemetry = new Recorder()
  const failures: unknown[] = []
  const server = createServer(llm, { telemetry, modelName: 'tiny', onError: (error) => failures.push(error), ...options })
  const { url } = await server.listen({ port: 0 })
  const post = (body: object, init: RequestInit = {}): Promise<Response> =>
    fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(init.headers as Record<string, string>) },
      body: JSON.stringify({ prompt: 'Once upon a time', temperature: 0, ...body }),
      ...(init.signal ? { signal: init.signal } : {}),
    })
  const made = { llm, executor, server, url, telemetry, failures, post }
  worlds.push(made)
  return made
}

const LONG = { max_tokens: 900, ignore_eos: true }

/** A stream that has begun, and stands still: no further result comes until the test lets it. */
async function begun(w: World, signal?: AbortSignal): Promise<{ reader: ReadableStreamDefaultReader<string>; text: string }> {
  w.executor.hold()
  const pending = w.post({ ...LONG, stream: true }, signal === undefined ? {} : { signal })
  await w.executor.release(3)
  const reader = (await pending).body!.pipeThrough(new TextDecoderStream()).getReader()
  const text = (await reader.read()).value!
  await until(() => w.executor.heldResults > 0, 'a step')
  return { reader, text }
}

describe('a client that goes away', () => {
  const isFree = ({ llm }: World) => {
    const { running, waiting, kv } = llm.stats()
    return running === 0 && waiting === 0 && kv.usedPages === 0
  }

  it('while the first token is awaited frees its pages without a further step', async () => {
    const w = await world()
    w.executor.hold()
    const controller = new AbortController()
    const pending = w.post({ ...LONG, stream: true }, { signal: controller.signal })
    await until(() => w.executor.heldResults > 0, 'a step')
    const { submitted } = w.llm.stats().steps
    controller.abort()
    await expect(pending).rejects.toThrow()
    await until(() => w.telemetry.outcomes.length === 1, 'the outcome')
    w.executor.open()
    await until(() => isFree(w), 'free pages')
    // What was in flight, with the step that was planned ahead of it.
    expect(w.llm.stats().steps.submitted - submitted).toBeLessThanOrEqual(1)
    expect(w.telemetry.outcomes).toEqual([{ kind: 'aborted' }])
    expect(w.server.pending).toBe(0)
  })

  it('in the middle of its stream frees its pages within two steps', async () => {
    const w = await world()
    const controller = new AbortController()
    await begun(w, controller.signal)
    const before = w.llm.stats().steps.submitted
    controller.abort()
    await until(() => w.telemetry.outcomes.length === 1, 'the outcome')
    w.executor.open()
    await until(() => isFree(w), 'free pages')
    expect(w.llm.stats().steps.submitted - before).toBeLessThanOrEqual(2)
    expect(w.telemetry.outcomes).toEqual([{ kind: 'aborted' }])
    w.llm.check()
  })

  it('while it is queued leaves the queue', async () => {
    const w = await world({}, { maxSlots: 1 })
    w.executor.hold()
    const controller = new AbortController()
    const first = w.post({ max_tokens: 2 })
    await until(() => w.executor.heldResults > 0, 'the first step')
    const second = w.post({ max_tokens: 2 }, { signal: controller.signal })
    await until(() => w.llm.stats().waiting === 1, 'a queue')
    controller.abort()
    await expect(second).rejects.toThrow()
    await until(() => w.llm.stats().waiting === 0, 'an empty queue')
    w.executor.open()
    expect((await first).status).toBe(200)
  })

  it('without reading a stream at all is no failure', async () => {
    const w = await world()
    w.executor.hold()
    const socket = connect(w.server.address!.port, '127.0.0.1')
    const body = JSON.stringify({ prompt: 'Once', stream: true, ...LONG })
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
    await w.executor.release(20)
    socket.resetAndDestroy()
    await until(() => w.server.pending === 0, 'the end')
    w.executor.open()
    await until(() => isFree(w), 'free pages')
    expect(w.failures).toEqual([])
    expect(w.telemetry.open).toBe(0)
  })
})

describe('a stream', () => {
  it('gets comments while nothing comes', async () => {
    const w = await world({ keepAliveMs: 40 })
    w.executor.hold()
    const response = await w.post({ max_tokens: 2, stream: true })
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
    let text = ''
    while ((text.match(/: keep-alive\n\n/g) ?? []).length < 3) text += (await reader.read()).value
    expect(text.replaceAll(': keep-alive\n\n', '')).toBe('')
    w.executor.open()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      text += value
    }
    expect(eventsOf(text).at(-1)).toBe('[DONE]')
  })

  it('that fails under way ends with an error event, which tells nothing of the inside', async () => {
    const w = await world()
    const { reader, text: first } = await begun(w)
    let text = first
    w.executor.change = failing
    w.executor.open()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      text += value
    }
    const last = eventsOf(text).at(-1)
    expect(last).toEqual({
      error: { message: 'The model failed to compute this request', type: 'server_error', param: null, code: 'step_failed' },
    })
    expect(text).not.toContain('[DONE]')
    expect(text).not.toContain('secret')
    expect(w.telemetry.outcomes).toMatchObject([{ kind: 'failed' }])
    expect(w.failures).toHaveLength(1)
  })

  it('that fails before its first event gets a status', async () => {
    const w = await world()
    w.executor.change = failing
    for (const stream of [true, false]) {
      const response = await w.post({ ...LONG, stream })
      expect(response.status).toBe(500)
      expect(((await response.json()) as ErrorAnswer).error.code).toBe('step_failed')
    }
  })

  it('whose reader takes nothing is closed, and holds no more than its output meanwhile', async () => {
    const w = await world({ stallTimeoutMs: 300, limits: { maxLogprobs: 256 } }, { maxSlots: 32, numPages: 3000 })
    // Not all of the output, so that it does not end before the reader's time is over.
    w.executor.hold()
    void w.executor.release(600)
    const socket = connect(w.server.address!.port, '127.0.0.1')
    socket.pause()
    // Log-probabilities make each event large, so that buffers fill.
    const body = JSON.stringify({ prompt: 'Once', n: 16, ...LONG, temperature: 1, logprobs: 200, stream: true })
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
    await until(() => w.llm.stats().running > 0, 'the request')
    await until(() => w.server.pending === 0, 'the end')
    socket.destroy()
    expect(w.telemetry.outcomes).toEqual([{ kind: 'aborted' }])
    w.executor.open()
    await until(() => w.llm.stats().kv.usedPages === 0, 'free pages')
  })
})

it('a large answer whose reader takes nothing is given up', async () => {
  const w = await world({ stallTimeoutMs: 200 })
  const socket = connect(w.server.address!.port, '127.0.0.1')
  socket.pause()
  const body = JSON.stringify({ prompt: 'Once', n: 64, max_tokens: 60, ignore_eos: true, temperature: 1, logprobs: 20 })
  socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
  await until(() => w.telemetry.outcomes.length === 1, 'the output')
  expect(w.telemetry.outcomes).toMatchObject([{ kind: 'finished' }])
  await until(() => w.server.pending === 0, 'the end')
  socket.destroy()
})

describe('a request is turned away', () => {
  it('by a full queue, with the time to come again', async () => {
    const admission = {
      admit: () => ({ admitted: true as const, ticket: { firstToken() {}, tokens() {}, end() {} } }),
      retryAfterSeconds: () => 7,
      close() {},
    }
    const w = await world({ admission }, { maxSlots: 1 }, { maxQueue: 1 })
    w.executor.hold()
    const first = w.post({ max_tokens: 2 })
    await until(() => w.executor.heldResults > 0, 'the first step')
    const second = w.post({ max_tokens: 2 })
    await until(() => w.llm.stats().waiting === 1, 'a queue')
    for (const stream of [true, false]) {
      const third = await w.post({ max_tokens: 2, stream })
      expect(third.status).toBe(429)
      expect(third.headers.get('retry-after')).toBe('7')
      expect(((await third.json()) as ErrorAnswer).error).toMatchObject({ type: 'rate_limit_error', code: 'queue_full' })
    }
    w.executor.open()
    expect([(await first).status, (await second).status]).toEqual([200, 200])
    expect(w.telemetry.refusals).toEqual(['queue_full', 'queue_full'])
  })

  it('by admission, before it costs anything', async () => {
    const asked: RequestFacts[] = []
    const calls: string[] = []
    const w = await world({
      admission: {
        admit: (facts) => {
          asked.push(facts)
          if (facts.maxTokens! > 4) return { admitted: false, reason: 'sla', retryAfterSeconds: 3.2, message: 'Too much' }
          const note = (call: string) => () => void calls.push(call)
          return { admitted: true, ticket: { firstToken: note('first'), tokens: (_, count) => void calls.push(`+${count}`), end: note('end') } }
        },
        retryAfterSeconds: () => 1,
        close() {},
      },
    })
    const refused = await w.post({ max_tokens: 5, n: 2, temperature: 0.5, top_p: 0.9, priority: 3 }, { headers: { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` } })
    expect(refused.status).toBe(429)
    expect(refused.headers.get('retry-after')).toBe('4')
    expect(await refused.json()).toMatchObject({ error: { code: 'sla', message: 'Too much' } })
    expect(w.llm.stats().requests.added).toBe(0)
    expect(asked[0]).toMatchObject({ endpoint: 'completions', model: 'tiny', n: 2, promptTokens: 5, maxTokens: 5, priority: 3, temperature: 0.5, topP: 0.9 })
    expect(asked[0]!.traceparent).toMatch(/^00-a+/)
    expect((await w.post({ max_tokens: 3 })).status).toBe(200)
    expect(calls[0]).toBe('first')
    expect(calls.filter((call) => call.startsWith('+')).reduce((sum, call) => sum + Number(call), 0)).toBe(3)
    expect(calls.at(-1)).toBe('end')
    expect(w.telemetry.refusals).toEqual(['sla'])
  })

  it('by security, before its body is read, on every path', async () => {
    const begun: string[] = []
    let claims = 0
    const w = await world({
      security: {
        authenticate: ({ header, route }) => {
          if (route === '/health/live') return {}
          const key = header('authorization')?.replace('Bearer ', '')
          if (key !== 'good' && key !== 'narrow') return { refusal: { status: 401, code: 'invalid_api_key', message: 'No' } }
          return key === 'good' ? { keyName: 'g', cacheSalt: 'g' } : { keyName: 'n', limits: { maxChoices: 1, maxOutputTokens: 3 } }
        },
        begin: ({ keyName }) => {
          begun.push(keyName!)
          if (claims > 0) return { refusal: { status: 429, code: 'key_limit', message: 'One at a time', retryAfterSeconds: 2 } }
          claims++
          return { release: () => void claims-- }
        },
      },
    })
    for (const path of ['/v1/models', '/v1/completions', '/nothing', '/metrics', '/health', '//v1/models']) {
      for (const method of ['GET', 'POST', 'DELETE']) {
        const answer = await fetch(w.url + path, { method, ...(method === 'POST' ? { body: 'x'.repeat(100) } : {}) })
        expect(answer.status, `${method} ${path}`).toBe(401)
        expect(answer.headers.get('www-authenticate')).toBe('Bearer')
        await answer.text()
      }
    }
    expect((await fetch(`${w.url}/health/live`)).status).toBe(200)
    const as = (key: string) => ({ headers: { authorization: `Bearer ${key}` } })
    expect((await w.post({ max_tokens: 9 }, as('good'))).status).toBe(200)
    expect((await w.post({ max_tokens: 3 }, as('narrow'))).status).toBe(200)
    expect((await w.post({ max_tokens: 4 }, as('narrow'))).status).toBe(400)
    expect((await w.post({ n: 2, max_tokens: 3 }, as('narrow'))).status).toBe(400)
    expect(((await (await w.post({}, as('narrow'))).json()) as Json).usage.completion_tokens).toBe(3)
    w.executor.hold()
    const slow = w.post({ max_tokens: 2 }, as('good'))
    await until(() => claims === 1, 'a claim')
    const second = await w.post({ max_tokens: 2 }, as('good'))
    expect([second.status, second.headers.get('retry-after')]).toEqual([429, '2'])
    w.executor.open()
    expect((await slow).status).toBe(200)
    expect(claims).toBe(0)
    expect(w.telemetry.refusals).toEqual(['key_limit'])
    expect(begun.slice(0, 2)).toEqual(['g', 'n'])
  })

  it('keys have prefixes of their own, whatever salt a request names', async () => {
    const w = await world({
      security: { authenticate: ({ header }) => (header('x-who') === undefined ? {} : { cacheSalt: header('x-who')! }) },
    })
    const prompt = 'A prefix of many tokens that is longer than a page, and then some more of it, so that pages can be shared between requests.'
    const cached = async (who: string | undefined, salt?: string): Promise<number> => {
      const answer = await w.post({ prompt, max_tokens: 1, cache_salt: salt ?? null }, who === undefined ? {} : { headers: { 'x-who': who } })
      return ((await answer.json()) as Json).usage.prompt_tokens_details.cached_tokens
    }
    expect(await cached('a')).toBe(0)
    expect(await cached('a')).toBeGreaterThan(0)
    expect(await cached('b')).toBe(0)
    expect(await cached('a', 'own')).toBe(0)
    expect(await cached('a', 'own')).toBeGreaterThan(0)
    expect(await cached(undefined, 'a')).toBe(0)
    expect(await cached(undefined)).toBe(0)
  })
})

describe('the end of the server', () => {
  it('lets streams run to theirs, and refuses new work meanwhile', async () => {
    const w = await world()
    w.executor.hold()
    const pending = w.post({ max_tokens: 8, stream: true })
    await until(() => w.executor.heldResults > 0, 'a step')
    const closing = w.server.close({ drainMs: 30_000 })
    expect((await fetch(`${w.url}/health/ready`)).status).toBe(503)
    expect((await fetch(`${w.url}/health/live`)).status).toBe(200)
    const refused = await w.post({ max_tokens: 2 })
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '1'])
    w.executor.open()
    expect(eventsOf(await (await pending).text()).at(-1)).toBe('[DONE]')
    await closing
    await expect(fetch(`${w.url}/health/live`)).rejects.toThrow()
    expect(w.telemetry.refusals).toEqual(['draining'])
    expect(w.server.address).toBeUndefined()
  })

  it('aborts what is left when the time is over, with words', async () => {
    const w = await world()
    const { reader, text: first } = await begun(w)
    let text = first
    const plain = w.post({ ...LONG })
    await until(() => w.server.pending === 2, 'the second request')
    const closing = w.server.close({ drainMs: 20 })
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      text += value
    }
    expect(eventsOf(text).at(-1)).toMatchObject({ error: { code: 'shutting_down', type: 'service_unavailable_error' } })
    expect((await plain).status).toBe(503)
    await closing
    w.executor.open()
    await until(() => w.llm.stats().kv.usedPages === 0, 'free pages')
    expect((await w.llm.generate({ prompt: 'Once', maxTokens: 1 }).result()).tokens).toHaveLength(1)
  })

  it('comes at once when asked again, by a signal too, and is one for all who ask', async () => {
    for (const hurry of ['again', 'signal'] as const) {
      const w = await world()
      w.executor.hold()
      const pending = w.post({ ...LONG })
      await until(() => w.server.pending === 1, 'the request')
      const controller = new AbortController()
      const since = performance.now()
      const first = w.server.close({ drainMs: 60_000, signal: controller.signal })
      if (hurry === 'again') await w.server.close()
      else controller.abort()
      await first
      expect(performance.now() - since).toBeLessThan(30_000)
      expect((await pending).status).toBe(503)
    }
  })

  it('is refused a second listener, and none comes after it', async () => {
    const w = await world()
    await expect(w.server.listen({ port: 0 })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    const other = createServer(w.llm)
    await expect(other.listen({ port: w.server.address!.port })).rejects.toMatchObject({ code: 'ERR_IO' })
    await other.close()
    await expect(other.listen({ port: 0 })).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
  })

  it('answers 503 once the model is closed', async () => {
    const w = await world()
    await w.llm.close()
    const answer = await w.post({ max_tokens: 2 })
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
  })
})

describe('health', () => {
  const statuses = async ({ url }: World): Promise<number[]> =>
    Promise.all(['live', 'ready'].map(async (what) => (await fetch(`${url}/health/${what}`)).status))

  it('is not ready while a step is stuck, and is again after it', async () => {
    const w = await world({}, {}, { stuckAfterMs: 30 })
    expect(await statuses(w)).toEqual([200, 200])
    w.executor.hold()
    const pending = w.post({ max_tokens: 2 })
    await expect.poll(() => statuses(w)).toEqual([200, 503])
    const reason = (await (await fetch(`${w.url}/health/ready`)).json()) as Json
    expect(reason).toMatchObject({ status: 'not ready', reason: expect.stringContaining('step') })
    w.executor.open()
    expect((await pending).status).toBe(200)
    await until(() => w.llm.stats().steps.inFlight === 0, 'the last step')
    expect(await statuses(w)).toEqual([200, 200])
  })

  it('is what a probe says, where there is one', async () => {
    const w = await world({ health: { notLive: () => 'broken', notReady: () => undefined } })
    expect(await statuses(w)).toEqual([503, 200])
  })
})

it('refuses options that cannot be', async () => {
  const { llm } = await world()
  for (const options of [
    { modelName: '' },
    { modelName: ['a', 'a'] },
    { modelName: 'a\nb' },
    { limits: { maxBodyBytes: 0 } },
    { limits: { bodies: 1 } },
    { telemetry: {} },
    { security: { authenticate: 1 } },
    { keepAliveMs: 0 },
    { ports: 1 },
  ]) {
    expect(() => createServer(llm, options as never), JSON.stringify(options)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }))
  }
  expect(() => createServer({} as never)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }))
})
