/**
 * vLLM's metrics as its V1 engine defines them (vllm/v1/metrics/loggers.py), by the names that a scrape shows: Python's
 * client adds _total to counters. `le` as that client writes it.
 */
const TTFT = ['0.001', '0.005', '0.01', '0.02', '0.04', '0.06', '0.08', '0.1', '0.25', '0.5', '0.75', '1.0', '2.5', '5.0', '7.5', '10.0', '20.0', '40.0', '80.0', '160.0', '640.0', '2560.0']
const TOKEN = ['0.01', '0.025', '0.05', '0.075', '0.1', '0.15', '0.2', '0.3', '0.4', '0.5', '0.75', '1.0', '2.5', '5.0', '7.5', '10.0', '20.0', '40.0', '80.0']
const LATENCY = ['0.3', '0.5', '0.8', '1.0', '1.5', '2.0', '2.5', '5.0', '10.0', '15.0', '20.0', '30.0', '40.0', '50.0', '60.0', '120.0', '240.0', '480.0', '960.0', '1920.0', '7680.0']
/** Of a context of 1024 tokens, as the demo model has. */
const CONTEXT_1024 = ['1.0', '2.0', '5.0', '10.0', '20.0', '50.0', '100.0', '200.0', '500.0', '1000.0']

export interface VllmMetric {
  name: string
  type: 'counter' | 'gauge' | 'histogram'
  /** Beside model_name and engine. */
  labels?: Record<string, string[]>
  buckets?: string[]
}

export const VLLM_METRICS: VllmMetric[] = [
  { name: 'num_requests_running', type: 'gauge' },
  { name: 'num_requests_waiting', type: 'gauge' },
  { name: 'num_requests_waiting_by_reason', type: 'gauge', labels: { reason: ['capacity', 'deferred'] } },
  { name: 'kv_cache_usage_perc', type: 'gauge' },
  { name: 'prefix_cache_queries_total', type: 'counter' },
  { name: 'prefix_cache_hits_total', type: 'counter' },
  { name: 'num_preemptions_total', type: 'counter' },
  { name: 'prompt_tokens_total', type: 'counter' },
  { name: 'prompt_tokens_by_source_total', type: 'counter', labels: { source: ['local_compute', 'local_cache_hit', 'external_kv_transfer'] } },
  { name: 'prompt_tokens_cached_total', type: 'counter' },
  { name: 'generation_tokens_total', type: 'counter' },
  { name: 'request_success_total', type: 'counter', labels: { finished_reason: ['stop', 'length', 'abort', 'error', 'repetition'] } },
  { name: 'request_prompt_tokens', type: 'histogram', buckets: CONTEXT_1024 },
  { name: 'request_generation_tokens', type: 'histogram', buckets: CONTEXT_1024 },
  {
    name: 'iteration_tokens_total',
    type: 'histogram',
    buckets: ['1.0', '8.0', '16.0', '32.0', '64.0', '128.0', '256.0', '512.0', '1024.0', '2048.0', '4096.0', '8192.0', '16384.0'],
  },
  { name: 'request_max_num_generation_tokens', type: 'histogram', buckets: CONTEXT_1024 },
  { name: 'request_params_n', type: 'histogram', buckets: ['1.0', '2.0', '5.0', '10.0', '20.0'] },
  { name: 'request_params_max_tokens', type: 'histogram', buckets: CONTEXT_1024 },
  { name: 'time_to_first_token_seconds', type: 'histogram', buckets: TTFT },
  { name: 'inter_token_latency_seconds', type: 'histogram', buckets: TOKEN },
  { name: 'request_time_per_output_token_seconds', type: 'histogram', buckets: TOKEN },
  { name: 'e2e_request_latency_seconds', type: 'histogram', buckets: LATENCY },
  { name: 'request_queue_time_seconds', type: 'histogram', buckets: LATENCY },
  { name: 'request_inference_time_seconds', type: 'histogram', buckets: LATENCY },
  { name: 'request_prefill_time_seconds', type: 'histogram', buckets: LATENCY },
  { name: 'request_decode_time_seconds', type: 'histogram', buckets: LATENCY },
  { name: 'request_prefill_kv_computed_tokens', type: 'histogram', buckets: CONTEXT_1024 },
]
