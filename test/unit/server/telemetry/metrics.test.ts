/** Metrics of requests that a real model runs: names, buckets and counts. */
import { register } from 'prom-client'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { LLM } from '../../../../lib'
import { createServer, createSlaAdmission, createTelemetry, type ServerTelemetry } from '../../../../lib/server'
import { HashExecutor } from '../../../../examples/custom-executor/hash_executor'
import { DyingExecutor } from '../../../fault/dying_executor'
import { cpu, tokenizer } from '../../../fault/storyteller'
import { GatedExecutor } from '../../../support/gated_executor'
import { PATIENTLY } from '../../../support/patience'
import '../../matchers'
import { demoModel, failure } from '../../tensorrt/fixtures'
import { Exposition } from './exposition'
import { httpFacts, requestFacts } from '../../../support/request_facts'
import { serve, stream } from './facts'
import { VLLM_METRICS } from './vllm'

const open: { close(): Promise<unknown> }[] = []
afterEach(async () => {
  for (const it of open.splice(0).reverse()) await it.close()
})

async function start(options: Parameters<typeof LLM.load>[1] = {}): Promise<{ llm: LLM; telemetry: ServerTelemetry }> {
  const llm = await LLM.load(demoModel, { backend: 'cpu', numPages: 256, ...options })
  open.push(llm)
  return { llm, telemetry: observe(llm) }
}

function observe(llm: LLM): ServerTelemetry {
  const telemetry = createTelemetry(llm, { model: 'tiny', tracing: false, gpus: false })
  open.push(telemetry)
  return telemetry
}

async function read(telemetry: ServerTelemetry): Promise<Exposition> {
  const { contentType, body } = await telemetry.metrics()
  expect(contentType).toBe('text/plain; version=0.0.4; charset=utf-8')
  return new Exposition(body)
}

const LABELS = { model_name: 'tiny', engine: '0' }

