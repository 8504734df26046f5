/** What a server tells of requests that come by HTTP. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { LLM } from '../../../../lib'
import { createServer, createTelemetry, type Server, type ServerTelemetry } from '../../../../lib/server'
import { demoModel, temporaryFolder } from '../../tensorrt/fixtures'
import { PATIENTLY } from '../../../support/patience'
import { Exposition } from './exposition'

const folder = temporaryFolder()
let logs = 0
const ends: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end()
})

async function start(): Promise<{ llm: LLM; telemetry: ServerTelemetry; server: Server; url: string; log: string }> {
  const log = join(folder, `${logs++}.log`)
  const llm = await LLM.load(demoModel, { backend: 'cpu', numPages: 512 })
  const telemetry = createTelemetry(llm, { model: 'tiny', gpus: false, accessLog: { path: log } })
  const server = createServer(llm, { modelName: 'tiny', telemetry })
  ends.push(() => llm.close(), () => server.close())
  const { url } = await server.listen({ port: 0 })
  return { llm, telemetry, server, url, log }
}

const scrape = async (url: string): Promise<Exposition> => {
  const response = await fetch(`${url}/metrics`)
  expect(response.status).toBe(200)
  expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8')
  return new Exposition(await response.text())
}

const complete = (url: string, body: object, signal?: AbortSignal): Promise<Response> =>
  fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'tiny', prompt: 'Once upon a time', temperature: 0, ignore_eos: true, ...body }),
    ...(signal === undefined ? {} : { signal }),
  })

describe('a server', () => {
  it('counts what clients were told, streamed and whole, with one prompt and several', async () => {
    const { llm, url, log, server } = await start()
    const bodies = await Promise.all([
      complete(url, { max_tokens: 10 }).then((response) => response.json()),
      complete(url, { max_tokens: 12, n: 2, temperature: 1 }).then((response) => response.json()),
      complete(url, { max_tokens: 7, prompt: ['A cat', 'The dog and the bird'] }).then((response) => response.json()),
    ]) as { usage: { prompt_tokens: number; completion_tokens: number } }[]
    const text = await (await complete(url, { max_tokens: 20, stream: true, stream_options: { include_usage: true } })).text()
    const events = text.split('\n\n').filter((event) => event.startsWith('data: {')).map((event) => JSON.parse(event.slice(6)) as (typeof bodies)[0])
    const all = [...bodies, events.at(-1)!]
    const sum = (name: 'prompt_tokens' | 'completion_tokens'): number => all.reduce((total, { usage }) => total + usage[name], 0)
    expect(sum('completion_tokens')).toBe(10 + 24 + 14 + 20)

    const metrics = await scrape(url)
    expect(metrics.value('vllm:generation_tokens_total')).toBe(sum('completion_tokens'))
    expect(metrics.value('vllm:generation_tokens_total')).toBe(llm.stats().tokens.generated)
    expect(metrics.value('vllm:prompt_tokens_total')).toBe(sum('prompt_tokens'))
    expect(metrics.value('vllm:request_generation_tokens_sum')).toBe(sum('completion_tokens'))
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'length' })).toBe(6)
    expect(metrics.value('vllm:request_params_n_sum')).toBe(1 + 2 + 1 + 1)
    expect(metrics.value('vllm:time_to_first_token_seconds_count')).toBe(6)
    expect(metrics.value('vllm:request_queue_time_seconds_count')).toBe(6)
    expect(metrics.value('node_tensorrt_requests_total', { endpoint: 'completions', outcome: 'finished' })).toBe(4)
    expect(metrics.value('node_tensorrt_requests_in_flight')).toBe(0)
    // The scrape itself is under way.
    expect(metrics.value('node_tensorrt_http_requests_in_flight')).toBe(1)
    expect(metrics.value('node_tensorrt_http_requests_total', { route: '/v1/completions', status: '200' })).toBe(4)

    await server.close()
    const lines = readFileSync(log, 'utf8').trim().split('\n').map((line) => JSON.parse(line) as Record<string, unknown>)
    const served = lines.filter(({ route }) => route === '/v1/completions')
    expect(served).toHaveLength(4)
    for (const line of served) expect(line).toMatchObject({ method: 'POST', status: 200, backend: 'cpu', model: 'tiny', request_id: expect.any(String) as string })
    expect(served.reduce((total, line) => total + (line['completion_tokens'] as number), 0)).toBe(sum('completion_tokens'))
    expect(readFileSync(log, 'utf8')).not.toContain('Once upon')
  })

  it('tells a client that leaves from a request that is wrong, and what is no route', async () => {
    const { url, telemetry } = await start()
    const leaving = new AbortController()
    const response = await complete(url, { max_tokens: 900, stream: true }, leaving.signal)
    await response.body!.getReader().read()
    leaving.abort()
    expect((await complete(url, { max_tokens: -1 })).status).toBe(400)
    expect((await complete(url, { model: 'another' })).status).toBe(404)
    for (let i = 0; i < 100; i++) await (await fetch(`${url}/random/${i}?key=secret`)).arrayBuffer()
    await vi.waitFor(async () => {
      const metrics = await scrape(url)
      expect(metrics.value('node_tensorrt_requests_total', { endpoint: 'completions', outcome: 'aborted' })).toBe(1)
      expect(metrics.value('node_tensorrt_http_aborted_total', { route: '/v1/completions' })).toBe(1)
    }, PATIENTLY)
    const metrics = await scrape(url)
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'abort' })).toBe(1)
    expect(metrics.value('node_tensorrt_requests_admitted_total', { endpoint: 'completions' })).toBe(1)
    expect(metrics.value('node_tensorrt_http_requests_total', { route: '/v1/completions', status: '400' })).toBe(1)
    expect(metrics.value('node_tensorrt_http_requests_total', { route: 'other', method: 'GET', status: '404' })).toBe(100)
    expect(metrics.value('node_tensorrt_http_requests_in_flight')).toBe(1)
    expect((await telemetry.metrics()).body).not.toContain('secret')
  })
})
