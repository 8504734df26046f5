/** A request for work between its admission and its end: what admission and telemetry hear of it. */
import { AbortError, TensorRTError } from '../../errors'
import type { GenerationResult, Usage } from '../../llm'
import { ApiError, refusalError, toApiError } from '../errors'
import type { Exchange } from '../http/exchange'
import type { AdmissionTicket, RefusalReason, RequestFacts, RequestTelemetry, TokenizeFacts } from '../seams'
import type { Services } from '../services'

export class Work {
  private hasTokens = false
  private ended = false

  private constructor(
    private readonly services: Services,
    private readonly exchange: Exchange,
    readonly facts: RequestFacts,
    private readonly ticket: AdmissionTicket | undefined,
    private readonly telemetry: RequestTelemetry | undefined,
    private readonly claim: { release(): void } | undefined,
  ) {}

  /** @throws ApiError where the request is turned away */
  static admit(services: Services, exchange: Exchange, facts: RequestFacts): Work {
    const refuse = (reason: RefusalReason, error: ApiError): never => {
      services.telemetry?.refused(facts, reason)
      throw error
    }
    if (services.draining) refuse('draining', drainingError())
    const claim = claimOf(services, exchange, facts)
    try {
      const decision = services.admission?.admit(facts)
      if (decision?.admitted === false) {
        const { reason, message, retryAfterSeconds } = decision
        const status = reason === 'not_ready' || reason === 'draining' ? 503 : 429
        refuse(reason, refusalError({ status, code: reason, message, retryAfterSeconds }))
      }
      const ticket = decision?.admitted === true ? decision.ticket : undefined
      return new Work(services, exchange, facts, ticket, services.telemetry?.start(facts), claim)
    } catch (error) {
      claim?.release()
      throw error
    }
  }

  tokens(choice: number, count: number): void {
    if (count === 0) return
    if (!this.hasTokens) {
      this.hasTokens = true
      this.ticket?.firstToken()
    }
    this.ticket?.tokens(choice, count)
    this.telemetry?.tokens(choice, count)
  }

  /** All of it was generated. @returns the sum of what was used */
  finish(results: readonly GenerationResult[]): Usage {
    const usage = sumUsage(results)
    const finishReasons = results.flatMap(({ choices }) => choices.map(({ finishReason }) => finishReason))
    const queueMs = Math.max(...results.map(({ timings }) => timings.queueMs))
    if (this.end()) this.telemetry?.end({ kind: 'finished', finishReasons, usage }, { queueMs })
    return usage
  }

  /** All inputs were embedded. */
  embedded({ promptTokens, cachedTokens }: Omit<Usage, 'completionTokens'>): Usage {
    const usage = { promptTokens, completionTokens: 0, cachedTokens }
    if (this.end()) this.telemetry?.end({ kind: 'finished', finishReasons: [], usage }, { queueMs: undefined })
    return usage
  }

  /** @returns what the client is to be told */
  fail(error: unknown): ApiError {
    const retryAfter = isQueueFull(error) ? this.services.admission?.retryAfterSeconds(this.facts) : undefined
    const answer = toApiError(error, retryAfter)
    if (!this.end()) return answer
    const times = { queueMs: undefined }
    if (this.exchange.aborted) this.telemetry?.end({ kind: 'aborted' }, times)
    else {
      const failure = error instanceof Error ? error : new Error(String(error))
      if (isQueueFull(error)) this.services.telemetry?.refused(this.facts, 'queue_full')
      this.telemetry?.end({ kind: 'failed', error: failure }, times)
      if (answer.status === 500) this.services.onError(error, this.exchange.id)
    }
    return answer
  }

  private end(): boolean {
    if (this.ended) return false
    this.ended = true
    this.ticket?.end()
    this.claim?.release()
    return true
  }
}

/**
 * What a request takes of its caller's limits, until `release`.
 * @throws ApiError 403 or 429
 */
export function claimOf(services: Services, exchange: Exchange, facts: RequestFacts | TokenizeFacts): { release(): void } | undefined {
  const claim = services.security?.begin?.(exchange.caller, facts)
  if (claim === undefined || !('refusal' in claim)) return claim
  services.telemetry?.refused(facts, 'key_limit')
  throw refusalError(claim.refusal)
}

export function drainingError(): ApiError {
  const headers = { 'retry-after': '1', connection: 'close' }
  return new ApiError(503, 'service_unavailable_error', 'shutting_down', 'The server is shutting down', null, headers)
}

function isQueueFull(error: unknown): boolean {
  return error instanceof TensorRTError && error.code === 'ERR_QUEUE_FULL'
}

function sumUsage(results: readonly GenerationResult[]): Usage {
  const total: Usage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 }
  for (const { usage } of results) {
    total.promptTokens += usage.promptTokens
    total.completionTokens += usage.completionTokens
    total.cachedTokens += usage.cachedTokens
  }
  return total
}

/** What the answer of an aborted request comes to: an error of the server's own making has its words in the cause. */
export function reasonOf(error: unknown): unknown {
  return error instanceof AbortError && error.cause instanceof ApiError ? error.cause : error
}