describe("vLLM's metrics", () => {
  it('have its names, types, labels and buckets', async () => {
    const { llm, telemetry } = await start()
    expect(llm.info.maxPositions).toBe(1024)
    const { families } = await read(telemetry)
    for (const { name, type, labels = {}, buckets } of VLLM_METRICS) {
      const family = families.get(`vllm:${name}`)
      expect(family, name).toMatchObject({ type })
      const expected = Object.entries(labels).reduce(
        (combined, [label, values]) => combined.flatMap((before) => values.map((value) => ({ ...before, [label]: value }))),
        [LABELS as Record<string, string>],
      )
      const wanted =
        buckets === undefined
          ? expected
          : [...buckets, '+Inf'].map((le) => ({ ...LABELS, le })).concat(LABELS as never, LABELS as never)
      expect(family!.samples.map((sample) => ({ ...sample.labels })), name).toEqual(wanted)
    }
    expect([...families.keys()].filter((name) => name.startsWith('vllm:')).sort()).toEqual(
      [...VLLM_METRICS.map(({ name }) => `vllm:${name}`), 'vllm:cache_config_info'].sort(),
    )
    expect(families.get('vllm:cache_config_info')!.samples).toMatchObject([
      { labels: { engine: '0', block_size: '16', num_gpu_blocks: '256' }, value: 1 },
    ])
    expect(await register.metrics()).toBe('\n')
  })

  it('count what the engine ran, and what requests were given', async () => {
    const { llm, telemetry } = await start()
    const before = await read(telemetry)
    expect(before.value('vllm:generation_tokens_total')).toBe(0)
    const results = await Promise.all(
      Array.from({ length: 12 }, (_, i) =>
        serve(telemetry, llm, { prompt: `Once upon a time, there were ${i} snails`, maxTokens: 10 + i, ignoreEos: true }),
      ),
    )
    const generated = results.map(({ usage }) => usage.completionTokens)
    const prompts = results.map(({ usage }) => usage.promptTokens)
    const sum = (values: number[]): number => values.reduce((total, value) => total + value, 0)
    expect(sum(generated)).toBe(12 * 10 + 66)
    const stats = llm.stats()
    const metrics = await read(telemetry)
    const value = (name: string, labels: Record<string, string> = {}): number => metrics.value(`vllm:${name}`, labels)
    expect(value('generation_tokens_total')).toBe(sum(generated))
    expect(value('generation_tokens_total')).toBe(stats.tokens.generated)
    expect(value('prompt_tokens_total')).toBe(sum(prompts))
    expect(value('request_success_total', { finished_reason: 'length' })).toBe(12)
    expect(value('request_success_total', { finished_reason: 'stop' })).toBe(0)
    expect(value('request_generation_tokens_sum')).toBe(sum(generated))
    expect(value('request_prompt_tokens_sum')).toBe(sum(prompts))
    expect(value('request_params_max_tokens_sum')).toBe(12 * 10 + 66)
    expect(value('request_max_num_generation_tokens_sum')).toBe(sum(generated))
    expect(value('request_params_n_sum')).toBe(12)
    expect(value('time_to_first_token_seconds_count')).toBe(12)
    // Between n tokens there are n - 1 gaps.
    expect(value('inter_token_latency_seconds_count')).toBe(sum(generated) - 12)
    expect(value('inter_token_latency_seconds_sum')).toBeCloseTo(value('request_decode_time_seconds_sum'), 6)
    expect(value('e2e_request_latency_seconds_sum')).toBeCloseTo(
      value('request_queue_time_seconds_sum') + value('request_inference_time_seconds_sum'),
      6,
    )
    expect(value('request_inference_time_seconds_sum')).toBeCloseTo(
      value('request_prefill_time_seconds_sum') + value('request_decode_time_seconds_sum'),
      6,
    )
    // Within what the library itself has measured, but for the time that the stream took.
    const ttft = sum(results.map(({ timings }) => timings.ttftMs)) / 1000
    expect(value('time_to_first_token_seconds_sum')).toBeGreaterThan(ttft * 0.9)
    expect(value('iteration_tokens_total_count')).toBe(stats.steps.completed)
    expect(value('iteration_tokens_total_sum')).toBe(stats.tokens.prefill + stats.tokens.decode)
    expect(value('kv_cache_usage_perc')).toBe(stats.kv.usedPages / stats.kv.totalPages)
    expect(value('prefix_cache_queries_total')).toBe(stats.prefixCache.queriedTokens)
    expect(value('num_requests_running')).toBe(0)
  })

  it('tell cached tokens of prompts from computed ones', async () => {
    const { llm, telemetry } = await start()
    const prompt = 'Once upon a time, there was a little girl named Lily. She loved to play outside in the park.'
    const [first, second] = [
      await serve(telemetry, llm, { prompt, maxTokens: 4 }),
      await serve(telemetry, llm, { prompt, maxTokens: 4 }),
    ]
    expect(first.usage.cachedTokens).toBe(0)
    const { cachedTokens, promptTokens } = second.usage
    expect(cachedTokens).toBeGreaterThan(0)
    const metrics = await read(telemetry)
    expect(metrics.value('vllm:prefix_cache_hits_total')).toBe(cachedTokens)
    expect(metrics.value('vllm:prompt_tokens_cached_total')).toBe(cachedTokens)
    expect(metrics.value('vllm:prompt_tokens_by_source_total', { source: 'local_cache_hit' })).toBe(cachedTokens)
    expect(metrics.value('vllm:prompt_tokens_by_source_total', { source: 'local_compute' })).toBe(2 * promptTokens - cachedTokens)
    expect(metrics.value('vllm:prompt_tokens_total')).toBe(2 * promptTokens)
    expect(metrics.value('vllm:request_prefill_kv_computed_tokens_sum')).toBe(2 * promptTokens - cachedTokens)
  })

  it('count the choices of a request as sequences, and its prompt once', async () => {
    const { llm, telemetry } = await start()
    const { usage } = await serve(telemetry, llm, { prompt: 'Once upon a time', n: 3, maxTokens: 8, temperature: 1, seed: 1, ignoreEos: true })
    const metrics = await read(telemetry)
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'length' })).toBe(3)
    expect(metrics.value('vllm:prompt_tokens_total')).toBe(usage.promptTokens)
    expect(metrics.value('vllm:request_prompt_tokens_sum')).toBe(3 * usage.promptTokens)
    expect(metrics.value('vllm:request_generation_tokens_sum')).toBe(24)
    expect(metrics.value('vllm:request_max_num_generation_tokens_sum')).toBe(8)
    expect(metrics.value('vllm:request_params_n_sum')).toBe(3)
    expect(metrics.value('vllm:time_to_first_token_seconds_count')).toBe(3)
    expect(metrics.value('node_tensorrt_requests_total', { endpoint: 'completions', outcome: 'finished' })).toBe(1)
  })

  it('share the time of tokens that come together out among them', async () => {
    const { telemetry } = await start()
    const request = telemetry.start(requestFacts())
    const before = performance.now()
    request.tokens(0, 3)
    const since = performance.now()
    while (performance.now() - since < 20);
    const least = performance.now() - since
    request.tokens(0, 10)
    const most = performance.now() - before
    const metrics = await read(telemetry)
    expect(metrics.value('vllm:inter_token_latency_seconds_count')).toBe(10)
    const sumMs = metrics.value('vllm:inter_token_latency_seconds_sum') * 1000
    expect(sumMs).toBeGreaterThan(least - 1e-6)
    expect(sumMs).toBeLessThan(most + 1e-6)
    expect(metrics.value('node_tensorrt_inter_token_latency_seconds_count')).toBe(10)
    expect(metrics.value('vllm:time_to_first_token_seconds_count')).toBe(1)
  })

  it('tell the prompts of a request apart', async () => {
    const { telemetry } = await start()
    const request = telemetry.start(requestFacts({ n: 4, promptTokens: 300, promptLengths: [100, 200], maxTokens: 2 }))
    for (const choice of [0, 1, 2, 3]) request.tokens(choice, 2)
    request.end(
      { kind: 'finished', finishReasons: ['stop', 'length', 'length', 'length'], usage: { promptTokens: 300, completionTokens: 8, cachedTokens: 30 } },
      { queueMs: 1 },
    )
    const metrics = await read(telemetry)
    const bucket = (le: string): number => metrics.value('vllm:request_prompt_tokens_bucket', { le })
    expect([bucket('50.0'), bucket('100.0'), bucket('200.0')]).toEqual([0, 2, 4])
    expect(metrics.value('vllm:request_params_n_sum')).toBe(2)
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'stop' })).toBe(1)
    expect(metrics.value('vllm:request_prefill_kv_computed_tokens_sum')).toBeCloseTo(2 * 300 - 2 * 30, 6)
  })
})

