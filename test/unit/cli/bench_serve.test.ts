import { once } from 'node:events'
import { connect } from 'node:net'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { apiBase, firstModel, type ServeTarget } from '../../../lib/cli/bench_serve_client'
import { type LoadClient, runServeLoad, type ServeLoadOptions } from '../../../lib/cli/bench_serve_load'
import { overviewOf, pictureOf, tableOf } from '../../../lib/cli/bench_serve_report'
import { PATIENTLY } from '../../support/patience'
import '../matchers'
import { begin, event, type KnownServer, sleep, startKnownServer, tokens } from './bench_serve_server'

let server: KnownServer
beforeEach(async () => {
  server = await startKnownServer()
})
afterEach(() => server.close())

const target = (more: Partial<ServeTarget> = {}): ServeTarget => ({
  base: apiBase(server.url)!,
  endpoint: 'completions',
  model: 'known',
  headers: {},
  exactLengths: true,
  temperature: 0,
  extraBody: {},
  timeoutMs: 20_000,
  ...more,
})
const load = (more: Partial<ServeLoadOptions> = {}) =>
  runServeLoad({
    target: target(),
    seed: 7,
    input: { kind: 'uniform', min: 3, max: 9 },
    output: { kind: 'uniform', min: 5, max: 5 },
    sharedPrefix: 0,
    tokenIds: { min: 100, max: 999 },
    arrivals: { kind: 'gamma', shape: 1 },
    concurrency: 4,
    requests: 12,
    durationSeconds: undefined,
    goodput: {},
    signal: new AbortController().signal,
    ...more,
  })

describe('what is measured', () => {
  it('is what the server did', async () => {
    server.answer = tokens(60, 20)
    const report = await load()
    expect(report).toMatchObject({ requests: 12, completed: 12, failed: 0, aborted: 0, outputTokens: 60, cachedTokens: 36, otherLengths: 0, countedByChunks: 0, rate: null, concurrency: 4 })
    expect(report.promptTokens).toBe(server.asked.reduce((sum, { body }) => sum + body.prompt.length, 0))
    // Timers are never early but for a fraction of a millisecond; how late they are depends on the machine.
    for (const ttft of report.samples.ttftMs) expect(ttft).toBeGreaterThan(58)
    for (const e2e of report.samples.e2eMs) expect(e2e).toBeGreaterThan(60 + 4 * 20 - 6)
    // All outputs are of one length, so means are what they are of sums.
    expect(report.tpotMs.mean).toBeCloseTo((report.e2eMs.mean - report.ttftMs.mean) / 4, 5)
    expect(report.samples.itlMs).toHaveLength(12 * 4)
    // A token that is read late makes the gap before it longer and the one behind it shorter; the end comes after the last token.
    expect(report.itlMs.mean).toBeGreaterThan(8)
    expect(report.itlMs.mean).toBeLessThanOrEqual(report.tpotMs.mean + 1e-6)
    expect(report.client.maxActive).toBe(4)
    expect(report.outputTokensPerSecond).toBeCloseTo(60 / report.seconds, 5)
  })

  it('may be another client than one of a server', async () => {
    const asked: number[] = []
    let closed = false
    const client: LoadClient = {
      active: 1,
      send: ({ promptTokens, outputTokens }) => {
        asked.push(promptTokens.length)
        const now = performance.now()
        const measured = { startedAt: now, endedAt: now + 50, ttftMs: 10, gapsMs: [8, 12] }
        return Promise.resolve({ ...measured, error: undefined, detail: undefined, aborted: false, promptTokens: promptTokens.length, outputTokens, cachedTokens: 1, counted: 'usage' })
      },
      close: () => (closed = true),
    }
    const report = await load({ target: client })
    expect(server.asked).toHaveLength(0)
    expect(report).toMatchObject({ completed: 12, outputTokens: 60, promptTokens: asked.reduce((sum, length) => sum + length, 0), cachedTokens: 12, ttftMs: { p50: 10 }, tpotMs: { p50: 10 }, itlMs: { p50: 8, max: 12 } })
    expect(closed).toBe(true)
  })

  it('counts tokens of a chat but not the chunk with its role', async () => {
    const report = await load({ target: target({ endpoint: 'chat' }), requests: 3 })
    expect(report).toMatchObject({ completed: 3, promptTokens: 21, outputTokens: 15 })
    expect(report.samples.itlMs).toHaveLength(12)
    expect(server.asked[0]!.body.messages).toEqual([{ role: 'user', content: expect.stringMatching(/^(\w+ ){2,8}\w+$/) }])
  })

  it('tells good requests from others', async () => {
    let slow = 0
    server.answer = (response, asked) => tokens(slow++ % 2 === 0 ? 0 : 1500, 0)(response, asked)
    const report = await load({ concurrency: 1, requests: 4, goodput: { ttft: 1400, itl: 10_000, e2e: 20_000 } })
    expect(report.goodShare).toBe(0.5)
    expect(report.goodput).toBeCloseTo(2 / report.seconds, 5)
    server.answer = tokens(0, 60)
    expect((await load({ requests: 4, goodput: { itl: 30 } })).goodShare).toBe(0)
    expect((await load({ requests: 4, goodput: { tpot: 30 } })).goodShare).toBe(0)
    expect((await load({ requests: 4, goodput: { tpot: 5000 } })).goodShare).toBe(1)
  })
})

