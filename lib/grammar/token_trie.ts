/**
 * The tokens of a vocabulary by their bytes, so that those with the same beginning are tried together; and, as most grammars take
 * most characters alike in most places, with what sorts of characters are below each beginning.
 */
import type { VocabularyData } from './messages'

/** Nodes in the order of a walk in depth; node 0 is the empty beginning. */
export interface TokenTrie {
  readonly count: number
  /** The last byte of the node's beginning. */
  readonly bytes: Uint8Array
  readonly depths: Uint16Array
  /** The first node after those that begin as this one does. */
  readonly ends: Int32Array
  /** `[count + 1]`: where in {@link tokens} the node's own are. */
  readonly firsts: Int32Array
  readonly tokens: Int32Array
  /** A bit per sort of the characters that follow below a node; {@link BROKEN} where bytes follow that are no whole characters. */
  readonly sorts: Int32Array
  /** Most characters that follow below a node. */
  readonly heights: Uint16Array
  readonly maxDepth: number
}

/**
 * Tokens in parts. In the middle of a text everything of the plain ones is allowed, more often than not, and that need not be found
 * out token by token.
 */
export interface TokenTries {
  /** Of tokens of {@link PLAIN} characters, by how many those are: where few more may come, short tokens still may. */
  readonly plain: readonly TokenTrie[]
  readonly rest: TokenTrie
}

/** Longer ones are left out: no grammar allows them. */
const MAX_TOKEN_BYTES = 65_535
/** Most characters of the tokens in each of the plain tries. */
const PLAIN_LENGTHS = [2, 4, 6, 9, 12]

/** Characters of ASCII that grammars take or refuse together, as a rule; all others are one sort each, as far as bits go. */
const SORTS = ['abcdef', 'ghijklmnopqrstuvwxyz', 'ABCDEF', 'GHIJKLMNOPQRSTUVWXYZ', '0123456789', ' ', '\t\n\r', '"', '\\', "'`", '_', '-', '.', ',', ':', '{}', '[]', '/', '()', '<>', '+*=%', '!?;', '@#$&', '^|~']
const CONTROL = 1 << SORTS.length
export const BEYOND_ASCII = 1 << 29
export const BROKEN = 1 << 30
const SORT_OF_BYTE = new Int32Array(256).fill(CONTROL)
SORTS.forEach((characters, sort) => {
  for (const char of characters) SORT_OF_BYTE[char.charCodeAt(0)] = 1 << sort
})
/** The bytes of ASCII by sort, and its bit. */
export const ASCII_SORTS: readonly { bit: number; bytes: readonly number[] }[] = [...Array(SORTS.length + 1).keys()].map((sort) => {
  return { bit: 1 << sort, bytes: [...Array(128).keys()].filter((byte) => SORT_OF_BYTE[byte] === 1 << sort) }
})
const NOT_PLAIN = CONTROL | BROKEN | ['"', '\\', '\n'].reduce((bits, char) => bits | SORT_OF_BYTE[char.charCodeAt(0)]!, 0)
/** All sorts but those that texts in quotes must write otherwise. */
export const PLAIN = ASCII_SORTS.reduce((bits, { bit }) => bits | bit, BEYOND_ASCII) & ~NOT_PLAIN

/** First bytes of characters beyond ASCII by what may follow: lead from, to, second byte from, to, bytes in all. */
export const UTF8_FORMS: readonly (readonly [number, number, number, number, number])[] = [
  [0xc2, 0xdf, 0x80, 0xbf, 2], [0xe0, 0xe0, 0xa0, 0xbf, 3], [0xe1, 0xec, 0x80, 0xbf, 3], [0xed, 0xed, 0x80, 0x9f, 3],
  [0xee, 0xef, 0x80, 0xbf, 3], [0xf0, 0xf0, 0x90, 0xbf, 4], [0xf1, 0xf3, 0x80, 0xbf, 4], [0xf4, 0xf4, 0x80, 0x8f, 4],
]

