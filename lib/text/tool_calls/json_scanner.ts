/** What a unit did to a value: it goes on, ended with this unit, had ended before it, or cannot be JSON. */
export type ScanResult = 'more' | 'end' | 'past' | 'bad'

/**
 * Nesting of the arguments of a call. A chat nests 64 levels at most, and arguments return to it four levels down.
 */
export const MAX_ARGUMENT_DEPTH = 48

const VALUE = 0
const VALUE_OR_CLOSE = 1
const KEY = 2
const KEY_OR_CLOSE = 3
const COLON = 4
const AFTER_VALUE = 5
const STRING = 6
const ESCAPE = 7
const HEX = 8
const LITERAL = 9
const MINUS = 10
const ZERO = 11
const INTEGER = 12
const POINT = 13
const FRACTION = 14
const EXPONENT = 15
const EXPONENT_SIGN = 16
const EXPONENT_DIGITS = 17

const LITERALS = new Map(['true', 'false', 'null'].map((word) => [word.charCodeAt(0), word]))

const isDigit = (code: number): boolean => code >= 0x30 && code <= 0x39
const isHex = (code: number): boolean => isDigit(code) || (code >= 0x41 && code <= 0x46) || (code >= 0x61 && code <= 0x66)
export const isSpace = (code: number): boolean => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09

/**
 * Checks one JSON value unit by unit (RFC 8259), in constant time each. One thing is let pass: control characters inside a
 * string, which models write and {@link JsonScanner.inString} lets the caller escape.
 */
export class JsonScanner {
  private state = VALUE
  /** Of each open container, whether it is an object. */
  private readonly objects: boolean[] = []
  private isKey = false
  private hexLeft = 0
  private literal = ''
  private matched = 0

  /** The next unit is taken as it is: inside a string, and not behind a backslash. */
  get inString(): boolean {
    return this.state === STRING
  }

  feed(code: number): ScanResult {
    switch (this.state) {
      case STRING:
        if (code === 0x22) return this.endString()
        if (code === 0x5c) this.state = ESCAPE
        return 'more'
      case ESCAPE:
        if (code === 0x75) {
          this.hexLeft = 4
          this.state = HEX
          return 'more'
        }
        this.state = STRING
        return '"\\/bfnrt'.includes(String.fromCharCode(code)) ? 'more' : 'bad'
      case HEX:
        if (!isHex(code)) return 'bad'
        if (--this.hexLeft === 0) this.state = STRING
        return 'more'
      case LITERAL:
        if (code !== this.literal.charCodeAt(this.matched)) return 'bad'
        return ++this.matched === this.literal.length ? this.endValue() : 'more'
      case VALUE:
        return isSpace(code) ? 'more' : this.begin(code)
      case VALUE_OR_CLOSE:
        if (isSpace(code)) return 'more'
        return code === 0x5d ? this.close() : this.begin(code)
      case KEY:
      case KEY_OR_CLOSE:
        if (isSpace(code)) return 'more'
        if (code === 0x7d && this.state === KEY_OR_CLOSE) return this.close()
        if (code !== 0x22) return 'bad'
        this.isKey = true
        this.state = STRING
        return 'more'
      case COLON:
        if (isSpace(code)) return 'more'
        this.state = VALUE
        return code === 0x3a ? 'more' : 'bad'
      case AFTER_VALUE:
        return this.afterValue(code)
      default:
        return this.number(code)
    }
  }

  private begin(code: number): ScanResult {
    if (code === 0x22) {
      this.isKey = false
      this.state = STRING
    } else if (code === 0x7b || code === 0x5b) {
      if (this.objects.length === MAX_ARGUMENT_DEPTH) return 'bad'
      this.objects.push(code === 0x7b)
      this.state = code === 0x7b ? KEY_OR_CLOSE : VALUE_OR_CLOSE
    } else if (code === 0x2d) this.state = MINUS
    else if (code === 0x30) this.state = ZERO
    else if (isDigit(code)) this.state = INTEGER
    else {
      const literal = LITERALS.get(code)
      if (literal === undefined) return 'bad'
      this.literal = literal
      this.matched = 1
      this.state = LITERAL
    }
    return 'more'
  }

  private endString(): ScanResult {
    if (!this.isKey) return this.endValue()
    this.state = COLON
    return 'more'
  }

  private endValue(): ScanResult {
    this.state = AFTER_VALUE
    return this.objects.length === 0 ? 'end' : 'more'
  }

  private close(): ScanResult {
    this.objects.pop()
    return this.endValue()
  }

  private afterValue(code: number): ScanResult {
    const isObject = this.objects.at(-1)
    if (isObject === undefined) return 'past'
    if (isSpace(code)) return 'more'
    if (code === (isObject ? 0x7d : 0x5d)) return this.close()
    if (code !== 0x2c) return 'bad'
    this.state = isObject ? KEY : VALUE
    return 'more'
  }

  private number(code: number): ScanResult {
    const digit = isDigit(code)
    const e = code === 0x65 || code === 0x45
    switch (this.state) {
      case MINUS:
        if (!digit) return 'bad'
        this.state = code === 0x30 ? ZERO : INTEGER
        return 'more'
      case POINT:
        this.state = FRACTION
        return digit ? 'more' : 'bad'
      case EXPONENT:
        this.state = digit ? EXPONENT_DIGITS : EXPONENT_SIGN
        return digit || code === 0x2b || code === 0x2d ? 'more' : 'bad'
      case EXPONENT_SIGN:
        this.state = EXPONENT_DIGITS
        return digit ? 'more' : 'bad'
      case ZERO:
      case INTEGER:
        if (digit) return this.state === INTEGER ? 'more' : 'bad'
        if (code === 0x2e) {
          this.state = POINT
          return 'more'
        }
        break
      default:
        if (digit) return 'more'
        if (this.state === EXPONENT_DIGITS && e) return 'bad'
    }
    if (e) {
      this.state = EXPONENT
      return 'more'
    }
    // A number shows its end only by what follows.
    this.state = AFTER_VALUE
    return this.afterValue(code)
  }
}

const ESCAPES = new Map(
  Object.entries({ b: '\b', f: '\f', n: '\n', r: '\r', t: '\t', '"': '"', '\\': '\\', '/': '/' }).map(([letter, text]) => [
    letter.charCodeAt(0),
    text,
  ]),
)

/** Decodes the inside of a JSON string unit by unit. */
export class JsonStringDecoder {
  private escape = false
  private hex: string | undefined

  /** @returns the text that the unit completes; `end` at the closing quote; `bad` for what is no JSON string */
  feed(code: number): { text: string } | 'end' | 'bad' {
    if (this.hex !== undefined) {
      if (!isHex(code)) return 'bad'
      this.hex += String.fromCharCode(code)
      if (this.hex.length < 4) return { text: '' }
      const text = String.fromCharCode(parseInt(this.hex, 16))
      this.hex = undefined
      return { text }
    }
    if (this.escape) {
      this.escape = false
      if (code === 0x75) {
        this.hex = ''
        return { text: '' }
      }
      const text = ESCAPES.get(code)
      return text === undefined ? 'bad' : { text }
    }
    if (code === 0x22) return 'end'
    if (code === 0x5c) {
      this.escape = true
      return { text: '' }
    }
    return { text: String.fromCharCode(code) }
  }
}

/** The unit as it stands in a JSON string. */
export function jsonUnit(code: number): string {
  return code < 0x20 || code === 0x22 || code === 0x5c
    ? JSON.stringify(String.fromCharCode(code)).slice(1, -1)
    : String.fromCharCode(code)
}
