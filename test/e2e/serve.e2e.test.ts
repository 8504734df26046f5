/** `node-tensorrt serve` as its operators meet it: a process, signals, sockets. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer as createNetServer, type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { makeApiKey } from '../../lib/server'
import { type RawAnswer, RawConnection } from '../fuzz/http/raw_connection'
import { execute, type Running, root, start } from './programs'

const main = join(root, 'dist', 'cli', 'main.js')
const KEY = makeApiKey()
const BASE = ['serve', '--backend', 'cpu']

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-serve-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

interface Served extends Running {
  url: string
  port: number
}

const started: Running[] = []
afterEach(async () => {
  for (const { child, ended } of started.splice(0)) {
    child.kill('SIGKILL')
    await ended
  }
})

async function serve(args: string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Served> {
  const running = start([main, ...BASE, ...(args.includes('--port') ? [] : ['--port', '0']), ...args], { env })
  started.push(running)
  let url: string | undefined
  running.child.stderr.on('data', (text: string) => (url ??= /listening at (https?:\/\/\S+?),/.exec(text)?.[1]))
  await running.shows('stderr', /listening at .*\n/)
  return { ...running, url: url!, port: Number(new URL(url!).port) }
}

/** A free port of those that systems give to nobody who asks for any: it is still free a moment later. */
async function quietPort(): Promise<number> {
  for (let port = 20_000 + (process.pid % 8000); ; port++) {
    const listener = createNetServer()
    const free = await new Promise<boolean>((resolve) => listener.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true)))
    if (!free) continue
    await new Promise((resolve) => listener.close(resolve))
    return port
  }
}

const post = (url: string, body: object, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(`${url}/v1/completions`, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) })

const story = (more: object = {}): object => ({ prompt: 'Once upon a time', max_tokens: 200, ignore_eos: true, stream: true, ...more })

/** What a stream comes to: its chunks, and whether it says that it is complete. */
async function readStream(response: Response): Promise<{ chunks: number; done: boolean; error: boolean }> {
  const events = (await response.text()).split('\n\n').filter((event) => event.startsWith('data: '))
  return {
    chunks: events.filter((event) => event.includes('"text"')).length,
    done: events.at(-1) === 'data: [DONE]',
    error: events.some((event) => event.includes('"error"')),
  }
}

/** @param name with its labels, where there are several series of it */
const metric = (text: string, name: string): number => {
  const line = text.split('\n').find((one) => one.startsWith(name) && /^(?:\{[^}]*\})? /.test(one.slice(name.length)))
  return Number(line?.split(' ').at(-1) ?? NaN)
}

