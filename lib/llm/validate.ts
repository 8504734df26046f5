/** The checks of what callers hand in. Nothing here changes state; every failure is a TensorRTError. */
import { isDate } from 'node:util/types'
import { TensorRTError } from '../errors'
import { checkGrammar, type GrammarSource } from '../grammar'
import type { Executor, ExecutorInfo, LogitBias } from '../scheduler'
import { ArgumentReader, describeValue, invalidArgument } from '../runtime'
import { StopSet } from '../text'
import { guardClose } from './guarded_constraint'
import { checkLogitBias } from './logit_bias'
import type { RestartOptions } from './options'
import { checkEmbeddingOptions, type EmbeddingOptions } from './pooling'
import { DEFAULT_RESTART, type RestartPolicy } from './restart_policy'
import { type BackendChoice, type ChatInputOptions, type CloseOptions, EncodedPrompt, type EngineOptions, type GenerateOptions, type LLMOptions, type PromptOptions } from './options'

export const MAX_CHOICES = 1024
export const MAX_LOGPROBS = 256
const MAX_STOP_TOKENS = 1024
export const MAX_SALT_LENGTH = 1024
const INT32_MAX = 2 ** 31 - 1

type Keys<T> = readonly (keyof T & string)[]
/** Fails to compile when a name is missing from the list. */
export const allKeys =
  <T>() =>
  <K extends Keys<T>>(keys: K & ([keyof T & string] extends [K[number]] ? unknown : never)): K =>
    keys

const GENERATE_OPTIONS = allKeys<GenerateOptions>()([
  'prompt',
  'messages',
  'tokens',
  'encoded',
  'addSpecialTokens',
  'allowSpecial',
  'n',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'seed',
  'logitBias',
  'constrain',
  'grammar',
  'maxTokens',
  'minTokens',
  'stop',
  'stopTokenIds',
  'ignoreEos',
  'includeStop',
  'logprobs',
  'promptLogprobs',
  'skipSpecialTokens',
  'priority',
  'deadlineMs',
  'deadline',
  'timeoutMs',
  'cacheSalt',
  'signal',
  'tools',
  'documents',
  'templateArgs',
  'addGenerationPrompt',
] as const)

const CHAT_INPUT_OPTIONS = allKeys<ChatInputOptions>()([
  'tools',
  'documents',
  'templateArgs',
  'addGenerationPrompt',
] as const)

const PROMPT_OPTIONS = allKeys<PromptOptions>()([
  'prompt',
  'messages',
  'tokens',
  'addSpecialTokens',
  'allowSpecial',
  'signal',
  'tools',
  'documents',
  'templateArgs',
  'addGenerationPrompt',
] as const)

/** Of `applyChatTemplate`. */
export const CHAT_OPTIONS: readonly string[] = [...CHAT_INPUT_OPTIONS, 'allowSpecial']

const ENGINE_OPTIONS = allKeys<EngineOptions>()([
  'prefixCache',
  'maxQueue',
  'retries',
  'agingMs',
  'grammarTimeoutMs',
  'maxSequences',
  'maxStepTokens',
  'maxStepMs',
  'preemptForPriority',
  'stepTimeoutMs',
  'stuckAfterMs',
  'embedding',
] as const)

const LLM_OPTIONS = allKeys<LLMOptions>()([
  ...ENGINE_OPTIONS,
  'backend',
  'kvCacheMemory',
  'numPages',
  'kvCacheFraction',
  'failover',
  'restart',
  'pageSize',
  'threads',
  'simd',
  'device',
  'libraryPath',
  'cudaGraphs',
  'weights',
  'verifyWeights',
  'allowUnfit',
  'signal',
  'onWarning',
] as const)

/** Sampling options after the checks; undefined = take the model's default. */
export interface CheckedSampling {
  temperature: number | undefined
  topK: number | undefined
  topP: number | undefined
  minP: number | undefined
  repetitionPenalty: number | undefined
  presencePenalty: number
  frequencyPenalty: number
  seed: number | undefined
  logprobs: number
  promptLogprobs: number
  minTokens: number
  logitBias: LogitBias | undefined
}

export type PromptSource =
  | { kind: 'prompt'; prompt: string; addSpecialTokens: boolean; allowSpecial: boolean }
  | { kind: 'messages'; options: GenerateOptions; allowSpecial: boolean }
  | { kind: 'tokens'; tokens: ArrayLike<number> }
  | { kind: 'encoded'; tokens: Int32Array; continuation: boolean }

