/** Hostile requests by name: what each tries, what it gets, and that a neighbour does not notice. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LLM } from '../../lib'
import { createServer, type Server } from '../../lib/server'
import { RawConnection } from '../fuzz/http/raw_connection'
import { inOneOf } from '../support/patience'

const model = join(__dirname, '..', '..', 'models', 'tiny-storyteller')
const LOOPS = '{% for a in messages %}{% for b in messages %}{% for c in messages %}{{ a.content }}{% endfor %}{% endfor %}{% endfor %}'

let folder: string
let llm: LLM
let server: Server
let url: string
let port: number
const errors: unknown[] = []

async function start(path: string): Promise<void> {
  llm = await LLM.load(path, { backend: 'cpu' })
  server = createServer(llm, { modelName: 'm', onError: (error) => errors.push(error) })
  ;({ url, port } = await server.listen({ port: 0 }))
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-hostile-'))
  cpSync(model, folder, { recursive: true })
  const path = join(folder, 'tokenizer_config.json')
  const config = JSON.parse(readFileSync(path, 'utf8')) as { chat_template: string }
  // Chats of more than 20 messages meet the loops.
  writeFileSync(path, JSON.stringify({ ...config, chat_template: `{% if messages | length > 20 %}${LOOPS}{% else %}${config.chat_template}{% endif %}` }))
  rmSync(join(folder, 'chat_template.jinja'), { force: true })
  await start(folder)
})
afterAll(async () => {
  await server.close()
  await llm.close()
  rmSync(folder, { recursive: true, force: true })
  expect(errors).toEqual([])
})

const post = (path: string, body: unknown, init: RequestInit = {}): Promise<Response> =>
  fetch(url + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: typeof body === 'string' ? body : JSON.stringify(body), ...init })
const decent = async (): Promise<void> => {
  const response = await post('/v1/completions', { prompt: 'Once upon a', max_tokens: 2, temperature: 0 })
  expect(await response.text()).toContain('time')
}
async function idle(): Promise<void> {
  // Pages are free when the step that used them last is over.
  await expect.poll(() => ({ pending: server.pending, ...llm.stats() })).toMatchObject({ pending: 0, running: 0, waiting: 0, kv: { usedPages: 0 } })
  llm.check()
}

/** No pause of the event loop is as long as `ms` while `work` runs: in one of some tries, as others may keep the processor for as long. */
async function expectNoPause(ms: number, work: (attempt: number) => Promise<void>): Promise<void> {
  let attempt = 0
  await inOneOf(5, async () => {
    const delay = monitorEventLoopDelay({ resolution: 5 })
    delay.enable()
    try {
      await work(attempt++)
    } finally {
      delay.disable()
    }
    expect(delay.max / 1e6).toBeLessThan(ms)
  })
}

