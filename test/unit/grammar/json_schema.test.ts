import { beforeAll, describe, expect, it } from 'vitest'
import { checkGrammar } from '../../../lib/grammar'
import { schemaToEbnf } from '../../../lib/grammar/json_schema'
import { Acceptance } from '../../support/grammar_acceptance'
import { cpuOf } from '../../support/patience'

let library: Acceptance
beforeAll(async () => {
  library = await Acceptance.load()
})

const takes = (schema: unknown, texts: readonly string[], { strict = true, whitespace = 0 } = {}): boolean[] => {
  return library.of(schemaToEbnf(schema, strict, whitespace), texts)
}
const all = (schema: unknown, yes: readonly string[], no: readonly string[], options?: { strict?: boolean; whitespace?: number }): void => {
  expect(takes(schema, yes, options), `of ${yes.join(' ')}`).toEqual(yes.map(() => true))
  expect(takes(schema, no, options), `of ${no.join(' ')}`).toEqual(no.map(() => false))
}

describe('JSON schemas', () => {
  it('objects: properties in order, those required there, no others', () => {
    const schema = { type: 'object', properties: { a: { type: 'null' }, b: { type: 'boolean' }, c: { const: 1 } }, required: ['b'] }
    all(schema, ['{"b":true}', '{"a":null,"b":false,"c":1}', '{"b":true,"c":1}'], ['{}', '{"a":null}', '{"b":true,"a":null}', '{"b":true,"d":1}', '{"b":true,}'])
  })

  it('objects of optional properties', () => {
    const schema = { type: 'object', properties: { a: { const: 1 }, b: { const: 2 }, c: { const: 3 } } }
    all(schema, ['{}', '{"a":1}', '{"b":2}', '{"c":3}', '{"a":1,"c":3}', '{"a":1,"b":2,"c":3}'], ['{,}', '{"c":3,"a":1}', '{"a":1,"a":1}', '{"a":1,}'])
  })

  it('names with quotation marks, backslashes and more', () => {
    const schema = { type: 'object', properties: { 'x"y\\z\n': { const: 1 }, größe: { const: 2 } }, required: ['x"y\\z\n', 'größe'] }
    all(schema, [JSON.stringify({ 'x"y\\z\n': 1, größe: 2 })], ['{"x"y":1}'])
  })

  it('further properties are none of those that are described', () => {
    const schema = { type: 'object', properties: { ab: { const: 1 }, größe: { const: 2 } }, additionalProperties: { type: 'boolean' } }
    all(schema, ['{"ab":1,"a":true}', '{"abc":true,"x y":false}', '{"":true}', '{"gr":true}'], ['{"ab":true}', '{"größe":true}', '{"a":1}', '{"\\u0061b":true}'])
  })

  it('maps: names by pattern, numbers of properties', () => {
    all({ type: 'object', patternProperties: { '^x\\d$': { const: 1 } } }, ['{}', '{"x1":1}', '{"x1":1,"x2":1}'], ['{"y":1}', '{"x":1}'])
    all({ type: 'object', propertyNames: { pattern: '[a-z]+' }, additionalProperties: { const: 0 }, minProperties: 1, maxProperties: 2 }, ['{"a":0}', '{"a":0,"b":0}'], [
      '{}', '{"A":0}', '{"a":0,"b":0,"c":0}',
    ])
  })

  it('without strict, objects and arrays are open', () => {
    const schema = { type: 'object', properties: { a: { const: 1 } }, required: ['a'] }
    all(schema, ['{"a":1,"z":[1,{"k":"v"}]}'], ['{"z":1}'], { strict: false })
    all(schema, ['{"a":1}'], ['{"a":1,"z":1}'])
    all({ type: 'object' }, ['{}', '{"z":{"y":[]}}'], ['[]'])
    all({ type: 'array' }, ['[]', '[1,"a",null]'], ['{}'])
  })

  it('arrays: prefixes and numbers of items', () => {
    all({ type: 'array', items: { const: 0 }, minItems: 1, maxItems: 3 }, ['[0]', '[0,0,0]'], ['[]', '[0,0,0,0]', '[1]'])
    all({ type: 'array', prefixItems: [{ const: 'a' }, { const: 'b' }], items: false }, ['[]', '["a"]', '["a","b"]'], ['["b"]', '["a","b","c"]'])
    all({ type: 'array', prefixItems: [{ const: 1 }, { const: 2 }], items: { const: 3 }, minItems: 2, maxItems: 4 }, ['[1,2]', '[1,2,3,3]'], ['[1]', '[1,3]', '[1,2,3,3,3]'])
    all({ type: 'array', items: { const: 0 }, maxItems: 0 }, ['[]'], ['[0]'])
  })

  it('strings: lengths count characters, an escape is one', () => {
    all({ type: 'string', minLength: 2, maxLength: 3 }, ['"ab"', '"日本語"', '"a\\n😀"'], ['"a"', '"abcd"', '"a\nb"', '"a"b"', '"a\tb"'])
    all({ type: 'string', pattern: '^[A-Z]{2}$' }, ['"AB"'], ['"A"', '"ABC"'])
    all({ type: 'string', format: 'date' }, ['"2024-02-28"', '"1999-12-31"'], ['"2024-02-30"', '"24-1-1"'])
    all({ type: 'string', format: 'unheard-of' }, ['"x"'], ['x'])
    all({ type: 'string' }, ['""', '"a\\u00e9\\n\\""'], ['"\n"', '"\\x"', '"\u0001"'])
  })

  it('numbers keep their bounds', () => {
    all({ type: 'number', minimum: 6.5, maximum: 8 }, ['6.5', '7', '7.999999', '8', '8.0'], ['8.5', '6.49', '9', '06.5'])
    all({ type: 'integer', exclusiveMinimum: -3, maximum: 12 }, ['-2', '0', '12'], ['-3', '13', '1.0', '01'])
    all({ type: 'integer' }, ['0', '-17', '123456789012345'], ['1.5', '1e3', '-'])
    all({ type: 'number' }, ['0', '-1.5e-7', '2E9'], ['.5', '1.', '+1', '1e999'])
  })

  it('values, alternatives and types', () => {
    all({ enum: ['a"b', 1, null, { k: [1] }] }, ['"a\\"b"', '1', 'null', '{"k":[1]}'], ['"a"', '2'])
    all({ enum: ['alpha', 'alpine', 'beta', 'bepine'] }, ['"alpha"', '"bepine"'], ['"alppine"', '"alta"', '"bepha"'])
    all({ type: 'string', enum: ['a', 1] }, ['"a"'], ['1'])
    all({ anyOf: [{ type: 'null' }, { type: 'integer', maximum: 9, minimum: 0 }] }, ['null', '7'], ['true', '10'])
    all({ type: 'object', oneOf: [{ properties: { a: { const: 1 } }, required: ['a'] }, { properties: { b: { const: 2 } }, required: ['b'] }] }, ['{"a":1}', '{"b":2}'], ['{}', '{"a":1,"b":2}'])
    all({ type: ['string', 'null'], maxLength: 1 }, ['null', '"x"', '""'], ['"xy"', '1'])
    all({ allOf: [{ $ref: '#/$defs/a' }], description: 'd', $defs: { a: { const: 1 } } }, ['1'], ['2'])
    all(true, ['1', '"a"', '[{}]', '{"a":[null]}'], ['', '{'])
  })

  it('references, escaped, to themselves and to anywhere', () => {
    const tree = { type: 'object', properties: { v: { const: 1 }, next: { anyOf: [{ $ref: '#' }, { type: 'null' }] } }, required: ['next'] }
    all(tree, ['{"next":null}', '{"v":1,"next":{"next":null}}'], ['{}', '{"next":{}}'])
    all({ $ref: '#/definitions/a~1b/properties/x%20y', definitions: { 'a/b': { properties: { 'x y': { const: 5 } } } } }, ['5'], ['6'])
    all({ anyOf: [{ const: 1 }, { type: 'array', items: { $ref: '#/anyOf/0' }, minItems: 1 }] }, ['1', '[1,1]'], ['[]', '[[1]]'])
  })

  it('white space: as much as is asked for', () => {
    const schema = { type: 'object', properties: { a: { const: 1 }, b: { type: 'array', items: { const: 2 } } }, required: ['a', 'b'] }
    all(schema, ['{"a":1,"b":[2,2]}', '{\n  "a" : 1,\n  "b": [ 2 , 2 ]\n}'], [`{${' '.repeat(5)}"a":1,"b":[]}`, ' {"a":1,"b":[]}'], { whitespace: 4 })
  })
})

