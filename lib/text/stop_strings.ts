import { TensorRTError } from '../errors'

export interface StopMatcherOptions {
  /** Emit the stop string itself as the end of the text. Default false. */
  includeStop?: boolean | undefined
}

export interface StopResult {
  /** Text that is safe to emit now. */
  readonly text: string
  /** The stop string that ended the text, once one has. */
  readonly stop: string | undefined
}

export const MAX_STOP_STRINGS = 64
export const MAX_STOP_LENGTH = 1024

/** A stop string with its failure function (Knuth, Morris and Pratt). */
class StopPattern {
  /** `[length]`; at i the length of the longest proper prefix that the first i + 1 units end with. */
  private readonly borders: Uint16Array

  constructor(readonly text: string) {
    this.borders = new Uint16Array(text.length)
    for (let i = 1; i < text.length; i++) this.borders[i] = this.next(this.borders[i - 1]!, text.charCodeAt(i))
  }

  /** @param depth units of the string that the text so far ends with, fewer than all. @returns the same after `unit` */
  next(depth: number, unit: number): number {
    while (depth > 0 && this.text.charCodeAt(depth) !== unit) depth = this.borders[depth - 1]!
    return this.text.charCodeAt(depth) === unit ? depth + 1 : 0
  }

  /** Depth after the whole string, for a search that goes on. */
  get border(): number {
    return this.borders[this.text.length - 1]!
  }
}

function describeWrong(stop: unknown): string {
  if (typeof stop !== 'string') return stop === null ? 'null' : `of type ${typeof stop}`
  if (stop === '') return 'an empty one'
  return stop.length > MAX_STOP_LENGTH ? `one of ${stop.length}` : 'one with half of a surrogate pair'
}

/** Stop strings, checked and ready for search. Nothing in it changes, so all outputs of a request share one. */
export class StopSet {
  /** @internal */
  readonly patterns: readonly StopPattern[]

  /** @throws ERR_INVALID_ARGUMENT for an empty, over-long or ill-formed stop string, or too many of them */
  constructor(stops: readonly string[]) {
    if (!Array.isArray(stops) || stops.length > MAX_STOP_STRINGS) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `"stop" must be an array of at most ${MAX_STOP_STRINGS} strings`)
    }
    // And not map(), which would pass over holes.
    this.patterns = Array.from(stops as unknown[], (stop, index) => {
      if (typeof stop !== 'string' || stop === '' || stop.length > MAX_STOP_LENGTH || /\p{Surrogate}/u.test(stop)) {
        const expected = `a well-formed string of 1 to ${MAX_STOP_LENGTH} UTF-16 units`
        throw new TensorRTError('ERR_INVALID_ARGUMENT', `"stop[${index}]" must be ${expected}, not ${describeWrong(stop)}`)
      }
      return new StopPattern(stop)
    })
  }
}

/**
 * Finds stop strings in text that arrives in pieces, in linear time. The stop string that is complete first wins, and of
 * those that end together the longest, so the result does not depend on how the text was cut. Only the longest end of
 * the text that could still become a stop string is held back.
 */
export class StopMatcher {
  private readonly patterns: readonly StopPattern[]
  /** Of each pattern, how much of it the text so far ends with. */
  private readonly depths: Uint16Array
  private readonly includeStop: boolean
  private held = ''
  private found: string | undefined

  constructor(stops: StopSet, options: StopMatcherOptions = {}) {
    this.patterns = stops.patterns
    this.depths = new Uint16Array(this.patterns.length)
    this.includeStop = options.includeStop ?? false
  }

  /** The stop string that was found, if one was. */
  get stop(): string | undefined {
    return this.found
  }

  /**
   * Takes more text. After a stop string was found, text is dropped.
   * @param mayEnd false: a stop string that is complete within this text does not count; one that begins in it does
   */
  push(text: string, mayEnd = true): StopResult {
    if (this.found !== undefined) return { text: '', stop: this.found }
    if (this.patterns.length === 0) return { text, stop: undefined }
    for (let i = 0; i < text.length; i++) {
      const stop = this.advance(text.charCodeAt(i))
      if (stop === undefined || !mayEnd) continue
      this.found = stop
      const all = this.held + text.slice(0, i + 1)
      this.held = ''
      return { text: this.includeStop ? all : all.slice(0, all.length - stop.length), stop }
    }
    let depth = 0
    for (const own of this.depths) if (own > depth) depth = own
    const all = this.held + text
    const safe = all.length - depth
    this.held = all.slice(safe)
    return { text: all.slice(0, safe), stop: undefined }
  }

  /** Ends the text without a stop string: what was held back. */
  flush(): string {
    const text = this.held
    this.held = ''
    this.depths.fill(0)
    return text
  }

  /** @returns the longest stop string that ends with this unit */
  private advance(unit: number): string | undefined {
    const { patterns, depths } = this
    let stop: string | undefined
    for (let i = 0; i < patterns.length; i++) {
      const pattern = patterns[i]!
      const depth = pattern.next(depths[i]!, unit)
      const whole = depth === pattern.text.length
      depths[i] = whole ? pattern.border : depth
      if (whole && (stop === undefined || pattern.text.length > stop.length)) stop = pattern.text
    }
    return stop
  }
}
