import { TensorRTError } from '../errors'

/** The value in a message: short, one line, never a huge dump. */
export function describeValue(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 40 ? `${value.slice(0, 37)}...` : value)
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'number' || typeof value === 'boolean' || value == null) {
    return String(value)
  }
  if (typeof value === 'symbol' || typeof value === 'function') return `a ${typeof value}`
  return Array.isArray(value)
    ? `an array of ${value.length}`
    : `an object of ${(value as object).constructor?.name ?? 'no class'}`
}

export function invalidArgument(name: string, expected: string, value: unknown): TensorRTError {
  return new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" must be ${expected}, not ${describeValue(value)}`)
}

/** Number of single-character edits between two words. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}

/** Names by which other APIs know an option. */
const ALIASES: Readonly<Record<string, string>> = {
  maxnewtokens: 'maxTokens',
  maxcompletiontokens: 'maxTokens',
  inputids: 'tokens',
  prompttokenids: 'tokens',
  timeout: 'timeoutMs',
  stopsequences: 'stop',
  toplogprobs: 'logprobs',
  includestopstrinoutput: 'includeStop',
  enableprefixcaching: 'prefixCache',
  maxnumseqs: 'maxSequences',
  maxnumbatchedtokens: 'maxStepTokens',
  abortsignal: 'signal',
}

/** The known name that `name` was probably meant to be; undefined where none is near. */
export function closest(name: string, known: readonly string[]): string | undefined {
  const plain = name.replace(/[_-]/g, '').toLowerCase().slice(0, 40)
  const alias = ALIASES[plain]
  if (alias !== undefined && known.includes(alias)) return alias
  const distance = (candidate: string): number => {
    const word = candidate.toLowerCase()
    return plain.length > 2 && word.startsWith(plain) ? 0 : editDistance(plain, word)
  }
  const [best] = known.map((candidate) => ({ candidate, off: distance(candidate) })).sort((a, b) => a.off - b.off)
  return best !== undefined && best.off <= Math.max(1, Math.floor(plain.length / 4)) ? best.candidate : undefined
}

/**
 * Reads an options object, each value with its check. undefined means "not given" throughout, null is an error.
 * Errors are ERR_INVALID_ARGUMENT and name the option, what is expected and what was given.
 */
export class ArgumentReader {
  private readonly values: Readonly<Record<string, unknown>>

  /** @param known all options there are; any other is an error, with a hint if it looks like one of them */
  constructor(options: unknown, known: readonly string[], what: string) {
    if (typeof options !== 'object' || options === null || Array.isArray(options)) {
      throw new TensorRTError(
        'ERR_INVALID_ARGUMENT',
        `${what} takes an object of options, not ${describeValue(options)}`,
      )
    }
    for (const name of Object.keys(options)) {
      if (known.includes(name)) continue
      const meant = closest(name, known)
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `${what} has no option ${describeValue(name)}`, {
        hint: meant === undefined ? `there are: ${known.join(', ')}` : `did you mean "${meant}"?`,
      })
    }
    this.values = options as Record<string, unknown>
  }

  get(name: string): unknown {
    return this.values[name]
  }

  integer(name: string, min: number, max: number): number | undefined {
    const value = this.values[name]
    if (value === undefined) return undefined
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
    throw invalidArgument(
      name,
      `an integer from ${min} to ${max === Number.MAX_SAFE_INTEGER ? '2^53 - 1' : max}`,
      value,
    )
  }

  number(name: string, min: number, max: number): number | undefined {
    const value = this.values[name]
    if (value === undefined) return undefined
    if (typeof value === 'number' && value >= min && value <= max) return value
    throw invalidArgument(name, `a number from ${min} to ${max}`, value)
  }

  /** A finite number above 0, and at most `max`. */
  positive(name: string, max = Number.MAX_VALUE): number | undefined {
    const value = this.values[name]
    if (value === undefined) return undefined
    if (typeof value === 'number' && value > 0 && value <= max) return value
    throw invalidArgument(
      name,
      max === Number.MAX_VALUE ? 'a finite number above 0' : `a number above 0 and up to ${max}`,
      value,
    )
  }

  boolean(name: string): boolean | undefined {
    const value = this.values[name]
    if (value === undefined || typeof value === 'boolean') return value
    throw invalidArgument(name, 'true or false', value)
  }

  string(name: string, maxLength: number): string | undefined {
    const value = this.values[name]
    if (value === undefined || (typeof value === 'string' && value.length <= maxLength)) return value
    throw invalidArgument(name, `a string of at most ${maxLength} UTF-16 units`, value)
  }

  path(name: string): string | undefined {
    const value = this.values[name]
    if (value === undefined || (typeof value === 'string' && value !== '' && !value.includes('\0'))) return value
    throw invalidArgument(name, 'a path, a string that is not empty', value)
  }

  choice<T extends string>(name: string, choices: readonly T[]): T | undefined {
    const value = this.values[name]
    if (value === undefined || choices.includes(value as T)) return value as T | undefined
    throw invalidArgument(name, choices.map((choice) => `'${choice}'`).join(' or '), value)
  }

  callback(name: string): ((...args: never[]) => unknown) | undefined {
    const value = this.values[name]
    if (value === undefined || typeof value === 'function') return value as (() => unknown) | undefined
    throw invalidArgument(name, 'a function', value)
  }

  signal(name: string): AbortSignal | undefined {
    const value = this.values[name]
    // By shape, as a signal may come of another realm.
    const signal = value as Partial<AbortSignal> | null | undefined
    if (
      value === undefined ||
      (typeof signal?.aborted === 'boolean' &&
        typeof signal.addEventListener === 'function' &&
        typeof signal.removeEventListener === 'function')
    ) {
      return value as AbortSignal | undefined
    }
    throw invalidArgument(name, 'an AbortSignal', value)
  }
}
