/** Parts of a caller's own that throw: what they are told of goes on, and what they are asked for fails the one who asks. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LLM } from '../../lib'
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