/** Whether the output goes on with the text of the prompt, instead of beginning a text of its own. */
export function continues(source: PromptSource): boolean {
  return source.kind === 'encoded' ? source.continuation : source.kind !== 'messages'
}

export interface CheckedRequest {
  source: PromptSource
  sampling: CheckedSampling
  constrain: GenerateOptions['constrain']
  grammar: GrammarSource | undefined
  n: number
  maxTokens: number | undefined
  stops: StopSet
  stopTokenIds: Int32Array
  ignoreEos: boolean
  includeStop: boolean
  skipSpecialTokens: boolean
  priority: number
  /** Milliseconds from now; may be negative for a moment that has passed. */
  deadlineIn: number | undefined
  timeoutMs: number | undefined
  cacheSalt: string | undefined
  signal: AbortSignal | undefined
}

/** @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN (of `stopTokenIds`) */
export function checkRequestOptions(options: unknown, vocabSize: number): CheckedRequest {
  const reader = new ArgumentReader(options, GENERATE_OPTIONS, 'generate()')
  const maxTokens = reader.integer('maxTokens', 0, INT32_MAX)
  const minTokens = reader.integer('minTokens', 0, INT32_MAX) ?? 0
  if (maxTokens !== undefined && minTokens > maxTokens) {
    throw invalidArgument('minTokens', `at most "maxTokens" (${maxTokens})`, minTokens)
  }
  return {
    source: checkSource(options as GenerateOptions, reader),
    sampling: {
      temperature: reader.number('temperature', 0, 100),
      topK: reader.integer('topK', 0, INT32_MAX),
      topP: reader.positive('topP', 1),
      minP: reader.number('minP', 0, 1),
      repetitionPenalty: reader.number('repetitionPenalty', 0.01, 100),
      presencePenalty: reader.number('presencePenalty', -100, 100) ?? 0,
      frequencyPenalty: reader.number('frequencyPenalty', -100, 100) ?? 0,
      seed: reader.integer('seed', 0, Number.MAX_SAFE_INTEGER),
      logprobs: reader.integer('logprobs', 0, Math.min(MAX_LOGPROBS, vocabSize)) ?? -1,
      promptLogprobs: reader.integer('promptLogprobs', 0, Math.min(MAX_LOGPROBS, vocabSize)) ?? -1,
      minTokens,
      logitBias: checkLogitBias(reader.get('logitBias'), vocabSize),
    },
    constrain: guardClose(reader.callback('constrain') as GenerateOptions['constrain']),
    grammar: readGrammar(reader),
    n: reader.integer('n', 1, MAX_CHOICES) ?? 1,
    maxTokens,
    stops: checkStops(reader.get('stop')),
    stopTokenIds: checkStopTokens(reader.get('stopTokenIds'), vocabSize),
    ignoreEos: reader.boolean('ignoreEos') ?? false,
    includeStop: reader.boolean('includeStop') ?? false,
    skipSpecialTokens: reader.boolean('skipSpecialTokens') ?? true,
    priority: reader.integer('priority', -1000, 1000) ?? 0,
    deadlineIn: checkDeadline(reader),
    timeoutMs: reader.positive('timeoutMs'),
    cacheSalt: reader.string('cacheSalt', MAX_SALT_LENGTH),
    signal: reader.signal('signal'),
  }
}

/** Of `encodePrompt`. @throws ERR_INVALID_ARGUMENT */
export function checkPromptOptions(options: unknown): { source: PromptSource; signal: AbortSignal | undefined } {
  const reader = new ArgumentReader(options, PROMPT_OPTIONS, 'encodePrompt()')
  return { source: checkSource(options as PromptOptions, reader, 'encodePrompt()'), signal: reader.signal('signal') }
}

function readGrammar(reader: ArgumentReader): GrammarSource | undefined {
  const grammar = reader.get('grammar')
  if (grammar === undefined) return undefined
  if (reader.get('constrain') !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', 'Give "grammar" or "constrain", not both')
  }
  return checkGrammar(grammar)
}

const TEXT_OPTIONS = ['addSpecialTokens'] as const

