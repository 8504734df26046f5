/**
 * Follows the automata of a grammar, all ways at once. What can be where after some bytes is a state; states that are equal are
 * one, and what leads from one to another is found once. So it runs as a finite automaton that is built as outputs need it.
 */
import type { ByteNetwork } from './byte_network'
import { ASCII_SORTS, BEYOND_ASCII, BROKEN, UTF8_FORMS } from './token_trie'

/** Where a rule returns to when it ends. */
interface Frame {
  readonly id: number
  readonly node: number
  readonly parent: Frame | undefined
}

export interface PushdownState {
  readonly id: number
  /** Of the tables in which `id` counts. */
  readonly generation: number
  /** What may be next: a node with bytes, under a stack. */
  readonly nodes: Int32Array
  readonly frames: readonly Frame[]
  /** The output is complete here. */
  readonly complete: boolean
}

/** In place of a state's number in {@link Pushdown.next}. */
export const UNKNOWN = -1
export const DEAD = -2

/** What a state, an entry of its, and a frame take in memory, about. */
const STATE_BYTES = 420
const ITEM_BYTES = 32
const FRAME_BYTES = 120
/** States that there is room for at first. */
const FIRST_STATES = 16
/** Places that one state may have, and that may be gone through from one {@link Pushdown.begin} to the next: about a second's work. */
const MAX_PLACES = 65_536
const MAX_WORK = 1_000_000
/** Of tables: more than are kept, and what a single piece of work may add. */
const MAX_BYTES = 256 * 1024 * 1024

/** The grammar is too ambiguous to be followed so, or calls itself to the left. */
export class PushdownOverflow extends Error {}

export class Pushdown {
  /** `[states][classes]`: the number of the next state. */
  next = new Int32Array(0)
  /** For each state the sorts of characters of which all lead to one state, as far as known; those that do not; and that state. */
  private alike: number[] = []
  private unlike: number[] = []
  /** For some states, a length of texts for which {@link takesAll} is known to say no. */
  private reach: number[] = []
  private afterAlike: number[] = []
  /** The class of each byte: those that no edge tells apart are one. */
  readonly classes = new Uint8Array(256)
  readonly classCount: number
  generation = 0
  /** Of its tables, about. */
  memoryBytes = 0
  /** Of the network, which is there while the automaton is. */
  readonly networkBytes: number
  private readonly examples: number[] = []
  private states: PushdownState[] = []
  private byItems = new Map<string, PushdownState>()
  private frames = new Map<number, Frame>()
  private root!: Frame
  private work = 0
  // While a state is made.
  private readonly seen = new Set<number>()
  private readonly pendingNodes: number[] = []
  private readonly pendingFrames: Frame[] = []
  private kept: { key: number; node: number; frame: Frame }[] = []
  private complete = false

  constructor(private readonly network: ByteNetwork) {
    const { ranges } = network
    const cuts = new Uint8Array(257)
    for (let i = 0; i < ranges.length; i += 3) cuts[ranges[i]!] = cuts[ranges[i + 1]! + 1] = 1
    this.networkBytes = Object.values(network).reduce((sum, part) => sum + (ArrayBuffer.isView(part) ? part.byteLength : 0), 0)
    cuts[0] = 1
    for (let byte = 0; byte < 256; byte++) {
      if (cuts[byte] === 1) this.examples.push(byte)
      this.classes[byte] = this.examples.length - 1
    }
    this.classCount = this.examples.length
    this.clear()
  }

  /** Forgets all states. Those that are held count on: {@link current} knows them again. */
  clear(): void {
    this.generation++
    this.states = []
    this.alike = []
    this.unlike = []
    this.reach = []
    this.afterAlike = []
    this.byItems.clear()
    this.frames.clear()
    this.next = new Int32Array(FIRST_STATES * this.classCount).fill(UNKNOWN)
    this.root = { id: 0, node: -1, parent: undefined }
    this.memoryBytes = this.next.byteLength
  }

  /** Starts a piece of work that must not be endless. */
  begin(): void {
    this.work = 0
  }

