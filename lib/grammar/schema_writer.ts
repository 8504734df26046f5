/**
 * EBNF of the JSON texts that the definitions of a schema describe; json_schema.ts has put those into a plain form.
 *
 * A rule per schema, and sequences rather than groups within groups: the library's reader has a small stack.
 */
import { FORMATS } from './formats'
import { numberRange } from './number_range'
import { jsonChar, literal, plainJsonChar, regexToEbnf, repeated } from './regex'

type JsonObject = Record<string, unknown>

/** Digits of a number without bounds: a double holds any of them, and none becomes infinite. */
const INTEGER = '"-"? ("0" | [1-9] [0-9]{0,14})'
const NUMBER = '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?'

class SchemaWriter {
  private readonly rules: string[] = []
  private readonly shared = new Map<string, string>()
  private readonly space: string
  private next = 0
  /**
   * What comes after a string or a number, unless it is the last. Said at the end of a rule, it saves the library to try the many
   * tokens that end the value and go on with something else.
   */
  private readonly follows: string

  constructor(whitespace: number) {
    this.space = whitespace === 0 ? '' : this.share('ws', () => `[ \\n\\t\\r]{0,${whitespace}}`)
    this.follows = `(=${whitespace === 0 ? '' : '[ \\n\\t\\r]* '}[,:}\\]])`
  }

  write(definitions: ReadonlyMap<string, JsonObject>): string {
    for (const [name, schema] of definitions) this.rules.push(`${name} ::= ${this.body(schema)}`)
    return [...this.rules, 'root ::= d0'].join('\n')
  }

  /** What stands for a schema within a rule. */
  private value(schema: unknown): string {
    if (schema === true || isAny(schema)) return this.any()
    const object = schema as JsonObject
    if (typeof object['$ref'] === 'string') return object['$ref']
    const body = this.body(object)
    return /^\w+$/.test(body) ? body : this.rule(body)
  }

  private body(schema: JsonObject): string {
    if (isAny(schema)) return this.any()
    const { $ref: reference, anyOf, enum: values, type } = schema
    if (typeof reference === 'string') return reference
    if ('const' in schema) return literal(JSON.stringify(schema['const']))
    if (Array.isArray(values)) return values.map((one) => literal(JSON.stringify(one))).join(' | ')
    if (Array.isArray(anyOf)) return anyOf.map((one) => this.value(one)).join(' | ')
    switch (type) {
      case 'object':
        return this.object(schema)
      case 'array':
        return this.array(schema)
      case 'string':
        return this.string(schema, 'The string')
      case 'integer':
        return this.number(schema, true)
      case 'number':
        return this.number(schema, false)
      case 'boolean':
        return '"true" | "false"'
      default:
        return '"null"'
    }
  }

  private object(schema: JsonObject): string {
    const { space } = this
    const properties = (schema['properties'] ?? {}) as JsonObject
    const required = new Set((schema['required'] ?? []) as string[])
    const pairs = Object.entries(properties).map(([name, inner]) => {
      return { text: sequence(literal(JSON.stringify(name)), this.colon(), this.value(inner)), required: required.has(name) }
    })
    const extra = this.extra(schema, Object.keys(properties))
    const { extraMin = 0, extraMax = Infinity } = schema as { extraMin?: number; extraMax?: number }
    const comma = this.comma()
    const more = extra === undefined || extraMax === 0 ? '' : repeated(sequence(comma, extra), 0, extraMax)
    const pivot = pairs.findIndex((pair) => pair.required)
    const inside = (content: string): string => sequence('"{"', space, content, '"}"')
    if (pivot >= 0) {
      const before = pairs.slice(0, pivot).map(({ text }) => `(${sequence(text, comma)})?`)
      const after = pairs.slice(pivot + 1).map((pair) => (pair.required ? sequence(comma, pair.text) : `(${sequence(comma, pair.text)})?`))
      return inside(sequence(...before, pairs[pivot]!.text, ...after, more, space))
    }
    // Which one comes first is open: a chain of what may follow each.
    const first: string[] = []
    let rest = more
    if (extra !== undefined && extraMax > 0) first.push(sequence(extra, repeatedUpTo(sequence(comma, extra), extraMax - 1)))
    for (const { text } of pairs.toReversed()) {
      first.unshift(sequence(text, rest))
      rest = this.rule(sequence(`(${sequence(comma, text)})?`, rest))
    }
    if (first.length === 0) return inside('')
    const content = first.length === 1 ? `(${sequence(first[0]!, space)})` : sequence(`(${first.join(' | ')})`, space)
    return inside(extraMin > 0 ? content : `(${content})?`)
  }

  /** A property beside those that have names; undefined where there is none. */
  private extra(schema: JsonObject, names: readonly string[]): string | undefined {
    const { additionalProperties: open, patternProperties, propertyNames } = schema
    if (patternProperties !== undefined) {
      const pairs = Object.entries(patternProperties as JsonObject).map(([pattern, inner]) =>
        sequence('"\\""', group(regexToEbnf(pattern, 'The pattern of properties', true)), '"\\""', this.colon(), this.value(inner)),
      )
      return pairs.length === 0 ? undefined : this.rule(pairs.join(' | '))
    }
    if (open === false) return undefined
    const name = propertyNames === undefined ? this.otherName(names) : this.rule(this.string(propertyNames as JsonObject, 'The name of a property'))
    return this.rule(sequence(name, this.colon(), this.value(open)))
  }

