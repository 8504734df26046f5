/** Spans of requests, by OpenTelemetry's own SDK and its exporter in memory. */
import { context, propagation, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import { InMemorySpanExporter, NodeTracerProvider, type ReadableSpan, SimpleSpanProcessor, TraceIdRatioBasedSampler } from '@opentelemetry/sdk-trace-node'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { LLM, TensorRTError } from '../../../../lib'
import { createTelemetry, type ServerTelemetry } from '../../../../lib/server/telemetry'
import { Tracing } from '../../../../lib/server/telemetry/tracing'
import { demoModel, failure } from '../../tensorrt/fixtures'
import { requestFacts } from '../../../support/request_facts'
import { serve } from './facts'

const TRACE = '0af7651916cd43dd8448eb211c80319c'
const PARENT = 'b7ad6b7169203331'
let exporter: InMemorySpanExporter
let provider: NodeTracerProvider
const open: { close(): Promise<unknown> }[] = []

beforeEach(() => {
  exporter = new InMemorySpanExporter()
  provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
  provider.register()
})
afterEach(async () => {
  for (const it of open.splice(0).reverse()) await it.close()
  await provider.shutdown()
  trace.disable()
  context.disable()
  propagation.disable()
})

async function start(): Promise<{ llm: LLM; telemetry: ServerTelemetry }> {
  const llm = await LLM.load(demoModel, { backend: 'cpu', numPages: 256 })
  const telemetry = createTelemetry(llm, { model: 'tiny', gpus: false })
  open.push(llm, telemetry)
  return { llm, telemetry }
}

function only(): ReadableSpan {
  const spans = exporter.getFinishedSpans()
  expect(spans).toHaveLength(1)
  return spans[0]!
}

const usage = { promptTokens: 5, completionTokens: 2, cachedTokens: 0 }

describe('a span', () => {
  it('tells of a request what the GenAI conventions ask for, and what vLLM tells of its times', async () => {
    const { llm, telemetry } = await start()
    const facts = { temperature: 0.5, topP: 0.9, id: 'req-7', endpoint: 'chat' as const }
    const result = await serve(telemetry, llm, { prompt: 'Once upon a time', maxTokens: 6, ignoreEos: true }, facts)
    const span = only()
    expect(span).toMatchObject({ name: 'chat tiny', kind: SpanKind.SERVER, status: { code: SpanStatusCode.UNSET } })
    expect(span.instrumentationScope.name).toBe('node-tensorrt')
    expect(span.attributes).toMatchObject({
      'gen_ai.operation.name': 'chat',
      'gen_ai.provider.name': 'node_tensorrt',
      'gen_ai.request.model': 'tiny',
      'gen_ai.response.model': 'tiny',
      'gen_ai.request.id': 'req-7',
      'gen_ai.request.max_tokens': 6,
      'gen_ai.request.temperature': 0.5,
      'gen_ai.request.top_p': 0.9,
      'gen_ai.usage.input_tokens': result.usage.promptTokens,
      'gen_ai.usage.output_tokens': 6,
      'gen_ai.usage.cache_read.input_tokens': 0,
      'gen_ai.response.finish_reasons': ['length'],
    })
    const latency = (name: string): number => span.attributes[`gen_ai.latency.${name}`] as number
    expect(latency('time_in_queue')).toBeCloseTo(result.timings.queueMs / 1000, 9)
    expect(latency('time_in_queue') + latency('time_in_model_prefill')).toBeCloseTo(latency('time_to_first_token'), 9)
    expect(latency('time_in_model_prefill') + latency('time_in_model_decode')).toBeCloseTo(latency('time_in_model_inference'), 9)
    expect(latency('e2e')).toBeGreaterThanOrEqual(latency('time_to_first_token') + latency('time_in_model_decode'))
    expect(span.events.map(({ name }) => name)).toEqual(['gen_ai.first_token'])
    expect(JSON.stringify(span.attributes)).not.toContain('Once upon')
    expect(span.attributes).not.toHaveProperty('gen_ai.request.choice.count')
  })

  it('has the status of what went wrong, without words that a client may have written', async () => {
    const { llm, telemetry } = await start()
    const error = await failure(serve(telemetry, llm, { prompt: 'Once upon a time', maxTokens: 900, ignoreEos: true, timeoutMs: 1 }))
    expect((error as TensorRTError).code).toBe('ERR_TIMEOUT')
    telemetry.start(requestFacts({ n: 3 })).end({ kind: 'aborted' }, { queueMs: undefined })
    telemetry.start(requestFacts()).end({ kind: 'failed', error: new Error('my secret prompt') }, { queueMs: undefined })
    const [timeout, abort, other] = exporter.getFinishedSpans()
    expect(timeout).toMatchObject({ status: { code: SpanStatusCode.ERROR, message: 'ERR_TIMEOUT' }, attributes: { 'error.type': 'ERR_TIMEOUT' } })
    expect(abort).toMatchObject({
      status: { code: SpanStatusCode.ERROR, message: 'cancelled' },
      attributes: { 'error.type': 'cancelled', 'gen_ai.request.choice.count': 3 },
    })
    expect(other).toMatchObject({ status: { message: '_OTHER' }, attributes: { 'error.type': '_OTHER' } })
    expect(JSON.stringify(other!.attributes) + JSON.stringify(other!.events)).not.toContain('secret')
  })
})

describe("a span's parent", () => {
  const finish = (telemetry: ServerTelemetry, traceparent: string | undefined, tracestate?: string): ReadableSpan => {
    exporter.reset()
    telemetry.start(requestFacts({ traceparent, tracestate })).end({ kind: 'finished', finishReasons: ['stop'], usage }, { queueMs: 1 })
    return only()
  }

  it("is the caller's", async () => {
    const { telemetry } = await start()
    const span = finish(telemetry, `00-${TRACE}-${PARENT}-01`, 'vendor=1')
    expect(span.spanContext().traceId).toBe(TRACE)
    expect(span.parentSpanContext).toMatchObject({ spanId: PARENT, isRemote: true })
    expect(span.parentSpanContext!.traceState!.get('vendor')).toBe('1')
    // A version to come may have more fields.
    expect(finish(telemetry, `01-${TRACE}-${PARENT}-01-more`).spanContext().traceId).toBe(TRACE)
  })

  it('is none where the header is not what it should be', async () => {
    const { telemetry } = await start()
    const bad = [
      '',
      'junk',
      `00-${TRACE}-${PARENT}`,
      `00-${TRACE}-${PARENT}-01-more`,
      `00-${TRACE.toUpperCase()}-${PARENT}-01`,
      `00-${'0'.repeat(32)}-${PARENT}-01`,
      `00-${TRACE}-${'0'.repeat(16)}-01`,
      `ff-${TRACE}-${PARENT}-01`,
      `00-${TRACE}-${PARENT}-01${'x'.repeat(100_000)}`,
    ]
    for (const traceparent of bad) {
      const span = finish(telemetry, traceparent, 'a=b'.repeat(1000))
      expect(span.parentSpanContext, traceparent.slice(0, 80)).toBeUndefined()
    }
  })

  it('is the active span, where an instrumentation has made one', async () => {
    const { telemetry } = await start()
    const tracer = trace.getTracer('test')
    tracer.startActiveSpan('http', (http) => {
      telemetry.start(requestFacts({ traceparent: `00-${TRACE}-${PARENT}-01` })).end({ kind: 'aborted' }, { queueMs: undefined })
      http.end()
    })
    const [request, http] = exporter.getFinishedSpans()
    expect(request!.parentSpanContext!.spanId).toBe(http!.spanContext().spanId)
  })

  it('decides whether the request is sampled', async () => {
    const { telemetry } = await start()
    for (const [flags, spans] of [['00', 0], ['02', 0], ['03', 1]] as const) {
      telemetry.start(requestFacts({ traceparent: `00-${TRACE}-${PARENT}-${flags}` })).end({ kind: 'aborted' }, { queueMs: undefined })
      expect(exporter.getFinishedSpans(), flags).toHaveLength(spans)
    }
  })
})

describe('tracing', () => {
  it('is nothing without the API, without a provider, where it is off, and where nothing is sampled', async () => {
    expect(Tracing.open(() => {}, () => undefined)).toBeUndefined()
    trace.disable()
    expect(Tracing.open(() => {})!.start(requestFacts())).toBeUndefined()
    const off = createTelemetry((await start()).llm, { model: 'tiny', tracing: false, gpus: false })
    open.push(off)
    off.start(requestFacts()).end({ kind: 'aborted' }, { queueMs: undefined })
    new NodeTracerProvider({ sampler: new TraceIdRatioBasedSampler(0) }).register()
    expect(Tracing.open(() => {})!.start(requestFacts())).toBeUndefined()
    expect(exporter.getFinishedSpans()).toHaveLength(0)
  })

  it('survives a tracer that throws, and a listener that throws when it hears of it', async () => {
    const warnings: string[] = []
    const emitted = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    const onWarning = (message: string): void => {
      warnings.push(message)
      throw new Error('the log is full')
    }
    provider = new NodeTracerProvider({
      spanProcessors: [
        {
          onStart: () => {},
          onEnd: () => {
            throw new Error('the exporter is broken')
          },
          forceFlush: () => Promise.resolve(),
          shutdown: () => Promise.resolve(),
        },
      ],
    })
    trace.disable()
    provider.register()
    const llm = await LLM.load(demoModel, { backend: 'cpu', numPages: 64 })
    const telemetry = createTelemetry(llm, { model: 'tiny', gpus: false, onWarning })
    open.push(llm, telemetry)
    for (let i = 0; i < 3; i++) telemetry.start(requestFacts()).end({ kind: 'aborted' }, { queueMs: undefined })
    expect(warnings).toEqual(['A tracer of OpenTelemetry failed'])
    expect(emitted.mock.calls).toEqual([['onWarning threw: the log is full', 'NodeTensorRTWarning']])
    emitted.mockRestore()
  })
})