/** Bytes of the character beyond ASCII that begins at `at`; 0 where there is none. */
function characterLength(text: string, at: number): number {
  const lead = text.charCodeAt(at)
  const form = UTF8_FORMS.find(([from, to]) => lead >= from && lead <= to)
  if (form === undefined) return 0
  const [, , low, high, length] = form
  const second = text.charCodeAt(at + 1)
  if (!(second >= low && second <= high)) return 0
  for (let i = 2; i < length; i++) {
    const byte = text.charCodeAt(at + i)
    if (!(byte >= 0x80 && byte <= 0xbf)) return 0
  }
  return length
}

/** The sort of what each byte of a text begins: 0 where it goes on with a character. */
function sortsOf(text: string): Int32Array {
  const sorts = new Int32Array(text.length)
  for (let at = 0; at < text.length; ) {
    const byte = text.charCodeAt(at)
    const length = byte < 0x80 ? 1 : characterLength(text, at)
    sorts[at] = byte < 0x80 ? SORT_OF_BYTE[byte]! : length === 0 ? BROKEN : BEYOND_ASCII
    at += Math.max(length, 1)
  }
  return sorts
}

export function buildTries({ bytes, offsets, size }: VocabularyData): TokenTries {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const plain = PLAIN_LENGTHS.map((): [string, number][] => [])
  const rest: [string, number][] = []
  for (let id = 0; id < size; id++) {
    const length = offsets[id + 1]! - offsets[id]!
    if (length === 0 || length > MAX_TOKEN_BYTES) continue
    // A code unit of the string is a byte, so strings sort as bytes do.
    const text = all.toString('latin1', offsets[id], offsets[id + 1])
    let [sorts, characters] = [0, 0]
    for (const sort of sortsOf(text)) {
      sorts |= sort
      if (sort !== 0) characters++
    }
    const part = (sorts & NOT_PLAIN) === 0 ? PLAIN_LENGTHS.findIndex((most) => characters <= most) : -1
    ;(plain[part] ?? rest).push([text, id])
  }
  return { plain: plain.map(build), rest: build(rest) }
}

function build(entries: [string, number][]): TokenTrie {
  entries.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1]))
  const most = entries.reduce((sum, [text]) => sum + text.length, 1)
  const bytes = new Uint8Array(most)
  const depths = new Uint16Array(most)
  const ends = new Int32Array(most)
  const firsts = new Int32Array(most + 1)
  const sorts = new Int32Array(most)
  const heights = new Uint16Array(most)
  const path = [0]
  let count = 1
  let before = ''
  for (const [at, [text]] of entries.entries()) {
    let shared = 0
    while (shared < before.length && text.charCodeAt(shared) === before.charCodeAt(shared)) shared++
    while (path.length > shared + 1) ends[path.pop()!] = count
    for (let i = shared; i < text.length; i++) {
      bytes[count] = text.charCodeAt(i)
      depths[count] = i + 1
      firsts[count] = at
      path.push(count++)
    }
    // What of the token follows below each node of its path.
    const own = sortsOf(text)
    let [below, height] = [0, 0]
    for (let i = text.length; i > 0; i--) {
      below |= own[i - 1]!
      if (own[i - 1] !== 0) height++
      const node = path[i - 1]!
      // Within a character there is nothing to be said of whole ones.
      sorts[node]! |= own[i - 1] === 0 ? BROKEN : below
      if (height > heights[node]!) heights[node] = height
    }
    before = text
  }
  while (path.length > 0) ends[path.pop()!] = count
  // Where a node has no token, the next one's are the first after it.
  firsts[count] = entries.length
  return {
    count,
    bytes: bytes.slice(0, count),
    depths: depths.slice(0, count),
    ends: ends.slice(0, count),
    firsts: firsts.slice(0, count + 1),
    tokens: Int32Array.from(entries, ([, id]) => id),
    sorts: sorts.slice(0, count),
    heights: heights.slice(0, count),
    maxDepth: depths.reduce((a, b) => Math.max(a, b), 0),
  }
}