const nested = (depth: number): unknown => {
  let schema: unknown = { type: 'string' }
  for (let i = 0; i < depth; i++) schema = { type: 'array', items: schema }
  return schema
}
const chain = (length: number): unknown => ({
  $ref: '#/$defs/d0',
  $defs: Object.fromEntries(Array.from({ length }, (_, i) => [`d${i}`, { type: 'object', properties: { x: i + 1 < length ? { $ref: `#/$defs/d${i + 1}` } : { type: 'null' } } }])),
})
const circular: { type: string; items?: unknown } = { type: 'array' }
circular.items = circular

describe('what is no schema, or no grammar', () => {
  it.each<[name: string, schema: unknown, why: string]>([
    ['depth 10,000', nested(10_000), 'nested more than 32 levels'],
    ['an object that holds itself', circular, 'nested more than 32 levels'],
    ['a long chain of references', chain(100), 'nested more than 32 levels'],
    ['a reference to itself', { $ref: '#' }, 'has no value that ends'],
    ['references in a circle', { $ref: '#/$defs/a', $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } } }, 'no value that ends'],
    ['a node that requires a node', { type: 'object', properties: { n: { $ref: '#' } }, required: ['n'] }, 'no value that ends'],
    ['an array of at least one of itself', { type: 'array', items: { $ref: '#' }, minItems: 1 }, 'no value that ends'],
    ['a branch that never ends', { anyOf: [{ const: 1 }, { $ref: '#/$defs/a' }], $defs: { a: { $ref: '#/$defs/a' } } }, '#/$defs/a has no value that ends'],
    ['a huge enum', { enum: Array.from({ length: 100_000 }, (_, i) => i) }, 'beyond 8192 values'],
    ['many properties', { type: 'object', properties: Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`p${i}`, true])) }, 'at most 512'],
    ['wide and deep', { anyOf: Array.from({ length: 70 }, () => ({ anyOf: Array.from({ length: 70 }, () => true) })) }, 'one schema too many'],
    ['a huge string', { const: 'x'.repeat(2_000_000) }, 'at most 1048576'],
    ['a missing reference', { $ref: '#/$defs/none' }, 'where nothing is'],
    ['a reference into the prototype', { $ref: '#/constructor/prototype' }, 'where nothing is'],
    ['a reference elsewhere', { $ref: 'https://example.com/schema' }, 'does not lead to a place in this schema'],
    ['a type that is none', { type: 'float' }, '"type" that is none'],
    ['uniqueItems', { type: 'array', uniqueItems: true }, '"uniqueItems"'],
    ['multipleOf', { properties: { a: { type: 'integer', multipleOf: 3 } } }, '#/properties/a uses "multipleOf"'],
    ['not', { not: { type: 'string' } }, '"not"'],
    ['if', { if: true, else: {} }, '"if"'],
    ['contains', { type: 'array', contains: {} }, '"contains"'],
    ['allOf of several', { allOf: [{ type: 'object' }, { type: 'object' }] }, '"allOf" of several'],
    ['properties beside anyOf', { properties: { a: true }, anyOf: [{ required: ['a'] }] }, '"properties" beside "anyOf"'],
    ['a pattern and a length', { type: 'string', pattern: 'a+', maxLength: 3 }, '"pattern" and a length'],
    ['a pattern that is none', { type: 'string', pattern: '(' }, '"(" without ")"'],
    ['min above max', { type: 'string', minLength: 5, maxLength: 2 }, '"minLength" above its "maxLength"'],
    ['no number', { type: 'integer', minimum: 5, maximum: 2 }, 'between which no number lies'],
    ['bounds that are no numbers', { type: 'number', minimum: '5' }, 'no number'],
    ['false', { properties: { a: false } }, 'is false'],
    ['an unknown required name', { type: 'object', properties: {}, required: ['x'] }, 'requires "x"'],
    ['draft 7 tuples', { type: 'array', items: [{}, {}] }, 'name it "prefixItems"'],
    ['enum of nothing', { enum: [] }, 'no array of values'],
    ['a schema that is a number', { properties: { a: 7 } }, 'is no schema'],
    ['NaN', { const: Number.NaN }, 'JSON has not'],
  ])('%s', (_, schema, why) => {
    let error: unknown
    const microseconds = cpuOf(() => {
      try {
        checkGrammar({ jsonSchema: schema as object })
      } catch (caught) {
        error = caught
      }
    })
    expect(error).toMatchObject({ code: 'ERR_GRAMMAR_INVALID', message: expect.stringContaining(why) as string })
    expect(microseconds).toBeLessThan(2e6)
  })

  it.each<[name: string, grammar: unknown]>([
    ['no object', 'json'],
    ['nothing', {}],
    ['two kinds', { json: true, regex: 'a' }],
    ['json: false', { json: false }],
    ['a schema as text', { jsonSchema: '{}' }],
    ['an option of another kind', { regex: 'a', strict: true }],
    ['white space below 0', { json: true, whitespace: -1 }],
    ['no choices', { choice: [] }],
    ['an empty choice', { choice: ['a', ''] }],
    ['a regex that is none', { regex: /a/ }],
  ])('ERR_INVALID_ARGUMENT for %s', (_, grammar) => {
    expect(() => checkGrammar(grammar)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }))
  })

  it.each([
    [{ jsonschema: {} }, /must be an object with one of .*, not one with "jsonschema"/],
    [{}, /, not an empty one/],
    ['json', /^"grammar" must be an object, not "json"/],
    [{ regex: /a/ }, /^"grammar\.regex" must be a string, not a RegExp \(give its source\)/],
    [{ jsonSchema: '{}' }, /must be a JSON schema: an object, not "\{\}"/],
    [{ json: true, whitespace: -1 }, /^"grammar\.whitespace" must be an integer from 0 to \d+, not -1/],
  ])('names what was given: %j', (grammar, message) => {
    expect(() => checkGrammar(grammar)).toThrow(message)
  })
})