describe("a request's end", () => {
  it('is counted once, and nothing after it', async () => {
    const { telemetry } = await start()
    const request = telemetry.start(requestFacts())
    request.tokens(0, 1)
    request.end({ kind: 'aborted' }, { queueMs: 2 })
    request.end({ kind: 'failed', error: new Error('late') }, { queueMs: 2 })
    request.tokens(0, 1)
    const metrics = await read(telemetry)
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'abort' })).toBe(1)
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'error' })).toBe(0)
    expect(metrics.value('vllm:inter_token_latency_seconds_count')).toBe(0)
    expect(metrics.value('vllm:e2e_request_latency_seconds_count')).toBe(0)
    expect(metrics.value('node_tensorrt_requests_total', { endpoint: 'completions', outcome: 'aborted' })).toBe(1)
    expect(metrics.value('node_tensorrt_requests_in_flight')).toBe(0)
  })

  it('is an abort where the client leaves, as the engine sees it, too', async () => {
    const { llm, telemetry } = await start()
    const request = telemetry.start(requestFacts({ promptTokens: 4 }))
    expect((await read(telemetry)).value('node_tensorrt_requests_in_flight')).toBe(1)
    for await (const { index, tokens } of llm.generate({ prompt: 'Once upon a time', maxTokens: 100, ignoreEos: true })) {
      request.tokens(index, tokens.length)
      break
    }
    request.end({ kind: 'aborted' }, { queueMs: undefined })
    const metrics = await read(telemetry)
    expect(metrics.value('node_tensorrt_sequences_total', { outcome: 'aborted' })).toBe(1)
    expect(metrics.value('vllm:prompt_tokens_total')).toBe(4)
  })

  it('tells errors by their codes, those of others as one', async () => {
    const { llm, telemetry } = await start()
    const error = await failure(serve(telemetry, llm, { prompt: 'Once upon a time', maxTokens: 900, ignoreEos: true, timeoutMs: 1 }))
    expect(error).toHaveCode('ERR_TIMEOUT')
    for (let i = 0; i < 5; i++) {
      const odd = Object.assign(new Error('x'), { code: `ODD_${i}` })
      telemetry.start(requestFacts()).end({ kind: 'failed', error: odd }, { queueMs: undefined })
    }
    const { samples } = (await read(telemetry)).family('node_tensorrt_request_errors_total')
    expect(samples.map(({ labels, value }) => [labels['code'], value])).toEqual([
      ['ERR_TIMEOUT', 1],
      ['other', 5],
    ])
  })

  it('by a queue that is full is a refusal, no failure', async () => {
    const executor = new GatedExecutor(await cpu({ maxSlots: 1 }))
    const llm = LLM.fromExecutor(executor, { tokenizer, maxQueue: 1 })
    open.push(llm)
    const telemetry = observe(llm)
    const request = { prompt: 'Once upon a time', maxTokens: 30, ignoreEos: true }
    const first = serve(telemetry, llm, request)
    await vi.waitFor(() => expect(llm.stats().running).toBe(1), PATIENTLY)
    const second = serve(telemetry, llm, request)
    await vi.waitFor(() => expect(llm.stats().waiting).toBe(1), PATIENTLY)
    for (let i = 0; i < 2; i++) expect(await failure(serve(telemetry, llm, request))).toHaveCode('ERR_QUEUE_FULL')
    executor.open()
    await Promise.all([first, second])
    const metrics = await read(telemetry)
    const outcome = (kind: string): number => metrics.value('node_tensorrt_requests_total', { endpoint: 'completions', outcome: kind })
    expect([outcome('refused'), outcome('failed'), outcome('finished')]).toEqual([2, 0, 2])
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'error' })).toBe(0)
    expect(metrics.family('node_tensorrt_request_errors_total').samples).toHaveLength(0)
  })

  it('of embeddings tells no tokens', async () => {
    const { telemetry } = await start()
    const request = telemetry.start(requestFacts({ endpoint: 'embeddings', promptTokens: 12, maxTokens: undefined }))
    request.end({ kind: 'finished', finishReasons: [], usage: { promptTokens: 12, completionTokens: 0, cachedTokens: 0 } }, { queueMs: 3 })
    const metrics = await read(telemetry)
    expect(metrics.value('vllm:prompt_tokens_total')).toBe(12)
    expect(metrics.value('vllm:request_success_total', { finished_reason: 'stop' })).toBe(1)
    expect(metrics.value('vllm:time_to_first_token_seconds_count')).toBe(0)
    expect(metrics.value('vllm:request_decode_time_seconds_count')).toBe(0)
    expect(metrics.value('vllm:e2e_request_latency_seconds_count')).toBe(1)
  })

  it('withstands what no caller should send', async () => {
    const { telemetry } = await start()
    const request = telemetry.start(requestFacts({ n: 2 }))
    for (const [choice, count] of [[2, 1], [-1, 1], [0.5, 1], [NaN, 1], [0, 0], [0, -3], [0, NaN]] as const) request.tokens(choice, count)
    request.end({ kind: 'finished', finishReasons: [], usage: { promptTokens: 0, completionTokens: 0, cachedTokens: 0 } }, { queueMs: undefined })
    const metrics = await read(telemetry)
    expect(metrics.value('vllm:time_to_first_token_seconds_count')).toBe(0)
  })
})

