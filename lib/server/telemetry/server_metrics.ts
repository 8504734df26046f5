/** What the server does beside the engine: admission, requests, HTTP. */
import { isErrorCode } from '../../errors'
import type { Endpoint, HttpFacts, RefusalReason } from '../seams'
import { HTTP_BUCKETS, LATENCY_BUCKETS } from './buckets'
import { type HistogramFamily, type HistogramSeries, type MetricSet, OTHER, type ScalarFamily, type ScalarSeries } from './series'

export type OutcomeKind = 'finished' | 'aborted' | 'failed' | 'refused'

const ENDPOINTS: readonly Endpoint[] = ['chat', 'completions', 'embeddings']
const OUTCOMES: readonly OutcomeKind[] = ['finished', 'aborted', 'failed', 'refused']
const REFUSALS: readonly RefusalReason[] = ['queue_full', 'sla', 'deadline', 'draining', 'not_ready', 'key_limit']
const METHODS = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])
/** Routes are patterns, and few; a name that is longer is none. */
const MAX_ROUTE_LENGTH = 64

export class ServerMetrics {
  readonly timeToFirstToken: HistogramSeries
  readonly interTokenLatency: HistogramSeries
  readonly queue: HistogramSeries
  private readonly admitted: ScalarFamily
  private readonly refused: ScalarFamily
  private readonly ended: ScalarFamily
  private readonly errors: ScalarFamily
  private readonly inFlight: ScalarSeries
  private readonly httpRequests: ScalarFamily
  private readonly httpSeconds: HistogramFamily
  private readonly httpBytes: ScalarFamily
  private readonly httpAborted: ScalarFamily
  private readonly httpInFlight: ScalarSeries
  /** At most this many routes get series of their own. */
  private readonly routes = new Set<string>()

  constructor(
    set: MetricSet,
    private readonly maxRoutes = 64,
  ) {
    this.admitted = set.counter('node_tensorrt_requests_admitted_total', 'Requests that were let in', ['endpoint'])
    this.refused = set.counter('node_tensorrt_requests_refused_total', 'Requests that admission or the queue turned away, by why', ['reason'])
    this.ended = set.counter('node_tensorrt_requests_total', 'Requests that were let in and have ended; refused: by the queue of the engine', ['endpoint', 'outcome'])
    this.errors = set.counter('node_tensorrt_request_errors_total', 'Requests that failed after they were let in, by error code', ['code'])
    this.inFlight = set.gauge('node_tensorrt_requests_in_flight', 'Requests that were let in and have not ended').series()
    this.queue = set
      .histogram('node_tensorrt_request_queue_seconds', 'Waiting for the first step; finer than vllm:request_queue_time_seconds', LATENCY_BUCKETS)
      .series()
    this.timeToFirstToken = set
      .histogram('node_tensorrt_time_to_first_token_seconds', 'From the request to its first token; finer than vllm:time_to_first_token_seconds', LATENCY_BUCKETS)
      .series()
    this.interTokenLatency = set
      .histogram('node_tensorrt_inter_token_latency_seconds', 'Between tokens of a sequence; finer than vllm:inter_token_latency_seconds', LATENCY_BUCKETS)
      .series()
    this.httpRequests = set.counter('node_tensorrt_http_requests_total', 'Answered HTTP requests', ['method', 'route', 'status'])
    this.httpSeconds = set.histogram('node_tensorrt_http_request_duration_seconds', 'From an HTTP request to the end of its answer', HTTP_BUCKETS, ['route'])
    this.httpBytes = set.counter('node_tensorrt_http_response_bytes_total', 'Bytes of the bodies of answers', ['route'])
    this.httpAborted = set.counter('node_tensorrt_http_aborted_total', 'HTTP requests whose client went away before the end of the answer', ['route'])
    this.httpInFlight = set.gauge('node_tensorrt_http_requests_in_flight', 'HTTP requests that are not answered yet').series()
    // From the start, as a rate needs a zero to begin with.
    for (const endpoint of ENDPOINTS) {
      this.admitted.series(endpoint)
      for (const outcome of OUTCOMES) this.ended.series(endpoint, outcome)
    }
    for (const reason of REFUSALS) this.refused.series(reason)
  }

  begin(endpoint: Endpoint): void {
    this.admitted.series(endpoint).inc()
    this.inFlight.inc()
  }

  end(endpoint: Endpoint, outcome: OutcomeKind, error: Error | undefined): void {
    this.ended.series(endpoint, outcome).inc()
    this.inFlight.inc(-1)
    if (error === undefined) return
    const { code } = error as { code?: unknown }
    this.errors.series(isErrorCode(code) ? code : OTHER).inc()
  }

  refuse(reason: RefusalReason): void {
    this.refused.series(REFUSALS.includes(reason) ? reason : OTHER).inc()
  }

  httpStarted(): void {
    this.httpInFlight.inc()
  }

  http({ method, route: name, status, durationMs, responseBytes, aborted }: HttpFacts): void {
    if (this.httpInFlight.value > 0) this.httpInFlight.inc(-1)
    const route = this.known(name)
    const code = Number.isInteger(status) && status >= 100 && status <= 599 ? String(status) : OTHER
    this.httpRequests.series(METHODS.has(method) ? method : OTHER, route, code).inc()
    this.httpSeconds.series(route).observe(Math.max(0, durationMs) / 1000)
    this.httpBytes.series(route).inc(Math.max(0, responseBytes))
    if (aborted) this.httpAborted.series(route).inc()
  }

  private known(route: string): string {
    if (this.routes.has(route)) return route
    if (this.routes.size >= this.maxRoutes || route.length > MAX_ROUTE_LENGTH) return OTHER
    this.routes.add(route)
    return route
  }
}
