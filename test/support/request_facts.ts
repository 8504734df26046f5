/** What routes tell of a request and of its answer, for those who listen: admission, telemetry, security. */
import type { HttpFacts, RequestFacts } from '../../lib/server'

export function requestFacts(changes: Partial<RequestFacts> = {}): RequestFacts {
  return {
    id: 'req-1',
    endpoint: 'completions',
    model: 'tiny',
    stream: true,
    n: 1,
    promptTokens: 5,
    maxTokens: undefined,
    priority: 0,
    deadlineMs: undefined,
    keyName: undefined,
    traceparent: undefined,
    tracestate: undefined,
    temperature: undefined,
    topP: undefined,
    ...changes,
  }
}

export function httpFacts(changes: Partial<HttpFacts> = {}): HttpFacts {
  return {
    requestId: 'req-1',
    method: 'POST',
    route: '/v1/completions',
    status: 200,
    durationMs: 12.5,
    responseBytes: 100,
    keyName: undefined,
    model: 'tiny',
    backend: 'cpu',
    errorCode: undefined,
    aborted: false,
    ...changes,
  }
}
