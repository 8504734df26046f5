/** Requests that come behind another one on its connection: their answers wait, without a socket of their own. */
import { connect, type Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import type { ServerOptions } from '../../lib/server'
import { type Fixture, startServer, until } from './support'

const fixtures: Fixture[] = []
afterEach(async () => {
  for (const fixture of fixtures.splice(0)) {
    expect(fixture.failures).toEqual([])
    await fixture.close()
  }
})

async function start(options: ServerOptions): Promise<Fixture> {
  const fixture = await startServer(options)
  fixtures.push(fixture)
  return fixture
}

function post(body: object): string {
  const text = JSON.stringify({ prompt: 'Once upon a time', ignore_eos: true, ...body })
  return `POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
}

function open({ server }: Fixture, bodies: readonly object[]): Socket {
  const socket = connect(server.address!.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(bodies.map(post).join(''))
  return socket
}

/** Runs longer than all others here. */
const FIRST = { max_tokens: 900, stream: true }
/** More than a socket's buffers take at once. */
const LARGE = { n: 8, max_tokens: 40, temperature: 1, logprobs: 20 }

describe('answers behind another one', () => {
  it.each([
    ['while they run', [FIRST, FIRST, { ...FIRST, stream: false }], 3],
    ['when they are complete', [FIRST, { max_tokens: 2 }, { max_tokens: 2, stream: true }, { ...LARGE, stream: true }, LARGE], 1],
  ])('end with the connection: %s', async (_, bodies, running) => {
    const fixture = await start({ stallTimeoutMs: 60_000 })
    const socket = open(fixture, bodies)
    await until(() => fixture.server.pending === bodies.length, 'the requests')
    await until(() => fixture.llm.stats().steps.submitted > 60 && fixture.llm.stats().running === running, 'what is left')
    socket.destroy()
    await until(() => fixture.server.pending === 0, 'the end of all', 5000)
    await until(() => fixture.llm.stats().kv.usedPages === 0, 'free pages', 5000)
  })

  it('are not given up while they wait for the one before', async () => {
    const fixture = await start({ stallTimeoutMs: 100 })
    const socket = open(fixture, [FIRST, LARGE, { ...LARGE, stream: true }, { max_tokens: 2 }])
    let text = ''
    socket.setEncoding('latin1').on('data', (part: string) => (text += part))
    await until(() => fixture.llm.stats().running === 1, 'the first alone')
    const began = performance.now()
    await until(() => fixture.server.pending === 0, 'the end of all')
    // Otherwise they had nothing to wait for.
    expect(performance.now() - began).toBeGreaterThan(250)
    await until(() => text.split('HTTP/1.1 200 OK').length === 5, 'the answers', 5000)
    expect(text.split('data: [DONE]').length).toBe(3)
    socket.destroy()
  })
})
