/** Requests as routes tell of them. */
import type { Generation, LLM } from '../../../../lib'
import type { HttpFacts, RequestFacts, RequestTelemetry, Telemetry } from '../../../../lib/server/seams'

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

/** Runs a request as a route does: tokens are told as they come, then its end. */
export async function serve(
  telemetry: Telemetry,
  llm: LLM,
  options: Parameters<LLM['generate']>[0] & { prompt: string },
  changes: Partial<RequestFacts> = {},
): Promise<Awaited<ReturnType<Generation['result']>>> {
  const promptTokens = llm.tokenize(options.prompt).length
  const { n = 1, maxTokens } = options
  const request = telemetry.start(requestFacts({ n, maxTokens, promptTokens, ...changes }))
  const generation = llm.generate(options)
  try {
    await stream(request, generation)
    const result = await generation.result()
    const finishReasons = result.choices.map(({ finishReason }) => finishReason)
    request.end({ kind: 'finished', finishReasons, usage: result.usage }, { queueMs: result.timings.queueMs })
    return result
  } catch (error) {
    request.end({ kind: 'failed', error: error as Error }, { queueMs: undefined })
    throw error
  }
}

export async function stream(request: RequestTelemetry, generation: Generation): Promise<void> {
  for await (const { index, tokens } of generation) request.tokens(index, tokens.length)
}
