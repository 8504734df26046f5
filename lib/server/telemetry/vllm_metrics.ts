/**
 * vLLM's metrics, by its names, types, labels and buckets (V1, `vllm/v1/metrics/loggers.py`). As there, a request of `n`
 * choices counts as `n` sequences, but its prompt once in the token counters, as it is computed once.
 */
import type { LLM } from '../../llm'
import {
  oneTwoFiveBuckets,
  VLLM_ITERATION_TOKENS_BUCKETS,
  VLLM_N_BUCKETS,
  VLLM_REQUEST_LATENCY_BUCKETS,
  VLLM_TOKEN_LATENCY_BUCKETS,
  VLLM_TTFT_BUCKETS,
} from './buckets'
import type { HistogramSeries, MetricSet, ScalarSeries } from './series'

const LABELS = ['model_name', 'engine']
const FINISHED_REASONS = ['stop', 'length', 'abort', 'error', 'repetition'] as const
export type FinishedReason = (typeof FINISHED_REASONS)[number]

/** One finished sequence. Times are seconds. */
export interface FinishedSequence {
  reason: FinishedReason
  promptTokens: number
  cachedTokens: number
  generatedTokens: number
  maxTokens: number | undefined
  e2e: number
  /** Undefined where it is not known. */
  queue: number | undefined
  /** From the start of the first step to the first token. Undefined where there was none. */
  prefill: number | undefined
  /** From the first token to the last. */
  decode: number | undefined
}

export class VllmMetrics {
  readonly timeToFirstToken: HistogramSeries
  readonly interTokenLatency: HistogramSeries
  readonly promptTokens: ScalarSeries
  private readonly promptTokensComputed: ScalarSeries
  private readonly promptTokensFromCache: ScalarSeries
  private readonly promptTokensCached: ScalarSeries
  private readonly iterationTokens: HistogramSeries
  private readonly success: Record<FinishedReason, ScalarSeries>
  private readonly timePerOutputToken: HistogramSeries
  private readonly e2e: HistogramSeries
  private readonly queue: HistogramSeries
  private readonly inference: HistogramSeries
  private readonly prefill: HistogramSeries
  private readonly decode: HistogramSeries
  private readonly requestPromptTokens: HistogramSeries
  private readonly requestComputedTokens: HistogramSeries
  private readonly requestGenerationTokens: HistogramSeries
  private readonly maxGenerationTokens: HistogramSeries
  private readonly paramsN: HistogramSeries
  private readonly paramsMaxTokens: HistogramSeries

  /** @param model name under which it is served */
  constructor(set: MetricSet, llm: LLM, model: string, engine: string) {
    const contextBuckets = oneTwoFiveBuckets(llm.info.maxPositions)
    const histogram = (name: string, help: string, buckets: readonly number[]): HistogramSeries =>
      set.histogram(`vllm:${name}`, help, buckets, LABELS).series(model, engine)
    const counter = (name: string, help: string): ScalarSeries =>
      set.counter(`vllm:${name}`, help, LABELS).series(model, engine)
    this.collectState(set, llm, model, engine)

    this.promptTokens = counter('prompt_tokens_total', 'Tokens of prompts, cached ones included; counted with the first token of the request')
    const bySource = set.counter(
      'vllm:prompt_tokens_by_source_total',
      'Tokens of prompts by where their keys and values came from, of finished requests',
      [...LABELS, 'source'],
    )
    this.promptTokensComputed = bySource.series(model, engine, 'local_compute')
    this.promptTokensFromCache = bySource.series(model, engine, 'local_cache_hit')
    bySource.series(model, engine, 'external_kv_transfer')
    this.promptTokensCached = counter('prompt_tokens_cached_total', 'Tokens of prompts that came from the prefix cache, of finished requests')
    const success = set.counter('vllm:request_success_total', 'Sequences that ended, by why', [...LABELS, 'finished_reason'])
    this.success = Object.fromEntries(
      FINISHED_REASONS.map((reason) => [reason, success.series(model, engine, reason)]),
    ) as typeof this.success

    this.requestPromptTokens = histogram('request_prompt_tokens', 'Tokens of the prompt, per finished sequence', contextBuckets)
    this.requestGenerationTokens = histogram('request_generation_tokens', 'Generated tokens, per finished sequence', contextBuckets)
    this.iterationTokens = histogram('iteration_tokens_total', 'Rows of a step: tokens of prompts, and tokens that are decoded', VLLM_ITERATION_TOKENS_BUCKETS)
    this.maxGenerationTokens = histogram('request_max_num_generation_tokens', 'Generated tokens of the longest choice, per finished request', contextBuckets)
    this.paramsN = histogram('request_params_n', 'n of finished requests', VLLM_N_BUCKETS)
    this.paramsMaxTokens = histogram('request_params_max_tokens', 'max_tokens of finished sequences that set it', contextBuckets)
    this.timeToFirstToken = histogram('time_to_first_token_seconds', 'From the request to its first token', VLLM_TTFT_BUCKETS)
    this.interTokenLatency = histogram('inter_token_latency_seconds', 'Between tokens of a sequence', VLLM_TOKEN_LATENCY_BUCKETS)
    this.timePerOutputToken = histogram('request_time_per_output_token_seconds', 'Mean time between tokens, per finished sequence', VLLM_TOKEN_LATENCY_BUCKETS)
    const latency = (name: string, help: string): HistogramSeries => histogram(name, help, VLLM_REQUEST_LATENCY_BUCKETS)
    this.e2e = latency('e2e_request_latency_seconds', 'From the request to its last token')
    this.queue = latency('request_queue_time_seconds', 'Waiting for the first step')
    this.inference = latency('request_inference_time_seconds', 'From the first step to the last token')
    this.prefill = latency('request_prefill_time_seconds', 'From the first step to the first token')
    this.decode = latency('request_decode_time_seconds', 'From the first token to the last')
    this.requestComputedTokens = histogram(
      'request_prefill_kv_computed_tokens',
      'Tokens of the prompt that were computed, not cached, per finished sequence',
      contextBuckets,
    )
  }

