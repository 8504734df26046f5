/**
 * What there is to set of a server. One table: flags, environment variables, the fields of a configuration file, their checks and the
 * help text are made of it.
 */

import type { Pooling } from '../llm'
import { REASONING_FORMATS, TOOL_CALL_FORMATS } from '../text'

export type SettingKind =
  | { type: 'string' }
  | { type: 'path' }
  | { type: 'strings' }
  /** Names of the model, as `createServer` takes them. */
  | { type: 'names' }
  /** A list of integers of at least 1, or a word that stands for all. */
  | { type: 'integers'; all: string }
  | { type: 'integer'; min: number; max: number; unlimited?: boolean }
  | { type: 'number'; above: number; max: number }
  /** A number, or text such as 512M. */
  | { type: 'bytes'; max: number }
  | { type: 'boolean' }
  | { type: 'choice'; choices: readonly string[] }

export interface Setting {
  /** In the configuration file; a dot is a level. */
  path: string
  /** Name of the flag, without dashes. */
  flag: string
  kind: SettingKind
  /** Help of `--no-<flag>`, of a boolean that is on by default. */
  off?: string
  /** How the help names its value. */
  placeholder?: string
  help: string
}

/** All of them, without loading what knows them. */
const POOLINGS = Object.keys({ last: 0, mean: 0, cls: 0 } satisfies Record<Pooling, 0>)
const MS = { type: 'integer', min: 1, max: 2 ** 31 - 1 } as const
const COUNT = { type: 'integer', min: 1, max: 2 ** 31 - 1 } as const
const LIMIT = { type: 'integer', min: 1, max: Number.MAX_SAFE_INTEGER, unlimited: true } as const

export interface SettingGroup {
  title: string
  settings: readonly Setting[]
}

