import { isSpace, jsonUnit, MAX_ARGUMENT_DEPTH, type ScanResult } from './json_scanner'

const VALUE = 0
const VALUE_OR_CLOSE = 1
const KEY_OR_CLOSE = 2
const COLON = 3
const AFTER_VALUE = 4
const QUOTED = 5
/** Behind one quote, which may open a string or three of them. */
const OPENED = 6
const OPENED_TWICE = 7
const ESCAPE = 8
const CODE_POINT = 9
const OCTAL = 10
const WORD = 11

const WORDS = new Map([
  ['True', 'true'],
  ['False', 'false'],
  ['None', 'null'],
  // Models mix the two languages up.
  ['true', 'true'],
  ['false', 'false'],
  ['null', 'null'],
])
/** No number that means something is longer. */
const MAX_WORD = 400
const WORD_UNIT = /[\w.+-]/
const ESCAPES: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  b: '\b',
  f: '\f',
  a: '\x07',
  v: '\x0b',
  '\\': '\\',
  "'": "'",
  '"': '"',
  '\n': '',
}

/** A Python number as JSON has it; undefined for what is none. */
function jsonNumber(text: string): string | undefined {
  const match = /^([+-]?)(?:(0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+)|(\d[\d_]*)?(?:(\.)([\d_]*))?([eE][+-]?\d+)?)$/.exec(text)
  if (match === null) return undefined
  const [, sign = '', radix, whole = '', , fraction = '', exponent = ''] = match
  const minus = sign === '-' ? '-' : ''
  if (radix !== undefined) {
    const digits = radix.replaceAll('_', '')
    return digits.length > 2 ? `${minus}${BigInt(digits)}` : undefined
  }
  if (whole === '' && fraction === '') return undefined
  const integer = whole.replaceAll('_', '').replace(/^0+(?=\d)/, '') || '0'
  const decimals = fraction.replaceAll('_', '')
  return `${minus}${integer}${decimals === '' ? '' : `.${decimals}`}${exponent}`
}

/**
 * Turns a Python literal (strings, numbers, True, False, None, lists, and dicts with string keys, as in Llama's pythonic
 * calls) into JSON, unit by unit.
 */
export class PythonLiteral {
  private state = VALUE
  private readonly dicts: boolean[] = []
  private isKey = false
  /** A comma was read, and is written before the next element: Python allows one at the end. */
  private comma = false
  private quote = 0
  private tripled = false
  private quotes = 0
  private digits = ''
  private digitsLeft = 0
  private word = ''

  constructor(private readonly emit: (json: string) => void) {}

  feed(code: number): ScanResult {
    const { state } = this
    if (state === QUOTED) return this.quoted(code)
    if (state >= OPENED && state <= OCTAL) return this.special(code)
    if (state === WORD) {
      if (WORD_UNIT.test(String.fromCharCode(code))) {
        this.word += String.fromCharCode(code)
        return this.word.length > MAX_WORD ? 'bad' : 'more'
      }
      const json = WORDS.get(this.word) ?? jsonNumber(this.word)
      if (json === undefined) return 'bad'
      this.emit(json)
      this.state = AFTER_VALUE
      return this.afterValue(code)
    }
    if (state === AFTER_VALUE) return this.afterValue(code)
    if (isSpace(code)) return 'more'
    if (state === COLON) {
      this.emit(': ')
      this.state = VALUE
      return code === 0x3a ? 'more' : 'bad'
    }
    if (state === KEY_OR_CLOSE) {
      if (code === 0x7d) return this.close('}')
      return code === 0x22 || code === 0x27 ? this.open(code, true) : 'bad'
    }
    return state === VALUE_OR_CLOSE && code === 0x5d ? this.close(']') : this.begin(code)
  }

  private element(): void {
    if (this.comma) this.emit(', ')
    this.comma = false
  }