  step(rows: number): void {
    this.iterationTokens.observe(rows)
  }

  finishedRequest(n: number, longest: number, prompt: { computed: number; cached: number }): void {
    this.paramsN.observe(n)
    this.maxGenerationTokens.observe(longest)
    this.promptTokensComputed.inc(prompt.computed)
    this.promptTokensFromCache.inc(prompt.cached)
    this.promptTokensCached.inc(prompt.cached)
  }

  finishedSequence({ reason, promptTokens, cachedTokens, generatedTokens, maxTokens, e2e, queue, prefill, decode }: FinishedSequence): void {
    this.success[reason].inc()
    this.e2e.observe(e2e)
    if (queue !== undefined) {
      this.queue.observe(queue)
      this.inference.observe(Math.max(0, e2e - queue))
    }
    if (prefill !== undefined) this.prefill.observe(prefill)
    if (decode !== undefined) {
      this.decode.observe(decode)
      this.timePerOutputToken.observe(generatedTokens > 1 ? decode / (generatedTokens - 1) : 0)
    }
    this.requestPromptTokens.observe(promptTokens)
    this.requestComputedTokens.observe(promptTokens - cachedTokens)
    this.requestGenerationTokens.observe(generatedTokens)
    if (maxTokens !== undefined) this.paramsMaxTokens.observe(maxTokens)
  }

  unfinishedSequences(reason: 'abort' | 'error', n: number): void {
    this.success[reason].inc(n)
  }

  private collectState(set: MetricSet, llm: LLM, model: string, engine: string): void {
    const gauge = (name: string, help: string): ScalarSeries => set.gauge(`vllm:${name}`, help, LABELS).series(model, engine)
    const counter = (name: string, help: string): ScalarSeries =>
      set.counter(`vllm:${name}`, help, LABELS).series(model, engine)
    const running = gauge('num_requests_running', 'Sequences that run')
    const waiting = gauge('num_requests_waiting', 'Sequences that wait to run')
    const byReason = set.gauge('vllm:num_requests_waiting_by_reason', 'Sequences that wait to run, by why', [...LABELS, 'reason'])
    const forCapacity = byReason.series(model, engine, 'capacity')
    byReason.series(model, engine, 'deferred')
    const kvUsage = gauge('kv_cache_usage_perc', 'Share of the KV cache in use, 0 to 1; pages that only cache a prefix are free')
    const queries = counter('prefix_cache_queries_total', 'Tokens of prompts that were looked up in the prefix cache')
    const hits = counter('prefix_cache_hits_total', 'Tokens of prompts that were found in the prefix cache')
    const preemptions = counter('num_preemptions_total', 'Sequences that gave up their pages to others')
    const generated = counter('generation_tokens_total', 'Generated tokens')
    const cacheConfig = set.gauge('vllm:cache_config_info', 'Tokens per page and pages of the KV cache, as labels; always 1', [
      'engine',
      'block_size',
      'num_gpu_blocks',
    ])
    // What ran before, such as a warm-up, was nobody's.
    const start = llm.stats()
    set.onCollect(() => {
      const stats = llm.stats()
      running.set(stats.running)
      waiting.set(stats.waiting)
      forCapacity.set(stats.waiting)
      kvUsage.set(stats.kv.totalPages === 0 ? 0 : stats.kv.usedPages / stats.kv.totalPages)
      queries.set(stats.prefixCache.queriedTokens - start.prefixCache.queriedTokens)
      hits.set(stats.prefixCache.hitTokens - start.prefixCache.hitTokens)
      preemptions.set(stats.preemptions - start.preemptions)
      generated.set(stats.tokens.generated - start.tokens.generated)
      cacheConfig.clear()
      cacheConfig.series(engine, String(stats.kv.pageSize), String(stats.kv.totalPages)).set(1)
    })
  }
}
