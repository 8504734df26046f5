/** What all objects with native memory have in common: closing, and waits that end with it. */
import { AbortError, TensorRTError } from '../errors'
import { nativeAsync } from '../native'
import { followSignal } from './abort_signals'
import { ArgumentReader } from './argument_reader'

export interface WaitOptions {
  /** Ends the wait with an AbortError at once. What was waited for goes on. */
  signal?: AbortSignal | undefined
}

/** @throws ERR_INVALID_ARGUMENT, AbortError where the signal has aborted already */
export function readWaitOptions(options: unknown, what: string): AbortSignal | undefined {
  const signal = new ArgumentReader(options, ['signal'], what).signal('signal')
  throwIfAborted(signal)
  return signal
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new AbortError(signal.reason)
}

/**
 * The end of `promise`, or an AbortError at once where the signal aborts.
 * @param discard gets a value that comes after the abort
 */
export function untilAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined, discard: (late: T) => void): Promise<T> {
  if (signal === undefined) return promise
  return new Promise<T>((resolve, reject) => {
    let aborted = false
    const unfollow = followSignal(signal, () => {
      aborted = true
      reject(new AbortError(signal.reason))
    })
    const succeed = (value: T): void => {
      unfollow()
      if (aborted) discard(value)
      else resolve(value)
    }
    promise.then(succeed, (error: Error) => {
      unfollow()
      reject(error)
    })
  })
}

/** Closes what came too late. */
export function discard(late: { close(): Promise<void> }): void {
  late.close().catch(() => {})
}

interface ClosableMemory {
  /** @param ownedClosed when what was made of it has let go */
  close(ownedClosed?: Promise<unknown>): Promise<void>
}

/**
 * An object with native memory behind it. {@link close} gives it back; what is queued on the device goes on, and keeps what it uses for as
 * long as it needs it. Closing an object closes what was made of it, and rejects what waits for it with ERR_DISPOSED.
 *
 * Every other call on a closed object throws ERR_DISPOSED, or rejects with it.
 */
export abstract class NativeHandle implements AsyncDisposable {
  readonly #what: string
  readonly #native: ClosableMemory
  readonly #owner: NativeHandle | undefined
  /** Held weakly: an object that nobody refers to any more is freed by the garbage collector. */
  readonly #owned = new Set<WeakRef<NativeHandle>>()
  readonly #self = new WeakRef<NativeHandle>(this)
  readonly #waits = new Set<(error: Error) => void>()
  #closing: Promise<void> | undefined

  /**
   * @param what its class, for messages
   * @param owner closes it when it is closed itself
   * @internal
   */
  constructor(what: string, memory: ClosableMemory, owner: NativeHandle | undefined) {
    this.#what = what
    this.#native = memory
    this.#owner = owner
    if (owner === undefined) return
    if (owner.closed) {
      // Its owner was closed while it was on its way.
      memory.close().catch(() => {})
      throw owner.#disposed()
    }
    owner.#owned.add(this.#self)
    collected.register(this, { owned: owner.#owned, self: this.#self }, this)
  }

  /** Whether {@link close} was called, here or on what this was made of. */
  get closed(): boolean {
    return this.#closing !== undefined
  }

  /**
   * Idempotent: every call returns the same promise. It resolves when this object and what was made of it have let go; the memory has gone
   * back then, but for what queued commands still use.
   */
  close(): Promise<void> {
    if (this.#closing === undefined) {
      this.#closing = this.#end()
      for (const fail of this.#waits) fail(this.#disposed())
    }
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** @throws ERR_DISPOSED @internal */
  checkOpen(): void {
    if (this.#closing !== undefined) throw this.#disposed()
  }

  /**
   * The end of `promise`, or of the wait: by the signal, or because this is closed meanwhile.
   * @param discard gets a value that comes after the end
   * @internal
   */
  track<T>(promise: Promise<T>, signal?: AbortSignal, discard?: (late: T) => void): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      let unfollow: (() => void) | undefined
      let ended = false
      const end = (): void => {
        ended = true
        this.#waits.delete(fail)
        unfollow?.()
      }
      const fail = (error: unknown): void => {
        if (ended) return
        end()
        reject(error as Error)
      }
      this.#waits.add(fail)
      if (this.closed) fail(this.#disposed())
      const succeed = (value: T): void => {
        if (ended) {
          discard?.(value)
          return
        }
        end()
        resolve(value)
      }
      promise.then(succeed, fail)
      if (signal !== undefined) unfollow = followSignal(signal, () => fail(new AbortError(signal.reason)))
      if (ended) unfollow?.()
    })
  }

  /** What goes with this object, after its own memory. @internal */
  protected afterClose(): Promise<void> | void {}

  #disposed(): TensorRTError {
    return new TensorRTError('ERR_DISPOSED', `The ${this.#what} is closed`)
  }

  async #end(): Promise<void> {
    if (this.#owner !== undefined) this.#owner.#owned.delete(this.#self)
    collected.unregister(this)
    const closing: Promise<void>[] = []
    for (const owned of this.#owned) closing.push(owned.deref()?.close() ?? Promise.resolve())
    this.#owned.clear()
    const ownedClosed = Promise.allSettled(closing)
    closing.push(nativeAsync(() => this.#native.close(ownedClosed)))
    try {
      await Promise.all(closing)
    } finally {
      await this.afterClose()
    }
  }
}

/** Entries of objects that were collected without being closed. */
const collected = new FinalizationRegistry<{ owned: Set<WeakRef<NativeHandle>>; self: WeakRef<NativeHandle> }>(({ owned, self }) => {
  owned.delete(self)
})
