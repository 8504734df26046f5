/** What a request asks the output to be: OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*`. */
import type { Grammar } from '../../llm'
import { ApiError } from '../errors'
import { nestsDeeper } from '../http/body'
import type { SamplingFields } from '../schemas/fields'

export interface GrammarChoice {
  grammar: Grammar
  /** The field that asks for it. */
  param: string
}

const MAX_SCHEMA_DEPTH = 100

/** @throws ApiError 400, also where more than one is asked for */
export function grammarOf(body: SamplingFields): GrammarChoice | undefined {
  const asked = [...responseFormat(body), ...structuredOutputs(body), ...guided(body)]
  if (asked.length > 1) {
    const names = asked.map(({ param }) => `"${param}"`).join(' and ')
    throw ApiError.invalid(asked[1]!.param, `An output can be held to one grammar; ${names} were given`)
  }
  return asked[0]
}

function responseFormat({ response_format: format }: SamplingFields): GrammarChoice[] {
  if (format === undefined) return []
  const param = 'response_format'
  switch (format['type']) {
    case 'text':
      return []
    case 'json_object':
      return [{ param, grammar: { json: true } }]
    case 'json_schema': {
      const wrapped = format['json_schema'] as { schema?: unknown } | null | undefined
      return [{ param, grammar: { jsonSchema: schemaOf(wrapped?.schema, `${param}.json_schema.schema`) } }]
    }
    case 'structural_tag': {
      return [{ param, grammar: { structuralTag: format } }]
    }
    default:
      throw ApiError.invalid(`${param}.type`, `"${param}.type" must be "text", "json_object", "json_schema" or "structural_tag"`)
  }
}

function structuredOutputs({ structured_outputs: given }: SamplingFields): GrammarChoice[] {
  if (given === undefined) return []
  const param = 'structured_outputs'
  const choices: GrammarChoice[] = []
  const add = (name: string, grammar: (value: unknown, where: string) => Grammar): void => {
    const value = Object.hasOwn(given, name) ? given[name] : undefined
    if (value === undefined || value === null || value === false) return
    choices.push({ param: `${param}.${name}`, grammar: grammar(value, `${param}.${name}`) })
  }
  const whitespace = given['disable_any_whitespace'] === true ? { whitespace: 0 } : {}
  add('json', (value, where) => ({ jsonSchema: schemaOf(value, where), ...whitespace }))
  add('json_object', () => ({ json: true, ...whitespace }))
  add('regex', (value, where) => ({ regex: textOf(value, where) }))
  add('choice', (value, where) => ({ choice: textsOf(value, where) }))
  add('grammar', (value, where) => ({ grammar: textOf(value, where) }))
  add('structural_tag', (value, where) => ({ structuralTag: objectOf(value, where) }))
  if (choices.length === 0) {
    throw ApiError.invalid(param, `"${param}" must have one of "json", "json_object", "regex", "choice", "grammar" and "structural_tag"`)
  }
  return choices
}

function guided(body: SamplingFields): GrammarChoice[] {
  const choices: GrammarChoice[] = []
  const add = (param: keyof SamplingFields, grammar: (value: unknown) => Grammar): void => {
    const value = body[param]
    if (value !== undefined && value !== null) choices.push({ param, grammar: grammar(value) })
  }
  add('guided_json', (value) => ({ jsonSchema: schemaOf(value, 'guided_json') }))
  add('guided_regex', (value) => ({ regex: textOf(value, 'guided_regex') }))
  add('guided_choice', (value) => ({ choice: textsOf(value, 'guided_choice') }))
  add('guided_grammar', (value) => ({ grammar: textOf(value, 'guided_grammar') }))
  return choices
}

function textOf(value: unknown, where: string): string {
  if (typeof value === 'string') return value
  throw ApiError.invalid(where, `"${where}" must be a string`)
}

function textsOf(value: unknown, where: string): string[] {
  if (Array.isArray(value) && value.length > 0 && value.every((item) => typeof item === 'string')) return value as string[]
  throw ApiError.invalid(where, `"${where}" must be an array of strings`)
}

/** An object, or one as JSON text. */
function objectOf(value: unknown, where: string): object {
  const parsed = typeof value === 'string' ? parseJson(value, where) : value
  if (typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed)) return parsed
  throw ApiError.invalid(where, `"${where}" must be an object`)
}

function schemaOf(value: unknown, where: string): object | boolean {
  return typeof value === 'boolean' ? value : objectOf(value, where)
}

function parseJson(text: string, where: string): unknown {
  if (nestsDeeper(text, MAX_SCHEMA_DEPTH)) throw ApiError.invalid(where, `"${where}" nests deeper than ${MAX_SCHEMA_DEPTH} levels`)
  try {
    return JSON.parse(text)
  } catch {
    throw ApiError.invalid(where, `"${where}" is no JSON`)
  }
}