describe('serve: start and end', () => {
  it('loads, warms up, listens, answers, and ends with 0 on SIGTERM', async () => {
    const { child, ended, url } = await serve()
    const response = await post(url, { prompt: 'Once upon a', max_tokens: 2, temperature: 0 })
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({ model: 'tiny-storyteller', choices: [{ text: expect.stringContaining('time') as string }] })
    expect((await fetch(`${url}/health/ready`)).status).toBe(200)
    child.kill('SIGTERM')
    const { code, stderr, stdout } = await ended
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' })
    expect(stderr).toMatch(/loading .*tiny-storyteller\n.*loaded in .* on cpu.*\n.*warmed up in .*\n.*listening at http:\/\/127\.0\.0\.1:\d+, with no API key\n.*SIGTERM: taking no more requests\n.*ended\n$/)
  })

  it('listens without a warm-up where it is told to', async () => {
    const { child, ended, url } = await serve(['--no-warm-up'])
    expect((await post(url, { prompt: 'Once upon a', max_tokens: 2 })).status).toBe(200)
    child.kill('SIGTERM')
    const { code, stderr } = await ended
    expect(code).toBe(0)
    expect(stderr).toMatch(/loaded in .*\n.*listening at/)
    expect(stderr).not.toContain('warmed up')
  })

  it('ends on a SIGTERM that comes while its own code is warmed up', async () => {
    const running = start([main, ...BASE, '--port', '0'])
    started.push(running)
    const { child, ended } = running
    await running.shows('stderr', /warmed up in/)
    child.kill('SIGTERM')
    const { code, stderr } = await ended
    // Where it was done by then, it drains.
    expect(stderr).toMatch(/SIGTERM: ending\n|SIGTERM: taking no more requests\n/)
    expect(code).toBe(stderr.includes('SIGTERM: ending') ? 143 : 0)
    expect(stderr).toMatch(/ended\n$/)
  })

  it('lets 100 streams end after SIGTERM, and takes nothing new meanwhile', async () => {
    const { child, ended, url, port } = await serve(['--drain', '60000'])
    const streams = Promise.all(Array.from({ length: 100 }, async () => {
      // Long enough that the first have not all ended when the last is let in.
      const response = await post(url, story({ max_tokens: 400 }))
      expect(response.status).toBe(200)
      return readStream(response)
    }))
    // All of them are let in before the signal comes.
    for (;;) {
      const running = await (await fetch(`${url}/metrics`)).text()
      if (metric(running, 'node_tensorrt_requests_admitted_total{endpoint="completions"}') >= 100) break
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    child.kill('SIGTERM')
    await started.at(-1)!.shows('stderr', /SIGTERM: taking no more requests; \d+ under way/)
    // Connections of their own: idle ones are closed.
    const ask = async (request: string): Promise<RawAnswer> => {
      const connection = new RawConnection(port)
      const answer = await connection.send({ parts: [request] })
      connection.close()
      return answer
    }
    expect((await ask('GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n')).status).toBe(503)
    expect((await ask('GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n')).status).toBe(200)
    const late = await ask('POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{"prompt":"x"}')
    expect(late).toMatchObject({ status: 503, headers: { 'retry-after': expect.stringMatching(/^\d+$/) as string } })
    expect(late.body).toContain('"shutting_down"')
    for (const stream of await streams) expect(stream).toMatchObject({ done: true, error: false })
    expect(await ended).toMatchObject({ code: 0 })
  })

  it('cuts what takes longer than --drain, tells the clients so, and ends with 1', async () => {
    const { child, ended, url } = await serve(['--drain', '100'])
    // The heads of their answers are there, and seconds of work left.
    const streams = await Promise.all(Array.from({ length: 8 }, () => post(url, story({ max_tokens: 1000, n: 8 }))))
    child.kill('SIGTERM')
    for (const stream of await Promise.all(streams.map(readStream))) expect(stream).toMatchObject({ error: true })
    const { code, stderr } = await ended
    expect(code).toBe(1)
    expect(stderr).toMatch(/\d requests were cut off after \d+\.\d s/)
  })

  it('a second signal ends at once', async () => {
    const { child, ended, url, shows } = await serve(['--drain', '100000'])
    const stream = await post(url, story({ max_tokens: 1000, n: 64 }))
    child.kill('SIGTERM')
    await shows('stderr', /taking no more requests/)
    child.kill('SIGINT')
    expect(await readStream(stream)).toMatchObject({ error: true })
    const { code, stderr } = await ended
    expect(code).toBe(130)
    expect(stderr).toContain('SIGINT again: ending at once')
  })

  it('is there again on the same port after kill -9, with streams under way', async () => {
    const first = await serve(['--port', String(await quietPort())])
    const stream = await post(first.url, story({ max_tokens: 1000, n: 64 }))
    first.child.kill('SIGKILL')
    await first.ended
    // The client learns that it broke; it does not wait for ever.
    await expect(stream.text()).rejects.toThrow()
    const second = await serve(['--port', String(first.port)])
    expect(second.port).toBe(first.port)
    expect((await post(second.url, { prompt: 'Once', max_tokens: 1 })).status).toBe(200)
  })

  it('an address that is taken, and a model that is none, end it with a message', async () => {
    const other = createNetServer()
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve))
    const { port } = other.address() as AddressInfo
    try {
      const taken = await execute([main, ...BASE, '--port', String(port)])
      expect(taken.code).toBe(1)
      // At once, and not after a model that may take minutes to load.
      expect(taken.stderr).toMatch(/^node-tensorrt: Listening at 127\.0\.0\.1:\d+ failed: .*EADDRINUSE.*another process listens there.* \[ERR_IO\]\n$/)
    } finally {
      other.close()
    }
    const none = await execute([main, ...BASE, join(folder, 'none')])
    expect(none).toMatchObject({ code: 1 })
    expect(none.stderr).toMatch(/^node-tensorrt: loading .*\n.*\[ERR_MODEL_NOT_FOUND\]\n$/)
  })

  it('warns of an address that others can reach without a key', async () => {
    const open = await serve(['--host', '0.0.0.0'])
    await open.shows('stderr', /WARNING: 0\.0\.0\.0 can be reached from other machines, and no API key is asked for/)
    open.child.kill('SIGTERM')
    await open.ended
    const closed = await serve(['--host', '0.0.0.0'], { NODE_TENSORRT_API_KEY: KEY })
    closed.child.kill('SIGTERM')
    expect((await closed.ended).stderr).not.toContain('WARNING')
  })
})

