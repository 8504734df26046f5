/** Reads what a server is to be: flags over environment over file over defaults. All that is wrong is told at once. */
import { readFileSync } from 'node:fs'
import { dirname, isAbsolute, resolve } from 'node:path'
import { parse as parseYaml } from 'yaml'
import { z } from 'zod'
import { TensorRTError } from '../errors'
import { closest } from '../runtime'
import type { Pooling } from '../llm'
import type { ServerOptions } from '../server'
import { environmentName, optionName, type Setting, type SettingKind, SETTINGS, VARIABLES } from './serve_settings'
import { bytesOf } from './options'

/** What `serve` was told; undefined: the default. */
export interface ServeConfig {
  model?: string | undefined
  host: string
  port: number
  tls?: { cert: string; key: string } | undefined
  maxConnections: number
  headersTimeoutMs?: number | undefined
  keepAliveMs?: number | undefined
  stallTimeoutMs?: number | undefined
  drainMs: number
  warmUp: boolean
  modelName?: string[] | undefined
  toolCallParser?: ServerOptions['toolCallParser']
  reasoningParser?: ServerOptions['reasoningParser']
  embedding?: { pooling?: Pooling | undefined; normalize?: boolean | undefined; matryoshkaDimensions?: 'any' | number[] | undefined } | undefined
  backend: 'auto' | 'cpu' | 'tensorrt'
  threads?: number | undefined
  device?: number | undefined
  libraryPath?: string | undefined
  weights?: string | undefined
  verifyWeights?: boolean | undefined
  allowUnfit?: boolean | undefined
  cudaGraphs?: boolean | undefined
  kvCacheMemory?: number | undefined
  kvCacheFraction?: number | undefined
  pageSize?: number | undefined
  maxSequences?: number | undefined
  maxStepTokens?: number | undefined
  maxStepMs?: number | undefined
  maxQueue?: number | undefined
  agingMs?: number | undefined
  preemptForPriority?: boolean | undefined
  prefixCache: boolean
  retries?: number | undefined
  grammarTimeoutMs?: number | undefined
  failover?: 'on' | 'off' | 'standby' | undefined
  restart: { enabled: boolean; initialDelayMs?: number | undefined; maxDelayMs?: number | undefined; maxAttempts?: number | undefined }
  stepTimeoutMs?: number | undefined
  stuckAfterMs?: number | undefined
  limits: Record<string, number>
  sla?: { ttftMs: number; itlMs: number; percentile?: number | undefined; interactivePriority?: number | undefined; batchQueueShare?: number | undefined } | undefined
  auth: {
    keyFile?: string | undefined
    keys: readonly KeyConfig[]
    open: string[]
    shareCache: boolean
  }
  metrics: { enabled: boolean; host: string; port?: number | undefined }
  accessLog?: string | undefined
  tracing: boolean
}

/** An entry of `auth.keys`. */
export interface KeyConfig {
  name: string
  sha256: string
  limits?: Partial<Record<string, number>> | undefined
  maxConcurrent?: number | undefined
  requestsPerMinute?: number | undefined
  models?: readonly string[] | undefined
  cacheSalt?: string | undefined
}

export interface ConfigSources {
  /** The folder that the command line names. */
  model: string | undefined
  /** As commander parsed them. */
  flags: Readonly<Record<string, unknown>>
  env: Readonly<Record<string, string | undefined>>
  /** Of the configuration file. */
  file: string | undefined
}

const DEFAULTS = {
  host: '127.0.0.1',
  port: 8000,
  maxConnections: 4096,
  drainMs: 30_000,
  backend: 'auto',
  warmUp: true,
  prefixCache: true,
  restart: { enabled: true },
  tracing: true,
  limits: {},
  auth: { keys: [], open: ['/health/live', '/health/ready'], shareCache: false },
  metrics: { enabled: true, host: '127.0.0.1' },
}

/** As `createServer` has it, which is asked too late to end the start with. */
const MODEL_NAME = /^\w[\w.:/@+-]{0,255}$/

export type Tree = { [field: string]: unknown }

const isTree = (value: unknown): value is Tree => typeof value === 'object' && value !== null && !Array.isArray(value)

/** Where in the file a value came from something else than the file. */
type Origins = Map<string, string>

