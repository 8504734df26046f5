/** Parts of a caller's own that throw: what they are told of goes on, and what they are asked for fails the one who asks. */
import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { LLM, type TensorRTError } from '../../lib'
import { type Admission, type AdmissionTicket, createServer, type RequestTelemetry, type Security, type ServerOptions, type Telemetry } from '../../lib/server'
import { eventsOf, MODEL } from './support'

let llm: LLM
beforeAll(async () => {
  llm = await LLM.load(MODEL, { backend: 'cpu', threads: 1 })
})
afterAll(() => llm.close())

const throws = (): never => {
  throw new Error('of the part')
}
const ticketed = (ticket: Partial<AdmissionTicket>): Admission => ({
  admit: () => ({ admitted: true, ticket: { firstToken: () => {}, tokens: () => {}, end: () => {}, ...ticket } }),
  retryAfterSeconds: () => 1,
  close: () => {},
})
const telling = (telemetry: Partial<Telemetry>, request: Partial<RequestTelemetry> = {}): Telemetry => ({
  start: () => ({ tokens: () => {}, end: () => {}, ...request }),
  refused: () => {},
  httpStarted: () => {},
  http: () => {},
  metrics: () => Promise.resolve({ contentType: 'text/plain', body: '' }),
  close: () => Promise.resolve(),
  ...telemetry,
})
const claiming: Security = { authenticate: () => ({}), begin: () => ({ release: throws }) }