  private begin(code: number): ScanResult {
    if (code === 0x22 || code === 0x27) return this.open(code, false)
    if (code === 0x5b || code === 0x7b) {
      if (this.dicts.length === MAX_ARGUMENT_DEPTH) return 'bad'
      this.element()
      this.emit(String.fromCharCode(code))
      this.dicts.push(code === 0x7b)
      this.state = code === 0x7b ? KEY_OR_CLOSE : VALUE_OR_CLOSE
      return 'more'
    }
    if (!WORD_UNIT.test(String.fromCharCode(code))) return 'bad'
    this.element()
    this.word = String.fromCharCode(code)
    this.state = WORD
    return 'more'
  }

  private open(code: number, isKey: boolean): ScanResult {
    this.element()
    this.emit('"')
    this.isKey = isKey
    this.quote = code
    this.tripled = false
    this.quotes = 0
    this.state = OPENED
    return 'more'
  }

  private quoted(code: number): ScanResult {
    if (code === this.quote) {
      if (!this.tripled || ++this.quotes === 3) return this.endString()
      return 'more'
    }
    for (; this.quotes > 0; this.quotes--) this.emit(jsonUnit(this.quote))
    if (code === 0x5c) this.state = ESCAPE
    else this.emit(jsonUnit(code))
    return 'more'
  }

  private endString(): ScanResult {
    this.emit('"')
    this.quotes = 0
    if (this.isKey) {
      this.state = COLON
      return 'more'
    }
    this.state = AFTER_VALUE
    return this.dicts.length === 0 ? 'end' : 'more'
  }

  private special(code: number): ScanResult {
    const unit = String.fromCharCode(code)
    switch (this.state) {
      case OPENED:
        if (code === this.quote) {
          this.state = OPENED_TWICE
          return 'more'
        }
        this.state = QUOTED
        return this.quoted(code)
      case OPENED_TWICE:
        if (code === this.quote) {
          this.tripled = true
          this.state = QUOTED
          return 'more'
        }
        // It was the empty string, which has ended before this unit.
        return this.endString() === 'end' ? 'past' : this.feed(code)
      case ESCAPE:
        return this.escape(unit)
      case CODE_POINT: {
        if (!/[\da-f]/i.test(unit)) return 'bad'
        this.digits += unit
        if (--this.digitsLeft > 0) return 'more'
        const point = parseInt(this.digits, 16)
        if (point > 0x10ffff) return 'bad'
        this.text(String.fromCodePoint(point))
        return 'more'
      }
      default: // OCTAL
        if (this.digits.length < 3 && /[0-7]/.test(unit)) {
          this.digits += unit
          return 'more'
        }
        this.text(String.fromCharCode(parseInt(this.digits, 8)))
        return this.quoted(code)
    }
  }

  private escape(unit: string): ScanResult {
    const digits = { x: 2, u: 4, U: 8 }[unit]
    if (digits !== undefined) {
      this.digits = ''
      this.digitsLeft = digits
      this.state = CODE_POINT
    } else if (/[0-7]/.test(unit)) {
      this.digits = unit
      this.state = OCTAL
    } else if (unit === 'N') return 'bad'
    // Python keeps the backslash of an escape that it does not know.
    else this.text(ESCAPES[unit] ?? `\\${unit}`)
    return 'more'
  }

  private text(text: string): void {
    for (let i = 0; i < text.length; i++) this.emit(jsonUnit(text.charCodeAt(i)))
    this.state = QUOTED
  }

  private close(bracket: string): ScanResult {
    this.comma = false
    this.emit(bracket)
    this.dicts.pop()
    this.state = AFTER_VALUE
    return this.dicts.length === 0 ? 'end' : 'more'
  }

  private afterValue(code: number): ScanResult {
    const isDict = this.dicts.at(-1)
    if (isDict === undefined) return 'past'
    if (isSpace(code)) return 'more'
    if (code === (isDict ? 0x7d : 0x5d)) return this.close(isDict ? '}' : ']')
    if (code !== 0x2c) return 'bad'
    this.comma = true
    this.state = isDict ? KEY_OR_CLOSE : VALUE_OR_CLOSE
    return 'more'
  }
}