/**
 * @throws ERR_INVALID_ARGUMENT that lists every wrong value with where it is, what was expected and what was given; ERR_IO for a file
 * that cannot be read
 */
export function readServeConfig({ model, flags, env, file }: ConfigSources): ServeConfig {
  const tree: Tree = file === undefined ? {} : readConfigFile(file)
  const origins: Origins = new Map()
  const put = (setting: { path: string }, value: unknown, origin: string): void => {
    origins.set(setting.path, origin)
    setPath(tree, setting.path, value)
  }
  for (const setting of SETTINGS) {
    const text = env[environmentName(setting)]
    if (text !== undefined && text !== '') put(setting, fromText(text, setting.kind), environmentName(setting))
    const flag = flags[optionName(setting)]
    if (flag !== undefined) put(setting, typeof flag === 'string' ? fromText(flag, setting.kind) : flag, `--${setting.flag}`)
  }
  if (model !== undefined) put({ path: 'model' }, model, 'the model folder')
  const result = configSchema().safeParse(tree, { reportInput: true })
  if (!result.success) {
    const lines = result.error.issues.flatMap((issue) => describeIssue(issue, origins, file))
    throw new TensorRTError('ERR_INVALID_ARGUMENT', lines.length === 1 ? lines[0]! : `The configuration is wrong:\n  ${lines.join('\n  ')}`)
  }
  const config = merge(DEFAULTS, result.data as Tree) as unknown as ServeConfig
  checkTogether(config)
  return config
}

/**
 * Warnings of variables that are almost the name of one. Others of the same beginning are left alone: Kubernetes makes some for a
 * service that is called like this program.
 */
export function misspeltVariables(env: Readonly<Record<string, string | undefined>>): string[] {
  const known = new Map(SETTINGS.map((setting) => [environmentName(setting).slice(VARIABLES.length).replaceAll('_', '').toLowerCase(), environmentName(setting)]))
  const names = new Set(known.values())
  return Object.keys(env).flatMap((name) => {
    if (!name.startsWith(VARIABLES) || names.has(name)) return []
    const meant = closest(name.slice(VARIABLES.length), [...known.keys()])
    return meant === undefined ? [] : [`WARNING: ${name} is no setting; did you mean ${known.get(meant)}?`]
  })
}

/** @throws ERR_INVALID_ARGUMENT for fields that are right each by itself, and not together */
function checkTogether(config: ServeConfig): void {
  const wrong = (message: string): TensorRTError => new TensorRTError('ERR_INVALID_ARGUMENT', message)
  for (const [part, ...fields] of [['tls', 'cert', 'key'], ['sla', 'ttftMs', 'itlMs']] as const) {
    const given = config[part] as Tree | undefined
    if (given === undefined || fields.every((field) => given[field] !== undefined)) continue
    throw wrong(`${fields.map((field) => `"${part}.${field}"`).join(' and ')} go together`)
  }
  if (config.kvCacheMemory !== undefined && config.kvCacheFraction !== undefined) throw wrong('Give "kvCacheMemory" or "kvCacheFraction", not both')
  const { initialDelayMs, maxDelayMs } = config.restart
  if (initialDelayMs !== undefined && maxDelayMs !== undefined && maxDelayMs < initialDelayMs) {
    throw wrong(`"restart.maxDelayMs" must be at least "restart.initialDelayMs" (${initialDelayMs}), not ${maxDelayMs}`)
  }
}

function readConfigFile(file: string): Tree {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    throw new TensorRTError('ERR_IO', `The configuration ${file} cannot be read: ${(cause as Error).message}`, { cause })
  }
  let value: unknown
  try {
    // JSON is YAML, too. Aliases are not expanded without end.
    value = parseYaml(text, { prettyErrors: true, maxAliasCount: 100, strict: true })
  } catch (cause) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${file} is no valid YAML: ${(cause as Error).message.trimEnd()}`, { cause })
  }
  if (value === null || value === undefined) return {}
  if (!isTree(value)) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${file} must hold fields and values, such as "port: 8000"`)
  // Paths in a file are the file's.
  return withAbsolutePaths(value, dirname(resolve(file)))
}