  start(): PushdownState {
    this.reset()
    this.visit(this.network.start, this.root)
    return this.finish()
  }

  state(id: number): PushdownState {
    return this.states[id]!
  }

  /** The same state in the tables as they are now. */
  current(state: PushdownState): PushdownState {
    if (state.generation === this.generation) return state
    this.reset()
    const known = new Map<Frame, Frame>()
    state.frames.forEach((frame, i) => this.visit(state.nodes[i]!, this.frameAgain(frame, known)))
    this.complete = state.complete
    return this.finish()
  }

  /**
   * The state after a byte of a class.
   * @returns its number, or {@link DEAD}
   * @throws PushdownOverflow
   */
  step(from: number, byteClass: number): number {
    const known = this.next[from * this.classCount + byteClass]!
    if (known !== UNKNOWN) return known
    const { nodes, frames } = this.states[from]!
    const { rangeAt, ranges } = this.network
    const byte = this.examples[byteClass]!
    this.reset()
    for (let i = 0; i < nodes.length; i++) {
      for (let at = rangeAt[nodes[i]!]!, end = rangeAt[nodes[i]! + 1]!; at < end; at += 3) {
        if (byte >= ranges[at]! && byte <= ranges[at + 1]!) this.visit(ranges[at + 2]!, frames[i]!)
      }
    }
    this.work += nodes.length
    let id = DEAD
    if (this.pendingNodes.length > 0) {
      const state = this.finish()
      if (state.nodes.length > 0 || state.complete) id = state.id
    }
    this.next[from * this.classCount + byteClass] = id
    return id
  }

  /**
   * Whether all texts of up to `length` characters of these sorts lead on from a state. That it says no does not mean that they do
   * not: it asks only whether all characters of these sorts lead to the same state, and from there again.
   * @throws PushdownOverflow
   */
  takesAll(from: number, sorts: number, length: number): boolean {
    if ((sorts & BROKEN) !== 0 || length > (this.reach[from] ?? Infinity)) return false
    let state = from
    for (let left = length; left > 0; left--) {
      if ((sorts & ~(this.alike[state] ?? 0)) !== 0 && !this.areAlike(state, sorts)) {
        // Where a count of characters ends, as a rule.
        if (left < length && this.alike[state] === 0) this.reach[from] = Math.min(this.reach[from] ?? Infinity, length - left)
        return false
      }
      const to = this.afterAlike[state]!
      if (to === state) return true
      state = to
    }
    return true
  }

  /** The sort that is asked for first says which state counts; others that lead elsewhere are not alike. */
  private areAlike(state: number, sorts: number): boolean {
    const unlike = (this.unlike[state] ??= 0)
    if ((sorts & unlike) !== 0) return false
    let alike = (this.alike[state] ??= 0)
    for (let left = sorts & ~alike; left !== 0; left &= left - 1) {
      const bit = left & -left
      const to = bit === BEYOND_ASCII ? this.targetBeyondAscii(state) : this.target(state, ASCII_SORTS[31 - Math.clz32(bit)]!.bytes)
      if (to === DEAD || (alike !== 0 && to !== this.afterAlike[state])) {
        this.unlike[state] = unlike | bit
        return false
      }
      this.afterAlike[state] = to
      this.alike[state] = alike |= bit
    }
    return true
  }

  /** Where all of these bytes lead; {@link DEAD} where that is not one state. */
  private target(state: number, bytes: readonly number[]): number {
    const first = this.step(state, this.classes[bytes[0]!]!)
    if (first === DEAD) return DEAD
    for (const byte of bytes) if (this.step(state, this.classes[byte]!) !== first) return DEAD
    return first
  }

  private targetBetween(state: number, from: number, to: number): number {
    const first = this.step(state, this.classes[from]!)
    if (first === DEAD) return DEAD
    for (let byte = from; byte <= to; byte++) if (this.step(state, this.classes[byte]!) !== first) return DEAD
    return first
  }

