import { TensorRTError } from '../errors'
import type { SlotInit } from './executor'
import type { GenerationRequest } from './request'
import { checkConstraint, checkMask, type TokenConstraint } from './token_mask'

export enum SequenceState {
  /** In the queue, with no pages and no slot. */
  WAITING,
  /** Lost its pages while steps that it takes part in are in flight; joins the queue when they have completed. */
  PARKED,
  /** Has a slot and pages. */
  RUNNING,
  FINISHED,
}

/** Distance of siblings' seeds: the golden ratio in 52 bits, odd, so that seeds of nearby requests do not meet. */
const SEED_STRIDE = 0x9e3779b97f4a5n
const SEED_MASK = (1n << 53n) - 1n
/** Tokens of output that there is room for at least when the first has come: most outputs fit then, as making room is what costs. */
const OUTPUT_ROOM = 256

/**
 * One sequence of a request: prompt and output, and how far it has come. Fields are the scheduler's to write; callers
 * read {@link id}, {@link index}, {@link request}, {@link output}, {@link admittedAt} and {@link cachedTokens}.
 */
export class Sequence {
  readonly id: string | number
  state = SequenceState.WAITING
  /** Prompt and output. Shared with the request until the first token is appended. */
  tokens: Int32Array
  /** Tokens of prompt and output that the host knows. */
  known: number
  /** Sampled by steps in flight. */
  pending = 0
  /** Positions whose keys and values submitted steps have written. */
  computed = 0
  slot = -1
  /** Pages held, in the block table's row `slot`. */
  pageCount = 0
  /**
   * The first `published` pages are content-addressed (here or in an equal page); `chain` is the last one's identity.
   */
  published = 0
  chain = 0
  /** Steps in flight that have a row of this sequence, and the id of the last such step. */
  inFlight = 0
  lastStep = -1
  /** First position of the prompt whose log-probability is still to be reported; the prompt's length when none is. */
  nextPromptLogprob: number
  /** First position whose hidden state is still to be reported, where those of all are asked for. */
  nextHidden = 0
  failures = 0
  /** When the sequence first got a slot (the caller's clock, ms); NaN before. */
  admittedAt = NaN
  /** Tokens of the prompt that came from the prefix cache then. */
  cachedTokens = 0
  /** Effective priority: falls while waiting. */
  rank: number
  promoteAt = Infinity
  wakeAt = Infinity
  waitingIndex = -1
  promotionIndex = -1
  timerIndex = -1
  /** What the next token may be, where there is a constraint. */
  mask: Int32Array | null = null
  /** The constraint does not know it yet. */
  awaitsMask = false
  /** Number of the last failed step that made this sequence's cache undefined. */
  taint = -1

  readonly promptLength: number
  readonly deadline: number
  readonly timeoutAt: number
  readonly priority: number
  readonly stopTokens: Int32Array
  readonly constraint: TokenConstraint | null

  constructor(
    readonly request: GenerationRequest,
    readonly index: number,
    /** Arrival number: breaks every tie. */
    readonly order: number,
    readonly arrival: number,
    /** Tokens that may be sampled. */
    public maxTokens: number,
    /** Under which the full pages are shared; null = not at all. */
    readonly salt: string | null,
  ) {
    this.id = request.id
    this.tokens = request.prompt
    this.known = this.promptLength = request.prompt.length
    this.priority = this.rank = request.priority ?? 0
    this.deadline = request.deadline ?? Infinity
    this.timeoutAt = request.timeoutMs === undefined ? Infinity : arrival + request.timeoutMs
    this.stopTokens = stopTokens(request)
    this.constraint = request.constrain === undefined ? null : checkConstraint(request.constrain(index))
    this.nextPromptLogprob = index === 0 && request.sampling.promptLogprobs >= 0 ? 1 : this.promptLength
  }

  get outputLength(): number {
    return this.known - this.promptLength
  }

  /** A copy of the tokens sampled so far. */
  get output(): Int32Array {
    return this.tokens.slice(this.promptLength, this.known)
  }

  get finished(): boolean {
    return this.state === SequenceState.FINISHED
  }

