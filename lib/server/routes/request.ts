/** What the routes for work have in common: reading a request and telling its facts. */
import { ApiError } from '../errors'
import type { SharedOptions } from '../generation/sampling'
import { readJson } from '../http/body'
import type { Exchange } from '../http/exchange'
import { traceContext } from '../http/request_headers'
import type { ServedModel } from '../registry'
import type { SamplingFields } from '../schemas/fields'
import type { Endpoint, RequestFacts, RequestLimits } from '../seams'
import type { Services } from '../services'

/** The server's limits, and in their place those that the caller has of its own. */
export function limitsOf({ caller }: Exchange, { limits }: Services): RequestLimits {
  if (caller.limits === undefined) return limits
  const own = Object.entries(caller.limits).filter(([, value]) => value !== undefined)
  return { ...limits, ...Object.fromEntries(own) }
}

/** @throws ApiError 400, 404, 408, 413, 415 */
export async function readRequest<T extends { model?: string | undefined }>(
  exchange: Exchange,
  services: Services,
  parse: (body: Record<string, unknown>) => T,
): Promise<{ body: T; served: ServedModel }> {
  const body = parse(await readJson(exchange, limitsOf(exchange, services)))
  const served = services.registry.find(body.model)
  exchange.served = served
  return { body, served }
}

/** @throws ApiError 400 */
export function checkStreaming(body: SamplingFields): { stream: boolean; includeUsage: boolean; continuousUsage: boolean } {
  const stream = body.stream === true
  const { stream_options: options } = body
  if (options !== undefined && !stream) throw ApiError.invalid('stream_options', '"stream_options" goes with "stream": true only')
  if (stream && body.prompt_logprobs !== undefined) {
    throw ApiError.invalid('prompt_logprobs', '"prompt_logprobs" does not go with "stream": true')
  }
  const includeUsage = options?.include_usage === true
  return { stream, includeUsage, continuousUsage: includeUsage && options?.continuous_usage_stats === true }
}

export function factsOf(
  exchange: Exchange,
  served: ServedModel,
  endpoint: Endpoint,
  options: Pick<SharedOptions, 'n' | 'maxTokens' | 'priority' | 'deadlineMs' | 'temperature' | 'topP'>,
  promptTokens: readonly number[],
  stream: boolean,
): RequestFacts {
  const { traceparent, tracestate } = traceContext(exchange)
  return {
    id: exchange.id,
    endpoint,
    model: served.name,
    stream,
    n: (options.n ?? 1) * promptTokens.length,
    promptTokens: promptTokens.reduce((sum, tokens) => sum + tokens, 0),
    promptLengths: promptTokens,
    maxTokens: options.maxTokens,
    priority: options.priority ?? 0,
    deadlineMs: options.deadlineMs,
    waitedMs: performance.now() - exchange.completeAt,
    keyName: exchange.caller.keyName,
    traceparent,
    tracestate,
    temperature: options.temperature,
    topP: options.topP,
  }
}
