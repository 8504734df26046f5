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

/** A state of the automaton: the longest suffix of the text so far that begins a stop string. */
interface State {
  /** Length of that suffix, in UTF-16 units. */
  readonly depth: number
  readonly next: Map<number, State>
  fail: State | undefined
  /** The longest stop string that ends here. */
  stop: string | undefined
}

function buildAutomaton(stops: readonly string[]): State {
  const root: State = { depth: 0, next: new Map(), fail: undefined, stop: undefined }
  for (const stop of stops) {
    let state = root
    for (let i = 0; i < stop.length; i++) {
      const unit = stop.charCodeAt(i)
      let child = state.next.get(unit)
      if (!child) {
        child = { depth: i + 1, next: new Map(), fail: undefined, stop: undefined }
        state.next.set(unit, child)
      }
      state = child
    }
    state.stop = stop
  }
  // Breadth first, so that a state's shorter suffix is complete before the state is.
  const queue: State[] = [root]
  for (const state of queue) {
    for (const [unit, child] of state.next) {
      child.fail = state === root ? root : step(state.fail!, unit)
      child.stop ??= child.fail.stop
      queue.push(child)
    }
  }
  return root
}

function step(from: State, unit: number): State {
  let state: State | undefined = from
  while (state) {
    const child = state.next.get(unit)
    if (child) return child
    if (!state.fail) return state
    state = state.fail
  }
  return from
}

/**
 * Finds stop strings in text that arrives in pieces (Aho and Corasick's automaton, constant time a character). The stop
 * string that is complete first wins, and of those that end together the longest, so the result does not depend on how
 * the text was cut. Only the longest end of the text that could still become a stop string is held back.
 */
export class StopMatcher {
  private readonly root: State | undefined
  private readonly includeStop: boolean
  private state: State | undefined
  private held = ''
  private found: string | undefined

  /** @throws ERR_INVALID_ARGUMENT for an empty, over-long or ill-formed stop string, or too many of them */
  constructor(stops: readonly string[], options: StopMatcherOptions = {}) {
    if (!Array.isArray(stops) || stops.length > MAX_STOP_STRINGS) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `"stop" must be an array of at most ${MAX_STOP_STRINGS} strings`)
    }
    for (const stop of stops as unknown[]) {
      if (typeof stop !== 'string' || stop === '' || stop.length > MAX_STOP_LENGTH || /\p{Surrogate}/u.test(stop)) {
        const expected = `a well-formed string of 1 to ${MAX_STOP_LENGTH} UTF-16 units`
        throw new TensorRTError('ERR_INVALID_ARGUMENT', `Each stop string must be ${expected}`)
      }
    }
    this.root = stops.length === 0 ? undefined : buildAutomaton(stops)
    this.state = this.root
    this.includeStop = options.includeStop ?? false
  }

  /** The stop string that was found, if one was. */
  get stop(): string | undefined {
    return this.found
  }

  /** Takes more text. After a stop string was found, text is dropped. */
  push(text: string): StopResult {
    if (this.found !== undefined) return { text: '', stop: this.found }
    if (!this.root || !this.state) return { text, stop: undefined }
    let state = this.state
    for (let i = 0; i < text.length; i++) {
      state = step(state, text.charCodeAt(i))
      if (state.stop === undefined) continue
      this.found = state.stop
      const all = this.held + text.slice(0, i + 1)
      this.held = ''
      return { text: this.includeStop ? all : all.slice(0, all.length - state.stop.length), stop: state.stop }
    }
    this.state = state
    const all = this.held + text
    const safe = all.length - state.depth
    this.held = all.slice(safe)
    return { text: all.slice(0, safe), stop: undefined }
  }

  /** Ends the text without a stop string: what was held back. */
  flush(): string {
    const text = this.held
    this.held = ''
    this.state = this.root
    return text
  }
}
