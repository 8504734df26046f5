/**
 * A span per request, where `@opentelemetry/api`, which is optional, is installed and the application has set a tracer
 * provider up. Attributes are those of the GenAI semantic conventions; `gen_ai.latency.*` and `gen_ai.request.id` are vLLM's,
 * in seconds. Neither prompts nor outputs are among them.
 */
import type { Attributes, Context, Span, Tracer } from '@opentelemetry/api'
import { version } from '../../version'
import type { Endpoint, RequestFacts, RequestOutcome } from '../seams'
import type { RequestTimes } from './request_telemetry'

type OpenTelemetry = typeof import('@opentelemetry/api')

const OPERATIONS: Record<Endpoint, string> = { chat: 'chat', completions: 'text_completion', embeddings: 'embeddings' }
/** version-traceid-parentid-flags; https://www.w3.org/TR/trace-context/#traceparent-header */
const TRACEPARENT = /^(?:00(?=.{53}$)|(?!00|ff)[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:$|-)/
const MAX_TRACEPARENT_LENGTH = 128
const MAX_TRACESTATE_LENGTH = 512
const EXPORT_FAILED = 'A tracer of OpenTelemetry failed'

/** Hears of one request. Calls never throw. */
export interface RequestSpan {
  firstToken(): void
  end(outcome: RequestOutcome, times: RequestTimes): void
}

export class Tracing {
  private constructor(
    private readonly api: OpenTelemetry,
    private readonly tracer: Tracer,
    private readonly onWarning: (message: string) => void,
  ) {}

  /** @returns undefined where `@opentelemetry/api` is not installed */
  static open(onWarning: (message: string) => void, load: () => unknown = loadApi): Tracing | undefined {
    const api = load() as OpenTelemetry | undefined
    if (api === undefined) return undefined
    return new Tracing(api, api.trace.getTracer('node-tensorrt', version), onWarning)
  }

  /** @returns undefined where nobody listens, or the request is not sampled */
  start(facts: RequestFacts): RequestSpan | undefined {
    const { api } = this
    try {
      const operation = OPERATIONS[facts.endpoint]
      const span = this.tracer.startSpan(
        `${operation} ${facts.model}`,
        { kind: api.SpanKind.SERVER, attributes: requestAttributes(operation, facts) },
        this.parent(facts),
      )
      if (!span.isRecording()) return undefined
      return new OpenSpan(api, span, facts, this.onWarning)
    } catch {
      this.onWarning(EXPORT_FAILED)
      return undefined
    }
  }

  /** The span that is active, such as that of an instrumented HTTP server; else what the caller's headers name. */
  private parent({ traceparent, tracestate }: RequestFacts): Context {
    const { trace, context, createTraceState } = this.api
    const active = context.active()
    if (trace.getSpan(active) !== undefined || traceparent === undefined || traceparent.length > MAX_TRACEPARENT_LENGTH) return active
    const [, traceId, spanId, flags] = TRACEPARENT.exec(traceparent) ?? []
    if (traceId === undefined || spanId === undefined || flags === undefined) return active
    const parent = { traceId, spanId, traceFlags: parseInt(flags, 16) & 1, isRemote: true }
    if (!this.api.isSpanContextValid(parent)) return active
    const state = tracestate !== undefined && tracestate.length <= MAX_TRACESTATE_LENGTH ? { traceState: createTraceState(tracestate) } : {}
    return trace.setSpanContext(active, { ...parent, ...state })
  }
}

function requestAttributes(operation: string, facts: RequestFacts): Attributes {
  return {
    'gen_ai.operation.name': operation,
    'gen_ai.provider.name': 'node_tensorrt',
    'gen_ai.request.model': facts.model,
    'gen_ai.request.id': facts.id,
    ...(facts.maxTokens === undefined ? {} : { 'gen_ai.request.max_tokens': facts.maxTokens }),
    ...(facts.temperature === undefined ? {} : { 'gen_ai.request.temperature': facts.temperature }),
    ...(facts.topP === undefined ? {} : { 'gen_ai.request.top_p': facts.topP }),
    ...(facts.n === 1 ? {} : { 'gen_ai.request.choice.count': facts.n }),
  }
}

function latencies({ queueMs, ttftMs, e2eMs, decodeMs }: RequestTimes): Attributes {
  return {
    'gen_ai.latency.e2e': e2eMs / 1000,
    ...(queueMs === undefined ? {} : { 'gen_ai.latency.time_in_queue': queueMs / 1000 }),
    ...(ttftMs === undefined ? {} : { 'gen_ai.latency.time_to_first_token': ttftMs / 1000 }),
    ...(decodeMs === undefined ? {} : { 'gen_ai.latency.time_in_model_decode': decodeMs / 1000 }),
    ...(queueMs === undefined || ttftMs === undefined
      ? {}
      : { 'gen_ai.latency.time_in_model_prefill': Math.max(0, ttftMs - queueMs) / 1000 }),
    ...(queueMs === undefined || ttftMs === undefined || decodeMs === undefined
      ? {}
      : { 'gen_ai.latency.time_in_model_inference': Math.max(0, ttftMs - queueMs + decodeMs) / 1000 }),
  }
}

class OpenSpan implements RequestSpan {
  constructor(
    private readonly api: OpenTelemetry,
    private readonly span: Span,
    private readonly facts: RequestFacts,
    private readonly onWarning: (message: string) => void,
  ) {}

  firstToken(): void {
    this.quietly(() => this.span.addEvent('gen_ai.first_token'))
  }

  end(outcome: RequestOutcome, times: RequestTimes): void {
    this.quietly(() => {
      const { span } = this
      span.setAttributes({ ...latencies(times), 'gen_ai.response.model': this.facts.model })
      if (outcome.kind === 'finished') {
        const { promptTokens, completionTokens, cachedTokens } = outcome.usage
        span.setAttributes({
          'gen_ai.usage.input_tokens': promptTokens,
          'gen_ai.usage.output_tokens': completionTokens,
          'gen_ai.usage.cache_read.input_tokens': cachedTokens,
          'gen_ai.response.finish_reasons': [...outcome.finishReasons],
        })
      } else {
        this.fail(outcome.kind === 'failed' ? outcome.error : undefined)
      }
      span.end()
    })
  }

  /** The code alone: a message may quote what a client sent. */
  private fail(error: Error | undefined): void {
    const { code } = (error ?? {}) as { code?: unknown }
    const type = error === undefined ? 'cancelled' : typeof code === 'string' ? code : '_OTHER'
    this.span.setAttribute('error.type', type)
    this.span.setStatus({ code: this.api.SpanStatusCode.ERROR, message: type })
  }

  private quietly(call: () => void): void {
    try {
      call()
    } catch {
      this.onWarning(EXPORT_FAILED)
    }
  }
}

function loadApi(): unknown {
  try {
    return require('@opentelemetry/api') as unknown
  } catch (error) {
    if ((error as { code?: unknown }).code === 'MODULE_NOT_FOUND') return undefined
    throw error
  }
}
