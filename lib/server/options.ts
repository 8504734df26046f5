import { basename } from 'node:path'
import { TensorRTError } from '../errors'
import { LLM } from '../llm'
import { ArgumentReader, invalidArgument } from '../runtime'
import { REASONING_FORMATS, TOOL_CALL_FORMATS } from '../text'
import { healthOf } from './health'
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
  /** Called with what failed inside of the server, beside the answer 500 that says nothing of it. Default: a process warning. */
  onError?: ((error: unknown, requestId: string) => void) | undefined
}

export const DEFAULT_LIMITS: Readonly<RequestLimits> = Object.freeze({
  maxBodyBytes: 4 * 1024 * 1024,
  maxJsonDepth: 100,
  maxChoices: 128,
  maxInputs: 2048,
  maxLogprobs: 20,
  maxOutputTokens: Infinity,
  maxPromptTokens: Infinity,
  bodyTimeoutMs: 30_000,
  requestTimeoutMs: Infinity,
  minPriority: -1000,
})

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
  onError: (error: unknown, requestId: string) => void
}

const MAX_TIMER_MS = 2 ** 31 - 1
/** Letters that need no escape in a path, a header and a label. */
const MODEL_NAME = /^[\w][\w.:/@+-]{0,255}$/

/** @throws ERR_INVALID_ARGUMENT */
export function checkServerOptions(llm: unknown, options: unknown): CheckedServerOptions {
  if (!(llm instanceof LLM)) throw invalidArgument('llm', 'an LLM', llm)
  const reader = new ArgumentReader(options, OPTION_NAMES, 'createServer()')
  return {
    names: readNames(llm, reader.get('modelName')),
    parsers: {
      toolCallParser: reader.choice('toolCallParser', ['auto', 'none', ...TOOL_CALL_FORMATS]),
      reasoningParser: reader.choice('reasoningParser', ['auto', 'none', ...REASONING_FORMATS]),
    },
    security: readPart(reader, 'security', ['authenticate']),
    admission: readPart(reader, 'admission', ['admit', 'retryAfterSeconds', 'close']),
    telemetry: readPart(reader, 'telemetry', ['start', 'refused', 'http', 'metrics', 'close']),
    health: readPart(reader, 'health', []) ?? healthOf(llm),
    limits: readLimits(reader.get('limits')),
    keepAliveMs: reader.integer('keepAliveMs', 1, MAX_TIMER_MS) ?? 15_000,
    stallTimeoutMs: reader.integer('stallTimeoutMs', 1, MAX_TIMER_MS) ?? 60_000,
    headersTimeoutMs: reader.integer('headersTimeoutMs', 1, MAX_TIMER_MS) ?? 15_000,
    maxConnections: reader.integer('maxConnections', 1, MAX_TIMER_MS),
    onError: (reader.callback('onError') as ServerOptions['onError']) ?? warnOfError,
  }
}

function warnOfError(error: unknown, requestId: string): void {
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error)
  process.emitWarning(`Request ${requestId} failed: ${message}`, 'NodeTensorRTWarning', 'REQUEST_FAILED')
}

function readNames(llm: LLM, given: unknown): string[] {
  const names = given === undefined ? [defaultName(llm)] : typeof given === 'string' ? [given] : given
  if (!Array.isArray(names) || names.length === 0) throw invalidArgument('modelName', 'a name or an array of names', given)
  for (const name of names) {
    if (typeof name !== 'string' || !MODEL_NAME.test(name)) {
      throw invalidArgument('modelName', 'up to 256 letters, digits and . : / @ + - _, beginning with a letter or digit', name)
    }
  }
  if (new Set(names).size < names.length) throw new TensorRTError('ERR_INVALID_ARGUMENT', '"modelName" has a name twice')
  return [...(names as string[])]
}

function defaultName({ info }: LLM): string {
  const name = info.model === undefined ? info.name : basename(info.model)
  return MODEL_NAME.test(name) ? name : 'model'
}

function readPart<T>(reader: ArgumentReader, name: string, methods: readonly (keyof T & string)[]): T | undefined {
  const part = reader.get(name)
  if (part === undefined) return undefined
  const complete =
    typeof part === 'object' && part !== null && methods.every((method) => typeof (part as Record<string, unknown>)[method] === 'function')
  if (!complete) throw invalidArgument(name, methods.length === 0 ? 'an object' : `an object with ${methods.join(', ')}`, part)
  return part as T
}

/** A number up to which Infinity, no limit, is fine, too. */
function limit(reader: ArgumentReader, name: keyof RequestLimits): number {
  if (reader.get(name) === Infinity) return Infinity
  return reader.integer(name, 1, Number.MAX_SAFE_INTEGER) ?? DEFAULT_LIMITS[name]
}

function readLimits(given: unknown): RequestLimits {
  if (given === undefined) return { ...DEFAULT_LIMITS }
  const reader = new ArgumentReader(given, Object.keys(DEFAULT_LIMITS), '"limits"')
  return {
    maxBodyBytes: reader.integer('maxBodyBytes', 1, 2 ** 28) ?? DEFAULT_LIMITS.maxBodyBytes,
    maxJsonDepth: reader.integer('maxJsonDepth', 1, 1000) ?? DEFAULT_LIMITS.maxJsonDepth,
    maxChoices: reader.integer('maxChoices', 1, 1024) ?? DEFAULT_LIMITS.maxChoices,
    maxInputs: reader.integer('maxInputs', 1, 65_536) ?? DEFAULT_LIMITS.maxInputs,
    maxLogprobs: reader.integer('maxLogprobs', 0, 256) ?? DEFAULT_LIMITS.maxLogprobs,
    maxOutputTokens: limit(reader, 'maxOutputTokens'),
    maxPromptTokens: limit(reader, 'maxPromptTokens'),
    bodyTimeoutMs: reader.integer('bodyTimeoutMs', 1, MAX_TIMER_MS) ?? DEFAULT_LIMITS.bodyTimeoutMs,
    requestTimeoutMs: limit(reader, 'requestTimeoutMs'),
    minPriority: reader.integer('minPriority', -1000, 1000) ?? DEFAULT_LIMITS.minPriority,
  }
}