/** A copy whose paths do not depend on where they are read. */
export function withAbsolutePaths(config: Tree, base: string): Tree {
  const tree = structuredClone(config)
  const paths = [...SETTINGS.filter(({ kind }) => kind.type === 'path').map(({ path }) => path), 'model']
  for (const path of paths) {
    const given = getPath(tree, path)
    if (typeof given === 'string' && given !== '' && !isAbsolute(given)) setPath(tree, path, resolve(base, given))
  }
  return tree
}

function getPath(tree: Tree, path: string): unknown {
  let value: unknown = tree
  for (const field of path.split('.')) value = isTree(value) ? value[field] : undefined
  return value
}

function setPath(tree: Tree, path: string, value: unknown): void {
  const fields = path.split('.')
  const last = fields.pop()!
  let at = tree
  for (const field of fields) {
    if (!isTree(at[field])) at[field] = {}
    at = at[field] as Tree
  }
  at[last] = value
}

function merge(defaults: Tree, given: Tree): Tree {
  const merged: Tree = { ...defaults }
  for (const [field, value] of Object.entries(given)) {
    if (value === undefined) continue
    const other = merged[field]
    merged[field] = isTree(value) && isTree(other) ? merge(other, value) : value
  }
  return merged
}

/** Text of a flag or a variable, as a file would have it; what it cannot be stays text, for the check to tell. */
function fromText(text: string, kind: SettingKind): unknown {
  switch (kind.type) {
    case 'integer':
    case 'number':
      return /^[+-]?(\d+\.?\d*|\.\d+)(e\d+)?$/i.test(text.trim()) ? Number(text) : text
    case 'boolean':
      return { true: true, on: true, yes: true, '1': true, false: false, off: false, no: false, '0': false }[text.toLowerCase()] ?? text
    case 'strings':
    case 'names':
      return text.split(',').map((part) => part.trim())
    case 'integers':
      return text === kind.all ? text : text.split(',').map((part) => (/^\s*\d+\s*$/.test(part) ? Number(part) : part))
    default:
      return text
  }
}

// --- checks ---

function range(min: number, max: number): string {
  if (max === Number.MAX_SAFE_INTEGER) return `an integer from ${min}`
  return `an integer from ${min} to ${max}`
}

function schemaOf(kind: SettingKind): z.ZodType {
  switch (kind.type) {
    case 'string':
      return expecting('a string that is not empty', (value) => typeof value === 'string' && value !== '')
    case 'path':
      return expecting('a path', (value) => typeof value === 'string' && value !== '' && !value.includes('\0'))
    case 'strings':
      return z.preprocess((value) => (typeof value === 'string' ? [value] : value), strings('a list of names'))
    case 'names': {
      const check = (value: unknown): boolean => Array.isArray(value) && value.length > 0 && value.every((name) => typeof name === 'string' && MODEL_NAME.test(name))
      const different = (value: unknown): boolean => new Set(value as unknown[]).size === (value as unknown[]).length
      const names = expecting('names of up to 256 letters, digits and . : / @ + - _, beginning with a letter or digit', check)
      return z.preprocess((value) => (typeof value === 'string' ? [value] : value), names.refine((value) => !check(value) || different(value), { message: 'names that differ' }))
    }
    case 'integers': {
      const { all } = kind
      const check = (value: unknown): boolean => Array.isArray(value) && value.length > 0 && value.every((one) => Number.isSafeInteger(one) && (one as number) >= 1)
      return expecting(`a list of integers from 1, or ${all}`, (value) => value === all || check(value))
    }
    case 'integer': {
      const { min, max, unlimited } = kind
      const check = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max
      if (unlimited !== true) return expecting(range(min, max), check)
      return z.preprocess((value) => (value === 'none' ? Infinity : value), expecting(`${range(min, max)}, or none`, (value) => value === Infinity || check(value)))
    }
    case 'number':
      return expecting(`a number above ${kind.above} and up to ${kind.max}`, (value) => typeof value === 'number' && value > kind.above && value <= kind.max)
    case 'bytes': {
      const most = kind.max === Number.MAX_SAFE_INTEGER ? '' : `, at most ${kind.max}`
      const check = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= kind.max
      return z.preprocess((value) => (typeof value === 'string' ? (bytesOf(value) ?? value) : value), expecting(`bytes, such as 512M or 4GiB${most}`, check))
    }
    case 'boolean':
      return expecting('true or false', (value) => typeof value === 'boolean')
    default: {
      const { choices } = kind
      // YAML reads on and off as words or as booleans, by its version.
      const spelt = (value: unknown): unknown => (typeof value === 'boolean' && choices.includes('on') ? (value ? 'on' : 'off') : value)
      return z.preprocess(spelt, expecting(choices.join(', '), (value) => choices.includes(value as string)))
    }
  }
}

