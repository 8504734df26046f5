/**
 * A grammar as automata: one per rule, whose edges are bytes, nothing, or calls of other rules. Read from the normal form in which
 * the grammar library prints what it has parsed, so that its reader alone says what a grammar means.
 */

/** Nodes by number. Edges of a kind lie behind each other, those of node `i` from entry `i` of their `...At` to entry `i + 1`. */
export interface ByteNetwork {
  readonly size: number
  readonly start: number
  readonly rangeAt: Int32Array
  /** Triples: bytes from, to, and where they lead. */
  readonly ranges: Int32Array
  readonly emptyAt: Int32Array
  /** Where nothing leads. */
  readonly empty: Int32Array
  readonly callAt: Int32Array
  /** Pairs: where a called rule starts, and where it returns to. */
  readonly calls: Int32Array
  /** 1: the rule ends at this node. */
  readonly final: Uint8Array
}

/** While it is read. */
interface NetworkNode {
  readonly ranges: number[]
  readonly empty: number[]
  readonly calls: number[]
  final: boolean
}

/** Beyond it, a grammar has repetitions that are better counted than written out. */
const MAX_NODES = 400_000
const MAX_NESTING = 100
const LAST_CODE = 0x10ffff
/** Codes that have no UTF-8, and the last codes of each length in bytes. */
const SURROGATES = [0xd800, 0xdfff] as const
const LENGTH_ENDS = [0x7f, 0x7ff, 0xffff, LAST_CODE]
const ESCAPES: Readonly<Record<string, string>> = { a: '\x07', b: '\b', e: '\x1b', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v', 0: '\0' }
const HEX_DIGITS: Readonly<Record<string, number>> = { x: 2, u: 4, U: 8 }
const encoder = new TextEncoder()

/** What is no automaton here: a form that only the library knows, or too many nodes. */
class Unsupported extends Error {}

class NetworkReader {
  private readonly nodes: NetworkNode[] = []
  private readonly rules = new Map<string, { start: number; end: number; called: boolean; defined: boolean }>()
  private at = 0

  constructor(private readonly text: string) {}

  /** @param rootRule undefined: the only one that no other calls */
  read(rootRule: string | undefined): ByteNetwork {
    while (this.at < this.text.length) {
      if (this.text[this.at] === '\n') this.at++
      else this.readRule()
    }
    for (const { defined } of this.rules.values()) if (!defined) throw new Unsupported()
    const roots = rootRule === undefined ? [...this.rules.values()].filter(({ called }) => !called) : [this.rules.get(rootRule)]
    const root = roots[0]
    if (root === undefined || roots.length > 1) throw new Unsupported()
    this.shorten()
    return pack(this.nodes, root.start)
  }

  /**
   * Leads edges past nodes from which one leads on for nothing. It is what makes a call at the end of a rule known as such: it
   * returns to where the rule ends, so that recursion to the right takes no stack.
   */
  private shorten(): void {
    const { nodes } = this
    const passed = new Int32Array(nodes.length).fill(-1)
    const past = (from: number): number => {
      const path: number[] = []
      let at = from
      for (; passed[at]! < 0 && path.length < nodes.length; at = nodes[at]!.empty[0]!) {
        const { ranges, empty, calls, final } = nodes[at]!
        if (final || ranges.length > 0 || calls.length > 0 || empty.length !== 1) break
        path.push(at)
      }
      if (passed[at]! >= 0) at = passed[at]!
      for (const node of path) passed[node] = at
      return at
    }
    for (const { ranges, empty, calls } of nodes) {
      for (let i = 2; i < ranges.length; i += 3) ranges[i] = past(ranges[i]!)
      for (let i = 0; i < empty.length; i++) empty[i] = past(empty[i]!)
      for (let i = 1; i < calls.length; i += 2) calls[i] = past(calls[i]!)
    }
  }

  private readRule(): void {
    const rule = this.rule(this.readName())
    if (rule.defined) throw new Unsupported()
    rule.defined = true
    this.expect(' ::= ')
    this.readExpression(rule.start, rule.end, 0)
    // A look ahead, which only saves the library time.
    const end = this.text.indexOf('\n', this.at)
    const rest = this.text.slice(this.at, end < 0 ? undefined : end)
    if (rest !== '' && !rest.startsWith(' (=')) throw new Unsupported()
    this.at += rest.length
  }

  private rule(name: string): { start: number; end: number; called: boolean; defined: boolean } {
    let rule = this.rules.get(name)
    if (rule === undefined) {
      rule = { start: this.node(), end: this.node(), called: false, defined: false }
      this.nodes[rule.end]!.final = true
      this.rules.set(name, rule)
    }
    return rule
  }

  private readExpression(from: number, to: number, depth: number): void {
    if (depth > MAX_NESTING) throw new Unsupported()
    switch (this.text[this.at]) {
      case '(':
        this.readGroup(from, to, depth)
        break
      case '"':
        this.readLiteral(from, to)
        break
      case '[':
        this.readSet(from, to)
        break
      default:
        this.readCall(from, to)
    }
  }

  /** Alternatives, or a sequence: which one, its first separator says. */
  private readGroup(from: number, to: number, depth: number): void {
    this.at++
    let start = from
    for (;;) {
      const end = this.node()
      this.readExpression(start, end, depth + 1)
      if (this.take(' | ')) {
        this.nodes[end]!.empty.push(to)
        start = from
      } else if (this.take(' ')) {
        start = end
      } else {
        this.expect(')')
        this.nodes[end]!.empty.push(to)
        return
      }
    }
  }

  private readLiteral(from: number, to: number): void {
    this.at++
    let text = ''
    while (this.text[this.at] !== '"') text += this.readChar()
    this.at++
    const bytes = encoder.encode(text)
    if (bytes.length === 0) this.nodes[from]!.empty.push(to)
    let start = from
    bytes.forEach((byte, i) => {
      const end = i + 1 === bytes.length ? to : this.node()
      this.nodes[start]!.ranges.push(byte, byte, end)
      start = end
    })
  }

  private readSet(from: number, to: number): void {
    this.at++
    const negative = this.take('^')
    const ranges: [number, number][] = []
    while (this.text[this.at] !== ']') {
      const first = this.readChar().codePointAt(0)!
      const last = this.take('-') ? this.readChar().codePointAt(0)! : first
      ranges.push([first, last])
    }
    this.at++
    let [start, end] = [from, to]
    if (this.take('*')) {
      // A node of its own: others may lead to `from`, and from `to` on.
      start = end = this.node()
      this.nodes[from]!.empty.push(start)
      this.nodes[start]!.empty.push(to)
    }
    for (const [first, last] of negative ? inverse(ranges) : ranges) this.addCodes(start, end, first, last)
  }

  private readCall(from: number, to: number): void {
    const rule = this.rule(this.readName())
    rule.called = true
    const call = (start: number, end: number): void => {
      this.nodes[start]!.calls.push(rule.start, end)
    }
    if (!this.take('{')) {
      call(from, to)
      return
    }
    const bounds = /(\d+), (-?\d+)\}/y
    bounds.lastIndex = this.at
    const found = bounds.exec(this.text)
    if (found === null) throw new Unsupported()
    this.at += found[0].length
    const [least, most] = [Number(found[1]), Number(found[2])]
    let start = from
    for (let i = 0; i < least; i++) call(start, (start = this.node()))
    if (most < 0) {
      const loop = this.node()
      this.nodes[start]!.empty.push(loop)
      call(loop, loop)
      start = loop
    } else {
      for (let i = least; i < most; i++) {
        this.nodes[start]!.empty.push(to)
        call(start, (start = this.node()))
      }
    }
    this.nodes[start]!.empty.push(to)
  }

  private readName(): string {
    const name = /[^\s()"[\]{}|]+/y
    name.lastIndex = this.at
    const found = name.exec(this.text)
    // A form that stands for more than its parts, as TagDispatch(...).
    if (found === null || this.text[this.at + found[0].length] === '(') throw new Unsupported()
    this.at += found[0].length
    return found[0]
  }

  private readChar(): string {
    const char = this.text[this.at++]
    if (char === undefined) throw new Unsupported()
    if (char !== '\\') return char
    const escape = this.text[this.at++] ?? ''
    const digits = HEX_DIGITS[escape]
    if (digits === undefined) return ESCAPES[escape] ?? escape
    const code = Number.parseInt(this.text.slice(this.at, (this.at += digits)), 16)
    // Of what is beyond, the library makes something of its own.
    if (!(code <= LAST_CODE) || (code >= SURROGATES[0] && code <= SURROGATES[1])) throw new Unsupported()
    return String.fromCodePoint(code)
  }

  private take(text: string): boolean {
    if (!this.text.startsWith(text, this.at)) return false
    this.at += text.length
    return true
  }

  private expect(text: string): void {
    if (!this.take(text)) throw new Unsupported()
  }

  private node(): number {
    if (this.nodes.length >= MAX_NODES) throw new Unsupported()
    return this.nodes.push({ ranges: [], empty: [], calls: [], final: false }) - 1
  }

  // --- sets of characters, as bytes of UTF-8 ---

  private addCodes(from: number, to: number, first: number, last: number): void {
    if (first < SURROGATES[0] && last >= SURROGATES[0]) {
      this.addCodes(from, to, first, SURROGATES[0] - 1)
      this.addCodes(from, to, SURROGATES[1] + 1, last)
      return
    }
    if (first > last) return
    const end = LENGTH_ENDS.find((code) => first <= code)!
    if (last > end) {
      this.addCodes(from, to, first, end)
      this.addCodes(from, to, end + 1, last)
      return
    }
    this.addBytes(from, to, [...encoder.encode(String.fromCodePoint(first))], [...encoder.encode(String.fromCodePoint(last))])
  }

  /** Sequences of equally many bytes, from `low` to `high`. */
  private addBytes(from: number, to: number, low: readonly number[], high: readonly number[]): void {
    let [first, last] = [low[0]!, high[0]!]
    const { ranges } = this.nodes[from]!
    if (low.length === 1) {
      ranges.push(first, last, to)
      return
    }
    const step = (byte: number, until: number, tailLow: readonly number[], tailHigh: readonly number[]): void => {
      const next = this.node()
      ranges.push(byte, until, next)
      this.addBytes(next, to, tailLow, tailHigh)
    }
    const [lowTail, highTail] = [low.slice(1), high.slice(1)]
    const lowest = lowTail.map(() => 0x80)
    const highest = lowTail.map(() => 0xbf)
    if (first === last) {
      step(first, first, lowTail, highTail)
      return
    }
    if (lowTail.some((byte) => byte !== 0x80)) step(first, first++, lowTail, highest)
    const cut = highTail.some((byte) => byte !== 0xbf)
    if (cut) last--
    if (first <= last) step(first, last, lowest, highest)
    if (cut) step(last + 1, last + 1, lowest, highTail)
  }
}

function pack(nodes: readonly NetworkNode[], start: number): ByteNetwork {
  const behind = (kind: 'ranges' | 'empty' | 'calls'): [at: Int32Array, edges: Int32Array] => {
    const at = new Int32Array(nodes.length + 1)
    for (const [i, node] of nodes.entries()) at[i + 1] = at[i]! + node[kind].length
    const edges = new Int32Array(at[nodes.length]!)
    for (const [i, node] of nodes.entries()) edges.set(node[kind], at[i])
    return [at, edges]
  }
  const [rangeAt, ranges] = behind('ranges')
  const [emptyAt, empty] = behind('empty')
  const [callAt, calls] = behind('calls')
  const final = Uint8Array.from(nodes, (node) => (node.final ? 1 : 0))
  return { size: nodes.length, start, rangeAt, ranges, emptyAt, empty, callAt, calls, final }
}

function inverse(ranges: readonly (readonly [number, number])[]): [number, number][] {
  const out: [number, number][] = []
  let next = 0
  for (const [first, last] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (first > next) out.push([next, first - 1])
    next = Math.max(next, last + 1)
  }
  if (next <= LAST_CODE) out.push([next, LAST_CODE])
  return out
}

/**
 * Whether the library's normal form of a grammar says all of it. It ends literals at a NUL, and writes a set that begins with a "^"
 * as one that leaves out what follows.
 */
export function printsFaithfully(source: string, isEbnf: boolean): boolean {
  const nul = /\\(?:0|x00|u0000|U00000000)/
  if (!isEbnf) return !nul.test(source) && !/(?<!\[)\^|\\(?:x5e|u005e|U0000005e)/i.test(source)
  for (const [part] of source.matchAll(/"(?:[^"\\\n]|\\.)*"|\[(?:[^\]\\\n]|\\.)*\]|#.*/g)) {
    if (part.startsWith('"') && nul.test(part)) return false
    if (/^\[\\(?:\^|x5e|u005e|U0000005e)/i.test(part)) return false
  }
  return true
}

/** @returns undefined for what has no such network */
export function readNetwork(normalForm: string, rootRule: string | undefined): ByteNetwork | undefined {
  try {
    return new NetworkReader(normalForm).read(rootRule)
  } catch (error) {
    if (error instanceof Unsupported) return undefined
    throw error
  }
}
