/** The edge: what comes over a socket, well-formed or not, and what goes back. */
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { nestsDeeper } from '../../lib/server/http/body'
import type { HttpFacts, Telemetry } from '../../lib/server'
import { curl, type ErrorAnswer, type Fixture, type Json, startServer, until } from './support'

const log: HttpFacts[] = []
const telemetry: Telemetry = {
  start: () => ({ tokens: () => {}, end: () => {} }),
  refused: () => {},
  httpStarted: () => {},
  http: (facts) => void log.push(facts),
  metrics: async () => ({ contentType: 'text/plain; version=0.0.4', body: 'up 1\n' }),
  close: async () => {},
}

let fixture: Fixture
/** Gives up soon what does not come. */
let impatient: Fixture
let port: number
beforeAll(async () => {
  fixture = await startServer({ telemetry, limits: { maxBodyBytes: 100_000 } })
  impatient = await startServer({ limits: { bodyTimeoutMs: 100 }, headersTimeoutMs: 500 })
  port = fixture.server.address!.port
})
afterAll(async () => {
  for (const { failures, close } of [fixture, impatient]) {
    expect(failures).toEqual([])
    await close()
  }
})

const BODY = JSON.stringify({ prompt: 'Once', max_tokens: 2, temperature: 0 })

function expectError(answer: ErrorAnswer): void {
  expect(Object.keys(answer)).toEqual(['error'])
  expect(Object.keys(answer.error).sort()).toEqual(['code', 'message', 'param', 'type'])
}

/** Everything that comes back until the other side closes. */
function received(socket: Socket): Promise<string> {
  return new Promise((done) => {
    let text = ''
    socket.setEncoding('utf8')
    socket.on('data', (chunk) => (text += chunk))
    socket.on('error', () => {})
    socket.on('close', () => done(text))
  })
}

describe('answers that are errors', () => {
  it.each([
    ['GET', '/nothing', undefined, {}, 404, 'not_found'],
    ['GET', '/', undefined, {}, 404, 'not_found'],
    ['POST', '/v1/chat/completions/', '{', {}, 400, 'invalid_json'],
    ['GET', '/v1/chat/completions', undefined, {}, 405, 'method_not_allowed'],
    ['DELETE', '/v1/models', undefined, {}, 405, 'method_not_allowed'],
    ['PUT', '/v1/completions', BODY, {}, 405, 'method_not_allowed'],
    ['POST', '/v1/completions', '{"prompt": ', {}, 400, 'invalid_json'],
    ['POST', '/v1/completions', '', {}, 400, 'invalid_json'],
    ['POST', '/v1/completions', 'null', {}, 400, 'invalid_json'],
    ['POST', '/v1/completions', '[]', {}, 400, 'invalid_json'],
    ['POST', '/v1/completions', '"text"', {}, 400, 'invalid_json'],
    ['POST', '/v1/completions', Buffer.from([0x7b, 0xff, 0xfe, 0x7d]), {}, 400, 'invalid_json'],
    ['POST', '/v1/completions', BODY, { 'content-type': 'text/plain' }, 415, 'unsupported_media_type'],
    ['POST', '/v1/completions', BODY, { 'content-type': 'multipart/form-data; boundary=x' }, 415, 'unsupported_media_type'],
    ['POST', '/v1/completions', BODY, { 'content-encoding': 'gzip' }, 415, 'unsupported_content_encoding'],
    ['POST', '/v1/completions', `{"prompt":"${'a'.repeat(100_000)}"}`, {}, 413, 'request_too_large'],
    ['POST', '/v1/completions', `{"prompt":${'['.repeat(10_000)}1${']'.repeat(10_000)}}`, {}, 400, 'json_too_deep'],
    ['POST', '/v1/completions', '{"a":'.repeat(10_000), {}, 400, 'json_too_deep'],
  ])('%s %s %.20j', async (method, path, body, headers, status, code) => {
    const response = await fetch(fixture.url + path, {
      method,
      headers: { 'content-type': 'application/json', ...headers },
      ...(body === undefined ? {} : { body: body as never }),
    })
    const answer = (await response.json()) as ErrorAnswer
    expectError(answer)
    expect({ status: response.status, code: answer.error.code }).toEqual({ status, code })
    expect(response.headers.get('content-type')).toBe('application/json')
    expect(response.headers.get('x-request-id')).not.toBeNull()
    if (status === 405) expect(response.headers.get('allow')).toMatch(/GET|POST/)
  })

  it('take kinds of JSON for JSON, and no type at all', async () => {
    for (const type of ['application/json', 'application/json; charset=utf-8', 'APPLICATION/JSON', 'application/vnd.api+json']) {
      const response = await fetch(`${fixture.url}/v1/completions`, { method: 'POST', headers: { 'content-type': type }, body: BODY })
      expect(response.status, type).toBe(200)
      await response.text()
    }
    const bare = await curl(['-H', 'Content-Type:', '-d', BODY, `${fixture.url}/v1/completions`])
    expect(JSON.parse(bare.stdout).object).toBe('text_completion')
  })

  it('refuse a chunked body as soon as it is too large', async () => {
    async function* endless() {
      for (let i = 0; i < 1000; i++) yield new Uint8Array(1000).fill(0x20)
    }
    const request = { method: 'POST', headers: { 'content-type': 'application/json' }, body: endless(), duplex: 'half' }
    const response = await fetch(`${fixture.url}/v1/completions`, request as never)
    expect(response.status).toBe(413)
    expectError((await response.json()) as ErrorAnswer)
  })

  it('take a body that came with its head, in however many chunks, and keep its bound and the connection', async () => {
    const small = await startServer({ limits: { maxBodyBytes: 1000 } })
    const chunked = (...parts: string[]): string =>
      `POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n${parts.map((part) => `${part.length.toString(16)}\r\n${part}\r\n`).join('')}0\r\n\r\n`
    const body = JSON.stringify({ prompt: 'Once', max_tokens: 1 })
    const fits = body + ' '.repeat(1000 - body.length)
    const socket = connect(small.server.address!.port, '127.0.0.1')
    // The first is read by hono, as its host is new; the others go past it.
    for (const request of [chunked(body), chunked(...body), chunked(fits.slice(0, 500), fits.slice(500)), chunked(fits, ' '), chunked(), chunked(body.slice(1))]) socket.write(request)
    socket.write('GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n')
    const statuses = [...(await received(socket)).matchAll(/HTTP\/1\.1 (\d+) /g)].map(([, status]) => Number(status))
    expect(statuses).toEqual([200, 200, 200, 413, 400, 400, 200])
    expect(small.failures).toEqual([])
    await small.close()
  })

  it('answer a target and a host that cannot be', async () => {
    for (const head of ['GET http:// HTTP/1.1\r\nhost: a', 'GET /v1/models HTTP/1.1\r\nhost: a b/c', 'GET /\\..\\x HTTP/1.1\r\nhost: a']) {
      const socket = connect(port, '127.0.0.1')
      socket.write(`${head}\r\nconnection: close\r\n\r\n`)
      const text = await received(socket)
      expect(text).toMatch(/^HTTP\/1\.1 (400|404) /)
      const body = text.slice(text.indexOf('{'), text.lastIndexOf('}') + 1)
      expectError(JSON.parse(body))
    }
  })
})