describe('the engine', () => {
  it('tells each step', async () => {
    const { llm, telemetry } = await start()
    await Promise.all([1, 2, 3].map((i) => serve(telemetry, llm, { prompt: `A story of ${i} cats`, maxTokens: 12, ignoreEos: true })))
    const metrics = await read(telemetry)
    const { steps, tokens } = llm.stats()
    const run = (phase: string): number => metrics.value('node_tensorrt_step_run_seconds_count', { phase })
    expect(run('prefill') + run('decode')).toBe(steps.completed)
    expect(run('prefill')).toBeGreaterThan(0)
    const seconds = ['prefill', 'decode'].map((phase) => metrics.value('node_tensorrt_step_run_seconds_sum', { phase }))
    expect((seconds[0]! + seconds[1]!) * 1000).toBeCloseTo(steps.runMs, 3)
    expect(metrics.value('node_tensorrt_step_queue_seconds_sum') * 1000).toBeCloseTo(steps.queueMs, 3)
    for (const part of ['plan', 'pack', 'submit', 'complete', 'emit']) {
      expect(metrics.value('node_tensorrt_step_host_seconds_count', { part })).toBe(steps.completed)
      expect(metrics.value('node_tensorrt_step_host_seconds_sum', { part })).toBeGreaterThan(0)
    }
    expect(metrics.value('node_tensorrt_step_device_seconds_count')).toBe(0)
    expect(metrics.value('node_tensorrt_rows_total', { kind: 'prefill' })).toBe(tokens.prefill)
    expect(metrics.value('node_tensorrt_steps_total')).toBe(steps.submitted)
    const pages = ['free', 'cached', 'used'].map((state) => metrics.value('node_tensorrt_kv_cache_pages', { state }))
    expect(pages.reduce((a, b) => a + b)).toBe(256)
    expect(metrics.value('node_tensorrt_queue_limit_sequences')).toBe(1024)
    expect(metrics.value('node_tensorrt_running_limit_sequences')).toBe(llm.load().maxRunning)
    expect(metrics.value('node_tensorrt_weight_bytes')).toBe(llm.info.weightBytes)
    // A row of logits and one of the residual stream are the least that a step computes in.
    expect(metrics.value('node_tensorrt_workspace_bytes')).toBe(llm.info.workspaceBytes)
    expect(llm.info.workspaceBytes).toBeGreaterThan(4 * (llm.info.vocabSize + llm.info.hiddenSize!))
    expect(metrics.value('node_tensorrt_backend_info', { backend: 'cpu', device: llm.info.device })).toBe(1)
    expect(metrics.value('node_tensorrt_backend_state', { state: 'ready' })).toBe(1)
  })

  it('does not tell of what ran before, such as a warm-up', async () => {
    const llm = await LLM.load(demoModel, { backend: 'cpu', numPages: 256 })
    open.push(llm)
    await llm.generate({ prompt: 'Once upon a time', maxTokens: 8, ignoreEos: true }).result()
    const telemetry = observe(llm)
    await serve(telemetry, llm, { prompt: 'Once upon a time', maxTokens: 5, ignoreEos: true })
    const metrics = await read(telemetry)
    expect(llm.stats().tokens.generated).toBe(13)
    expect(metrics.value('vllm:generation_tokens_total')).toBe(5)
    expect(metrics.value('node_tensorrt_sequences_total', { outcome: 'finished' })).toBe(1)
    expect(metrics.value('node_tensorrt_steps_total')).toBe(metrics.value('vllm:iteration_tokens_total_count'))
  })

  it('tells of a failover, and goes on counting', async () => {
    const mortal = new DyingExecutor(new HashExecutor(), 5)
    const llm = LLM.fromExecutor(mortal, { failover: () => Promise.resolve(new HashExecutor()), onWarning: () => {} })
    open.push(llm)
    const telemetry = observe(llm)
    expect((await read(telemetry)).value('node_tensorrt_backend_info')).toBe(1)
    const request = telemetry.start(requestFacts({ promptTokens: 3 }))
    const generation = llm.generate({ tokens: [1, 2, 3], maxTokens: 20, ignoreEos: true })
    await stream(request, generation)
    const { usage, finishReason, timings } = await generation.result()
    request.end({ kind: 'finished', finishReasons: [finishReason], usage }, timings)
    const metrics = await read(telemetry)
    expect(metrics.value('node_tensorrt_failovers_total')).toBe(1)
    expect(metrics.value('node_tensorrt_backend_info', { backend: 'hash' })).toBe(1)
    expect(metrics.value('node_tensorrt_backend_state', { state: 'fallback' })).toBe(1)
    expect(metrics.value('node_tensorrt_backend_ready')).toBe(1)
    expect(metrics.value('vllm:generation_tokens_total')).toBe(20)
    // Steps of both backends.
    expect(metrics.value('vllm:iteration_tokens_total_count')).toBe(llm.stats().steps.completed)
  })

  it('tells of its end', async () => {
    const { llm, telemetry } = await start()
    await llm.close()
    const metrics = await read(telemetry)
    expect(metrics.value('node_tensorrt_backend_ready')).toBe(0)
    expect(metrics.value('node_tensorrt_backend_state', { state: 'closed' })).toBe(1)
    expect(metrics.value('node_tensorrt_backend_state', { state: 'ready' })).toBe(0)
  })
})

