/**
 * Reads a regular expression in JavaScript's syntax, and writes it as EBNF. The grammar library has a reader of its own, which
 * takes "." for a quotation mark inside a JSON string, and ends at what it does not know. What a grammar cannot express is
 * refused by name.
 *
 * An expression stands for the whole output (or the whole string of a JSON schema's `pattern`), as if between ^ and $.
 */
import { invalidGrammar } from './grammar_error'

/** Code points from `from` to `to`, both included. */
type Range = readonly [from: number, to: number]

type Node =
  | { kind: 'set'; ranges: readonly Range[] }
  | { kind: 'sequence' | 'alternatives'; nodes: readonly Node[] }
  | { kind: 'repeat'; node: Node; min: number; max: number }

const MAX_LENGTH = 16_384
const MAX_NESTING = 48
/** Of all counts around a character, multiplied. */
const MAX_REPEATS = 65_536
/** Characters beyond ASCII that a set may list, or leave out without notice. */
const MAX_LISTED = 1024
const LAST = 0x10_ffff

const DIGITS: readonly Range[] = [[0x30, 0x39]]
const WORDS: readonly Range[] = [[0x30, 0x39], [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]]
const SPACES: readonly Range[] = [
  [0x09, 0x0d], [0x20, 0x20], [0xa0, 0xa0], [0x1680, 0x1680], [0x2000, 0x200a], [0x2028, 0x2029], [0x202f, 0x202f],
  [0x205f, 0x205f], [0x3000, 0x3000], [0xfeff, 0xfeff],
]
const LINE_ENDS: readonly Range[] = [[0x0a, 0x0a], [0x0d, 0x0d], [0x2028, 0x2029]]
/** UTF-8 has no surrogates. */
const ENCODABLE: readonly Range[] = [[0, 0xd7ff], [0xe000, LAST]]
const ASCII: readonly Range[] = [[0, 0x7f]]
const BEYOND_ASCII: readonly Range[] = [[0x80, 0xd7ff], [0xe000, LAST]]
/** What stands for itself in a JSON string. */
const PLAIN_IN_JSON: readonly Range[] = [[0x20, 0x21], [0x23, 0x5b], [0x5d, 0xd7ff], [0xe000, LAST]]
/** Characters by the letter that stands for them after a backslash in a JSON string. */
const JSON_ESCAPES: readonly (readonly [code: number, letter: string])[] = [
  [0x22, '"'], [0x5c, '\\'], [0x08, 'b'], [0x0c, 'f'], [0x0a, 'n'], [0x0d, 'r'], [0x09, 't'],
]
const CONTROL_ESCAPES: Readonly<Record<string, number>> = { f: 0x0c, n: 0x0a, r: 0x0d, t: 0x09, v: 0x0b, 0: 0 }
const CLASSES: Readonly<Record<string, readonly Range[]>> = {
  d: DIGITS, D: inverse(DIGITS), w: WORDS, W: inverse(WORDS), s: SPACES, S: inverse(SPACES),
}

/** In order, and none touches the next. */
function union(ranges: readonly Range[]): Range[] {
  const merged: [number, number][] = []
  for (const [from, to] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const last = merged.at(-1)
    if (last !== undefined && from <= last[1] + 1) last[1] = Math.max(last[1], to)
    else merged.push([from, to])
  }
  return merged
}

function inverse(ranges: readonly Range[]): Range[] {
  const gaps: Range[] = []
  let next = 0
  for (const [from, to] of union(ranges)) {
    if (from > next) gaps.push([next, from - 1])
    next = to + 1
  }
  if (next <= LAST) gaps.push([next, LAST])
  return gaps
}

function intersection(a: readonly Range[], b: readonly Range[]): Range[] {
  const common: Range[] = []
  for (const [from, to] of union(a)) {
    for (const [low, high] of b) if (from <= high && low <= to) common.push([Math.max(from, low), Math.min(to, high)])
  }
  return common
}

class RegexParser {
  private readonly chars: readonly string[]
  private at = 0
  private nesting = 0

  constructor(private readonly source: string, private readonly where: string) {
    this.chars = Array.from(source)
  }

  parse(): Node {
    const node = this.alternatives()
    if (this.at < this.chars.length) throw this.error('has a ")" too many')
    this.checkRepeats(node, 1)
    return node
  }