function expecting(expected: string, check: (value: unknown) => boolean): z.ZodType {
  return z.unknown().refine(check, { message: expected })
}

function strings(expected: string): z.ZodType {
  return expecting(expected, (value) => Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === 'string' && one !== ''))
}

function keySchema(): z.ZodType {
  const count = { type: 'integer', min: 1, max: 1_000_000 } as const
  const limits = Object.fromEntries(
    SETTINGS.filter(({ path }) => path.startsWith('limits.')).map(({ path, kind }) => [path.slice('limits.'.length), schemaOf(kind).optional()]),
  )
  return z.strictObject({
    name: expecting('1 to 64 letters, digits and . _ @ -', (value) => typeof value === 'string' && /^[\w.@-]{1,64}$/.test(value)),
    sha256: expecting('the 64 hexadecimal digits that `node-tensorrt key` prints', (value) => typeof value === 'string' && /^[0-9a-f]{64}$/i.test(value)),
    limits: z.strictObject(limits).optional(),
    maxConcurrent: schemaOf(count).optional(),
    requestsPerMinute: schemaOf(count).optional(),
    models: strings('a list of names').optional(),
    cacheSalt: schemaOf({ type: 'string' }).optional(),
  })
}

function configSchema(): z.ZodType {
  interface Level {
    [field: string]: Level | z.ZodType
  }
  const top: Level = { model: schemaOf({ type: 'path' }), auth: { keys: z.array(keySchema(), { error: 'a list of keys' }) } }
  for (const { path, kind } of SETTINGS) {
    const fields = path.split('.')
    const last = fields.pop()!
    let level = top
    for (const field of fields) level = (level[field] ??= {}) as Level
    level[last] = schemaOf(kind)
  }
  const objectOf = (level: Level): z.ZodType => {
    const shape = Object.entries(level).map(([field, inner]) => [field, (inner instanceof z.ZodType ? inner : objectOf(inner)).optional()])
    return z.strictObject(Object.fromEntries(shape) as z.core.$ZodShape, { error: (issue) => (issue.code === 'invalid_type' ? 'fields and values' : undefined) })
  }
  return objectOf(top)
}

type Issue = z.core.$ZodIssue

function describeIssue(issue: Issue, origins: Origins, file: string | undefined): string[] {
  const path = issue.path.map(String)
  const dotted = issue.path.map((part, i) => (typeof part === 'number' ? `[${part}]` : `${i === 0 ? '' : '.'}${String(part)}`)).join('')
  const origin = origins.get(dotted)
  const at = (name: string): string => (file === undefined ? `"${name}"` : `${file}: "${name}"`)
  if (issue.code === 'unrecognized_keys') {
    const known = fieldsAt(path)
    return issue.keys.map((key) => {
      const name = dotted === '' ? key : `${dotted}.${key}`
      const meant = closest(key, known)
      return `${at(name)} is no field${meant === undefined ? `; there are: ${known.join(', ')}` : `; did you mean "${meant}"?`}`
    })
  }
  const given = JSON.stringify(issue.input) ?? 'nothing'
  const shown = given.length > 60 ? `${given.slice(0, 60)}...` : given
  return [`${origin ?? at(dotted)} must be ${issue.message}, not ${shown}`]
}

/** Names of the fields of an object within the configuration. */
function fieldsAt(path: readonly string[]): string[] {
  const [first, second] = path
  if (first === 'auth' && second === 'keys') {
    if (path[3] === 'limits') return fieldsAt(['limits'])
    return ['name', 'sha256', 'limits', 'maxConcurrent', 'requestsPerMinute', 'models', 'cacheSalt']
  }
  const prefix = path.length === 0 ? '' : `${path.join('.')}.`
  const names = [...SETTINGS.map((setting: Setting) => setting.path), 'model', 'auth.keys'].filter((name) => name.startsWith(prefix))
  return [...new Set(names.map((name) => name.slice(prefix.length).split('.')[0]!))]
}
