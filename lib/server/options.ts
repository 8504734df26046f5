import { LLM } from '../llm'
import { ArgumentReader, invalidArgument } from '../runtime'
import { REASONING_FORMATS, TOOL_CALL_FORMATS } from '../text'
import { guardAdmission, guardOnError, guardSecurity, guardTelemetry } from './guarded_parts'
import { healthOf } from './health'
import { checkLimits, DEFAULT_LIMITS } from './limits'
import { checkModelNames } from './model_names'
import type { OutputParsers } from './registry'
import type { Admission, HealthProbe, RequestLimits, Security, Telemetry } from './seams'

export interface ServerOptions {
  /**
   * Name under which the model is served; with several, all name the same model, and the first one is in answers. Default:
   * the name of the model's folder.
   */
  modelName?: string | readonly string[] | undefined
  /**
   * How the model writes tool calls: `hermes` (Qwen 2.5 and 3, too), `llama3_json`, `mistral`, `pythonic` or `deepseek_v3`.
   * Default `auto`: as its chat template says. `none`: tools are refused.
   */
  toolCallParser?: OutputParsers['toolCallParser']
  /**
   * How the model writes its reasoning, which becomes `reasoning_content`: `qwen3` or `deepseek_r1`. Default `auto`: as its
   * chat template says. `none`: it stays in `content`.
   */
  reasoningParser?: OutputParsers['reasoningParser']
  /** Asked who a request comes from. Default: everyone may do everything. */
  security?: Security | undefined
  /** Asked whether a request can be served as promised. Default: all are, until the LLM's queue is full. */
  admission?: Admission | undefined
  /** Hears of requests, and answers /metrics. Default: nothing is recorded, and /metrics is no route. */
  telemetry?: Telemetry | undefined
  /**
   * Asked by /health/live and /health/ready, beside what the server itself knows. Default: `llm.health()`: not ready while the
   * backend is dead or a step is stuck, and not live once it cannot come back.
   */
  health?: HealthProbe | undefined
  /** Defaults: {@link DEFAULT_LIMITS}. */
  limits?: Partial<RequestLimits> | undefined
  /** Milliseconds of silence after which a stream gets a comment, so that nobody in between takes it for dead. Default 15000. */
  keepAliveMs?: number | undefined
  /** Milliseconds for which a reader of a stream may take nothing before its connection is closed. Default 60000. */
  stallTimeoutMs?: number | undefined
  /** Milliseconds within which the headers of a request must have arrived. Default 15000. */
  headersTimeoutMs?: number | undefined
  /** Connections at once; further ones are closed. Default: no limit but the system's. */
  maxConnections?: number | undefined
  /**
   * Before the first server of a process listens, run synthetic requests through the code that serves them, so that it is compiled when real ones come: up to 300 ms.
   * They reach neither the model nor `security`, `admission` and `telemetry`. Default true.
   */
  warmUp?: boolean | undefined
  /**
   * Called with what failed inside of the server, beside the answer 500 that says nothing of it; and with what `telemetry`, a ticket of
   * `admission` or a claim of `security` threw when it was told of a request, which goes on. Default: a process warning.
   */
  onError?: ((error: unknown, requestId: string) => void) | undefined
}

const OPTION_NAMES = [
  'modelName',
  'toolCallParser',
  'reasoningParser',
  'security',
  'admission',
  'telemetry',
  'health',
  'limits',
  'keepAliveMs',
  'stallTimeoutMs',
  'headersTimeoutMs',
  'maxConnections',
  'warmUp',
  'onError',
] as const satisfies readonly (keyof ServerOptions)[]

export interface CheckedServerOptions {
  names: readonly string[]
  parsers: OutputParsers
  security: Security | undefined
  admission: Admission | undefined
  telemetry: Telemetry | undefined
  health: HealthProbe
  limits: Readonly<RequestLimits>
  keepAliveMs: number
  stallTimeoutMs: number
  headersTimeoutMs: number
  maxConnections: number | undefined
  warmUp: boolean
  onError: (error: unknown, requestId: string) => void
}

const MAX_TIMER_MS = 2 ** 31 - 1

/** @throws ERR_INVALID_ARGUMENT */
export function checkServerOptions(llm: unknown, options: unknown): CheckedServerOptions {
  if (!(llm instanceof LLM)) throw invalidArgument('llm', 'an LLM', llm)
  const reader = new ArgumentReader(options, OPTION_NAMES, 'createServer()')
  const onError = guardOnError((reader.callback('onError') as ServerOptions['onError']) ?? warnOfError)
  const security = readPart<Security>(reader, 'security', ['authenticate'])
  const admission = readPart<Admission>(reader, 'admission', ['admit', 'retryAfterSeconds', 'close'])
  const telemetry = readPart<Telemetry>(reader, 'telemetry', ['start', 'refused', 'httpStarted', 'http', 'metrics', 'close'])
  return {
    names: checkModelNames(llm, reader.get('modelName')),
    parsers: {
      toolCallParser: reader.choice('toolCallParser', ['auto', 'none', ...TOOL_CALL_FORMATS]),
      reasoningParser: reader.choice('reasoningParser', ['auto', 'none', ...REASONING_FORMATS]),
    },
    security: security && guardSecurity(security, onError),
    admission: admission && guardAdmission(admission, onError),
    telemetry: telemetry && guardTelemetry(telemetry, onError),
    health: readPart(reader, 'health', []) ?? healthOf(llm),
    limits: { ...DEFAULT_LIMITS, ...checkLimits(reader.get('limits'), '"limits"') },
    keepAliveMs: reader.integer('keepAliveMs', 1, MAX_TIMER_MS) ?? 15_000,
    stallTimeoutMs: reader.integer('stallTimeoutMs', 1, MAX_TIMER_MS) ?? 60_000,
    headersTimeoutMs: reader.integer('headersTimeoutMs', 1, MAX_TIMER_MS) ?? 15_000,
    maxConnections: reader.integer('maxConnections', 1, MAX_TIMER_MS),
    warmUp: reader.boolean('warmUp') ?? true,
    onError,
  }
}

function warnOfError(error: unknown, requestId: string): void {
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error)
  process.emitWarning(`Request ${requestId} failed: ${message}`, 'NodeTensorRTWarning', 'REQUEST_FAILED')
}

function readPart<T>(reader: ArgumentReader, name: string, methods: readonly (keyof T & string)[]): T | undefined {
  const part = reader.get(name)
  if (part === undefined) return undefined
  const complete =
    typeof part === 'object' && part !== null && methods.every((method) => typeof (part as Record<string, unknown>)[method] === 'function')
  if (!complete) throw invalidArgument(name, methods.length === 0 ? 'an object' : `an object with ${methods.join(', ')}`, part)
  return part as T
}
