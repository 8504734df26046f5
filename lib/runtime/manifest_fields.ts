/** Reads the fields of engine.json, each with its check. */
import { TensorRTError } from '../errors'

export class Fields {
  constructor(
    private readonly value: Record<string, unknown>,
    private readonly where: string,
  ) {}

  #read<T>(name: string, expected: string, matches: (value: unknown) => boolean): T {
    const value = this.value[name]
    if (matches(value)) return value as T
    throw invalidManifest(`${this.where}: "${name}" must be ${expected}`)
  }
  string(name: string): string {
    return this.#read(name, 'a string', (value) => typeof value === 'string')
  }
  optionalString(name: string): string | undefined {
    return this.value[name] === undefined ? undefined : this.string(name)
  }
  choice<T extends string>(name: string, choices: readonly T[]): T {
    return this.#read(name, choices.map((choice) => `"${choice}"`).join(' or '), (value) => choices.includes(value as T))
  }
  boolean(name: string): boolean {
    return this.#read(name, 'true or false', (value) => typeof value === 'boolean')
  }
  strings(name: string): string[] {
    return this.#read(name, 'an array of strings', (value) => Array.isArray(value) && value.every((item) => typeof item === 'string'))
  }
  integers(name: string): number[] {
    return this.#read(name, 'an array of integers', (value) => Array.isArray(value) && value.every(Number.isSafeInteger))
  }
  isNull(name: string): boolean {
    return this.value[name] === null
  }
  has(name: string): boolean {
    return this.value[name] !== undefined
  }
  names(): string[] {
    return Object.keys(this.value)
  }
  sha256(name: string): string {
    return this.#read(name, 'a SHA-256', (value) => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value))
  }
  number(name: string): number {
    return this.#read(name, 'a number', (value) => typeof value === 'number' && Number.isFinite(value))
  }
  bytes(name: string): number {
    return this.#read(name, 'a number of bytes', (value) => Number.isSafeInteger(value) && (value as number) >= 0)
  }
  object(name: string): Fields {
    return new Fields(this.#read(name, 'an object', isObject), `${this.where}: ${name}`)
  }
  list<T>(name: string, read: (fields: Fields) => T): T[] {
    const items = this.#read<unknown[]>(name, 'an array of objects', (value) => Array.isArray(value) && value.every(isObject))
    return items.map((item, i) => read(new Fields(item as Record<string, unknown>, `${this.where}: ${name}[${i}]`)))
  }
}

export function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

export function invalidManifest(message: string): TensorRTError {
  return new TensorRTError('ERR_ENGINE_INVALID', message, { hint: 'build the engine again' })
}