describe('what is no HTTP', () => {
  const answerTo = async (text: string, { server } = fixture): Promise<{ status: string; error: ErrorAnswer['error'] }> => {
    const socket = connect(server.address!.port, '127.0.0.1')
    socket.write(text)
    const answer = await received(socket)
    return { status: answer.split(' ')[1]!, ...(JSON.parse(answer.slice(answer.indexOf('{'))) as ErrorAnswer) }
  }

  it('is answered like all else', async () => {
    expect(await answerTo('hello\r\n\r\n')).toMatchObject({ status: '400', error: { code: 'invalid_request' } })
    expect(await answerTo('GET / HTTP/1.1\r\nhost a\r\n\r\n')).toMatchObject({ status: '400', error: { code: 'invalid_request' } })
    expect(await answerTo('POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n')).toMatchObject({ status: '400' })
    expect(await answerTo(`GET / HTTP/1.1\r\nhost: a\r\nx: ${'a'.repeat(40_000)}\r\n\r\n`)).toMatchObject({ status: '431', error: { code: 'headers_too_large' } })
  })

  it('is given up when it does not come', async () => {
    expect(await answerTo('GET / HTTP/1.1\r\nhost: a\r\n', impatient)).toMatchObject({ status: '408', error: { code: 'headers_timeout' } })
  })

  it('does not get into an answer that is under way', async () => {
    const socket = connect(port, '127.0.0.1')
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${BODY.length}\r\n\r\n${BODY}rubbish\r\n\r\n`)
    const text = await received(socket)
    expect(text).not.toContain('invalid_request')
  })
})

describe('bodies', () => {
  it('may come byte by byte', async () => {
    const socket = connect(port, '127.0.0.1')
    socket.setNoDelay(true)
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${BODY.length}\r\n\r\n`)
    const text = received(socket)
    for (const byte of BODY) {
      await new Promise<void>((done) => socket.write(byte, () => done()))
    }
    expect(await text).toMatch(/^HTTP\/1\.1 200 /)
  })

  it('that do not come are given up, with words', async () => {
    const socket = connect(impatient.server.address!.port, '127.0.0.1')
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"prompt"`)
    const text = await received(socket)
    expect(text).toMatch(/^HTTP\/1\.1 408 /)
    expect(text.toLowerCase()).toContain('connection: close')
    expect(text).toContain('"code":"body_timeout"')
  })

  it('that break off leave nothing behind', async () => {
    const { server } = fixture
    await until(() => server.pending === 0, 'the end of those before')
    const socket = connect(port, '127.0.0.1')
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"prompt"`)
    await until(() => server.pending === 1, 'the request')
    socket.destroy()
    await until(() => server.pending === 0, 'its end')
  })

  it('nest as deep as they nest, whatever their strings hold', () => {
    expect(nestsDeeper('[[1],[2]]', 2)).toBe(false)
    expect(nestsDeeper('[[1],[2]]', 1)).toBe(true)
    expect(nestsDeeper('["[[[["]', 1)).toBe(false)
    expect(nestsDeeper(String.raw`["\"[[", "\\", {"a\\\"[": 1}]`, 2)).toBe(false)
    expect(nestsDeeper(String.raw`["\\", [[1]]]`, 2)).toBe(true)
    expect(nestsDeeper('{"a":{"b":{}}}', 2)).toBe(true)
    expect(nestsDeeper(`["${'\\'.repeat(100_001)}`, 1)).toBe(false)
  })
})

