/** Requests that come behind another one on its connection: their answers wait, without a socket of their own. */
import { connect, type Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { LLM } from '../../lib'
import type { ServerOptions } from '../../lib/server'
import { cpu, tokenizer } from '../fault/storyteller'
import { GatedExecutor } from '../support/gated_executor'
import { type Fixture, serveLLM, until } from './support'

interface World extends Fixture {
  executor: GatedExecutor
}

const worlds: World[] = []
afterEach(async () => {
  for (const { failures, executor, close } of worlds.splice(0)) {
    expect(failures).toEqual([])
    executor.open()
    await close()
  }
})

/** Nothing runs until the executor's results are let through. */
async function start(options: ServerOptions): Promise<World> {
  const executor = new GatedExecutor(await cpu())
  const world = { ...(await serveLLM(LLM.fromExecutor(executor, { tokenizer }), options)), executor }
  worlds.push(world)
  return world
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
/** Steps in which all others end, and FIRST does not. */
const MOST = 400
/** More than a socket's buffers take at once. */
const LARGE = { n: 8, max_tokens: 40, temperature: 1, logprobs: 20 }

/** Sends requests, and waits until all of them are at the model. */
async function arrive(world: World, bodies: readonly object[]): Promise<Socket> {
  const socket = open(world, bodies)
  await until(() => world.llm.stats().requests.added === bodies.length, 'the requests')
  return socket
}

describe('answers behind another one', () => {
  it.each([
    ['while they run', [FIRST, FIRST, { ...FIRST, stream: false }], 3],
    ['when they are complete', [FIRST, { max_tokens: 2 }, { max_tokens: 2, stream: true }, { ...LARGE, stream: true }, LARGE], 1],
  ])('end with the connection: %s', async (_, bodies, running) => {
    const world = await start({ stallTimeoutMs: 60_000 })
    const socket = await arrive(world, bodies)
    await world.executor.release(MOST)
    expect(world.llm.stats().running).toBe(running)
    expect(world.server.pending).toBe(bodies.length)
    socket.destroy()
    await until(() => world.server.pending === 0, 'the end of all')
    world.executor.open()
    await until(() => world.llm.stats().kv.usedPages === 0, 'free pages')
  })

  it('are not given up while they wait for the one before', async () => {
    const stallTimeoutMs = 1000
    const world = await start({ stallTimeoutMs })
    const bodies = [FIRST, LARGE, { ...LARGE, stream: true }, { max_tokens: 2 }]
    const socket = await arrive(world, bodies)
    let text = ''
    socket.setEncoding('latin1').on('data', (part: string) => (text += part))
    await world.executor.release(MOST)
    expect(world.llm.stats().running).toBe(1)
    // They are complete, and nobody takes them.
    await new Promise((done) => setTimeout(done, 2.5 * stallTimeoutMs))
    expect(world.server.pending).toBe(bodies.length)
    world.executor.open()
    await until(() => world.server.pending === 0, 'the end of all')
    await until(() => text.split('HTTP/1.1 200 OK').length === 5, 'the answers')
    expect(text.split('data: [DONE]').length).toBe(3)
    socket.destroy()
  })
})