  private alternatives(): Node {
    const nodes = [this.sequence()]
    while (this.take('|')) nodes.push(this.sequence())
    return nodes.length === 1 ? nodes[0]! : { kind: 'alternatives', nodes }
  }

  private sequence(): Node {
    const nodes: Node[] = []
    // Of the whole expression, which is what ^ and $ say.
    if (this.nesting === 0) while (this.take('^'));
    while (this.at < this.chars.length && this.peek() !== '|' && this.peek() !== ')') {
      if (this.peek() === '$' && this.nesting === 0 && (this.at + 1 === this.chars.length || this.chars[this.at + 1] === '|')) {
        this.at++
        continue
      }
      nodes.push(this.repeated())
    }
    return nodes.length === 1 ? nodes[0]! : { kind: 'sequence', nodes }
  }

  private repeated(): Node {
    const node = this.atom()
    const count = this.count()
    if (count === undefined) return node
    const [min, max] = count
    this.take('?')
    if (this.count() !== undefined) throw this.error('repeats a repetition: put it in a group')
    if (min > max) throw this.error(`has a repetition of at least ${min} and at most ${max}`)
    return { kind: 'repeat', node, min, max }
  }

  /** @param outer counts around the node, multiplied */
  private checkRepeats(node: Node, outer: number): void {
    if (node.kind === 'set') return
    if (node.kind !== 'repeat') {
      for (const part of node.nodes) this.checkRepeats(part, outer)
      return
    }
    const most = outer * Math.max(node.max === Infinity ? node.min : node.max, 1)
    if (most > MAX_REPEATS) throw this.error(`repeats something ${most} times, at most ${MAX_REPEATS} are possible`)
    this.checkRepeats(node.node, most)
  }

  private count(): [number, number] | undefined {
    if (this.take('*')) return [0, Infinity]
    if (this.take('+')) return [1, Infinity]
    if (this.take('?')) return [0, 1]
    if (this.peek() !== '{') return undefined
    const found = /^\{(\d{1,9})(?:(,)(\d{1,9})?)?\}/.exec(this.chars.slice(this.at, this.at + 24).join(''))
    if (found === null) return undefined
    this.at += found[0].length
    const min = Number(found[1])
    return [min, found[2] === undefined ? min : found[3] === undefined ? Infinity : Number(found[3])]
  }

  private atom(): Node {
    const char = this.chars[this.at++]!
    switch (char) {
      case '(':
        return this.group()
      case '[':
        return { kind: 'set', ranges: this.set() }
      case '.':
        return { kind: 'set', ranges: inverse(LINE_ENDS) }
      case '\\':
        return { kind: 'set', ranges: this.escape(false) }
      case '*':
      case '+':
      case '?':
        throw this.error(`has nothing before "${char}" that it could repeat`)
      case '^':
      case '$':
        throw this.error(`has "${char}" in the middle: it stands for the whole text anyway`)
      default:
        return single(char.codePointAt(0)!)
    }
  }

  private group(): Node {
    if (this.take('?')) {
      const rest = this.chars.slice(this.at, this.at + 80).join('')
      const name = /^<[A-Za-z_$][\w$]*>/.exec(rest)
      if (this.take(':')) {
        // A group without a name.
      } else if (name !== null) this.at += name[0].length
      else if (/^<?[=!]/.test(rest)) throw this.error('looks ahead or behind, which a grammar cannot')
      else throw this.error('has a kind of group that is not known')
    }
    if (++this.nesting > MAX_NESTING) throw this.error(`nests more than ${MAX_NESTING} groups`)
    const node = this.alternatives()
    this.nesting--
    if (!this.take(')')) throw this.error('has a "(" without ")"')
    return node
  }

  private set(): Range[] {
    const negated = this.take('^')
    const ranges: Range[] = []
    for (;;) {
      if (this.at >= this.chars.length) throw this.error('has a "[" without "]"')
      if (this.take(']')) break
      const from = this.member()
      if (this.peek() === '-' && this.chars[this.at + 1] !== ']' && this.at + 1 < this.chars.length) {
        this.at++
        const to = this.member()
        const [[low, lowEnd]] = from as [Range]
        const [[high, highEnd]] = to as [Range]
        if (from.length !== 1 || to.length !== 1 || low !== lowEnd || high !== highEnd || low > high) {
          throw this.error('has a set with a range that is none')
        }
        ranges.push([low, high])
      } else ranges.push(...from)
    }
    return negated ? inverse(ranges) : ranges
  }

