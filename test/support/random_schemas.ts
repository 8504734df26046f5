/** Random JSON schemas whose values are bounded: strings, numbers and arrays have limits, and recursion can end at each level. */

export type Schema = Record<string, unknown>

const WORDS = ['name', 'age', 'tags', 'id', 'kind', 'size', 'a b', 'größe', 'x"y', 'back\\slash', 'note', 'items', '日本', '']
const PATTERNS = [
  '^[a-z]{1,8}$', '^\\d{3}-\\d{4}$', '^(red|green|blue)$', '^[A-Z][a-z]{0,6}( [A-Z][a-z]{0,6})?$', '^[^"]{2}$', '^.{1,4}$',
  '^#[0-9a-fA-F]{6}$', '^(a+)+b{1,2}$', '^\\S{1,3}\\s?$', '^"[\\\\/]{1,2}"$',
]
const FORMATS = ['date', 'time', 'date-time', 'ipv4', 'uuid']
const VALUES = ['x', 'two words', '', 'q"uote', 'new\nline', 'é', 0, -1, 2.5, 1e21, true, false, null, [1, [2]], { k: 'v' }, []]

export class SchemaGenerator {
  constructor(private readonly random: () => number) {}

  next(): Schema {
    const schema = this.chance(0.15) ? this.recursive() : this.object(0)
    return this.chance(0.5) ? { $schema: 'https://json-schema.org/draft/2020-12/schema', title: 'T', ...schema } : schema
  }

  private value(depth: number): Schema | true {
    const leaf = depth >= 3
    const kinds = leaf ? 7 : 10
    switch (Math.floor(this.random() * kinds)) {
      case 0:
        return { type: 'boolean', description: 'yes or no' }
      case 1:
        return this.integer()
      case 2:
        return this.number()
      case 3:
        return this.string()
      case 4:
        return { enum: this.some(VALUES, 1, 5) }
      case 5:
        return { const: this.pick(VALUES) }
      case 6:
        return this.chance(0.5) ? { type: 'null' } : { type: ['null', 'integer'], minimum: 0, maximum: 9 }
      case 7:
        return this.object(depth + 1)
      case 8:
        return this.array(depth + 1)
      default:
        return { [this.chance(0.7) ? 'anyOf' : 'oneOf']: this.alternatives(depth + 1) }
    }
  }

  /** Of `oneOf`, too: each alternative has a property that tells it from the others. */
  private alternatives(depth: number): Schema[] {
    return Array.from({ length: this.between(1, 3) }, (_, i) => ({
      type: 'object',
      properties: { kind: { const: `k${i}` }, value: this.value(depth + 1) },
      required: ['kind', 'value'],
      additionalProperties: false,
    }))
  }

  private object(depth: number): Schema {
    const names = this.some(WORDS, depth === 0 ? 1 : 0, 5 - depth)
    const properties = Object.fromEntries(names.map((name) => [name, this.value(depth)]))
    return {
      type: 'object',
      properties,
      required: names.filter(() => this.chance(0.6)),
      ...(names.length === 0 || this.chance(0.5) ? { additionalProperties: false } : {}),
    }
  }

  private array(depth: number): Schema {
    if (this.chance(0.2)) {
      return { type: 'array', prefixItems: Array.from({ length: this.between(1, 3) }, () => this.value(depth)), items: false }
    }
    const minItems = this.between(0, 2)
    return { type: 'array', items: this.value(depth), minItems, maxItems: minItems + this.between(0, 3) }
  }

  private integer(): Schema {
    const minimum = this.between(-1000, 1000)
    const maximum = minimum + this.between(0, 5000)
    return this.chance(0.2) ? { type: 'integer', exclusiveMinimum: minimum - 1, maximum } : { type: 'integer', minimum, maximum }
  }

  private number(): Schema {
    const minimum = this.between(-100, 100) / this.pick([1, 2, 4, 10])
    return { type: 'number', minimum, maximum: minimum + this.between(1, 100) / 2 }
  }

  private string(): Schema {
    switch (this.between(0, 3)) {
      case 0: {
        const minLength = this.between(0, 4)
        return { type: 'string', minLength, maxLength: minLength + this.between(0, 12) }
      }
      case 1:
        return { type: 'string', pattern: this.pick(PATTERNS) }
      case 2:
        return { type: 'string', format: this.pick(FORMATS) }
      default:
        return { type: 'string', enum: this.some(['alpha', 'beta', 'gamma', 'delta', 'a "b"'], 1, 4) }
    }
  }

  /** A tree or a list, by references to itself or to definitions. */
  private recursive(): Schema {
    if (this.chance(0.5)) {
      return {
        type: 'object',
        properties: { value: this.value(2), next: { anyOf: [{ type: 'null' }, { $ref: '#' }] } },
        required: ['value', 'next'],
        additionalProperties: false,
      }
    }
    return {
      $ref: '#/$defs/a~1node',
      $defs: {
        'a/node': {
          type: 'object',
          properties: { leaf: { $ref: '#/$defs/leaf' }, children: { type: 'array', items: { $ref: '#/$defs/a~1node' }, maxItems: 1 } },
          required: ['leaf'],
        },
        leaf: this.value(2),
      },
    }
  }

  private between(low: number, high: number): number {
    return low + Math.floor(this.random() * (high - low + 1))
  }

  private chance(share: number): boolean {
    return this.random() < share
  }

  private pick<T>(from: readonly T[]): T {
    return from[Math.floor(this.random() * from.length)]!
  }

  private some<T>(from: readonly T[], least: number, most: number): T[] {
    const left = [...from]
    return Array.from({ length: this.between(least, most) }, () => left.splice(Math.floor(this.random() * left.length), 1)[0]!)
  }
}
