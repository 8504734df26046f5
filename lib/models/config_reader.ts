import { TensorRTError } from '../errors'

const INT32_MAX = 2 ** 31 - 1

export interface IntegerRange {
  min?: number
  max?: number
  /** Stands in for a field that is missing or null; without one such a field is an error. */
  fallback?: number
}

/**
 * Reads fields of a JSON object that came from outside, each with its check. Errors name the file, the field, and what
 * it holds.
 */
export class ConfigReader {
  private readonly fields: Readonly<Record<string, unknown>>

  /** @throws ERR_MODEL_INVALID where `json` is no object */
  constructor(
    json: unknown,
    /** What the error messages call the object: a file, and a path in it. */
    readonly where: string,
  ) {
    if (typeof json !== 'object' || json === null || Array.isArray(json)) {
      throw new TensorRTError('ERR_MODEL_INVALID', `${where} must hold a JSON object`)
    }
    this.fields = json as Record<string, unknown>
  }

  /** The raw value; undefined for a field that is missing or null. */
  get(name: string): unknown {
    return Object.hasOwn(this.fields, name) ? (this.fields[name] ?? undefined) : undefined
  }

  /** Whether the field is there at all, null included. */
  has(name: string): boolean {
    return Object.hasOwn(this.fields, name)
  }

  integer(name: string, { min = 1, max = INT32_MAX, fallback }: IntegerRange = {}): number {
    const value = this.get(name) ?? fallback
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
    return this.fail(name, `an integer from ${min} to ${max}`)
  }

  /** A finite number above 0. */
  positive(name: string, fallback?: number): number {
    const value = this.get(name) ?? fallback
    if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value
    return this.fail(name, 'a finite number above 0')
  }

  boolean(name: string, fallback: boolean): boolean {
    const value = this.get(name) ?? fallback
    return typeof value === 'boolean' ? value : this.fail(name, 'true or false')
  }

  string(name: string, fallback?: string): string {
    const value = this.get(name) ?? fallback
    return typeof value === 'string' && value !== '' ? value : this.fail(name, 'a string')
  }

  /** A nested object; undefined where the field is missing or null. */
  object(name: string): ConfigReader | undefined {
    const value = this.get(name)
    return value === undefined ? undefined : new ConfigReader(value, `${this.where}: "${name}"`)
  }

  /** @throws ERR_MODEL_INVALID always */
  fail(name: string, expected: string): never {
    const value = this.get(name)
    const given = value === undefined ? 'it is missing' : `not ${shorten(JSON.stringify(value) ?? String(value))}`
    throw new TensorRTError('ERR_MODEL_INVALID', `${this.where}: "${name}" must be ${expected}, ${given}`)
  }

  /** @throws ERR_MODEL_UNSUPPORTED always */
  unsupported(name: string, supported: string): never {
    const value = JSON.stringify(this.get(name))
    throw new TensorRTError(
      'ERR_MODEL_UNSUPPORTED',
      `${this.where}: "${name}" is ${shorten(value ?? 'missing')}; supported is ${supported}`,
    )
  }
}

function shorten(text: string): string {
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}