  private member(): readonly Range[] {
    const char = this.chars[this.at++]
    if (char === undefined) throw this.error('has a "[" without "]"')
    if (char === '\\') return this.escape(true)
    const code = char.codePointAt(0)!
    return [[code, code]]
  }

  private escape(inSet: boolean): readonly Range[] {
    const char = this.chars[this.at++]
    if (char === undefined) throw this.error('ends with a backslash')
    const classed = CLASSES[char]
    if (classed !== undefined) return classed
    const rest = this.chars.slice(this.at, this.at + 10).join('')
    if (char === 'b' && inSet) return [[8, 8]]
    if (char === 'b' || char === 'B') throw this.error('looks for the edge of a word, which a grammar cannot')
    if (char === 'p' || char === 'P') throw this.error(`names a property of characters by \\${char}, which is not supported`)
    if (char === 'k' || /[1-9]/.test(char)) throw this.error('refers back to a group, which a grammar cannot')
    const hex = char === 'x' ? /^([0-9A-Fa-f]{2})/.exec(rest) : char === 'u' ? /^(?:\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{4}))/.exec(rest) : null
    if (hex !== null) {
      this.at += hex[0].length
      const code = Number.parseInt(hex[1] ?? hex[2]!, 16)
      if (code > LAST) throw this.error(`has no character \\u{${hex[1]}}`)
      return [[code, code]]
    }
    if (char === 'c' && /^[A-Za-z]/.test(rest)) {
      const code = this.chars[this.at++]!.codePointAt(0)! % 32
      return [[code, code]]
    }
    const control = CONTROL_ESCAPES[char]
    if (control === undefined && /[A-Za-z0-9]/.test(char)) throw this.error(`has an escape \\${char} that is not known`)
    const code = control ?? char.codePointAt(0)!
    return [[code, code]]
  }

  private peek(): string | undefined {
    return this.chars[this.at]
  }

  private take(char: string): boolean {
    if (this.chars[this.at] !== char) return false
    this.at++
    return true
  }

  private error(what: string): Error {
    const shown = this.source.length > 60 ? `${this.source.slice(0, 57)}...` : this.source
    return invalidGrammar(`${this.where} /${shown}/ ${what}`)
  }
}

function single(code: number): Node {
  return { kind: 'set', ranges: [[code, code]] }
}

class EbnfWriter {
  constructor(
    private readonly inJson: boolean,
    private readonly where: string,
  ) {}

  write(node: Node): string {
    switch (node.kind) {
      case 'set':
        return this.writeSet(node.ranges)
      case 'sequence':
        return node.nodes.map((part) => this.write(part)).filter((part) => part !== '').join(' ')
      case 'alternatives':
        return `(${node.nodes.map((part) => (isEmpty(part) ? '""' : this.write(part))).join(' | ')})`
      case 'repeat': {
        const { min, max } = node
        return isEmpty(node) ? '' : repeated(this.write(node.node), min, max)
      }
    }
  }

  private writeSet(ranges: readonly Range[]): string {
    const plain = this.plainSet(intersection(ranges, this.inJson ? PLAIN_IN_JSON : ENCODABLE))
    const escaped = this.inJson ? JSON_ESCAPES.filter(([code]) => intersection(ranges, [[code, code]]).length > 0) : []
    const parts = [...plain]
    if (escaped.length > 0) parts.push(`${spellChar(0x5c)} ${spellSet(escaped.map(([, letter]) => [letter.charCodeAt(0), letter.charCodeAt(0)]))}`)
    if (parts.length === 0) throw invalidGrammar(`${this.where} has a set of characters that nothing can match`)
    return parts.length === 1 ? parts[0]! : `(${parts.join(' | ')})`
  }

  /** Of characters that are no escapes. */
  writePlain(ranges: readonly Range[]): string {
    const parts = this.plainSet(ranges)
    return parts.length === 1 ? parts[0]! : `(${parts.join(' | ')})`
  }

