/** Streams as they are on the wire: the framing is the server's own, so what a client's library would put right must be seen here. */
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { consumeChunks, type GenerationChunk } from '../../lib/llm'
import { LLM } from '../../lib'
import { cpu, tokenizer } from '../fault/storyteller'
import { GatedExecutor } from '../support/gated_executor'
import { failedResult } from '../support/wrapped_executor'
import { eventsOf, type Fixture, type Json, startServer, until } from './support'

let fixture: Fixture
let port: number
beforeAll(async () => {
  fixture = await startServer()
  port = fixture.server.address!.port
})
afterAll(async () => {
  expect(fixture.failures).toEqual([])
  await fixture.close()
})

const PROMPT = 'Ünïcödé — 昔々 🦊, once'
const BODY = { prompt: PROMPT, max_tokens: 16, temperature: 0, ignore_eos: true, stream: true, echo: true }

function post(body: object, { version = '1.1', headers = '' } = {}): string {
  const text = JSON.stringify(body)
  return `POST /v1/completions HTTP/${version}\r\nhost: a\r\n${headers}content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
}

function open(text: string): { socket: Socket; bytes: () => Buffer } {
  const parts: Buffer[] = []
  const socket = connect(port, '127.0.0.1')
  socket.on('data', (part) => parts.push(part))
  socket.on('error', () => {})
  socket.write(text)
  return { socket, bytes: () => Buffer.concat(parts) }
}

/** Takes one chunked answer apart by the rules of RFC 9112, section 7.1, and by nothing else. */
function readChunked(bytes: Buffer, from = 0): { head: string; chunks: string[]; end: number } | undefined {
  const body = bytes.indexOf('\r\n\r\n', from)
  if (body < 0) return undefined
  const chunks: string[] = []
  for (let at = body + 4; ; ) {
    const line = bytes.indexOf('\r\n', at)
    if (line < 0) return undefined
    const size = bytes.toString('latin1', at, line)
    expect(size).toMatch(/^[\da-f]+$/)
    const start = line + 2
    const length = parseInt(size, 16)
    if (bytes.length < start + length + 2) return undefined
    expect(bytes.toString('latin1', start + length, start + length + 2)).toBe('\r\n')
    if (length === 0) return { head: bytes.toString('latin1', from, body), chunks, end: start + 2 }
    chunks.push(bytes.toString('utf8', start, start + length))
    at = start + length + 2
  }
}

const textOf = (events: Json[]): string => events.map((event) => event.choices?.[0]?.text ?? '').join('')

describe('the chunks of a stream', () => {
  it('hold whole events, have the length in bytes, and end', async () => {
    const whole = (await (await fixture.post('/v1/completions', { ...BODY, stream: false })).json()) as Json
    const { socket, bytes } = open(post(BODY))
    await until(() => readChunked(bytes()) !== undefined, 'the answer')
    socket.destroy()
    const { head, chunks, end } = readChunked(bytes())!
    expect(end).toBe(bytes().length)
    expect(head.toLowerCase()).toContain('transfer-encoding: chunked')
    for (const chunk of chunks) expect(chunk.endsWith('\n\n')).toBe(true)
    expect(chunks.length).toBeGreaterThan(3)
    const events = eventsOf(chunks.join(''))
    expect(events.at(-1)).toBe('[DONE]')
    expect(textOf(events)).toBe(whole.choices[0].text)
    expect(textOf(events).startsWith(PROMPT)).toBe(true)
    // The last token's event comes together with the end.
    expect(eventsOf(chunks.at(-1)!)).toHaveLength(2)
  })

  it('leave the connection to the next request, also to one that is there already', async () => {
    const { socket, bytes } = open(post(BODY) + post({ ...BODY, max_tokens: 2 }) + post({ ...BODY, stream: false }, { headers: 'connection: close\r\n' }))
    await new Promise((done) => socket.once('close', done))
    const first = readChunked(bytes())!
    const second = readChunked(bytes(), first.end)!
    expect([first, second].map(({ chunks }) => eventsOf(chunks.join('')).at(-1))).toEqual(['[DONE]', '[DONE]'])
    const last = bytes().toString('utf8', second.end)
    expect(last).toMatch(/^HTTP\/1\.1 200 /)
    expect((JSON.parse(last.slice(last.indexOf('\r\n\r\n') + 4)) as Json).choices[0].text.startsWith(PROMPT)).toBe(true)
  })

  it('are none for a client of HTTP/1.0: the end of the connection is the end', async () => {
    const { socket, bytes } = open(post(BODY, { version: '1.0' }))
    await new Promise((done) => socket.once('close', done))
    const text = bytes().toString('utf8')
    expect(text.toLowerCase()).not.toContain('transfer-encoding')
    const body = text.slice(text.indexOf('\r\n\r\n') + 4)
    expect(body.startsWith('data: {')).toBe(true)
    expect(body.endsWith('data: [DONE]\n\n')).toBe(true)
    expect(textOf(eventsOf(body)).startsWith(PROMPT)).toBe(true)
  })

  it('are as many bytes as the access log says', async () => {
    const streamed = await fixture.post('/v1/completions', BODY)
    const length = Buffer.byteLength(await streamed.text())
    const { socket, bytes } = open(post(BODY))
    await until(() => readChunked(bytes()) !== undefined, 'the answer')
    socket.destroy()
    expect(Buffer.byteLength(readChunked(bytes())!.chunks.join(''))).toBe(length)
  })
})

describe('headers and bodies', () => {
  it('of two values neither is the one that counts', async () => {
    const { socket, bytes } = open(post(BODY, { headers: 'connection: close\r\ncontent-type: text/plain\r\n' }))
    await new Promise((done) => socket.once('close', done))
    expect(bytes().toString('latin1')).toMatch(/^HTTP\/1\.1 415 /)
  })

  it('that are no UTF-8 leave no trace in the next', async () => {
    const bad = [Buffer.from([0x7b, 0xe6]), Buffer.from([0xe6, 0x98]), Buffer.from([0x7b, 0x22, 0xf0, 0x9f, 0xa6])]
    for (const body of bad) {
      const refused = await fetch(`${fixture.url}/tokenize`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: body as never })
      expect(refused.status).toBe(400)
      expect(((await refused.json()) as Json).error.code).toBe('invalid_json')
      const good = await fixture.post('/tokenize', { prompt: PROMPT })
      expect(good.status).toBe(200)
    }
  })

  it('may be in parts of any size', async () => {
    const body = JSON.stringify({ prompt: PROMPT.repeat(300) })
    const expected = await (await fixture.post('/tokenize', body)).text()
    const bytes = Buffer.from(body)
    for (const size of [1000, 4095, 4096, 4097, bytes.length - 1]) {
      async function* parts() {
        for (let at = 0; at < bytes.length; at += size) {
          yield bytes.subarray(at, at + size)
          await new Promise((done) => setImmediate(done))
        }
      }
      const request = { method: 'POST', headers: { 'content-type': 'application/json' }, body: parts(), duplex: 'half' }
      expect(await (await fetch(`${fixture.url}/tokenize`, request as never)).text(), `${size} bytes`).toBe(expected)
    }
  })
})

describe('chunks that a consumer is called with', () => {
  const REQUEST = { prompt: 'Once upon a time', maxTokens: 12, temperature: 0, ignoreEos: true }

  async function gated(): Promise<{ llm: LLM; executor: GatedExecutor }> {
    const executor = new GatedExecutor(await cpu())
    executor.open()
    return { llm: LLM.fromExecutor(executor, { tokenizer }), executor }
  }

  it('are those of the loop, and come in the turn of their step', async () => {
    const { llm, executor } = await gated()
    const expected = await llm.generate(REQUEST).result()
    executor.hold()
    const chunks: GenerationChunk[] = []
    const result = consumeChunks(llm.generate(REQUEST), (chunk) => void chunks.push(chunk))
    await until(() => executor.heldResults > 0, 'a step')
    expect(chunks).toEqual([])
    executor.open()
    // No promise is between a result and those who wait for it.
    expect(chunks.length).toBeGreaterThan(0)
    expect((await result).text).toBe(expected.text)
    expect(chunks.map(({ text }) => text).join('')).toBe(expected.text)
    expect(chunks.at(-1)!.finishReason).toBe('length')
    await llm.close()
  })

  it('are put together while it is busy, and all come before the result', async () => {
    const { llm } = await gated()
    const expected = await llm.generate(REQUEST).result()
    const chunks: GenerationChunk[] = []
    let resume!: () => void
    const generation = llm.generate(REQUEST)
    const result = consumeChunks(generation, (chunk) => {
      chunks.push(chunk)
      return chunks.length === 1 ? new Promise<void>((done) => (resume = done)) : undefined
    })
    let settled = false
    void result.then(() => (settled = true))
    await generation.result()
    expect([chunks.length, settled]).toEqual([1, false])
    resume()
    await result
    expect(chunks).toHaveLength(2)
    expect(chunks.flatMap(({ tokens }) => tokens)).toEqual(expected.tokens)
    await llm.close()
  })

  it.each([
    ['throws', () => { throw new Error('mine') }],
    ['rejects', () => Promise.reject(new Error('mine'))],
  ])('end the request where it %s', async (_, onChunk) => {
    const { llm } = await gated()
    await expect(consumeChunks(llm.generate({ ...REQUEST, maxTokens: 500 }), onChunk)).rejects.toThrow('mine')
    await until(() => llm.stats().running === 0 && llm.stats().kv.usedPages === 0, 'free pages')
    llm.check()
    expect((await llm.generate(REQUEST).result()).tokens).toHaveLength(12)
    await llm.close()
  })

  it('come before the failure that ends them', async () => {
    const { llm, executor } = await gated()
    const chunks: GenerationChunk[] = []
    const failing = consumeChunks(llm.generate({ ...REQUEST, maxTokens: 500 }), (chunk) => {
      chunks.push(chunk)
      executor.change = (result) => failedResult(result, { code: 'ERR_STEP_FAILED', message: 'injected', retryable: false })
      return undefined
    })
    await expect(failing).rejects.toMatchObject({ code: 'ERR_STEP_FAILED' })
    expect(chunks.length).toBeGreaterThan(0)
    await llm.close()
  })

  it('come once', async () => {
    const { llm } = await gated()
    const generation = llm.generate(REQUEST)
    await consumeChunks(generation, () => undefined)
    await expect(consumeChunks(generation, () => undefined)).rejects.toMatchObject({ code: 'ERR_STREAM_CONSUMED' })
    expect(() => generation[Symbol.asyncIterator]()).toThrow('once')
    await llm.close()
  })
})