describe('admission', () => {
  it('tells how what it promised was kept, once it knows', async () => {
    const llm = LLM.fromExecutor(new HashExecutor())
    open.push(llm)
    const admission = createSlaAdmission(llm, { ttftMs: 500, itlMs: 100 })
    const telemetry = createTelemetry(llm, { model: 'm', tracing: false, gpus: false, admission })
    open.push(telemetry)
    expect((await read(telemetry)).family('node_tensorrt_sla_ttft_seconds').samples).toEqual([])
    const decision = admission.admit(requestFacts())
    if (!decision.admitted) throw new Error(decision.message)
    decision.ticket.firstToken()
    decision.ticket.tokens(0, 1)
    decision.ticket.tokens(0, 1)
    decision.ticket.end()
    const metrics = await read(telemetry)
    const { ttftMs, itlMs, correction } = admission.snapshot()
    expect(metrics.value('node_tensorrt_sla_ttft_seconds')).toBe(ttftMs / 1000)
    expect(metrics.value('node_tensorrt_sla_inter_token_latency_seconds')).toBe(itlMs / 1000)
    expect(metrics.value('node_tensorrt_sla_forecast_correction_ratio')).toBe(correction)
  })
})

describe('labels', () => {
  it('are bounded, whatever comes from outside', async () => {
    const { telemetry } = await start()
    const base = (await read(telemetry)).series
    for (let i = 0; i < 3000; i++) {
      const junk = `/${i}/"quoted"\\back\nline\u0000`
      telemetry.http(httpFacts({ route: junk, method: `M${i}`, status: i, model: junk, requestId: junk, errorCode: junk }))
      telemetry.refused(requestFacts({ id: junk, model: junk }), (i % 2 === 0 ? 'sla' : junk) as never)
      telemetry.start(requestFacts({ id: junk, model: junk })).end({ kind: 'failed', error: new Error(junk) }, { queueMs: undefined })
    }
    const metrics = await read(telemetry)
    const { samples } = metrics.family('node_tensorrt_http_requests_total')
    expect(new Set(samples.map(({ labels }) => labels['route'])).size).toBeLessThanOrEqual(65)
    expect(new Set(samples.map(({ labels }) => labels['method'])).size).toBe(1)
    expect(samples.length).toBeLessThanOrEqual(513)
    expect(samples.reduce((sum, { value }) => sum + value, 0)).toBe(3000)
    expect(metrics.series - base).toBeLessThan(3000)
    expect(metrics.value('node_tensorrt_requests_refused_total', { reason: 'other' })).toBe(1500)
    // The same again makes no more.
    const { series } = metrics
    for (let i = 0; i < 3000; i++) telemetry.http(httpFacts({ route: `/${i}`, status: 200 + (i % 300) }))
    expect((await read(telemetry)).series - series).toBeLessThan(300)
  })

  it('escape what a model is called', async () => {
    const llm = LLM.fromExecutor(new HashExecutor())
    open.push(llm)
    const model = 'a "model"\\of\nmine'
    const telemetry = createTelemetry(llm, { model, engine: '1', tracing: false, gpus: false })
    open.push(telemetry)
    expect((await read(telemetry)).value('vllm:num_requests_running', { model_name: model, engine: '1' })).toBe(0)
  })
})

