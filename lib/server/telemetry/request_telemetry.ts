/** One request's counts and times, as tokens arrive. */
import { performance } from 'node:perf_hooks'
import type { RequestFacts, RequestOutcome, RequestTelemetry } from '../seams'
import type { ServerMetrics } from './server_metrics'
import type { RequestSpan } from './tracing'
import type { FinishedReason, VllmMetrics } from './vllm_metrics'

/** What becomes of a request, times in milliseconds; for its span. */
export interface RequestTimes {
  queueMs: number | undefined
  /** Undefined where there was no token. */
  ttftMs: number | undefined
  e2eMs: number
  /** From the first token to the last, over all choices. */
  decodeMs: number | undefined
}

/** Reasons that vLLM knows by another name, or not: a sequence that ended in a tool call met a stop token. */
function finishedReason(reason: string | undefined): FinishedReason {
  return reason === 'length' ? 'length' : 'stop'
}

export class RequestRecord implements RequestTelemetry {
  private readonly startedAt = performance.now()
  /** Per choice; 0: no token yet. */
  private readonly firstAt: Float64Array
  private readonly lastAt: Float64Array
  private readonly counts: Float64Array
  private firstTokenAt = 0
  private ended = false

  constructor(
    private readonly facts: RequestFacts,
    private readonly vllm: VllmMetrics,
    private readonly server: ServerMetrics,
    private readonly span: RequestSpan | undefined,
  ) {
    this.firstAt = new Float64Array(facts.n)
    this.lastAt = new Float64Array(facts.n)
    this.counts = new Float64Array(facts.n)
    server.begin(facts.endpoint)
  }

  tokens(choice: number, count: number): void {
    const last = this.lastAt[choice]
    if (this.ended || last === undefined || !(count > 0)) return
    const now = performance.now()
    this.lastAt[choice] = now
    this.counts[choice]! += count
    if (last !== 0) {
      // A consumer that was busy gets several tokens at once.
      const seconds = (now - last) / count / 1000
      this.vllm.interTokenLatency.observe(seconds, count)
      this.server.interTokenLatency.observe(seconds, count)
      return
    }
    this.firstAt[choice] = now
    const seconds = (now - this.startedAt) / 1000
    this.vllm.timeToFirstToken.observe(seconds)
    this.server.timeToFirstToken.observe(seconds)
    if (this.firstTokenAt !== 0) return
    this.firstTokenAt = now
    this.vllm.promptTokens.inc(this.facts.promptTokens)
    this.span?.firstToken()
  }

  end(outcome: RequestOutcome, { queueMs }: { queueMs: number | undefined }): void {
    if (this.ended) return
    this.ended = true
    const { facts, firstTokenAt } = this
    const now = performance.now()
    const error = outcome.kind === 'failed' ? outcome.error : undefined
    const refused = (error as { code?: unknown } | undefined)?.code === 'ERR_QUEUE_FULL'
    if (refused) this.server.end(facts.endpoint, 'refused', undefined)
    else this.server.end(facts.endpoint, outcome.kind, error)
    if (queueMs !== undefined) this.server.queue.observe(queueMs / 1000)
    if (outcome.kind === 'finished') this.finish(outcome, queueMs, now)
    else if (!refused) this.vllm.unfinishedSequences(outcome.kind === 'aborted' ? 'abort' : 'error', facts.n)
    this.span?.end(outcome, {
      queueMs,
      ttftMs: firstTokenAt === 0 ? undefined : firstTokenAt - this.startedAt,
      e2eMs: now - this.startedAt,
      decodeMs: firstTokenAt === 0 ? undefined : Math.max(...this.lastAt) - firstTokenAt,
    })
  }

  /** Cached tokens are known of all prompts together: each prompt gets its share. */
  private finish({ finishReasons, usage }: RequestOutcome & { kind: 'finished' }, queueMs: number | undefined, now: number): void {
    const { facts, startedAt } = this
    const { promptTokens, cachedTokens } = usage
    const lengths = facts.promptLengths ?? [promptTokens]
    const perPrompt = Math.max(1, facts.n / Math.max(1, lengths.length))
    const queue = queueMs === undefined ? undefined : queueMs / 1000
    if (this.firstTokenAt === 0) this.vllm.promptTokens.inc(promptTokens)
    let longest = 0
    for (let choice = 0; choice < facts.n; choice++) {
      const first = this.firstAt[choice]!
      const last = this.lastAt[choice]!
      const generatedTokens = this.counts[choice]!
      const prompt = lengths[Math.floor(choice / perPrompt)] ?? 0
      longest = Math.max(longest, generatedTokens)
      this.vllm.finishedSequence({
        reason: finishedReason(finishReasons[choice]),
        promptTokens: prompt,
        cachedTokens: promptTokens === 0 ? 0 : (cachedTokens * prompt) / promptTokens,
        generatedTokens,
        maxTokens: facts.maxTokens,
        e2e: ((last === 0 ? now : last) - startedAt) / 1000,
        queue,
        prefill: first === 0 || queue === undefined ? undefined : Math.max(0, (first - startedAt) / 1000 - queue),
        decode: first === 0 ? undefined : (last - first) / 1000,
      })
    }
    this.vllm.finishedRequest(perPrompt, longest, { computed: promptTokens - cachedTokens, cached: cachedTokens })
  }
}