  /**
   * A JSON string that is none of `names`: a tree of their characters, left at the first that is another. Escapes would let a name
   * through in disguise, so there are none.
   */
  private otherName(names: readonly string[]): string {
    if (names.length === 0) return this.text()
    interface Branch {
      end: boolean
      next: Map<string, Branch>
    }
    const root: Branch = { end: false, next: new Map() }
    for (const name of names) {
      let at = root
      // One with characters that JSON escapes cannot be met.
      if (/["\\\p{Cc}\p{Surrogate}]/u.test(name)) continue
      for (const char of name) {
        let branch = at.next.get(char)
        if (branch === undefined) at.next.set(char, (branch = { end: false, next: new Map() }))
        at = branch
      }
      at.end = true
    }
    const plain = plainJsonChar([])
    const ruleOf = ({ end, next }: Branch): string => {
      const ways = [...next].map(([char, branch]) => sequence(literal(char), ruleOf(branch)))
      ways.push(`${plainJsonChar(next.keys())} ${plain}*`)
      if (!end) ways.unshift('""')
      return this.rule(ways.join(' | '))
    }
    return sequence('"\\""', ruleOf(root), '"\\""')
  }

  private array(schema: JsonObject): string {
    const { space } = this
    const prefix = ((schema['prefixItems'] ?? []) as unknown[]).map((inner) => this.value(inner))
    const { minItems: min = 0, maxItems = Infinity } = schema as { minItems?: number; maxItems?: number }
    const item = schema['items'] === false ? undefined : this.value(schema['items'])
    const max = item === undefined ? Math.min(maxItems, prefix.length) : maxItems
    if (max === 0) return sequence('"["', space, '"]"')
    const comma = this.comma()
    const tail = (from: number): string => {
      return item === undefined || max <= from ? '' : repeated(sequence(comma, item), Math.max(min - from, 0), max - from)
    }
    const last = Math.min(prefix.length, max)
    let rest = tail(Math.max(last, 1))
    for (let i = last - 1; i >= 1; i--) {
      const next = sequence(comma, prefix[i]!, rest)
      rest = i >= min ? this.rule(`${group(next)}?`) : next
    }
    const content = sequence(prefix[0] ?? item!, rest, space)
    return sequence('"["', space, min === 0 ? `(${content})?` : content, '"]"')
  }

  private string(schema: JsonObject, where: string): string {
    const { pattern, format, minLength, maxLength } = schema
    const source = typeof pattern === 'string' ? pattern : typeof format === 'string' && Object.hasOwn(FORMATS, format) ? FORMATS[format]! : undefined
    if (source !== undefined) return sequence('"\\""', group(regexToEbnf(source, where, true)), '"\\""', this.follows)
    if (minLength === undefined && maxLength === undefined) return this.text()
    const char = this.share('char', () => jsonChar())
    return sequence('"\\""', repeated(char, (minLength as number | undefined) ?? 0, (maxLength as number | undefined) ?? Infinity), '"\\""', this.follows)
  }

  private number(schema: JsonObject, whole: boolean): string {
    if (Object.keys(schema).length > 1) return numberRange(schema, whole).join(' | ')
    return whole ? this.share('integer', () => sequence(INTEGER, this.follows)) : this.share('number', () => sequence(NUMBER, this.follows))
  }

  private text(): string {
    return this.share('string', () => {
      const rest = this.share('string_rest', () => {
        const char = this.share('char', () => jsonChar())
        return sequence(`("\\"" | ${char} string_rest | "\\\\u" [0-9a-f]{4} string_rest)`, this.follows)
      })
      return sequence('"\\""', rest)
    })
  }

  private any(): string {
    return this.share('value', () => {
      const { space } = this
      const pair = this.rule(sequence(this.text(), this.colon(), 'value'))
      const pairs = sequence(pair, `(${sequence(this.comma(), pair)})*`, space)
      const items = sequence('value', `(${sequence(this.comma(), 'value')})*`, space)
      const number = this.share('number', () => sequence(NUMBER, this.follows))
      return [
        sequence('"{"', space, `(${pairs})?`, '"}"'),
        sequence('"["', space, `(${items})?`, '"]"'),
        this.text(), number, '"true"', '"false"', '"null"',
      ].join(' | ')
    })
  }

  private comma(): string {
    return sequence(this.space, '","', this.space)
  }

  private colon(): string {
    return sequence(this.space, '":"', this.space)
  }

  private rule(body: string): string {
    const name = `r${this.next++}`
    this.rules.push(`${name} ::= ${body}`)
    return name
  }

  /** A rule that is written once. Its body may name it. */
  private share(name: string, body: () => string): string {
    if (!this.shared.has(name)) {
      this.shared.set(name, name)
      this.rules.push(`${name} ::= ${body()}`)
    }
    return name
  }
}

function sequence(...parts: readonly string[]): string {
  return parts.filter((part) => part !== '').join(' ')
}

function group(what: string): string {
  return what === '' ? '' : `(${what})`
}

function repeatedUpTo(what: string, max: number): string {
  return max === 0 ? '' : repeated(what, 0, max)
}

function isAny(schema: unknown): boolean {
  return typeof schema === 'object' && schema !== null && Object.keys(schema).length === 0
}

export function writeSchema(definitions: ReadonlyMap<string, JsonObject>, whitespace: number): string {
  return new SchemaWriter(whitespace).write(definitions)
}