describe('HTTP', () => {
  it('is counted by route and status, and what is under way', async () => {
    const { telemetry } = await start()
    telemetry.httpStarted()
    telemetry.httpStarted()
    expect((await read(telemetry)).value('node_tensorrt_http_requests_in_flight')).toBe(2)
    telemetry.http(httpFacts({ durationMs: 3, responseBytes: 10 }))
    telemetry.http(httpFacts({ status: 429, durationMs: 1, responseBytes: 5, aborted: true }))
    const metrics = await read(telemetry)
    expect(metrics.value('node_tensorrt_http_requests_in_flight')).toBe(0)
    const route = '/v1/completions'
    expect(metrics.value('node_tensorrt_http_requests_total', { method: 'POST', route, status: '429' })).toBe(1)
    expect(metrics.value('node_tensorrt_http_request_duration_seconds_sum', { route })).toBeCloseTo(0.004, 9)
    expect(metrics.value('node_tensorrt_http_response_bytes_total', { route })).toBe(15)
    expect(metrics.value('node_tensorrt_http_aborted_total', { route })).toBe(1)
  })
})

describe('createTelemetry', () => {
  it('checks its options', () => {
    const llm = LLM.fromExecutor(new HashExecutor())
    open.push(llm)
    const bad: [unknown, RegExp][] = [
      [null, /takes an object/],
      [{ model: '' }, /"model"/],
      [{ model: 'm', modell: 1 }, /no option "modell"/],
      [{ model: 'm', accessLog: 'nowhere' }, /"accessLog" must be/],
      [{ model: 'm', accessLog: null }, /"accessLog" must be/],
      [{ model: 'm', accessLog: {} }, /"accessLog.path"/],
      [{ model: 'm', accessLog: { path: '' } }, /"path"/],
      [{ model: 'm', tracing: 1 }, /"tracing"/],
      [{ model: 'm', gpus: 'yes' }, /"gpus"/],
      [{ model: 'm', engine: 5 }, /"engine"/],
      [{ model: 'm', admission: {} }, /"admission" must be/],
      [{ model: 'm', admission: null }, /"admission" must be/],
      [{ model: 'm', onWarning: 'x' }, /"onWarning"/],
    ]
    for (const [options, message] of bad) expect(() => createTelemetry(llm, options as never)).toThrowCode('ERR_INVALID_ARGUMENT', message)
  })

  it('names the model as its server does, unless told otherwise', async () => {
    const llm = LLM.fromExecutor(new HashExecutor())
    open.push(llm)
    const telemetry = createTelemetry(llm, { gpus: false })
    const { data } = (await (await createServer(llm).fetch(new Request('http://x/v1/models'))).json()) as { data: { id: string }[] }
    expect((await telemetry.metrics()).body).toContain(`model_name="${data[0]!.id}"`)
    await telemetry.close()
  })

  it('leaves the observation of steps when it is closed, and can be closed twice', async () => {
    const { llm, telemetry } = await start()
    await Promise.all([telemetry.close(), telemetry.close()])
    await serve(telemetry, llm, { prompt: 'Once upon a time', maxTokens: 3 })
    expect((await read(telemetry)).value('vllm:iteration_tokens_total_count')).toBe(0)
  })

  it('serves several at once, each with its own registry', async () => {
    const { llm, telemetry } = await start()
    const other = observe(llm)
    await serve(telemetry, llm, { prompt: 'Once upon a time', maxTokens: 3 })
    expect((await read(telemetry)).value('node_tensorrt_requests_admitted_total', { endpoint: 'completions' })).toBe(1)
    expect((await read(other)).value('node_tensorrt_requests_admitted_total', { endpoint: 'completions' })).toBe(0)
  })
})
