/** What a caller asks an output to be, checked and written as the grammar library takes it. */
import { TensorRTError } from '../errors'
import { invalidGrammar } from './grammar_error'
import { schemaToEbnf } from './json_schema'
import { literal, regexToEbnf } from './regex'

/** What an output must be. Exactly one of the kinds; `whitespace` and `strict` go with JSON. */
export type Grammar =
  | {
      /** Any JSON object. */
      json: true
      whitespace?: number | undefined
    }
  | {
      /** A value that a JSON schema describes. */
      jsonSchema: object | boolean
      /**
       * Objects have the properties that `properties` describes, and no others, unless the schema has
       * `additionalProperties` of its own. Default true.
       */
      strict?: boolean | undefined
      /**
       * Most white-space characters in one place between the parts of the JSON text. 0: none, the shortest text. Default 16:
       * models write what they have learnt, and cannot lose themselves in it.
       */
      whitespace?: number | undefined
    }
  | {
      /** A text that matches a regular expression in JavaScript's syntax, from its beginning to its end. */
      regex: string
    }
  | {
      /** One of these texts. */
      choice: readonly string[]
    }
  | {
      /** A text that the rule `root` of a grammar produces: EBNF as XGrammar takes it, which is close to llama.cpp's GBNF. */
      grammar: string
    }
  | {
      /**
       * Text with parts that follow grammars of their own, such as calls of tools: XGrammar's structural tag. Formats of the type
       * `json_schema` may have a `whitespace`, as above.
       */
      structuralTag: object
    }

/** A grammar as it goes to the thread that compiles it. */
export interface GrammarSource {
  kind: 'ebnf' | 'structuralTag'
  text: string
}

const KINDS = ['json', 'jsonSchema', 'regex', 'choice', 'grammar', 'structuralTag'] as const
const DEFAULT_WHITESPACE = 16
const MAX_WHITESPACE = 1024
const MAX_CHOICES = 4096
/** Characters of an EBNF grammar, of all choices together, and of a structural tag as JSON. */
const MAX_TEXT = 131_072
/** Levels of groups in an EBNF grammar, and of formats in a structural tag: what the library's stack takes. */
const MAX_NESTING = 48
const MAX_TAG_DEPTH = 12

function wrongType(name: string, expected: string, given: unknown): TensorRTError {
  const hint = given instanceof RegExp ? 'give its source' : undefined
  return new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" must be ${expected}, not ${describe(given)}`, { hint })
}

function describe(value: unknown): string {
  if (value instanceof RegExp) return 'a RegExp'
  if (Array.isArray(value)) return value.length === 0 ? 'an empty array' : 'an array'
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 40))
  if (typeof value !== 'object' || value === null) return typeof value === 'function' ? 'a function' : String(value)
  const names = Object.keys(value).slice(0, 8)
  return names.length === 0 ? 'an empty one' : `one with ${names.map((name) => JSON.stringify(name.slice(0, 40))).join(', ')}`
}

function checkText(name: string, value: unknown): string {
  if (typeof value !== 'string') throw wrongType(name, 'a string', value)
  if (value.length > MAX_TEXT) throw invalidGrammar(`"${name}" has ${value.length} characters, at most ${MAX_TEXT} are possible`)
  if (/\p{Surrogate}/u.test(value)) throw invalidGrammar(`"${name}" is no well-formed Unicode text`)
  return value
}

function checkEbnf(name: string, value: unknown): string {
  const text = checkText(name, value)
  let open = 0
  // Literals, sets and comments, in which a "(" is no group.
  for (const char of text.replace(/"(?:[^"\\\n]|\\.)*"|\[(?:[^\]\\\n]|\\.)*\]|#.*/g, '')) {
    if (char === '(' && ++open > MAX_NESTING) throw invalidGrammar(`"${name}" nests more than ${MAX_NESTING} groups`)
    if (char === ')') open--
  }
  return text
}

function choices(value: unknown): string {
  if (!Array.isArray(value) || value.length === 0 || !value.every((one) => typeof one === 'string' && one !== '')) {
    throw wrongType('grammar.choice', 'an array of strings that are not empty', value)
  }
  if (value.length > MAX_CHOICES) throw invalidGrammar(`"grammar.choice" has ${value.length} texts, at most ${MAX_CHOICES} are possible`)
  const texts = [...new Set(value as string[])]
  checkText('grammar.choice', texts.join(''))
  return `root ::= ${texts.map(literal).join(' | ')}`
}