  stopsAt(token: number): boolean {
    const { stopTokens } = this
    for (let i = 0; i < stopTokens.length; i++) if (stopTokens[i] === token) return true
    return false
  }

  append(token: number): void {
    if (this.known === this.tokens.length) {
      const capacity = Math.min(
        this.promptLength + this.maxTokens,
        Math.max(this.known + OUTPUT_ROOM, this.known * 2 - this.promptLength),
      )
      const grown = new Int32Array(Math.max(capacity, this.known + 1))
      grown.set(this.tokens)
      this.tokens = grown
    }
    this.tokens[this.known++] = token
  }

  /** @throws what the constraint throws, ERR_INVALID_ARGUMENT for what is no mask or allows nothing */
  takeMask(vocabSize: number): void {
    this.awaitsMask = this.constraint!.ready === false
    if (this.awaitsMask) return
    const mask = this.constraint!.mask()
    if (mask !== null) checkMask(mask, vocabSize)
    this.mask = mask
  }

  /** Tells the constraint of a sampled token. @returns why the sequence cannot go on */
  follow(token: number, vocabSize: number): TensorRTError | undefined {
    return this.attempt(() => {
      this.constraint!.accept(token)
      this.takeMask(vocabSize)
    })
  }

  /** The mask that it awaited is there. @returns why the sequence cannot go on */
  resume(vocabSize: number): TensorRTError | undefined {
    return this.attempt(() => this.takeMask(vocabSize))
  }

  private attempt(ask: () => void): TensorRTError | undefined {
    try {
      ask()
      return undefined
    } catch (cause) {
      if (cause instanceof TensorRTError) return cause
      const message = cause instanceof Error ? cause.message : String(cause)
      return new TensorRTError('ERR_INVALID_ARGUMENT', `The request's token constraint failed: ${message}`, { cause })
    }
  }

  /** State of the slot that continues this sequence. Siblings report no prompt log-probabilities: the first does. */
  slotInit(): SlotInit {
    const { sampling } = this.request
    return {
      slot: this.slot,
      sampling: {
        ...sampling,
        seed: this.index === 0 ? sampling.seed : siblingSeed(sampling.seed, this.index),
        promptLogprobs: this.index === 0 ? sampling.promptLogprobs : -1,
        bannedTokens: sampling.minTokens > 0 ? this.stopTokens : NO_TOKENS,
      },
      prompt: this.request.prompt,
      output: this.output,
    }
  }
}

const NO_TOKENS = new Int32Array(0)

function stopTokens(request: GenerationRequest): Int32Array {
  const own = request.stopTokenIds ?? NO_TOKENS
  const eos = request.ignoreEos ? NO_TOKENS : (request.eosTokenIds ?? NO_TOKENS)
  if (eos.length === 0) return own
  if (own.length === 0) return eos
  return Int32Array.from(new Set([...own, ...eos]))
}

/** Seed of sibling `index`, in [0, 2^53). */
export function siblingSeed(seed: number, index: number): number {
  return Number((BigInt(seed) + BigInt(index) * SEED_STRIDE) & SEED_MASK)
}

/** Of the running ones the last to be served, among those that were asked for with less priority than `seq` and rank behind it. */
export function leastUrgentBelow(seq: Sequence, running: readonly Sequence[]): Sequence | undefined {
  let least: Sequence | undefined
  for (const other of running) {
    if (other.state !== SequenceState.RUNNING || other.priority <= seq.priority || other.rank <= seq.rank) continue
    if (least === undefined || before(least, other)) least = other
  }
  return least
}

/** Who is served first: effective priority, then deadline, then arrival. A total order. */
export function before(a: Sequence, b: Sequence): boolean {
  if (a.rank !== b.rank) return a.rank < b.rank
  if (a.deadline !== b.deadline) return a.deadline < b.deadline
  return a.order < b.order
}

/** Removes from an array, in place, what is not to be kept. */
export function keepIf<T>(items: T[], keep: (item: T) => boolean): void {
  let kept = 0
  for (const item of items) if (keep(item)) items[kept++] = item
  items.length = kept
}