describe('every answer', () => {
  it('repeats a harmless request id, and no other', async () => {
    const idFor = async (id: string) => (await fetch(`${fixture.url}/version`, { headers: { 'x-request-id': id } })).headers.get('x-request-id')
    expect(await idFor('abc-123.x:y')).toBe('abc-123.x:y')
    expect(await idFor('a b')).toMatch(/^req-/)
    expect(await idFor('x'.repeat(129))).toMatch(/^req-/)
    expect(await idFor('{"a":1}')).toMatch(/^req-/)
  })

  it('is logged once, by the pattern of its route', async () => {
    const ids = ['model', 'secret', 'stream', 'wrong']
    const [model, secret, stream, wrong] = ids.map((id) => ({ 'x-request-id': `logged-${id}` }))
    await (await fetch(`${fixture.url}/v1/models/tiny-storyteller?a=b`, { headers: model! })).text()
    await (await fetch(`${fixture.url}/%2e%2e/secret`, { headers: secret! })).text()
    await (await fixture.post('/v1/completions', { prompt: 'Once', max_tokens: 3, stream: true }, stream)).text()
    await (await fixture.post('/v1/completions', { prompt: 3 }, wrong)).text()
    await until(() => fixture.server.pending === 0, 'the end of all')
    const own = log.filter(({ requestId }) => requestId.startsWith('logged-'))
    expect(own.map(({ requestId }) => requestId)).toEqual(ids.map((id) => `logged-${id}`))
    expect(own.map(({ method, route, status, errorCode, model }) => [method, route, status, errorCode, model])).toEqual([
      ['GET', '/v1/models/:model', 200, undefined, undefined],
      ['GET', 'other', 404, 'not_found', undefined],
      ['POST', '/v1/completions', 200, undefined, 'tiny-storyteller'],
      ['POST', '/v1/completions', 400, 'invalid_value', undefined],
    ])
    expect(own[2]).toMatchObject({ backend: 'cpu', aborted: false, usage: { completionTokens: 3 } })
    for (const { responseBytes, durationMs } of own) {
      expect(responseBytes).toBeGreaterThan(0)
      expect(durationMs).toBeGreaterThan(0)
    }
  })

  it('has a head of its own for HEAD', async () => {
    const response = await fetch(`${fixture.url}/health/live`, { method: 'HEAD' })
    expect(response.status).toBe(200)
    expect(await response.text()).toBe('')
  })
})

it('tells health, version and metrics', async () => {
  for (const path of ['/health', '/health/live', '/health/ready']) expect((await fetch(fixture.url + path)).status).toBe(200)
  expect(((await (await fetch(`${fixture.url}/version`)).json()) as Json).version).toMatch(/^\d+\.\d+\.\d+/)
  const metrics = await fetch(`${fixture.url}/metrics`)
  expect(metrics.headers.get('content-type')).toBe('text/plain; version=0.0.4')
  expect(await metrics.text()).toBe('up 1\n')
})

it('streams to curl, event by event', async () => {
  const { code, stdout } = await curl([
    '-N',
    '-H',
    'content-type: application/json',
    '-d',
    JSON.stringify({ messages: [{ role: 'user', content: 'Hi' }], max_tokens: 4, temperature: 0, ignore_eos: true, stream: true }),
    `${fixture.url}/v1/chat/completions`,
  ])
  expect(code).toBe(0)
  expect(stdout.trimEnd().endsWith('data: [DONE]')).toBe(true)
  expect(stdout.match(/^data: \{/gm)!.length).toBeGreaterThanOrEqual(3)
})

it('answers without a socket, too', async () => {
  const request = (path: string, init?: RequestInit): Promise<Response> => fixture.server.fetch(new Request(`http://any${path}`, init))
  const post = (body: object) => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
  expect((await request('/health')).status).toBe(200)
  expect((await request('/nothing')).status).toBe(404)
  const whole = (await (await request('/v1/completions', post({ prompt: 'Once', max_tokens: 5, temperature: 0 }))).json()) as Json
  const streamed = await request('/v1/completions', post({ prompt: 'Once', max_tokens: 5, temperature: 0, stream: true }))
  const text = (await streamed.text()).matchAll(/"text":"([^"]*)"/g)
  expect([...text].map(([, piece]) => piece).join('')).toBe(whole.choices[0].text)
  const left = await request('/v1/completions', post({ prompt: 'Once', max_tokens: 900, ignore_eos: true, stream: true }))
  const reader = left.body!.getReader()
  await reader.read()
  await reader.cancel()
  await until(() => fixture.llm.stats().running + fixture.llm.stats().waiting + fixture.server.pending === 0, 'the end')
})