function givenSources(options: GenerateOptions): string[] {
  return (['prompt', 'messages', 'tokens', 'encoded'] as const).filter((name) => options[name] !== undefined)
}

function refuseOptions(options: GenerateOptions, names: readonly (keyof GenerateOptions)[], kind: string): void {
  for (const name of names) {
    if (options[name] === undefined) continue
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" goes with "${kind}" only, "${givenSources(options)[0]}" was given`)
  }
}

function checkSource(options: GenerateOptions, reader: ArgumentReader, what = 'generate()'): PromptSource {
  const { prompt, tokens, encoded } = options
  const kinds = Number(prompt !== undefined) + Number(options.messages !== undefined) + Number(tokens !== undefined) + Number(encoded !== undefined)
  if (kinds !== 1) {
    const given = givenSources(options)
    const found = given.length === 0 ? 'none was given' : `${given.map((name) => `"${name}"`).join(' and ')} were given`
    throw new TensorRTError(
      'ERR_INVALID_ARGUMENT',
      `${what} takes exactly one of "prompt", "messages" and "tokens"; ${found}`,
    )
  }
  if (options.messages === undefined) refuseOptions(options, CHAT_INPUT_OPTIONS, 'messages')
  if (prompt === undefined) refuseOptions(options, TEXT_OPTIONS, 'prompt')
  reader.boolean('addGenerationPrompt')
  const addSpecialTokens = reader.boolean('addSpecialTokens') ?? true
  const allowSpecial = reader.boolean('allowSpecial')
  if (prompt !== undefined) {
    if (typeof prompt !== 'string') throw invalidArgument('prompt', 'a string', prompt)
    return { kind: 'prompt', prompt, addSpecialTokens, allowSpecial: allowSpecial ?? true }
  }
  if (tokens === undefined && encoded === undefined) return { kind: 'messages', options, allowSpecial: allowSpecial ?? false }
  if (allowSpecial !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"allowSpecial" goes with text, "${givenSources(options)[0]}" was given`)
  }
  if (encoded !== undefined) {
    if (!(encoded instanceof EncodedPrompt)) throw invalidArgument('encoded', 'what encodePrompt() gave', encoded)
    return { kind: 'encoded', tokens: encoded.tokens, continuation: encoded.continuation }
  }
  if (!isTokenList(tokens)) throw invalidArgument('tokens', 'an array of token ids', tokens)
  return { kind: 'tokens', tokens }
}

export function isTokenList(value: unknown): value is ArrayLike<number> {
  return Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView))
}

/**
 * Copies token ids.
 * @throws ERR_INVALID_ARGUMENT for what is no array, ERR_INVALID_TOKEN naming the first that is no integer in
 * [0, vocabSize)
 */
export function toTokenArray(name: string, tokens: ArrayLike<number>, vocabSize: number): Int32Array {
  if (!isTokenList(tokens)) throw invalidArgument(name, 'an array of token ids', tokens)
  const copy = new Int32Array(tokens.length)
  for (let i = 0; i < copy.length; i++) {
    const token: unknown = tokens[i]
    if (typeof token !== 'number' || !Number.isInteger(token) || token < 0 || token >= vocabSize) {
      const expected = `an integer in [0, ${vocabSize})`
      throw new TensorRTError(
        'ERR_INVALID_TOKEN',
        `"${name}[${i}]" must be a token id, ${expected}, not ${describeValue(token)}`,
      )
    }
    copy[i] = token
  }
  return copy
}

const NO_STOPS = new StopSet([])

function checkStops(stop: unknown): StopSet {
  if (stop === undefined) return NO_STOPS
  const stops: unknown = typeof stop === 'string' ? [stop] : stop
  if (!Array.isArray(stops)) throw invalidArgument('stop', 'a string or an array of strings', stop)
  return new StopSet(stops as string[])
}

function checkStopTokens(tokens: unknown, vocabSize: number): Int32Array {
  if (tokens === undefined) return new Int32Array(0)
  if (!isTokenList(tokens) || tokens.length > MAX_STOP_TOKENS) {
    throw invalidArgument('stopTokenIds', `an array of at most ${MAX_STOP_TOKENS} token ids`, tokens)
  }
  return toTokenArray('stopTokenIds', tokens, vocabSize)
}

function checkDeadline(reader: ArgumentReader): number | undefined {
  const inMs = reader.positive('deadlineMs')
  const deadline = reader.get('deadline')
  if (deadline === undefined) return inMs
  if (inMs !== undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', 'Give "deadline" or "deadlineMs", not both')
  const moment = isDate(deadline) ? deadline.getTime() : deadline
  if (typeof moment !== 'number' || !Number.isFinite(moment)) {
    throw invalidArgument('deadline', 'a valid Date or milliseconds since the epoch', deadline)
  }
  return moment - Date.now()
}

export interface CheckedEngineOptions {
  prefixCache: boolean
  maxQueue: number | undefined
  maxRetries: number | undefined
  agingMs: number | undefined
  grammarTimeoutMs: number | undefined
  maxSequences: number | undefined
  maxStepTokens: number | undefined
  maxStepMs: number | undefined
  preemptForPriority: boolean
  stepTimeoutMs: number | undefined
  stuckAfterMs: number | undefined
  embedding: EmbeddingOptions
}

function readEngineOptions(reader: ArgumentReader): CheckedEngineOptions {
  return {
    prefixCache: reader.boolean('prefixCache') ?? true,
    maxQueue: reader.integer('maxQueue', 1, INT32_MAX),
    maxRetries: reader.integer('retries', 0, 1000),
    agingMs: reader.integer('agingMs', 1, INT32_MAX),
    grammarTimeoutMs: reader.integer('grammarTimeoutMs', 1, 600_000),
    maxSequences: reader.integer('maxSequences', 1, 65_536),
    maxStepTokens: reader.integer('maxStepTokens', 1, 1_048_576),
    maxStepMs: reader.positive('maxStepMs'),
    preemptForPriority: reader.boolean('preemptForPriority') ?? false,
    stepTimeoutMs: reader.integer('stepTimeoutMs', 1, INT32_MAX),
    stuckAfterMs: reader.positive('stuckAfterMs'),
    embedding: checkEmbeddingOptions(reader.get('embedding')),
  }
}

/** The engine's part of an options object that has further fields, `more`. @throws ERR_INVALID_ARGUMENT */
export function checkEngineOptions(options: unknown, more: readonly string[], what: string): CheckedEngineOptions {
  return readEngineOptions(new ArgumentReader(options, [...ENGINE_OPTIONS, ...more], what))
}

const EXECUTOR_METHODS = ['start', 'openSlot', 'closeSlot', 'submit', 'close'] as const
const EXECUTOR_SIZES = ['vocabSize', 'maxPositions', 'pageSize', 'numPages', 'maxSlots', 'maxStepTokens'] as const

/** @throws ERR_INVALID_ARGUMENT for what has not the shape of an {@link Executor} */
export function checkExecutor(name: string, value: unknown): asserts value is Executor {
  const executor = value as Partial<Executor> | null | undefined
  for (const method of EXECUTOR_METHODS) {
    if (typeof executor?.[method] !== 'function') throw invalidArgument(name, `an Executor with ${method}()`, value)
  }
  const info = (executor!.info ?? {}) as Partial<ExecutorInfo>
  for (const size of EXECUTOR_SIZES) {
    const given = info[size] as unknown
    if (Number.isInteger(given) && (given as number) >= 1 && (given as number) <= INT32_MAX) continue
    throw invalidArgument(`${name}.info.${size}`, `an integer from 1 to ${INT32_MAX}`, given)
  }
  const { hiddenSize = 0 } = info
  if (!Number.isInteger(hiddenSize) || hiddenSize < 0 || hiddenSize > INT32_MAX) {
    throw invalidArgument(`${name}.info.hiddenSize`, `undefined, or an integer from 0 to ${INT32_MAX}`, hiddenSize)
  }
  const { hiddenRows } = info
  if (hiddenRows !== undefined && typeof hiddenRows !== 'boolean') throw invalidArgument(`${name}.info.hiddenRows`, 'a boolean', hiddenRows)
  const { setMask } = executor as Partial<Executor>
  if (setMask !== undefined && typeof setMask !== 'function') throw invalidArgument(`${name}.setMask`, 'a function', setMask)
}

export interface CheckedLoadOptions extends CheckedEngineOptions {
  backend: BackendChoice
  kvCacheMemory: number | undefined
  numPages: number | undefined
  kvCacheFraction: number | undefined
  failover: boolean | 'standby'
  /** Undefined: a dead backend stays dead. */
  restart: RestartPolicy | undefined
  pageSize: number
  threads: number
  simd: string
  device: number
  /** '' = not given. */
  libraryPath: string
  cudaGraphs: boolean
  weights: string | undefined
  verifyWeights: boolean | undefined
  allowUnfit: boolean
  signal: AbortSignal | undefined
  onWarning: LLMOptions['onWarning']
}

function readFailover(reader: ArgumentReader): LLMOptions['failover'] {
  const value = reader.get('failover')
  if (value === undefined || typeof value === 'boolean' || value === 'standby') return value
  throw invalidArgument('failover', "true, false or 'standby'", value)
}

const RESTART_OPTIONS = allKeys<RestartOptions>()(['initialDelayMs', 'maxDelayMs', 'maxAttempts'] as const)

/** @throws ERR_INVALID_ARGUMENT */
function checkRestart(restart: unknown): RestartPolicy | undefined {
  if (restart === false) return undefined
  if (restart === undefined || restart === true) return DEFAULT_RESTART
  return checkRestartPolicy(restart, [], '"restart"')
}

/** @param more fields that `restart` has beside the policy's. @throws ERR_INVALID_ARGUMENT */
export function checkRestartPolicy(restart: unknown, more: readonly string[], what: string): RestartPolicy {
  const reader = new ArgumentReader(restart, [...RESTART_OPTIONS, ...more], what)
  const longest = reader.integer('maxDelayMs', 0, INT32_MAX)
  const initialDelayMs = reader.integer('initialDelayMs', 0, INT32_MAX) ?? Math.min(DEFAULT_RESTART.initialDelayMs, longest ?? Infinity)
  const maxDelayMs = longest ?? Math.max(DEFAULT_RESTART.maxDelayMs, initialDelayMs)
  if (maxDelayMs < initialDelayMs) throw invalidArgument('maxDelayMs', `at least "initialDelayMs" (${initialDelayMs})`, maxDelayMs)
  const maxAttempts = reader.integer('maxAttempts', 1, INT32_MAX) ?? DEFAULT_RESTART.maxAttempts
  return { initialDelayMs, maxDelayMs, maxAttempts }
}

/** @throws ERR_INVALID_ARGUMENT */
export function checkLoadOptions(options: unknown): CheckedLoadOptions {
  const reader = new ArgumentReader(options, LLM_OPTIONS, 'LLM.load()')
  const kvCacheMemory = reader.integer('kvCacheMemory', 1, Number.MAX_SAFE_INTEGER)
  const numPages = reader.integer('numPages', 1, INT32_MAX)
  const kvCacheFraction = reader.positive('kvCacheFraction', 1)
  const sizes = { kvCacheMemory, numPages, kvCacheFraction }
  const given = Object.entries(sizes).filter(([, value]) => value !== undefined)
  if (given.length > 1) {
    const names = given.map(([name]) => `"${name}"`)
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `Give ${names.join(' or ')}, not both`)
  }
  const backend = reader.choice('backend', ['auto', 'cpu', 'tensorrt']) ?? 'auto'
  return {
    ...readEngineOptions(reader),
    backend,
    ...sizes,
    failover: readFailover(reader) ?? backend !== 'tensorrt',
    restart: checkRestart(reader.get('restart')),
    pageSize: reader.integer('pageSize', 1, 4096) ?? 16,
    threads: reader.integer('threads', 1, 1024) ?? 0,
    simd: reader.choice('simd', ['avx512', 'avx2', 'portable']) ?? '',
    device: reader.integer('device', 0, 1023) ?? 0,
    libraryPath: reader.path('libraryPath') ?? '',
    cudaGraphs: reader.boolean('cudaGraphs') ?? true,
    weights: reader.path('weights'),
    verifyWeights: reader.boolean('verifyWeights'),
    allowUnfit: reader.boolean('allowUnfit') ?? false,
    signal: reader.signal('signal'),
    onWarning: reader.callback('onWarning') as LLMOptions['onWarning'],
  }
}

/** @throws ERR_INVALID_ARGUMENT */
export function checkCloseOptions(options: unknown): { drainMs: number } {
  const reader = new ArgumentReader(options, allKeys<CloseOptions>()(['drain'] as const), 'close()')
  return { drainMs: reader.number('drain', 0, Number.MAX_VALUE) ?? 0 }
}
