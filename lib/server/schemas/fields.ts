/** What the schemas of all routes share. Unknown fields are ignored, as OpenAI's clients send new ones any day. */
import { z } from 'zod'
import { describeValue } from '../../runtime'
import { ApiError } from '../errors'

type Test = (value: unknown) => boolean

/** What a schema takes as it is, told without zod, which takes microseconds for each value. */
const plainTests = new WeakMap<z.ZodType, Test>()

/** @param test may be false for a value that the schema takes, and never true for one that it refuses or changes */
export function plainly<T extends z.ZodType>(schema: T, test: Test): T {
  plainTests.set(schema, test)
  return schema
}

const isString: Test = (value) => typeof value === 'string'
const isBoolean: Test = (value) => typeof value === 'boolean'

/** A field that may be left out; null is the same as left out. */
export function optional<T extends z.ZodType>(schema: T) {
  const nullish = schema.nullish().transform((value) => value ?? undefined)
  const test = plainTests.get(schema)
  return test === undefined ? nullish : plainly(nullish, test)
}

export const text = plainly(z.string(), isString)
export const flag = optional(plainly(z.boolean('must be true or false'), isBoolean))
export const integer = (min: number, max: number) => numberWithin(z.int, min, max, 'an integer')
export const range = (min: number, max: number) => numberWithin(z.number, min, max, 'a number')

function numberWithin(type: typeof z.int | typeof z.number, min: number, max: number, noun: string) {
  const expected = `must be ${noun} from ${min} to ${max}`
  const isKind = type === z.int ? Number.isSafeInteger : Number.isFinite
  return plainly(type(expected).min(min, expected).max(max, expected), (value) => isKind(value) && (value as number) >= min && (value as number) <= max)
}

const INT32_MAX = 2 ** 31 - 1

/** An object whose fields are the model's or the caller's business. */
export const anyObject = z.custom<Record<string, unknown>>(
  (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
  'must be an object',
)

/** Elements are looked at only where there are not too many: each wrong one costs an issue. */
export const list = <T extends z.ZodType>(schema: T, max: number) =>
  z
    .custom<z.input<T>[]>((value) => Array.isArray(value) && value.length <= max, `must be an array, of at most ${max}`)
    .pipe(z.array(schema))

const isTokenId = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 0 && (value as number) <= INT32_MAX
const isTokenIds = (value: unknown): value is number[] => Array.isArray(value) && value.every(isTokenId)

/** Token ids, up to the first that is none. */
export const tokenIds = plainly(z.custom<number[]>(isTokenIds, 'must be an array of token ids'), isTokenIds)

const isFilledTokenIds: Test = (value) => isTokenIds(value) && value.length > 0

const isPrompts: Test = (value) => {
  if (typeof value === 'string') return true
  if (!Array.isArray(value) || value.length === 0) return false
  return value.every(typeof value[0] === 'string' ? isString : Array.isArray(value[0]) ? isFilledTokenIds : isTokenId)
}

/** One text or several, each as a string or as token ids. */
const promptsSchema = z.custom<string | number[] | string[] | number[][]>(isPrompts, 'must be a string, an array of strings, an array of token ids, or an array of arrays of token ids, none empty')
export const prompts = plainly(promptsSchema, isPrompts)

/** Whether a value is an object whose fields are all known, and as `test` wants them. */
export function hasOnly(value: unknown, known: object, test: (value: unknown, name: string) => boolean): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  for (const name of Object.keys(value)) {
    if (!Object.hasOwn(known, name) || !test((value as Record<string, unknown>)[name], name)) return false
  }
  return true
}

const streamFlags = { include_usage: flag, continuous_usage_stats: flag }

const MAX_BIASES = 1024
const MAX_STOPS = 64

/** Fields of chat and text completions alike: OpenAI's, then those that vLLM adds. */
export const samplingFields = {
  model: optional(text),
  n: optional(integer(1, 1024)),
  temperature: optional(range(0, 100)),
  top_p: optional(range(0, 1)),
  presence_penalty: optional(range(-2, 2)),
  frequency_penalty: optional(range(-2, 2)),
  seed: optional(z.number().refine(Number.isInteger, 'must be an integer')),
  stop: optional(
    plainly(z.union([z.string(), list(z.string(), MAX_STOPS)], `must be a string, or an array of at most ${MAX_STOPS} strings`), isString),
  ),
  logit_bias: optional(
    anyObject
      .refine((bias) => Object.keys(bias).length <= MAX_BIASES, `may hold at most ${MAX_BIASES} tokens`)
      .pipe(z.record(z.string(), range(-100, 100))),
  ),
  stream: flag,
  stream_options: optional(plainly(z.object(streamFlags), (value) => hasOnly(value, streamFlags, isBoolean))),
  user: optional(text),

  top_k: optional(integer(-1, INT32_MAX)),
  min_p: optional(range(0, 1)),
  repetition_penalty: optional(range(0.01, 100)),
  min_tokens: optional(integer(0, INT32_MAX)),
  stop_token_ids: optional(tokenIds),
  ignore_eos: flag,
  include_stop_str_in_output: flag,
  skip_special_tokens: flag,
  prompt_logprobs: optional(integer(0, 256)),
  add_special_tokens: flag,
  return_tokens_as_token_ids: flag,
  priority: optional(integer(-1000, 1000)),
  cache_salt: optional(z.string().min(1).max(1024)),

  response_format: optional(anyObject),
  structured_outputs: optional(anyObject),
  guided_json: z.unknown().optional(),
  guided_regex: z.unknown().optional(),
  guided_choice: z.unknown().optional(),
  guided_grammar: z.unknown().optional(),
}

