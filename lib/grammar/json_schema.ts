/**
 * Reads a JSON schema and makes EBNF of it. The grammar library has a reader of its own, but that drops keywords that it does not
 * know, lets numbers and strings leave their bounds, and ends at a quotation mark in a name. Here, what a grammar cannot say is
 * refused, by its path.
 *
 * Narrower where a grammar has no other way: properties come in the schema's order, a schema without `type` gets the type that
 * its keywords speak of, and `pattern` is of the whole string.
 */
import type { TensorRTError } from '../errors'
import { invalidGrammar } from './grammar_error'
import { numberRange } from './number_range'
import { writeSchema } from './schema_writer'

type JsonObject = Record<string, unknown>

/** Levels of schemas within schemas, references followed. */
const MAX_DEPTH = 32
const MAX_SCHEMAS = 4096
const MAX_PROPERTIES = 512
const MAX_VALUES = 8192
/** Characters of the EBNF. */
const MAX_LENGTH = 1_048_576
/** Of minLength, maxItems and the like. Beyond any context, so that a larger upper bound is none. */
const MAX_COUNT = 1_000_000
const MAX_LEAST = 16_384

const TYPES = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const
type Type = (typeof TYPES)[number]

/** Keywords that say something about values of a type, in the order in which a schema without `type` is told by them. */
const KEYWORDS: Readonly<Record<'object' | 'array' | 'string' | 'number', readonly string[]>> = {
  object: [
    'properties', 'required', 'additionalProperties', 'unevaluatedProperties', 'patternProperties', 'propertyNames',
    'minProperties', 'maxProperties',
  ],
  array: ['items', 'prefixItems', 'minItems', 'maxItems', 'unevaluatedItems'],
  string: ['pattern', 'format', 'minLength', 'maxLength'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'],
}
const COMBINERS = ['$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf'] as const
const ALL_KEYWORDS = [...Object.values(KEYWORDS).flat(), ...COMBINERS, 'type']
/** No grammar is made of these, and a value that ignores them is not valid. */
const UNSUPPORTED = [
  'not', 'if', 'then', 'else', 'multipleOf', 'uniqueItems', 'contains', 'minContains', 'maxContains', 'additionalItems',
  'dependentRequired', 'dependentSchemas', 'dependencies', '$dynamicRef', '$recursiveRef',
]
/** Values of a keyword that ask for nothing. */
const HARMLESS: Readonly<Record<string, readonly unknown[]>> = { uniqueItems: [false], multipleOf: [1], additionalItems: [true] }

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function has(schema: JsonObject, key: string): boolean {
  return Object.hasOwn(schema, key) && schema[key] !== undefined
}

class SchemaReader {
  private schemas = 0
  private values = 0
  /** By pointer: name among the definitions of the result, and what it stands for. */
  private readonly references = new Map<string, { name: string; schema: JsonObject | undefined }>()

  constructor(
    private readonly root: unknown,
    private readonly strict: boolean,
  ) {}

  /** Definitions by name, all that is left to refer to. The root is `d0`. */
  read(): Map<string, JsonObject> {
    // The root is a definition like any other, as references can lead to it.
    this.follow('#', '#', 0)
    const definitions = new Map([...this.references.values()].map(({ name, schema }) => [name, schema!]))
    this.checkEnds(definitions)
    return definitions
  }

  private visit(schema: unknown, path: string, depth: number): JsonObject {
    if (depth > MAX_DEPTH) {
      throw this.error(path, `is nested more than ${MAX_DEPTH} levels deep, references followed`)
    }
    if (++this.schemas > MAX_SCHEMAS) throw this.error(path, `is one schema too many: ${MAX_SCHEMAS} are possible`)
    if (schema === true) return {}
    if (schema === false) throw this.error(path, 'is false, which no value matches')
    if (!isObject(schema)) throw this.error(path, 'is no schema: it must be an object or true')
    for (const key of UNSUPPORTED) {
      if (has(schema, key) && !(HARMLESS[key]?.includes(schema[key]) ?? false)) {
        throw this.error(path, `uses "${key}", which a grammar cannot express`, 'leave it out, and check the output for it')
      }
    }
    const combiner = COMBINERS.find((key) => has(schema, key))
    return combiner === undefined ? this.visitTyped(schema, path, depth) : this.visitCombined(schema, combiner, path, depth)
  }

  private visitCombined(schema: JsonObject, key: (typeof COMBINERS)[number], path: string, depth: number): JsonObject {
    const beside = ALL_KEYWORDS.filter((other) => other !== key && has(schema, other))
    const asserts = beside.filter((other) => other !== 'type' || key === '$ref' || key === 'allOf')
    if (asserts.length > 0) {
      throw this.error(path, `has "${asserts[0]}" beside "${key}", and a grammar is made of one of them`, 'move one into a schema of its own')
    }
    const types = has(schema, 'type') ? this.types(schema['type'], path) : undefined
    const value = schema[key]
    switch (key) {
      case '$ref':
        return this.visitReference(value, path, depth)
      case 'const':
        this.countValues(1, path)
        if (types !== undefined && !types.some((type) => isOf(value, type))) throw this.error(path, 'has a "const" that is not of its "type"')
        return { const: this.plain(value, `${path}/const`) }
      case 'enum': {
        if (!Array.isArray(value) || value.length === 0) throw this.error(path, 'has an "enum" that is no array of values')
        this.countValues(value.length, path)
        const values = value.filter((one) => types === undefined || types.some((type) => isOf(one, type)))
        if (values.length === 0) throw this.error(path, 'has an "enum" with no value of its "type"')
        return { enum: values.map((one) => this.plain(one, `${path}/enum`)) }
      }
      default: {
        if (!Array.isArray(value) || value.length === 0) throw this.error(path, `has an "${key}" that is no array of schemas`)
        if (key === 'allOf' && value.length > 1) {
          throw this.error(path, 'uses "allOf" of several schemas, which is not supported', 'merge them into one')
        }
        const visited = value.map((one, i) => this.visit(this.narrowed(one, types, `${path}/${key}/${i}`), `${path}/${key}/${i}`, depth + 1))
        return visited.length === 1 ? visited[0]! : { anyOf: visited }
      }
    }
  }

  /** A branch of a schema that has a `type` of its own. */
  private narrowed(branch: unknown, types: readonly Type[] | undefined, path: string): unknown {
    if (types === undefined) return branch
    if (branch === true) return { type: types }
    if (!isObject(branch)) return branch
    if (COMBINERS.some((key) => has(branch, key))) {
      throw this.error(path, 'has no "type", and the schema around it has', 'give it the type')
    }
    if (!has(branch, 'type')) return { ...branch, type: types }
    const own = this.types(branch['type'], path)
    const common = own.filter((type) => types.includes(type) || (type === 'integer' && types.includes('number')))
    if (common.length === 0) throw this.error(path, 'is of another "type" than the schema around it')
    return { ...branch, type: common }
  }

  private visitReference(reference: unknown, path: string, depth: number): JsonObject {
    if (typeof reference !== 'string' || !/^#(\/.*)?$/s.test(reference)) {
      throw this.error(path, 'has a "$ref" that does not lead to a place in this schema', 'copy what it means to "$defs"')
    }
    return this.follow(reference, path, depth)
  }

  private follow(reference: string, path: string, depth: number): JsonObject {
    let entry = this.references.get(reference)
    if (entry === undefined) {
      entry = { name: `d${this.references.size}`, schema: undefined }
      this.references.set(reference, entry)
      entry.schema = this.visit(this.resolve(reference, path), reference, depth + 1)
    }
    return { $ref: entry.name }
  }

  private resolve(reference: string, path: string): unknown {
    let found: unknown = this.root
    const missing = (): TensorRTError => this.error(path, `has a "$ref" to ${JSON.stringify(reference.slice(0, 80))}, where nothing is`)
    if (reference === '#') return found
    for (const part of reference.slice(2).split('/')) {
      let key: string
      try {
        key = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')
      } catch {
        throw missing()
      }
      if (typeof found !== 'object' || found === null || !Object.hasOwn(found, key)) throw missing()
      found = (found as JsonObject)[key]
    }
    return found
  }

  private visitTyped(schema: JsonObject, path: string, depth: number): JsonObject {
    if (!has(schema, 'type')) {
      const told = (Object.keys(KEYWORDS) as (keyof typeof KEYWORDS)[]).find((type) => KEYWORDS[type].some((key) => has(schema, key)))
      return told === undefined ? {} : this.visitType(schema, told, path, depth)
    }
    const visited = this.types(schema['type'], path).map((type) => this.visitType(schema, type, path, depth))
    return visited.length === 1 ? visited[0]! : { anyOf: visited }
  }

  private visitType(schema: JsonObject, type: Type, path: string, depth: number): JsonObject {
    switch (type) {
      case 'object':
        return this.visitObject(schema, path, depth)
      case 'array':
        return this.visitArray(schema, path, depth)
      case 'string':
        return this.visitString(schema, path)
      case 'number':
      case 'integer':
        return this.visitNumber(schema, type, path)
      default:
        return { type }
    }
  }

  private visitObject(schema: JsonObject, path: string, depth: number): JsonObject {
    const { properties = {}, required = [], patternProperties, propertyNames } = schema
    if (!isObject(properties)) throw this.error(path, 'has "properties" that are no object')
    const names = Object.keys(properties)
    if (names.length > MAX_PROPERTIES) throw this.error(path, `has ${names.length} properties, at most ${MAX_PROPERTIES} are possible`)
    if (!Array.isArray(required) || !required.every((name) => typeof name === 'string')) {
      throw this.error(path, 'has a "required" that is no array of names')
    }
    const unknown = (required as string[]).find((name) => !Object.hasOwn(properties, name))
    if (unknown !== undefined) {
      throw this.error(path, `requires ${JSON.stringify(unknown.slice(0, 80))}, which is not among its "properties"`, 'describe it there')
    }
    if (patternProperties !== undefined && (names.length > 0 || propertyNames !== undefined)) {
      throw this.error(path, 'has "patternProperties" beside "properties" or "propertyNames", which is not supported')
    }
    if (propertyNames !== undefined && names.length > 0) {
      throw this.error(path, 'has "propertyNames" beside "properties", which is not supported')
    }
    const out: JsonObject = { type: 'object' }
    if (names.length > 0) {
      out['properties'] = Object.fromEntries(names.map((name) => [name, this.visit(properties[name], `${path}/properties/${escapePointer(name)}`, depth + 1)]))
    }
    if (required.length > 0) out['required'] = [...new Set(required as string[])]
    if (patternProperties !== undefined) {
      if (!isObject(patternProperties)) throw this.error(path, 'has "patternProperties" that are no object')
      out['patternProperties'] = Object.fromEntries(
        Object.entries(patternProperties).map(([pattern, inner]) => [
          pattern,
          this.visit(inner, `${path}/patternProperties/${escapePointer(pattern)}`, depth + 1),
        ]),
      )
    }
    if (propertyNames !== undefined) {
      const named = isObject(propertyNames) ? this.visitString({ ...propertyNames }, `${path}/propertyNames`) : {}
      out['propertyNames'] = named
    }
    const open = schema['additionalProperties'] ?? schema['unevaluatedProperties']
    if (open === undefined) {
      out['additionalProperties'] = !(this.strict && (names.length > 0 || patternProperties !== undefined))
    } else {
      out['additionalProperties'] = typeof open === 'boolean' ? open : this.visit(open, `${path}/additionalProperties`, depth + 1)
    }
    return { ...out, ...this.extras(schema, names.length, required.length, out['additionalProperties'] !== false || patternProperties !== undefined, path) }
  }

  /** How many properties there may be beside those that have names. */
  private extras(schema: JsonObject, named: number, required: number, open: boolean, path: string): Record<string, number> {
    const { minProperties = 0, maxProperties = Infinity } = this.counts(schema, 'minProperties', 'maxProperties', path)
    const extraMin = minProperties > required ? minProperties : 0
    // Names of properties beside those that are described may come twice, and then count once.
    if (extraMin > 0 && (!open || named > 0 || extraMin > 1)) {
      throw this.error(path, `has a "minProperties" of ${minProperties}, and requires ${required} by name`, 'require them by name')
    }
    if (maxProperties < named) throw this.error(path, 'has a "maxProperties" below the number of its "properties"', 'leave some out')
    return { extraMin, ...(maxProperties === Infinity ? {} : { extraMax: maxProperties - named }) }
  }

  private visitArray(schema: JsonObject, path: string, depth: number): JsonObject {
    const { prefixItems, items = schema['unevaluatedItems'] } = schema
    const out: JsonObject = { type: 'array' }
    if (prefixItems !== undefined) {
      if (!Array.isArray(prefixItems)) throw this.error(path, 'has "prefixItems" that are no array')
      out['prefixItems'] = prefixItems.map((inner, i) => this.visit(inner, `${path}/prefixItems/${i}`, depth + 1))
    }
    if (Array.isArray(items)) throw this.error(path, 'has "items" that are an array', 'name it "prefixItems"')
    if (items === undefined) out['items'] = !(this.strict && prefixItems !== undefined)
    else out['items'] = typeof items === 'boolean' ? items : this.visit(items, `${path}/items`, depth + 1)
    return { ...out, ...this.counts(schema, 'minItems', 'maxItems', path) }
  }

  private visitString(schema: JsonObject, path: string): JsonObject {
    const { pattern, format } = schema
    const { minLength = 0, maxLength } = this.counts(schema, 'minLength', 'maxLength', path)
    const bounded = minLength > 0 || maxLength !== undefined
    if (pattern !== undefined) {
      if (typeof pattern !== 'string') throw this.error(path, 'has a "pattern" that is no string')
      if (bounded) throw this.error(path, 'has a "pattern" and a length', 'say the length in the pattern, as in [a-z]{1,8}')
      return { type: 'string', pattern }
    }
    // What a format adds to a length nothing checks unless asked to.
    if (bounded) return { type: 'string', minLength, ...(maxLength === undefined ? {} : { maxLength }) }
    return { type: 'string', ...(typeof format === 'string' ? { format } : {}) }
  }

  private visitNumber(schema: JsonObject, type: 'number' | 'integer', path: string): JsonObject {
    const out: JsonObject = { type }
    for (const key of KEYWORDS.number) {
      const bound = schema[key]
      if (bound === undefined) continue
      if (typeof bound !== 'number' || !Number.isFinite(bound)) throw this.error(path, `has a "${key}" that is no number`)
      if (Math.abs(bound) > Number.MAX_SAFE_INTEGER) {
        // A bound that nothing which is written here reaches.
        if (bound > 0 === key.toLowerCase().endsWith('maximum')) continue
        throw this.error(path, `has a "${key}" of ${bound}, beyond what is exact`)
      }
      out[key] = bound
    }
    if (numberRange(out, type === 'integer').length === 0) throw this.error(path, 'has bounds between which no number lies')
    return out
  }

  private counts(schema: JsonObject, least: string, most: string, path: string): Record<string, number> {
    const out: Record<string, number> = {}
    for (const key of [least, most]) {
      const count = schema[key]
      if (count === undefined) continue
      if (typeof count !== 'number' || !Number.isInteger(count) || count < 0) throw this.error(path, `has a "${key}" that is no count`)
      if (key === least && count > MAX_LEAST) throw this.error(path, `has a "${key}" of ${count}, at most ${MAX_LEAST} is possible`)
      if (count > MAX_COUNT) continue
      if (key === least ? count > 0 : true) out[key] = count
    }
    if ((out[least] ?? 0) > (out[most] ?? Infinity)) throw this.error(path, `has a "${least}" above its "${most}"`)
    return out
  }

  private types(type: unknown, path: string): readonly Type[] {
    const list: unknown[] = Array.isArray(type) ? type : [type]
    const wrong = list.find((one) => !TYPES.includes(one as Type))
    if (list.length === 0 || wrong !== undefined) {
      throw this.error(path, `has a "type" that is none: ${JSON.stringify(wrong)?.slice(0, 80)}`, `types are ${TYPES.join(', ')}`)
    }
    return [...new Set(list as Type[])]
  }

  private countValues(count: number, path: string): void {
    this.values += count
    if (this.values > MAX_VALUES) throw this.error(path, `is beyond ${MAX_VALUES} values of "enum" and "const" in one schema`)
  }

  /** A copy of a value of `const` or `enum`. */
  private plain(value: unknown, path: string, depth = 0): unknown {
    if (depth > MAX_DEPTH) throw this.error(path, `has a value that is nested more than ${MAX_DEPTH} levels deep`)
    if (Array.isArray(value)) return value.map((one) => this.plain(one, path, depth + 1))
    if (isObject(value)) {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, this.plain(one, path, depth + 1)]))
    }
    if (value === null || typeof value === 'string' || typeof value === 'boolean') return value
    if (typeof value === 'number' && Number.isFinite(value)) return value
    throw this.error(path, 'has a value that JSON has not')
  }

  /**
   * A schema whose every value would be infinite: `{ "$ref": "#" }`, a node that requires a node. An output under it would
   * never end.
   */
  private checkEnds(definitions: ReadonlyMap<string, JsonObject>): void {
    const ends = new Set<string>()
    const canEnd = (schema: unknown): boolean => {
      if (!isObject(schema)) return true
      const { $ref: reference, anyOf, properties, required, prefixItems, items, minItems = 0 } = schema
      if (typeof reference === 'string') return ends.has(reference)
      if (Array.isArray(anyOf)) return anyOf.some(canEnd)
      if (isObject(properties)) return ((required as string[] | undefined) ?? []).every((name) => canEnd(properties[name]))
      if (Array.isArray(prefixItems) && !prefixItems.every(canEnd)) return false
      return (minItems as number) > ((prefixItems as unknown[] | undefined)?.length ?? 0) ? canEnd(items) : true
    }
    for (let found = -1; found !== ends.size; ) {
      found = ends.size
      for (const [name, schema] of definitions) if (!ends.has(name) && canEnd(schema)) ends.add(name)
    }
    for (const [reference, { name }] of this.references) {
      if (!ends.has(name)) throw this.error(reference, 'has no value that ends: each would hold another without end')
    }
  }

  private error(path: string, what: string, hint?: string): TensorRTError {
    return invalidGrammar(`The JSON schema at ${path.length > 120 ? `${path.slice(0, 117)}...` : path} ${what}`, hint)
  }
}

function isOf(value: unknown, type: Type): boolean {
  switch (type) {
    case 'object':
      return isObject(value)
    case 'array':
      return Array.isArray(value)
    case 'integer':
      return Number.isInteger(value)
    case 'null':
      return value === null
    default:
      return typeof value === type
  }
}

function escapePointer(name: string): string {
  return name.replaceAll('~', '~0').replaceAll('/', '~1')
}

/**
 * EBNF of the JSON texts of a schema's values.
 *
 * @param strict objects have the properties that are described, and no others, unless the schema says so
 * @param whitespace most white-space characters in one place
 * @throws ERR_GRAMMAR_INVALID
 */
export function schemaToEbnf(schema: unknown, strict: boolean, whitespace: number): string {
  const text = writeSchema(new SchemaReader(schema, strict).read(), whitespace)
  if (text.length > MAX_LENGTH) throw invalidGrammar(`The JSON schema makes a grammar of ${text.length} characters, at most ${MAX_LENGTH} are possible`)
  return text
}