/** Copies a structural tag; the schemas and expressions in it become grammars. */
function translateTag(value: unknown, path: string, depth = 0): unknown {
  if (depth > MAX_TAG_DEPTH) throw invalidGrammar(`${path} is nested more than ${MAX_TAG_DEPTH} levels deep`)
  if (Array.isArray(value)) return value.map((one, i) => translateTag(one, `${path}/${i}`, depth + 1))
  if (typeof value !== 'object' || value === null) return value
  const { type, json_schema: schema, pattern, grammar } = value as Record<string, unknown>
  if (type === 'json_schema') return { type: 'grammar', grammar: schemaToEbnf(schema, true, whitespaceOf(value as Record<string, unknown>)) }
  if (type === 'regex') {
    return { type: 'grammar', grammar: regexGrammar(checkText(`${path}/pattern`, pattern), `The expression at ${path}`) }
  }
  if (type === 'grammar') return { type, grammar: checkEbnf(`${path}/grammar`, grammar) }
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, translateTag(inner, `${path}/${key}`, depth + 1)]))
}

function regexGrammar(expression: string, where: string): string {
  const ebnf = regexToEbnf(expression, where, false)
  if (ebnf === '') throw invalidGrammar(`${where} matches nothing but the empty text`)
  return `root ::= ${ebnf}`
}

function structuralTag(value: unknown): string {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrongType('grammar.structuralTag', 'an object', value)
  const format = 'format' in value ? value.format : value
  return checkText('grammar.structuralTag', JSON.stringify({ type: 'structural_tag', format: translateTag(format, 'grammar.structuralTag') }))
}

/**
 * @param value what a caller gave as `grammar`
 * @throws ERR_INVALID_ARGUMENT for what is no such object, ERR_GRAMMAR_INVALID for one that stands for no grammar. What only the
 * compiler finds, it finds later.
 */
export function checkGrammar(value: unknown): GrammarSource {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrongType('grammar', 'an object', value)
  const given = value as Record<string, unknown>
  const kinds = KINDS.filter((kind) => given[kind] !== undefined)
  const [kind] = kinds
  if (kind === undefined || kinds.length > 1) {
    throw wrongType('grammar', `an object with one of ${KINDS.map((name) => `"${name}"`).join(', ')}`, value)
  }
  const options = kind === 'jsonSchema' ? ['strict', 'whitespace'] : kind === 'json' ? ['whitespace'] : []
  const other = Object.keys(given).find((name) => name !== kind && !options.includes(name) && given[name] !== undefined)
  if (other !== undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', `"grammar" has no option ${JSON.stringify(other.slice(0, 40))} with "${kind}"`)
  switch (kind) {
    case 'json':
      if (given['json'] !== true) throw wrongType('grammar.json', 'true', given['json'])
      return { kind: 'ebnf', text: schemaToEbnf({ type: 'object' }, false, whitespaceOf(given)) }
    case 'jsonSchema': {
      const { jsonSchema, strict = true } = given
      if ((typeof jsonSchema !== 'object' || jsonSchema === null || Array.isArray(jsonSchema)) && typeof jsonSchema !== 'boolean') {
        throw wrongType('grammar.jsonSchema', 'a JSON schema: an object', jsonSchema)
      }
      if (typeof strict !== 'boolean') throw wrongType('grammar.strict', 'true or false', strict)
      return { kind: 'ebnf', text: schemaToEbnf(jsonSchema, strict, whitespaceOf(given)) }
    }
    case 'regex':
      return { kind: 'ebnf', text: regexGrammar(checkText('grammar.regex', given['regex']), 'The expression') }
    case 'choice':
      return { kind: 'ebnf', text: choices(given['choice']) }
    case 'grammar':
      return { kind: 'ebnf', text: checkEbnf('grammar.grammar', given['grammar']) }
    case 'structuralTag':
      return { kind: 'structuralTag', text: structuralTag(given['structuralTag']) }
  }
}

function whitespaceOf({ whitespace = DEFAULT_WHITESPACE }: Record<string, unknown>): number {
  if (typeof whitespace !== 'number' || !Number.isInteger(whitespace) || whitespace < 0 || whitespace > MAX_WHITESPACE) {
    throw wrongType('grammar.whitespace', `an integer from 0 to ${MAX_WHITESPACE}`, whitespace)
  }
  return whitespace
}

/** Equal for grammars that compile to the same. */
export function sourceKey(source: GrammarSource): string {
  return `${source.kind} ${source.text}`
}