describe('what is asked', () => {
  it('has the lengths and fields that it should, and is the same for the same seed', async () => {
    await load({ concurrency: 1, target: target({ headers: { authorization: 'Bearer key', 'x-priority': '1' }, extraBody: { top_p: 0.9 } }) })
    const { path, headers, body } = server.asked[0]!
    expect(path).toBe('/v1/completions')
    expect(headers).toMatchObject({ authorization: 'Bearer key', 'x-priority': '1', 'content-type': 'application/json' })
    expect(body).toMatchObject({ model: 'known', max_tokens: 5, min_tokens: 5, ignore_eos: true, stream: true, temperature: 0, top_p: 0.9, stream_options: { include_usage: true } })
    expect(body.prompt.every((id: number) => id >= 100 && id <= 999)).toBe(true)
    const first = server.asked.splice(0).map((asked) => asked.body.prompt)
    await load({ concurrency: 1, rate: 1000, target: target({ exactLengths: false }) })
    // Requests of an open loop may overtake each other on their way.
    const texts = (prompts: unknown[]): string[] => prompts.map((prompt) => JSON.stringify(prompt)).sort()
    expect(texts(server.asked.map((asked) => asked.body.prompt))).toEqual(texts(first))
    expect(server.asked[0]!.body).not.toHaveProperty('ignore_eos')
  })

  it('shares the prefix that it is told to', async () => {
    await load({ sharedPrefix: 0.5, input: { kind: 'uniform', min: 8, max: 8 } })
    const prompts = server.asked.map((asked) => asked.body.prompt as number[])
    expect(new Set(prompts.map((prompt) => prompt.slice(0, 4).join())).size).toBe(1)
    expect(new Set(prompts.map((prompt) => prompt.join())).size).toBe(12)
  })

  it('comes at its rate whatever is in flight', async () => {
    // None is answered before all have come.
    let answerAll: () => void = () => {}
    const all = new Promise<void>((resolve) => (answerAll = resolve))
    server.answer = async (response, asked) => {
      if (server.asked.length === 20) answerAll()
      await all
      await tokens(0, 0)(response, asked)
    }
    const started = performance.now()
    const report = await load({ rate: 50, requests: 20, arrivals: { kind: 'constant' } })
    expect(report.client.maxActive).toBe(20)
    expect(report).toMatchObject({ completed: 20, rate: 50, concurrency: null })
    // 19 intervals of 20 ms, and timers are not early.
    expect(server.asked.at(-1)!.at - started).toBeGreaterThan(19 * 20 - 5)
  })

  it('ends after its duration, and lets end what is in flight', async () => {
    server.answer = tokens(150, 0)
    const report = await load({ requests: undefined, durationSeconds: 0.4, concurrency: 2 })
    expect(report.completed).toBe(report.requests)
    expect(report.requests).toBeGreaterThanOrEqual(2)
    expect(report.requests).toBeLessThanOrEqual(8)
  })
})