  /**
   * Alternatives for a set. In the library's own sets characters beyond ASCII do not work, but for those of the form [^...], which
   * take all of them. So a few are listed, and nearly all are all.
   */
  private plainSet(ranges: readonly Range[]): string[] {
    const beyond = intersection(ranges, BEYOND_ASCII)
    const count = sizeOf(beyond)
    const ascii = intersection(ranges, ASCII)
    if (sizeOf(BEYOND_ASCII) - count <= MAX_LISTED) {
      const missing = intersection(inverse(ascii), ASCII)
      return missing.length === 0 ? [spellSet(ASCII), spellOthers(ASCII)] : [spellOthers(missing)]
    }
    if (count > MAX_LISTED) {
      throw invalidGrammar(
        `${this.where} has a set of ${count} characters beyond ASCII: up to ${MAX_LISTED} are possible, or all but as many`,
        'take all of them by [^\\x00-\\x7F]',
      )
    }
    const listed = beyond.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => spellChar(from + i)))
    return ascii.length === 0 ? listed : [spellSet(ascii), ...listed]
  }
}

function sizeOf(ranges: readonly Range[]): number {
  return ranges.reduce((sum, [from, to]) => sum + to - from + 1, 0)
}

/** Codes that stand for themselves in EBNF, in a literal as well as in a set. */
function spellCode(code: number): string {
  const char = String.fromCodePoint(code)
  return /[A-Za-z0-9]/.test(char) ? char : `\\U${code.toString(16).padStart(8, '0')}`
}

function spellChar(code: number): string {
  return `"${spellCode(code)}"`
}

function spellSet(ranges: readonly Range[]): string {
  if (ranges.length === 1 && ranges[0]![0] === ranges[0]![1]) return spellChar(ranges[0]![0])
  return `[${ranges.map(([from, to]) => (from === to ? spellCode(from) : `${spellCode(from)}-${spellCode(to)}`)).join('')}]`
}

/** Of all characters but these, which are of ASCII. */
function spellOthers(ranges: readonly Range[]): string {
  return `[^${ranges.map(([from, to]) => (from === to ? spellCode(from) : `${spellCode(from)}-${spellCode(to)}`)).join('')}]`
}

/** EBNF of a literal. */
export function literal(text: string): string {
  return `"${text.replace(/[^A-Za-z0-9]/gu, (char) => spellCode(char.codePointAt(0)!))}"`
}

/** EBNF of something so many times. */
export function repeated(what: string, min: number, max: number): string {
  if (max === Infinity) return min === 0 ? `(${what})*` : min === 1 ? `(${what})+` : `(${what}){${min},}`
  if (min === 0 && max === 1) return `(${what})?`
  return min === 1 && max === 1 ? what : `(${what}){${min},${max}}`
}

/** EBNF of one character of a JSON string, or its escape. */
export function jsonChar(): string {
  return new EbnfWriter(true, 'A string').write({ kind: 'set', ranges: ENCODABLE })
}

/** EBNF of a character of a JSON string that is no escape, and none of these; where one of them is beyond ASCII, nor are others. */
export function plainJsonChar(but: Iterable<string>): string {
  const codes = Array.from(but, (char) => char.codePointAt(0)!)
  const out = codes.map((code): Range => [code, code])
  const kept = intersection(PLAIN_IN_JSON, inverse(codes.some((code) => code > 0x7f) ? [...out, ...BEYOND_ASCII] : out))
  return new EbnfWriter(true, 'A name').writePlain(kept)
}

function isEmpty(node: Node): boolean {
  if (node.kind === 'repeat') return node.max === 0 || isEmpty(node.node)
  return node.kind === 'sequence' && node.nodes.every(isEmpty)
}

/**
 * EBNF of a regular expression; '' where it matches the empty text only.
 *
 * @param where names the expression in messages
 * @param inJson for the inside of a JSON string: characters that JSON escapes are matched by their escapes
 * @throws ERR_GRAMMAR_INVALID
 */
export function regexToEbnf(source: string, where: string, inJson: boolean): string {
  if (source.length > MAX_LENGTH) throw invalidGrammar(`${where} has ${source.length} characters, at most ${MAX_LENGTH} are possible`)
  return new EbnfWriter(inJson, where).write(new RegexParser(source, where).parse())
}
