/** A backend that dies under a server, and comes back: what clients, probes, metrics and the access log get to see of it. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { type Executor, type FromExecutorOptions, LLM, type LLMWarning } from '../../lib'
import { fallbackReason } from '../../lib/server/registry'
import { createServer, createTelemetry } from '../../lib/server'
import { eventsOf, type ErrorAnswer, type Json } from '../server/support'
import { PATIENTLY } from '../support/patience'
import { DyingExecutor } from './dying_executor'
import { cpu, expectWhole, tokenizer } from './storyteller'

const NOW = { initialDelayMs: 0, maxDelayMs: 0 }
/** Steps before the death: more than the first request takes, fewer than the long ones. */
const DIES_AT = 60
const SHORT = { prompt: 'Once upon a time', temperature: 0, max_tokens: 4 }
const LONG = { prompt: 'The little fox', temperature: 0, max_tokens: 120, ignore_eos: true }

interface Line {
  request_id: string
  status: number
  backend: string
  error?: string
}

/** The stand-in of a GPU is called mortal, that of the CPU cpu. */
async function world(options: Omit<FromExecutorOptions, 'restart'>) {
  let bringBack!: (executor: Promise<Executor>) => void
  const back = new Promise<Executor>((resolve) => (bringBack = resolve))
  const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-failover-'))
  const log = join(folder, 'access.log')
  const llm = LLM.fromExecutor(new DyingExecutor(await cpu(), DIES_AT), {
    tokenizer,
    onWarning: () => {},
    restart: { create: () => back, ...NOW },
    ...options,
  })
  const telemetry = createTelemetry(llm, { model: 'tiny', accessLog: { path: log }, gpus: false })
  const failures: unknown[] = []
  const server = createServer(llm, { modelName: 'tiny', telemetry, onError: (error) => failures.push(error) })
  const { url } = await server.listen({ port: 0 })
  const post = (id: string, body: object, path = '/v1/completions'): Promise<Response> =>
    fetch(url + path, { method: 'POST', headers: { 'content-type': 'application/json', 'x-request-id': id }, body: JSON.stringify(body) })
  const get = (path: string): Promise<Response> => fetch(url + path)
  return {
    llm,
    post,
    get,
    failures,
    state: (expected: string) => vi.waitFor(() => expect(llm.health().state).toBe(expected), PATIENTLY),
    /** The stand-in of the GPU is there again. */
    bringBack: async () => bringBack(Promise.resolve(new DyingExecutor(await cpu(), Infinity))),
    metric: async (name: string): Promise<number> => {
      const text = await (await get('/metrics')).text()
      const line = text.split('\n').find((one) => one.startsWith(`${name} `))
      return Number(line?.split(' ').at(-1) ?? NaN)
    },
    /** Lines of the access log by request id, once there are so many of them. */
    logged: async (ids: readonly string[]): Promise<Record<string, Line>> => {
      let lines: Line[] = []
      await vi.waitFor(() => {
        lines = readFileSync(log, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line) as Line)
        expect(lines.map(({ request_id: id }) => id)).toEqual(expect.arrayContaining([...ids]))
      }, PATIENTLY)
      return Object.fromEntries(lines.map((line) => [line.request_id, line]))
    },
    close: async () => {
      await server.close()
      await llm.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

type World = Awaited<ReturnType<typeof world>>
const open: World[] = []
async function start(options: Omit<FromExecutorOptions, 'restart'>): Promise<World> {
  const made = await world(options)
  open.push(made)
  return made
}
afterEach(async () => {
  for (const { close } of open.splice(0)) await close()
})

const computedBy = ({ headers }: Response): unknown => ({
  backend: headers.get('x-node-tensorrt-backend'),
  fallback: headers.get('x-node-tensorrt-fallback'),
})
const GPU = { backend: 'mortal', fallback: null }
const CPU = { backend: 'cpu', fallback: 'failover' }

const textOf = async (response: Response): Promise<string> => ((await response.json()) as Json).choices[0].text as string

/** What both long requests come to where nothing dies. */
async function undisturbed(): Promise<string> {
  const llm = LLM.fromExecutor(await cpu(), { tokenizer })
  try {
    return (await llm.generate({ prompt: LONG.prompt, temperature: 0, maxTokens: LONG.max_tokens, ignoreEos: true }).result()).text
  } finally {
    await llm.close()
  }
}

describe('with failover', () => {
  it('no answer is lost, and headers, metrics and log say what computes until the first backend is back', async () => {
    const expected = await undisturbed()
    const w = await start({ failover: () => cpu() })
    const before = await w.post('before', SHORT)
    expect(computedBy(before)).toEqual(GPU)
    const short = await textOf(before)

    // One begins to answer before the death, the other one after it.
    const stream = await w.post('stream', { ...LONG, stream: true })
    const body = await w.post('body', LONG)
    expect(computedBy(stream)).toEqual(GPU)
    const events = eventsOf(await stream.text())
    expect(events.at(-1)).toBe('[DONE]')
    expect(events.flatMap(({ choices = [] }: Json) => choices.map(({ text }: Json) => text)).join('')).toBe(expected)
    expect({ status: body.status, ...(computedBy(body) as object) }).toEqual({ status: 200, ...CPU })
    expect(await textOf(body)).toBe(expected)

    await w.state('fallback')
    const wrong = await w.post('wrong', { ...SHORT, max_tokens: -1 })
    const answers = await Promise.all([
      w.post('during', SHORT),
      w.post('streamed', { ...SHORT, stream: true }),
      w.post('embedded', { input: 'a fox' }, '/v1/embeddings'),
      w.post('tokens', { prompt: 'a fox' }, '/tokenize'),
    ])
    for (const answer of answers) expect({ status: answer.status, ...(computedBy(answer) as object) }, answer.url).toEqual({ status: 200, ...CPU })
    expect(wrong.status).toBe(400)
    expect(await textOf(answers[0])).toBe(short)
    await Promise.all(answers.slice(1).map((answer) => answer.text()))
    expect((await w.get('/health/ready')).status).toBe(200)
    expect(await w.metric('node_tensorrt_backend_state{state="fallback"}')).toBe(1)
    expect(await w.metric('node_tensorrt_backend_state{state="ready"}')).toBe(0)
    expect(await w.metric('node_tensorrt_failovers_total')).toBe(1)
    expect(await (await w.get('/metrics')).text()).toMatch(/^node_tensorrt_backend_info\{backend="cpu",/m)

    await w.bringBack()
    await w.state('ready')
    const after = await w.post('after', SHORT)
    expect(computedBy(after)).toEqual(GPU)
    expect(await textOf(after)).toBe(short)
    expect(await w.metric('node_tensorrt_backend_restarts_total')).toBe(1)
    expect(await w.metric('node_tensorrt_backend_state{state="ready"}')).toBe(1)
    const text = await (await w.get('/metrics')).text()
    expect(text).toMatch(/^node_tensorrt_backend_info\{backend="mortal",/m)
    expect(text).not.toMatch(/^node_tensorrt_backend_info\{backend="cpu",/m)

    const lines = await w.logged(['before', 'stream', 'body', 'during', 'streamed', 'embedded', 'tokens', 'wrong', 'after'])
    const backends = Object.fromEntries(Object.entries(lines).map(([id, { backend }]) => [id, backend]))
    expect(backends).toMatchObject({ before: 'mortal', stream: 'cpu', body: 'cpu', during: 'cpu', streamed: 'cpu', embedded: 'cpu', tokens: 'cpu', after: 'mortal' })
    expect(w.failures).toEqual([])
    await expectWhole(w.llm)
  })
})

describe('without failover', () => {
  it('what runs fails by name, the server says no until the backend is back, and then serves as before', async () => {
    const w = await start({})
    const short = await textOf(await w.post('before', SHORT))
    const stream = await w.post('stream', { ...LONG, stream: true })
    const body = await w.post('body', LONG)
    // It had begun: its status says nothing any more, its last event does.
    expect(stream.status).toBe(200)
    const events = eventsOf(await stream.text())
    expect(events.at(-1)).toMatchObject({ error: { type: 'service_unavailable_error', code: 'backend_unavailable' } })
    expect(events).not.toContain('[DONE]')

    await w.state('restarting')
    for (const answer of [body, await w.post('during', SHORT)]) {
      expect(answer.status).toBe(503)
      expect(answer.headers.get('retry-after')).toMatch(/^\d+$/)
      const { error } = (await answer.json()) as ErrorAnswer
      expect(error).toMatchObject({ type: 'service_unavailable_error', code: 'backend_unavailable' })
      // Words of the device are for the operator.
      expect(error.message).not.toContain('illegal memory access')
    }
    expect((await w.get('/health/ready')).status).toBe(503)
    expect((await w.get('/health/live')).status).toBe(200)
    expect(await w.metric('node_tensorrt_backend_ready')).toBe(0)

    await w.bringBack()
    await w.state('ready')
    expect((await w.get('/health/ready')).status).toBe(200)
    const after = await w.post('after', SHORT)
    expect(computedBy(after)).toEqual(GPU)
    expect(await textOf(after)).toBe(short)
    expect(await w.metric('node_tensorrt_failovers_total')).toBe(0)
    expect(await w.metric('node_tensorrt_backend_restarts_total')).toBe(1)
    const lines = await w.logged(['stream', 'body', 'during', 'after'])
    expect(lines).toMatchObject({
      stream: { status: 200, error: 'backend_unavailable' },
      body: { status: 503, error: 'backend_unavailable' },
      during: { status: 503, error: 'backend_unavailable' },
      after: { status: 200, backend: 'mortal' },
    })
    await expectWhole(w.llm)
  })
})

it.each<[LLMWarning['code'][], string | undefined]>([
  [[], undefined],
  [['CPU_FALLBACK'], 'no-gpu'],
  [['BACKEND_FAILED_OVER'], 'failover'],
  [['BACKEND_FAILED_OVER', 'BACKEND_RESTART_FAILED'], 'failover'],
  [['BACKEND_FAILED_OVER', 'BACKEND_DOWN', 'BACKEND_RESTARTED'], undefined],
  [['BACKEND_RESTARTED', 'BACKEND_FAILED_OVER'], 'failover'],
  // A CPU that came back is no GPU.
  [['CPU_FALLBACK', 'BACKEND_DOWN', 'BACKEND_RESTARTED'], 'no-gpu'],
])('after %j the reason of the fallback is %s', (codes, reason) => {
  expect(fallbackReason(codes.map((code) => ({ code })))).toBe(reason)
})