describe('serve: configuration', () => {
  it('is read from file, variables and flags, and what results is printed', async () => {
    const file = join(folder, 'serve.yaml')
    writeFileSync(file, `port: 1\nmaxQueue: 7\nauth:\n  keys:\n    - { name: alice, sha256: ${'0a'.repeat(32)}, maxConcurrent: 2 }\n`)
    const { code, stdout, stderr } = await execute([main, 'serve', '--config', file, '--max-queue', '9', '--weights', 'weights', '--print-config', 'my-model'], {
      env: { NODE_TENSORRT_SERVE_PORT: '2', NODE_TENSORRT_API_KEY: KEY },
    })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^port: 2$/m)
    expect(stdout).toMatch(/^maxQueue: 9$/m)
    // Wherever the file will be, its paths are those that were given here.
    expect(stdout).toContain(`model: ${resolve('my-model')}\n`)
    expect(stdout).toContain(`weights: ${resolve('weights')}\n`)
    expect(stdout).toContain('name: alice')
    expect(stdout).toContain('name: environment')
    expect(stdout).not.toContain(KEY)
    // What is printed is a configuration again.
    const again = join(folder, 'again.yaml')
    writeFileSync(again, stdout)
    expect((await execute([main, 'serve', '--config', again, '--print-config'])).stdout).toBe(stdout)
  })

  it('that is wrong is a usage error', async () => {
    const { code, stdout, stderr } = await execute([main, 'serve', '--port', 'eighty'])
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain('--port must be an integer from 0 to 65535, not "eighty" [ERR_INVALID_ARGUMENT]')
  })

  it.each<[string, string, number, RegExp]>([
    ['two keys of one name', 'auth: { keys: [{ name: a, sha256: HASH }, { name: a, sha256: OTHER }] }', 2, /"keys" has the name "a" twice/],
    ['a key twice', 'auth: { keys: [{ name: a, sha256: HASH }, { name: b, sha256: HASH }] }', 2, /"keys\[1\]" is the key that "a" is/],
    ['an open route that is none', 'auth: { open: [/metric], keys: [{ name: a, sha256: HASH }] }', 2, /"open" has "\/metric", which is no route \(did you mean "\/metrics"\?\)/],
    ['two models of one name', 'modelName: [a, a]', 2, /"modelName" must be names that differ/],
    ['a name that no path can hold', 'modelName: "a b"', 2, /"modelName" must be names of up to 256 letters/],
    ['a certificate that is none', 'tls: { cert: serve.yaml, key: serve.yaml }', 1, /"tls" cannot be used: /],
    ['metrics at the port of the server', 'port: PORT\nmetrics: { port: PORT }', 1, /Listening at 127\.0\.0\.1:\d+ failed: .*metrics need a port of their own/],
    ['an address that is not of this machine', 'host: 192.0.2.1', 1, /Listening at 192\.0\.2\.1:0 failed: /],
    ['an access log in no folder', 'accessLog: nowhere/access.log', 1, /The access log cannot be written: ENOENT/],
  ])('%s: told before the model is loaded', async (_, text, code, message) => {
    const port = String(await quietPort())
    const file = join(folder, 'serve.yaml')
    writeFileSync(file, text.replaceAll('HASH', 'a'.repeat(64)).replaceAll('OTHER', 'b'.repeat(64)).replaceAll('PORT', port))
    const outcome = await execute([main, 'serve', '--config', file, ...(text.includes('PORT') ? [] : ['--port', '0'])])
    expect(outcome).toMatchObject({ code, stdout: '' })
    expect(outcome.stderr).toMatch(message)
    expect(outcome.stderr).not.toContain('loading')
  })

  it('metrics have a port of their own', async () => {
    const { url, shows, child, ended } = await serve(['--metrics-port', '0'], { NODE_TENSORRT_API_KEY: KEY })
    await shows('stderr', /metrics at (http:\S+)/)
    expect((await fetch(`${url}/metrics`)).status).toBe(401)
    child.kill('SIGTERM')
    const own = /metrics at (http:\S+)/.exec((await ended).stderr)![1]!
    expect(own).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/metrics$/)
  })

  it('key refuses a name that no file of keys could hold', async () => {
    expect(await execute([main, 'key', '--name', 'team a'])).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining('1 to 64 letters') as string })
  })

  it('warns of a variable that is almost a setting', async () => {
    const { code, stderr } = await execute([main, 'serve', '--print-config'], { env: { ...process.env, NODE_TENSORRT_SERVE_MAXQUEUE: '7', NODE_TENSORRT_SERVE_SERVICE_HOST: '10.0.0.1' } })
    expect({ code, stderr }).toEqual({ code: 0, stderr: 'node-tensorrt: WARNING: NODE_TENSORRT_SERVE_MAXQUEUE is no setting; did you mean NODE_TENSORRT_SERVE_MAX_QUEUE?\n' })
  })

  it('key makes keys that serve takes', async () => {
    const made = await execute([main, 'key', '--name', 'bob', '--json'])
    const { key, sha256 } = JSON.parse(made.stdout) as { key: string; sha256: string }
    const hashed = await execute([main, 'key', '--hash', '--json'], { input: `${key}\n` })
    expect(JSON.parse(hashed.stdout)).toEqual({ name: 'default', sha256 })
    const file = join(folder, 'keys.txt')
    writeFileSync(file, `bob sha256:${sha256}\n`)
    const { url } = await serve(['--api-key-file', file])
    expect((await post(url, { prompt: 'x', max_tokens: 1 })).status).toBe(401)
    expect((await post(url, { prompt: 'x', max_tokens: 1 }, { authorization: `Bearer ${key}` })).status).toBe(200)
  })
})

