/** Masks of the vocabulary: which tokens a sequence may sample next. The layout is that of {@link Executor.setMask}. */
import { TensorRTError } from '../errors'

/**
 * Says, token by token, what one sequence may sample: a grammar, a list of choices. Such a sequence is never run ahead: its
 * next step is planned when {@link accept} has returned, while others go on meanwhile. So both calls should take less than a
 * step does; they run on the event loop.
 *
 * What either call throws ends the request with that error, or as the cause of an ERR_INVALID_ARGUMENT.
 */
export interface TokenConstraint {
  /**
   * Whether {@link mask} can be called. Where it is false after the start, or after {@link accept}, the sequence sits out until
   * `Scheduler.resume` is called for it. Absent: always true.
   */
  readonly ready?: boolean | undefined
  /**
   * The tokens that may come next, in the layout of `Executor.setMask`; null = all. Called once before the first token and
   * once after each {@link accept}. The array is read before the next call of either, and may be the same each time.
   */
  mask(): Int32Array | null
  /**
   * Takes note of a sampled token. Not called for the token that ends the sequence (a stop token, `maxTokens`); called in
   * order, and for each token once, also where the sequence moves to another place or executor.
   */
  accept(token: number): void
  /** The sequence has ended, however it did. Called once. What it throws is a warning of the process: the request has its result by then. */
  close?(): void
}

/** @throws ERR_INVALID_ARGUMENT for what has not the shape of one */
export function checkConstraint(value: TokenConstraint): TokenConstraint {
  const given = value as Partial<TokenConstraint> | null | undefined
  if (typeof given?.mask === 'function' && typeof given.accept === 'function') return value
  throw new TensorRTError('ERR_INVALID_ARGUMENT', 'A token constraint must have the methods mask() and accept()')
}

/** Words of a mask of the whole vocabulary. */
export function maskWords(vocabSize: number): number {
  return Math.ceil(vocabSize / 32)
}

/** @throws ERR_INVALID_ARGUMENT where it is no mask of this vocabulary, or allows nothing */
export function checkMask(mask: Int32Array, vocabSize: number): void {
  const words = maskWords(vocabSize)
  if (!(mask instanceof Int32Array) || mask.length > words) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `A token mask must be an Int32Array of at most ${words} words`)
  }
  for (let i = 0; i < mask.length; i++) {
    const beyond = i === words - 1 && vocabSize % 32 !== 0 ? -1 << vocabSize % 32 : 0
    if ((mask[i]! & ~beyond) !== 0) return
  }
  throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The token mask allows no token')
}

/** @param mask null = all @returns whether it allows `token` */
export function maskAllows(mask: Int32Array | null, token: number): boolean {
  return mask === null || ((mask[token >> 5] ?? 0) & (1 << (token & 31))) !== 0
}