export type SamplingFields = z.output<z.ZodObject<typeof samplingFields>>

/** `messages[0].content`, as clients write it. */
function pathOf(path: readonly PropertyKey[]): string {
  let text = ''
  for (const part of path) text += typeof part === 'number' ? `[${part}]` : `${text === '' ? '' : '.'}${String(part)}`
  return text
}

/** The issue that says most: of a union the one that goes deepest. */
function deepest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== 'invalid_union' || issue.message !== 'Invalid input') return issue
  let best: z.core.$ZodIssue = issue
  for (const inner of issue.errors.flat()) {
    const found = deepest(inner)
    if (found.path.length > best.path.length - issue.path.length) best = { ...found, path: [...issue.path, ...found.path] }
  }
  return best
}

interface Field {
  name: string
  schema: z.ZodType
  /** It may be left out, and null is the same as left out. */
  optional: boolean
  /** See {@link plainly}. */
  isPlain: Test
}

const never = (): boolean => false

const fieldsOf = new WeakMap<z.ZodObject, readonly Field[]>()

function listFields(schema: z.ZodObject): readonly Field[] {
  const fields = Object.entries(schema.shape).map(([name, field]): Field => {
    const absent = (field as z.ZodType).safeParse(null)
    const isPlain = plainTests.get(field as z.ZodType) ?? never
    return { name, schema: field as z.ZodType, optional: absent.success && absent.data === undefined, isPlain }
  })
  fieldsOf.set(schema, fields)
  return fields
}

/**
 * What the schema makes of a body, unknown fields left out. Only what is there is looked at: of some forty fields a request has about five.
 * @throws ApiError 400 that names the first field that is wrong, in the order of the schema
 */
export function parse<S extends z.ZodObject>(schema: S, body: Record<string, unknown>): z.output<S> {
  const parsed: Record<string, unknown> = {}
  for (const field of fieldsOf.get(schema) ?? listFields(schema)) {
    const value = Object.hasOwn(body, field.name) ? body[field.name] : undefined
    if (field.optional && (value === undefined || value === null)) continue
    if (field.isPlain(value)) {
      parsed[field.name] = value
      continue
    }
    const result = field.schema.safeParse(value)
    if (!result.success) throw fieldError(field.name, result.error.issues[0]!, body)
    parsed[field.name] = result.data
  }
  return parsed as z.output<S>
}

function fieldError(name: string, found: z.core.$ZodIssue, body: Record<string, unknown>): ApiError {
  const issue = deepest({ ...found, path: [name, ...found.path] })
  const param = pathOf(issue.path)
  const missing = valueAt(body, issue.path) === undefined
  const message = missing ? `"${param}" is required` : wrongValue(param, issue.message, valueAt(body, issue.path))
  return ApiError.invalid(param === '' ? null : param, message, missing ? 'missing_required_parameter' : 'invalid_value')
}

const TYPES: Readonly<Record<string, string>> = { string: 'a string', object: 'an object', array: 'an array' }

/** What was expected, and what was given. */
function wrongValue(param: string, message: string, given: unknown): string {
  const told = message.replace(/^Invalid input: /, '')
  const type = TYPES[/^expected (\w+), received /.exec(told)?.[1] ?? '']
  const expected = type === undefined ? told : `must be ${type}`
  if (!expected.startsWith('must ')) return `"${param}": ${lowerFirst(expected)}`
  return `"${param}" ${expected}${expected.startsWith('must be ') ? `, not ${describeJson(given)}` : ''}`
}

function describeJson(value: unknown): string {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? 'an object' : describeValue(value)
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((inner, key) => (inner as Record<PropertyKey, unknown> | null | undefined)?.[key], value)
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1)
}

/** Known fields that this server does not act on, and the values of each that ask for nothing. */
export type Unsupported = Readonly<Record<string, { harmless?: (value: unknown) => boolean; instead?: string }>>

/** @throws ApiError 400 for the first that asks for something */
export function refuseUnsupported(body: Record<string, unknown>, fields: Unsupported): void {
  // Few requests have any: a look at what they have is shorter than one at what they might.
  if (!Object.keys(body).some((name) => Object.hasOwn(fields, name))) return
  for (const name of Object.keys(fields)) {
    const value = Object.hasOwn(body, name) ? body[name] : undefined
    const { harmless, instead } = fields[name]!
    if (value === undefined || value === null || harmless?.(value) === true) continue
    throw ApiError.unsupported(name, `"${name}" is not supported${instead === undefined ? '' : `; ${instead}`}`)
  }
}

const isFalse = (value: unknown): boolean => value === false
export const isEmpty = (value: unknown): boolean => Array.isArray(value) && value.length === 0

export const UNSUPPORTED_ANYWHERE: Unsupported = {
  use_beam_search: { harmless: isFalse },
  length_penalty: { harmless: (value) => value === 1 },
  bad_words: { harmless: isEmpty },
  allowed_token_ids: { harmless: isEmpty },
  logits_processors: { harmless: isEmpty },
  truncate_prompt_tokens: {},
  mm_processor_kwargs: {},
  kv_transfer_params: {},
  chat_template: { instead: "the model's own template is used" },
}