/** A completion as a whole and one as a stream, from a server that listens. */
async function serveTwo(options: ServerOptions): Promise<{ statuses: number[]; done: boolean[]; ids: string[] }> {
  const ids: string[] = []
  const server = createServer(llm, { onError: (error, id) => ids.push((error as Error).message === 'of the part' ? id : String(error)), ...options })
  const { url } = await server.listen({ port: 0 })
  const statuses: number[] = []
  const done: boolean[] = []
  try {
    for (const stream of [false, true]) {
      const response = await fetch(`${url}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'x-request-id': stream ? 'streamed' : 'whole' },
        body: JSON.stringify({ prompt: 'Once', max_tokens: 12, ignore_eos: true, stream }),
      })
      statuses.push(response.status)
      const text = await response.text()
      done.push(stream ? eventsOf(text).at(-1) === '[DONE]' : (JSON.parse(text) as { usage?: object }).usage !== undefined)
    }
  } finally {
    await server.close()
  }
  return { statuses, done, ids }
}

describe('what a part throws when it is told of a request', () => {
  it.each<[string, ServerOptions]>([
    ["a ticket's firstToken", { admission: ticketed({ firstToken: throws }) }],
    ["a ticket's tokens", { admission: ticketed({ tokens: throws }) }],
    ["a ticket's end", { admission: ticketed({ end: throws }) }],
    ["a claim's release", { security: claiming }],
    ["telemetry's start", { telemetry: telling({ start: throws }) }],
    ["telemetry's http", { telemetry: telling({ http: throws }) }],
    ["a request's tokens", { telemetry: telling({}, { tokens: throws }) }],
    ["a request's end", { telemetry: telling({}, { end: throws }) }],
  ])('goes to onError once, and the request goes on: %s', async (_, options) => {
    expect(await serveTwo(options)).toEqual({ statuses: [200, 200], done: [true, true], ids: ['whole', 'streamed'] })
  })

  it('also where no request is known yet, or it is refused', async () => {
    expect(await serveTwo({ telemetry: telling({ httpStarted: throws }) })).toEqual({ statuses: [200, 200], done: [true, true], ids: ['-', '-'] })
    const refused = { security: { authenticate: () => ({}), begin: () => ({ refusal: { status: 429, code: 'x', message: 'x' } }) } satisfies Security, telemetry: telling({ refused: throws }) }
    expect(await serveTwo(refused)).toEqual({ statuses: [429, 429], done: [false, false], ids: ['whole', 'streamed'] })
  })

  it('does not keep another part from its end', async () => {
    const ended: string[] = []
    const options = {
      admission: ticketed({ end: throws }),
      security: { authenticate: () => ({}), begin: () => ({ release: () => ended.push('claim') }) },
      telemetry: telling({}, { end: ({ kind }) => void ended.push(kind) }),
    } satisfies ServerOptions
    expect((await serveTwo(options)).statuses).toEqual([200, 200])
    expect(ended).toEqual(['claim', 'finished', 'claim', 'finished'])
  })
})

it.each<[string, ServerOptions]>([
  ['authenticate', { security: { authenticate: throws } }],
  ['authenticate, later', { security: { authenticate: () => Promise.reject(new Error('of the part')) } }],
  ['begin', { security: { authenticate: () => ({}), begin: throws } }],
  ['admit', { admission: { ...ticketed({}), admit: throws } }],
])('what a part throws when it is asked fails the request with 500: %s', async (_, options) => {
  expect(await serveTwo(options)).toEqual({ statuses: [500, 500], done: [false, false], ids: ['whole', 'streamed'] })
})

describe('a part that never answers', () => {
  const never = (): Promise<never> => new Promise(() => {})
  interface Told {
    code: string
    message: string
    id: string
  }
  const hung = (options: ServerOptions) => {
    const told: Told[] = []
    const onError = (error: unknown, id: string): void => void told.push({ ...(error as TensorRTError), code: (error as TensorRTError).code, message: (error as Error).message, id })
    return { told, server: createServer(llm, { onError, ...options }) }
  }

  it('has the time of a request, which ends with 504; its connection serves the next', async () => {
    const signals: AbortSignal[] = []
    const security: Security = {
      authenticate: ({ header, signal }) => {
        if (header('x-who') === 'known') return {}
        signals.push(signal)
        return never()
      },
    }
    const { told, server } = hung({ security, limits: { requestTimeoutMs: 40 } })
    const { url } = await server.listen({ port: 0 })
    try {
      const body = JSON.stringify({ prompt: 'Once', max_tokens: 2 })
      for (const [path, method] of [['/v1/completions', 'POST'], ['/v1/models', 'GET'], ['/nothing', 'GET']] as const) {
        const response = await fetch(url + path, { method, headers: { 'content-type': 'application/json', 'x-request-id': path.replaceAll('/', '.') }, ...(method === 'POST' ? { body } : {}) })
        expect(response.status, path).toBe(504)
        expect(response.headers.get('x-should-retry')).toBe('false')
        expect(await response.json()).toMatchObject({ error: { type: 'timeout_error', code: 'timeout', message: 'The request took too long' } })
      }
      expect(told.map(({ code, id }) => [code, id])).toEqual([['ERR_TIMEOUT', '.v1.completions'], ['ERR_TIMEOUT', '.v1.models'], ['ERR_TIMEOUT', '.nothing']])
      expect(told[0]!.message).toContain('authenticate()')
      expect(signals.map(({ aborted }) => aborted)).toEqual([true, true, true])
      await expect.poll(() => server.pending).toBe(0)
      expect((await fetch(`${url}/v1/models`, { headers: { 'x-who': 'known' } })).status).toBe(200)

      const port = Number(new URL(url).port)
      const answers = await new Promise<string>((resolve, reject) => {
        let text = ''
        const socket = connect(port, '127.0.0.1').setEncoding('utf8')
        socket.on('data', (chunk: string) => (text += chunk)).on('error', reject).on('end', () => resolve(text))
        const head = 'HTTP/1.1\r\nhost: x\r\n'
        socket.write(`POST /v1/completions ${head}content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
        socket.write(`GET /v1/models ${head}x-who: known\r\nconnection: close\r\n\r\n`)
      })
      expect(answers.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 504', 'HTTP/1.1 200'])
    } finally {
      await server.close()
    }
  })

  it('is told of once, also where it fails afterwards', async () => {
    let fail: (error: Error) => void
    const { told, server } = hung({ security: { authenticate: () => new Promise((_, reject) => (fail = reject)) }, limits: { requestTimeoutMs: 20 } })
    expect((await server.fetch(new Request('http://x/v1/models'))).status).toBe(504)
    fail!(new Error('late'))
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(told.map(({ code }) => code)).toEqual(['ERR_TIMEOUT'])
    expect(server.pending).toBe(0)
    await server.close()
  })

  it('is given up when the client leaves, and when the server closes, without a word to onError', async () => {
    let asked = 0
    let signal: AbortSignal | undefined
    const { told, server } = hung({ security: { authenticate: (request) => ((signal = request.signal), asked++, never()) } })
    const { url } = await server.listen({ port: 0 })
    const leave = new AbortController()
    const left = fetch(`${url}/v1/models`, { signal: leave.signal })
    await expect.poll(() => asked).toBe(1)
    leave.abort()
    await expect(left).rejects.toThrow()
    await expect.poll(() => server.pending).toBe(0)
    expect(signal!.aborted).toBe(true)

    const stayed = fetch(`${url}/v1/models`)
    await expect.poll(() => asked).toBe(2)
    await server.close()
    expect((await stayed).status).toBe(503)
    expect(told).toEqual([])
  })

  it('takes of the time that generation has', async () => {
    const security: Security = { authenticate: () => new Promise((resolve) => setTimeout(resolve, 60, { limits: { requestTimeoutMs: 50 } })) }
    const { told, server } = hung({ security })
    const body = JSON.stringify({ prompt: 'Once', max_tokens: 900, ignore_eos: true })
    const response = await server.fetch(new Request('http://x/v1/completions', { method: 'POST', headers: { 'content-type': 'application/json' }, body }))
    expect(response.status).toBe(504)
    expect(told).toEqual([])
    await server.close()
  })

  it('of telemetry: /metrics ends with 504', async () => {
    const { told, server } = hung({ telemetry: telling({ metrics: never }), limits: { requestTimeoutMs: 20 } })
    expect((await server.fetch(new Request('http://x/metrics'))).status).toBe(504)
    expect(told.map(({ code }) => code)).toEqual(['ERR_TIMEOUT'])
    await server.close()
  })
})

it('what onError throws is a warning of the process', async () => {
  const warned: string[] = []
  const onWarning = ({ message }: Error): void => void warned.push(message)
  process.on('warning', onWarning)
  try {
    expect((await serveTwo({ security: { authenticate: throws }, onError: throws })).statuses).toEqual([500, 500])
    await expect.poll(() => warned).toEqual(['onError threw: of the part', 'onError threw: of the part'])
  } finally {
    process.off('warning', onWarning)
  }
})

it('telemetry is closed also where admission cannot be', async () => {
  let closed = 0
  const close = (): Promise<void> => Promise.resolve(void closed++)
  const server = createServer(llm, { admission: { ...ticketed({}), close: throws }, telemetry: telling({ close }) })
  await expect(server.close()).rejects.toThrow('of the part')
  expect(closed).toBe(1)
})

it('telemetry that never closes does not hold the server', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  try {
    const server = createServer(llm, { telemetry: telling({ close: () => new Promise(() => {}) }) })
    const closed = expect(server.close()).rejects.toMatchObject({ code: 'ERR_TIMEOUT', message: expect.stringContaining('close() of "telemetry"') as string })
    await vi.advanceTimersByTimeAsync(10_000)
    await closed
    expect(vi.getTimerCount()).toBe(0)
  } finally {
    vi.useRealTimers()
  }
})