export const SETTING_GROUPS: readonly SettingGroup[] = [
  {
    title: 'Network:',
    settings: [
      { path: 'host', flag: 'host', kind: { type: 'string' }, placeholder: 'address', help: 'address to listen at; 0.0.0.0 for all (default: 127.0.0.1)' },
      { path: 'port', flag: 'port', kind: { type: 'integer', min: 0, max: 65_535 }, placeholder: 'n', help: '0 takes any that is free (default: 8000)' },
      { path: 'tls.cert', flag: 'tls-cert', kind: { type: 'path' }, placeholder: 'file', help: 'certificate chain in PEM format: serve HTTPS' },
      { path: 'tls.key', flag: 'tls-key', kind: { type: 'path' }, placeholder: 'file', help: 'its private key in PEM format' },
      { path: 'maxConnections', flag: 'max-connections', kind: COUNT, placeholder: 'n', help: 'connections at once; further ones are closed (default: 4096)' },
      { path: 'headersTimeoutMs', flag: 'headers-timeout', kind: MS, placeholder: 'ms', help: "for a request's headers to arrive (default: 15000)" },
      { path: 'keepAliveMs', flag: 'keep-alive', kind: MS, placeholder: 'ms', help: 'silence on a stream after which a comment is sent (default: 15000)' },
      { path: 'stallTimeoutMs', flag: 'stall-timeout', kind: MS, placeholder: 'ms', help: 'a reader that takes nothing for so long is disconnected (default: 60000)' },
      { path: 'drainMs', flag: 'drain', kind: { type: 'integer', min: 0, max: 2 ** 31 - 1 }, placeholder: 'ms', help: 'for requests under way to end after SIGTERM or Ctrl-C (default: 30000)' },
      { path: 'warmUp', flag: 'warm-up', kind: { type: 'boolean' }, help: 'run a few requests, and the code around them, before the server listens', off: 'listen as soon as the model is loaded: the first requests take longer' },
    ],
  },
  {
    title: 'Model:',
    settings: [
      { path: 'modelName', flag: 'served-model-name', kind: { type: 'names' }, placeholder: 'names', help: 'names that requests may use, separated by commas; the first is in answers (default: name of the folder)' },
      { path: 'toolCallParser', flag: 'tool-call-parser', kind: { type: 'choice', choices: ['auto', 'none', ...TOOL_CALL_FORMATS] }, placeholder: 'name', help: `how the model writes tool calls: ${TOOL_CALL_FORMATS.join(', ')}; none refuses tools (default: auto, by the chat template)` },
      { path: 'reasoningParser', flag: 'reasoning-parser', kind: { type: 'choice', choices: ['auto', 'none', ...REASONING_FORMATS] }, placeholder: 'name', help: `how the model writes its reasoning: ${REASONING_FORMATS.join(', ')}; none leaves it in the content (default: auto, by the chat template)` },
      { path: 'embedding.pooling', flag: 'pooling', kind: { type: 'choice', choices: POOLINGS }, placeholder: 'name', help: `what embeddings are made of: ${POOLINGS.join(', ')}, that is the last token, all tokens, the first (default: as the model folder says, else last)` },
      { path: 'embedding.normalize', flag: 'normalize', kind: { type: 'boolean' }, help: 'scale embeddings to length 1 (default: as the model folder says, else on)', off: 'embeddings as the model makes them' },
      { path: 'embedding.matryoshkaDimensions', flag: 'matryoshka-dimensions', kind: { type: 'integers', all: 'any' }, placeholder: 'sizes', help: 'sizes that embeddings may be cut to, separated by commas, or any (default: as config.json says, else none)' },
      { path: 'backend', flag: 'backend', kind: { type: 'choice', choices: ['auto', 'cpu', 'tensorrt'] }, placeholder: 'name', help: 'what runs the model: auto, cpu or tensorrt (default: auto)' },
      { path: 'threads', flag: 'threads', kind: { type: 'integer', min: 1, max: 1024 }, placeholder: 'n', help: 'CPU backend: threads (default: all that the process may use)' },
      { path: 'device', flag: 'device', kind: { type: 'integer', min: 0, max: 1023 }, placeholder: 'n', help: 'GPU: its number, as CUDA counts (default: 0)' },
      { path: 'libraryPath', flag: 'library-path', kind: { type: 'path' }, placeholder: 'path', help: 'GPU: libnvinfer, or the folder that has it' },
      { path: 'weights', flag: 'weights', kind: { type: 'path' }, placeholder: 'folder', help: 'engine folders: where the weights are' },
      { path: 'verifyWeights', flag: 'verify-weights', kind: { type: 'boolean' }, help: 'engine folders: hash all weights; false takes any of the same names and shapes (default: those that were touched after the build)' },
      { path: 'allowUnfit', flag: 'allow-unfit', kind: { type: 'boolean' }, help: 'GPU: run an engine that verify found unfit' },
      { path: 'cudaGraphs', flag: 'cuda-graphs', kind: { type: 'boolean' }, help: 'GPU: replay decode steps as CUDA graphs', off: 'GPU: run every step kernel by kernel' },
      { path: 'kvCacheMemory', flag: 'kv-cache-memory', kind: { type: 'bytes', max: Number.MAX_SAFE_INTEGER }, placeholder: 'bytes', help: 'size of the KV cache, such as 8G (default: by free memory)' },
      { path: 'kvCacheFraction', flag: 'kv-cache-fraction', kind: { type: 'number', above: 0, max: 1 }, placeholder: 'share', help: 'GPU: share of the free memory for the KV cache (default: 0.9)' },
      { path: 'pageSize', flag: 'page-size', kind: { type: 'integer', min: 1, max: 4096 }, placeholder: 'n', help: 'tokens in a page of the KV cache (default: 16)' },
    ],
  },
  {
    title: 'Scheduling:',
    settings: [
      { path: 'maxSequences', flag: 'max-sequences', kind: { type: 'integer', min: 1, max: 65_536 }, placeholder: 'n', help: 'sequences that run at once (default: 64 on the CPU, 256 on a GPU)' },
      { path: 'maxStepTokens', flag: 'max-step-tokens', kind: { type: 'integer', min: 1, max: 1_048_576 }, placeholder: 'n', help: 'most tokens in one step (default: 256 on the CPU, the engine\'s limit on a GPU)' },
      { path: 'maxStepMs', flag: 'max-step-time', kind: { type: 'number', above: 0, max: 2 ** 31 - 1 }, placeholder: 'ms', help: 'longest time that a step should take while outputs wait for it (default: --sla-itl, else no bound)' },
      { path: 'maxQueue', flag: 'max-queue', kind: COUNT, placeholder: 'n', help: 'choices that may wait; more are refused with 429 (default: 1024)' },
      { path: 'agingMs', flag: 'aging', kind: MS, placeholder: 'ms', help: 'a waiting request becomes one priority level more urgent each so long (default: 5000; with --sla-ttft 600000)' },
      { path: 'preemptForPriority', flag: 'preempt-for-priority', kind: { type: 'boolean' }, help: 'an urgent request takes the place of running ones of less priority, which go on later (default: with --sla-ttft only)' },
      { path: 'prefixCache', flag: 'prefix-cache', kind: { type: 'boolean' }, help: 'share pages between equal prompt prefixes', off: 'do not share pages between equal prompt prefixes' },
      { path: 'retries', flag: 'retries', kind: { type: 'integer', min: 0, max: 1000 }, placeholder: 'n', help: 'how often a request runs again after a step that failed (default: 1)' },
      { path: 'grammarTimeoutMs', flag: 'grammar-timeout', kind: { type: 'integer', min: 1, max: 600_000 }, placeholder: 'ms', help: "for a request's grammar to be compiled (default: 10000)" },
    ],
  },
  {
    title: 'Failures:',
    settings: [
      { path: 'failover', flag: 'failover', kind: { type: 'choice', choices: ['on', 'off', 'standby'] }, placeholder: 'how', help: 'when the GPU dies, the CPU takes over: on, off or standby (default: on, but off with --backend tensorrt)' },
      { path: 'restart.enabled', flag: 'restart', kind: { type: 'boolean' }, help: 'make a backend that died again', off: 'a backend that died stays dead' },
      { path: 'restart.initialDelayMs', flag: 'restart-delay', kind: { type: 'integer', min: 0, max: 2 ** 31 - 1 }, placeholder: 'ms', help: 'before the first attempt; doubles with each that fails (default: 1000)' },
      { path: 'restart.maxDelayMs', flag: 'restart-max-delay', kind: { type: 'integer', min: 0, max: 2 ** 31 - 1 }, placeholder: 'ms', help: 'longest delay between attempts (default: 60000)' },
      { path: 'restart.maxAttempts', flag: 'restart-attempts', kind: COUNT, placeholder: 'n', help: 'attempts in a row (default: no limit)' },
      { path: 'stepTimeoutMs', flag: 'step-timeout', kind: MS, placeholder: 'ms', help: 'a step that takes longer is the death of its backend, as of a device that hangs (default: none is)' },
      { path: 'stuckAfterMs', flag: 'stuck-after', kind: MS, placeholder: 'ms', help: 'a step that takes longer makes /health/ready say no (default: 30000, or 50 times what such a step has taken)' },
    ],
  },
  {
    title: 'Limits of a request:',
    settings: [
      { path: 'limits.maxBodyBytes', flag: 'max-body-size', kind: { type: 'bytes', max: 2 ** 28 }, placeholder: 'bytes', help: 'bytes of a body (default: 4M)' },
      { path: 'limits.maxJsonDepth', flag: 'max-json-depth', kind: { type: 'integer', min: 1, max: 1000 }, placeholder: 'n', help: 'nesting of a body (default: 100)' },
      { path: 'limits.maxOutputTokens', flag: 'max-output-tokens', kind: LIMIT, placeholder: 'n', help: 'tokens per choice; more are refused, and requests that say nothing get these (default: the context)' },
      { path: 'limits.maxPromptTokens', flag: 'max-prompt-tokens', kind: LIMIT, placeholder: 'n', help: 'tokens of a prompt (default: the context)' },
      { path: 'limits.maxChoices', flag: 'max-choices', kind: { type: 'integer', min: 1, max: 1024 }, placeholder: 'n', help: '"n" times the number of prompts (default: 128)' },
      { path: 'limits.maxInputs', flag: 'max-inputs', kind: { type: 'integer', min: 1, max: 65_536 }, placeholder: 'n', help: 'texts of a request for embeddings (default: 2048)' },
      { path: 'limits.maxLogprobs', flag: 'max-logprobs', kind: { type: 'integer', min: 0, max: 256 }, placeholder: 'n', help: 'log-probabilities per token (default: 20)' },
      { path: 'limits.minPriority', flag: 'min-priority', kind: { type: 'integer', min: -1000, max: 1000 }, placeholder: 'n', help: 'most urgent priority; lower is more urgent (default: -1000)' },
      { path: 'limits.bodyTimeoutMs', flag: 'body-timeout', kind: MS, placeholder: 'ms', help: 'for a body to arrive (default: 30000)' },
      { path: 'limits.requestTimeoutMs', flag: 'request-timeout', kind: LIMIT, placeholder: 'ms', help: 'for a request as a whole (default: no limit)' },
    ],
  },
  {
    title: 'Service level:',
    settings: [
      { path: 'sla.ttftMs', flag: 'sla-ttft', kind: { type: 'number', above: 0, max: 2 ** 31 - 1 }, placeholder: 'ms', help: 'bound on the time to first token; requests that cannot be served in it are refused with 429; goes with --sla-itl' },
      { path: 'sla.itlMs', flag: 'sla-itl', kind: { type: 'number', above: 0, max: 2 ** 31 - 1 }, placeholder: 'ms', help: 'bound on the inter-token latency' },
      { path: 'sla.percentile', flag: 'sla-percentile', kind: { type: 'number', above: 0.5, max: 0.9999 }, placeholder: 'share', help: 'share of requests, and of tokens, that keep the bounds (default: 0.99)' },
      { path: 'sla.interactivePriority', flag: 'sla-interactive-priority', kind: { type: 'integer', min: -1000, max: 1000 }, placeholder: 'n', help: 'requests of this priority and more urgent ones are promised the bounds, others wait (default: 0)' },
      { path: 'sla.batchQueueShare', flag: 'sla-batch-queue-share', kind: { type: 'number', above: 0, max: 1 }, placeholder: 'share', help: 'share of the queue that those others may fill (default: 0.5)' },
    ],
  },
  {
    title: 'Security:',
    settings: [
      { path: 'auth.keyFile', flag: 'api-key-file', kind: { type: 'path' }, placeholder: 'file', help: 'API keys, a line each: a name, and sha256:<hash> or the key; NODE_TENSORRT_API_KEY is one more' },
      { path: 'auth.open', flag: 'open-routes', kind: { type: 'strings' }, placeholder: 'routes', help: 'routes that need no key (default: /health/live,/health/ready)' },
      { path: 'auth.shareCache', flag: 'share-cache', kind: { type: 'boolean' }, help: 'API keys share cached prefixes: faster, and each can tell by timing what others asked' },
    ],
  },
  {
    title: 'Telemetry:',
    settings: [
      { path: 'metrics.enabled', flag: 'metrics', kind: { type: 'boolean' }, help: 'Prometheus metrics at /metrics', off: 'no metrics' },
      { path: 'metrics.port', flag: 'metrics-port', kind: { type: 'integer', min: 0, max: 65_535 }, placeholder: 'n', help: 'also at this port, without a key' },
      { path: 'metrics.host', flag: 'metrics-host', kind: { type: 'string' }, placeholder: 'address', help: 'address of that port (default: 127.0.0.1)' },
      { path: 'accessLog', flag: 'access-log', kind: { type: 'string' }, placeholder: 'where', help: 'a JSON line per request to stdout, stderr or a file (default: none)' },
      { path: 'tracing', flag: 'tracing', kind: { type: 'boolean' }, help: 'OpenTelemetry spans, where @opentelemetry/api is set up', off: 'no OpenTelemetry spans' },
    ],
  },
]

export const SETTINGS: readonly Setting[] = SETTING_GROUPS.flatMap(({ settings }) => settings)

/** How the variables of settings begin. */
export const VARIABLES = 'NODE_TENSORRT_SERVE_'

export function environmentName({ flag }: Setting): string {
  return `${VARIABLES}${flag.toUpperCase().replaceAll('-', '_')}`
}

/** The name under which commander keeps the flag's value. */
export function optionName({ flag }: Setting): string {
  return flag.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())
}