describe('hostile requests by name', () => {
  it('a template of three nested loops is ended, and others are answered meanwhile', async () => {
    const messages = Array.from({ length: 700 }, () => ({ role: 'user', content: 'x' }))
    await expectNoPause(500, async () => {
      const looping = post('/v1/chat/completions', { messages, max_tokens: 1 })
      for (let i = 0; i < 5; i++) await decent()
      const answer = await looping
      expect(answer.status).toBe(400)
      expect(await answer.json()).toMatchObject({ error: { code: 'invalid_value', message: expect.stringContaining('longer than 1000 ms') as string } })
    })
    // The thread that it kept busy serves on.
    const chat = await post('/v1/chat/completions', { messages: [{ role: 'user', content: 'What is 7 plus 5?' }], temperature: 0, max_tokens: 16 })
    expect(await chat.text()).toContain('7 plus 5 is 12.')
  })

  it('JSON of depth 10,000 is refused before anything walks it', async () => {
    for (const text of [`${'['.repeat(10_000)}${']'.repeat(10_000)}`, `{"prompt":"x","user":${'{"a":'.repeat(10_000)}1${'}'.repeat(10_000)}}`]) {
      const answer = await post('/v1/completions', text)
      expect(answer.status).toBe(400)
      expect(await answer.json()).toMatchObject({ error: { code: expect.stringMatching(/json/) as string } })
    }
  })

  it('__proto__ and its like change nothing', async () => {
    const texts = [
      '{"prompt":"Once","max_tokens":1,"__proto__":{"n":64,"stream":true,"polluted":1}}',
      '{"prompt":"Once","max_tokens":1,"constructor":{"prototype":{"polluted":1}}}',
      '{"prompt":"Once","max_tokens":1,"logit_bias":{"__proto__":1}}',
      '{"prompt":"Once","max_tokens":1,"stream_options":{"__proto__":{"include_usage":true}},"stream":true}',
      '{"model":"__proto__","prompt":"Once"}',
    ]
    for (const text of texts) expect((await post('/v1/completions', text)).status, text).toBeLessThan(500)
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
    const first = await post('/v1/completions', texts[0])
    expect(await first.json()).toMatchObject({ choices: [expect.anything() as object], usage: { completion_tokens: 1 } })
  })

  // Another one at each attempt, so that none has been compiled before.
  it.each<[string, (attempt: number) => object]>([
    ['(a+)+b', (attempt) => ({ guided_regex: `(a+)+b${attempt}` })],
    ['an endless repetition', (attempt) => ({ guided_regex: `a{1,1000000000}${attempt}` })],
    ['a recursive $ref', (attempt) => ({ guided_json: { type: 'object', properties: { [`next${attempt}`]: { $ref: '#' } }, required: [`next${attempt}`] } })],
    ['a $ref that leads in a circle', (attempt) => ({ guided_json: { $comment: `${attempt}`, $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } }, $ref: '#/$defs/a' } })],
    ['a $ref to a file', (attempt) => ({ guided_json: { $ref: `file:///etc/passwd#${attempt}` } })],
    ['a grammar that is its own beginning', (attempt) => ({ guided_grammar: `root ::= root "a${attempt}" | root` })],
    ['a schema of a thousand properties', (attempt) => ({ guided_json: { type: 'object', properties: Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`p${i}`, { enum: ['a', 'b', i, `${attempt}`] }])) } })],
  ])('%s is answered, and others are meanwhile', async (_, field) => {
    await expectNoPause(1000, async (attempt) => {
      const asked = post('/v1/completions', { prompt: 'aaa', max_tokens: 8, temperature: 0, ...field(attempt) })
      await decent()
      const answer = await asked
      expect([200, 400]).toContain(answer.status)
      const text = await answer.text()
      expect(text).not.toContain('root:')
      if (answer.status === 400) expect(JSON.parse(text)).toMatchObject({ error: { type: 'invalid_request_error', message: expect.stringMatching(/./) as string } })
    })
    await decent()
  })

  it('a body that comes byte by byte is the same body', async () => {
    const text = JSON.stringify({ prompt: 'Once upon a', max_tokens: 2, temperature: 0 })
    const connection = new RawConnection(port)
    const chunks = Array.from(text, (char) => `1\r\n${char}\r\n`)
    const head = 'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n'
    const answer = await connection.send({ parts: [head, ...chunks, '0\r\n\r\n'], slowly: true })
    connection.close()
    expect(answer.status).toBe(200)
    expect(answer.body).toContain('time')
  })

  it('a client that aborts twice, and one that was gone before, are ended once', async () => {
    const controller = new AbortController()
    const body = { prompt: 'Once upon a time', max_tokens: 500, ignore_eos: true, stream: true }
    const response = await post('/v1/completions', body, { signal: controller.signal })
    const reader = response.body!.getReader()
    await reader.read()
    controller.abort()
    controller.abort()
    await reader.cancel().catch(() => {})
    await expect(post('/v1/completions', body, { signal: controller.signal })).rejects.toThrow(/abort/i)
    await idle()
    // The same without a socket.
    const gone = new AbortController()
    const request = new Request('http://x/v1/completions', { method: 'POST', body: JSON.stringify(body), signal: gone.signal, headers: { 'content-type': 'application/json' } })
    const direct = await server.fetch(request)
    gone.abort()
    gone.abort()
    await direct.body?.cancel().catch(() => {})
    await idle()
    await decent()
  })

  it('a hundred that begin and leave at any moment leave nothing behind', async () => {
    await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const controller = new AbortController()
        setTimeout(() => controller.abort(), (i * 37) % 400)
        const messages = [{ role: 'user', content: 'Tell me a story. '.repeat((i % 5) * 40 + 1) }]
        await post('/v1/chat/completions', { messages, max_tokens: 300, ignore_eos: true, stream: i % 2 === 0, n: (i % 3) + 1 }, { signal: controller.signal })
          .then((response) => response.text())
          .catch(() => undefined)
      }),
    )
    await idle()
    await decent()
  })
})