  /** The same for all characters beyond ASCII. */
  private targetBeyondAscii(state: number): number {
    let found: number | undefined
    for (const [from, to, low, high, length] of UTF8_FORMS) {
      for (let lead = from; lead <= to; lead++) {
        let at = this.step(state, this.classes[lead]!)
        if (at !== DEAD) at = this.targetBetween(at, low, high)
        for (let i = 2; i < length && at !== DEAD; i++) at = this.targetBetween(at, 0x80, 0xbf)
        if (at === DEAD || (found !== undefined && at !== found)) return DEAD
        found = at
      }
    }
    return found!
  }

  private reset(): void {
    this.seen.clear()
    this.pendingNodes.length = this.pendingFrames.length = 0
    this.kept = []
    this.complete = false
  }

  private visit(node: number, frame: Frame): void {
    const key = frame.id * this.network.size + node
    if (this.seen.has(key)) return
    this.seen.add(key)
    this.pendingNodes.push(node)
    this.pendingFrames.push(frame)
  }

  /** Goes on from all visited places as far as no byte is needed, and finds the state that has these places. */
  private finish(): PushdownState {
    const { size, rangeAt, emptyAt, empty, callAt, calls, final } = this.network
    while (this.pendingNodes.length > 0) {
      const at = this.pendingNodes.pop()!
      const frame = this.pendingFrames.pop()!
      if (rangeAt[at]! < rangeAt[at + 1]!) this.kept.push({ key: frame.id * size + at, node: at, frame })
      for (let i = emptyAt[at]!, end = emptyAt[at + 1]!; i < end; i++) this.visit(empty[i]!, frame)
      for (let i = callAt[at]!, end = callAt[at + 1]!; i < end; i += 2) {
        const back = calls[i + 1]!
        this.visit(calls[i]!, this.endsRule(back) ? frame : this.frame(back, frame))
      }
      if (final[at] === 1) {
        if (frame.parent === undefined) this.complete = true
        else this.visit(frame.node, frame.parent)
      }
      if (++this.work > MAX_WORK || this.seen.size > MAX_PLACES || this.memoryBytes > MAX_BYTES) throw new PushdownOverflow()
    }
    const { kept, complete } = this
    kept.sort((a, b) => a.key - b.key)
    const name = `${complete ? '.' : ''}${kept.map(({ key }) => key.toString(36)).join(' ')}`
    const known = this.byItems.get(name)
    if (known !== undefined) return known
    const state: PushdownState = {
      id: this.states.length,
      generation: this.generation,
      nodes: Int32Array.from(kept, ({ node }) => node),
      frames: kept.map(({ frame }) => frame),
      complete,
    }
    this.byItems.set(name, state)
    this.states.push(state)
    this.memoryBytes += STATE_BYTES + ITEM_BYTES * kept.length
    if (this.states.length * this.classCount > this.next.length) {
      const grown = new Int32Array(2 * this.next.length).fill(UNKNOWN, this.next.length)
      grown.set(this.next)
      this.next = grown
      this.memoryBytes += grown.byteLength / 2
    }
    return state
  }

  private endsRule(node: number): boolean {
    const { rangeAt, emptyAt, callAt, final } = this.network
    return final[node] === 1 && rangeAt[node] === rangeAt[node + 1] && emptyAt[node] === emptyAt[node + 1] && callAt[node] === callAt[node + 1]
  }

  private frame(node: number, parent: Frame): Frame {
    const key = parent.id * this.network.size + node
    let frame = this.frames.get(key)
    if (frame === undefined) {
      frame = { id: this.frames.size + 1, node, parent }
      this.frames.set(key, frame)
      this.memoryBytes += FRAME_BYTES
    }
    return frame
  }

  /** Of an older table. @param known those that were found already: places share most of their stacks */
  private frameAgain(frame: Frame, known: Map<Frame, Frame>): Frame {
    const path: Frame[] = []
    let at = frame
    for (; at.parent !== undefined && !known.has(at); at = at.parent) path.push(at)
    let again = known.get(at) ?? this.root
    for (let i = path.length - 1; i >= 0; i--) known.set(path[i]!, (again = this.frame(path[i]!.node, again)))
    return again
  }
}