describe('servers that do not do as they should', () => {
  it.each<[string, string, KnownServer['answer'], string?]>([
    ['answers 500', 'HTTP 500', (response) => void response.writeHead(500).end('{"error": {"message": "broken"}}'), 'broken'],
    ['answers 429', 'HTTP 429', (response) => void response.writeHead(429, { 'retry-after': '1' }).end('later'), 'later'],
    ['answers without a stream', 'no event stream', (response) => void response.writeHead(200, { 'content-type': 'application/json' }).end('{}')],
    ['cuts the stream', 'stream cut', (response) => {
      begin(response)
      response.write(event({ choices: [{ text: 'a' }] }))
      setTimeout(() => response.destroy(), 20)
    }],
    ['ends the stream early', 'stream cut', (response) => {
      begin(response)
      response.end(event({ choices: [{ text: 'a', finish_reason: null }] }))
    }],
    ['sends garbage', 'malformed stream', (response) => {
      begin(response)
      response.end('data: {"choices": [\n\n')
    }],
    ['sends what is no object', 'malformed stream', (response) => {
      begin(response)
      response.end(event('null'))
    }],
    ['sends no event at all', 'malformed stream', (response) => {
      begin(response)
      response.end('<html>')
    }],
    ['sends an endless event', 'malformed stream', async (response) => {
      begin(response)
      for (let i = 0; i < 100 && !response.destroyed; i++) {
        response.write('data: x'.repeat(20_000))
        await sleep(1)
      }
      response.destroy()
    }],
    ['sends an error in the stream', 'error in stream: server_error', (response) => {
      begin(response)
      response.end(event({ error: { message: 'died', type: 'server_error' } }))
    }, 'died'],
    ['sends no tokens', 'no tokens', (response) => {
      begin(response)
      response.end(event('[DONE]'))
    }],
    ['answers too late', 'timeout', () => {}],
    ['closes the connection', 'connection ECONNRESET', (response) => void response.destroy()],
  ])('%s: counted, and nothing is retried', async (_what, kind, answer, example) => {
    server.answer = answer
    const report = await load({ requests: 3, concurrency: 3, target: target({ timeoutMs: kind === 'timeout' ? 2000 : 20_000 }), goodput: { e2e: 1e6 } })
    expect(report).toMatchObject({ requests: 3, completed: 0, failed: 3, goodShare: 0 })
    expect(Object.keys(report.errors)).toEqual([kind])
    expect(report.errors[kind]!.count).toBe(3)
    if (example !== undefined) expect(report.errors[kind]!.example).toContain(example)
    expect(server.asked).toHaveLength(3)
    expect(tableOf(report, {})).toContain('3 FAILED')
  })

  it('counts a server that is not there', async () => {
    // The near end of a connection has a port on which nobody else can listen, as long as it is open.
    const holder = connect(Number(new URL(server.url).port), '127.0.0.1')
    await once(holder, 'connect')
    const gone = target({ base: apiBase(`http://127.0.0.1:${holder.localPort}`)! })
    const report = await load({ requests: 3, target: gone })
    expect(report.errors['connection ECONNREFUSED']!.count).toBe(3)
    await expect(firstModel(gone.base, {}, new AbortController().signal)).rejects.toHaveCode('ERR_IO', /ECONNREFUSED/)
    holder.destroy()
  })

  it('takes odd but lawful streams: comments, CRLF, other fields, one byte a packet, no usage', async () => {
    const text =
      ': hello\r\n\r\nevent: x\r\nid: 1\r\ndata: {"choices":\r\ndata: [{"text": "é"}]}\r\n\r\n' +
      'data:{"choices":[{"text":"","finish_reason":null}]}\r\n\r\ndata: {"choices":[{"text":"b","finish_reason":"stop"}],"usage":null}\r\n\r\n'
    server.answer = async (response) => {
      begin(response)
      for (const byte of Buffer.from(text)) {
        response.write(Buffer.of(byte))
        await new Promise(setImmediate)
      }
      response.end()
    }
    const report = await load({ requests: 2 })
    expect(report).toMatchObject({ completed: 2, failed: 0, outputTokens: 6, countedByChunks: 2, otherLengths: 2 })
  })

  it('does not mix good and failed requests up', async () => {
    let i = 0
    server.answer = (response, asked) => {
      if (i++ % 3 === 0) response.writeHead(503).end()
      else return tokens(0, 0)(response, asked)
    }
    const report = await load()
    expect(report).toMatchObject({ completed: 8, failed: 4, outputTokens: 40, errors: { 'HTTP 503': { count: 4 } } })
  })
})

describe('an abort', () => {
  it.each([{ rate: undefined }, { rate: 40 }])('breaks off what is in flight and reports what was measured, %j', async (open) => {
    let i = 0
    let done = 0
    server.answer = (response, asked) => (i++ < 4 ? tokens(0, 0)(response, asked) : begin(response))
    const controller = new AbortController()
    const loading = load({ ...open, requests: 100, signal: controller.signal, onProgress: (progress) => (done = progress.done) })
    await vi.waitFor(() => expect(done === 4 && server.asked.length >= 8).toBe(true), PATIENTLY)
    controller.abort()
    const report = await loading
    expect(report).toMatchObject({ completed: 4, failed: 0, interrupted: true })
    expect(report.aborted).toBeGreaterThanOrEqual(4)
    expect(report.aborted + report.completed).toBe(report.requests)
    expect(tableOf(report, {})).toContain('broken off')
  })
})

describe('reports', () => {
  it('say what there is to say, in words and in a picture', async () => {
    const bounds = { ttft: 60_000, itl: 60_000 }
    const one = await load({ rate: 200, goodput: bounds })
    const table = tableOf(one, bounds)
    for (const part of ['200 requests/s: 12 of 12', 'goodput', '100.0% of the requests within ttft <= 60000 ms, itl <= 60000 ms', 'TTFT', 'TPOT', 'ITL', 'E2E', 'this client']) {
      expect(table).toContain(part)
    }
    const two = await load({ rate: 400, goodput: bounds })
    expect(overviewOf([one, two]).trim().split('\n')).toHaveLength(3)
    for (const reports of [[one], [one, two], [await load({ requests: 0 })], []]) {
      const svg = pictureOf(reports, bounds, 'a <model> & "b"')
      expect(svg).toMatch(/^<svg [^]*<\/svg>\n$/)
      expect(svg).toContain('a &#60;model&#62; &#38; &#34;b&#34;')
      expect(svg).not.toMatch(/NaN|Infinity|undefined/)
    }
  })
})