describe('serve: every route is closed without a key', () => {
  const ROUTES: readonly (readonly [string, string])[] = [
    ['GET', '/v1/models'],
    ['GET', '/v1/models/tiny-storyteller'],
    ['POST', '/v1/completions'],
    ['POST', '/v1/chat/completions'],
    ['POST', '/v1/embeddings'],
    ['POST', '/tokenize'],
    ['POST', '/detokenize'],
    ['GET', '/version'],
    ['GET', '/metrics'],
    ['GET', '/health'],
    ['GET', '/'],
    ['GET', '/nothing'],
  ]
  const spellings = (path: string): string[] => [
    path,
    `/${path}`,
    `${path}/`,
    `${path}//`,
    path.toUpperCase(),
    `${path}?key=${KEY}`,
    `${path};`,
    `${path}%00`,
    `${path}%2f`,
    path.replace(/(?<=.)\//, '%2f'),
    path.replace('/', '/%2e/'),
    `/health/live/..${path}`,
    `/health/live/%2e%2e${path}`,
    `/health/live%2f..${path}`,
    `/x/../${path.slice(1)}`,
    `http://other.example${path}`,
  ]
  const KEYS: readonly (readonly [string, string])[] = [
    ['no key', ''],
    ['a wrong key', `authorization: Bearer ${makeApiKey()}\r\n`],
    ['an empty key', 'authorization: Bearer \r\nx-api-key:\r\n'],
    ['a key in a cookie', `cookie: key=${KEY}\r\n`],
    ['another method in a header', 'x-http-method-override: GET\r\nx-original-url: /health/live\r\nx-rewrite-url: /health/live\r\n'],
  ]

  it('however it is spelt', async () => {
    const { port, url } = await serve([], { NODE_TENSORRT_API_KEY: KEY })
    const connection = new RawConnection(port)
    let asked = 0
    for (const [method, path] of ROUTES) {
      for (const spelling of spellings(path)) {
        for (const [what, header] of KEYS) {
          for (const verb of new Set([method, 'GET', 'HEAD', 'OPTIONS', 'DELETE'])) {
            const body = verb === 'POST' ? '{"prompt":"x","max_tokens":1}' : ''
            const head = `${verb} ${spelling} HTTP/1.1\r\nhost: x\r\n${header}content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
            const answer = await connection.send({ parts: [head], head: verb === 'HEAD' })
            asked++
            // A target that is none is refused before anybody asks for keys.
            expect(answer.status === 400 && !spelling.startsWith('/') ? 401 : answer.status, `${what}: ${verb} ${spelling}: ${answer.body}`).toBe(401)
            expect(answer.body).not.toContain(KEY)
          }
        }
      }
    }
    expect(asked).toBeGreaterThan(3000)
    // With a key they answer, and the open routes do without.
    for (const [method, path] of ROUTES.slice(0, 4)) {
      const response = await fetch(url + path, { method, headers: { 'x-api-key': KEY, 'content-type': 'application/json' }, ...(method === 'POST' ? { body: '{}' } : {}) })
      expect([200, 400], path).toContain(response.status)
    }
    for (const path of ['/health/live', '/health/ready']) expect((await fetch(url + path)).status).toBe(200)
    connection.close()
  })
})

describe('serve: clients that are slow, or leave', () => {
  it('a reader of one byte a second loses its stream, and others do not notice', async () => {
    const { port, url } = await serve(['--stall-timeout', '1000'])
    const socket = connect({ port, host: '127.0.0.1' })
    const body = JSON.stringify(story({ max_tokens: 900, n: 64, logprobs: 20 }))
    socket.on('error', () => {})
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
    // Megabytes wait, beyond what the system keeps for a socket.
    socket.pause()
    const reading = setInterval(() => socket.read(1), 1000)
    const startedAt = performance.now()
    for (;;) {
      const text = await (await fetch(`${url}/metrics`)).text()
      if (metric(text, 'node_tensorrt_http_aborted_total') >= 1) break
      expect(performance.now() - startedAt, 'the stream of a reader that takes nothing ends').toBeLessThan(180_000)
      expect((await post(url, { prompt: 'Once', max_tokens: 1 })).status).toBe(200)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    clearInterval(reading)
    socket.destroy()
    await expectIdle(url)
  })

  it.each([
    ['at once', 0, 0],
    ['while it is queued or computes its prompt', 20, 0],
    ['while tokens come', 300, 1],
    ['at the last token', 0, -1],
  ])('one that leaves %s frees all it had', async (_, delayMs, afterBytes) => {
    const { port, url } = await serve(['--max-sequences', '2'])
    await Promise.all(
      Array.from({ length: 12 }, async () => {
        const connection = new RawConnection(port)
        const body = JSON.stringify(story({ prompt: 'Once upon a time there was a fox. '.repeat(20), max_tokens: afterBytes < 0 ? 2 : 300 }))
        const request = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
        if (afterBytes < 0) await connection.send({ parts: [request], leaveAfter: 700 })
        else {
          const sent = connection.send({ parts: [request], ...(afterBytes > 0 ? { leaveAfter: afterBytes } : {}) })
          await new Promise((resolve) => setTimeout(resolve, delayMs))
          connection.close()
          await sent
        }
      }),
    )
    await expectIdle(url)
    expect((await post(url, { prompt: 'Once', max_tokens: 1 })).status).toBe(200)
  })
})

async function expectIdle(url: string): Promise<void> {
  for (let i = 0; ; i++) {
    const text = await (await fetch(`${url}/metrics`)).text()
    const left = [metric(text, 'vllm:num_requests_running'), metric(text, 'vllm:num_requests_waiting'), metric(text, 'node_tensorrt_requests_in_flight')]
    if (left.every((count) => count === 0)) return
    expect(i, `running, waiting and in flight: ${left.join(', ')}`).toBeLessThan(2000)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}
