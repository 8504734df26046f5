/** Brings a dead executor back: attempts with exponential backoff, each checked by a step that runs. */
import { TensorRTError } from '../errors'
import type { Executor } from '../scheduler'
import { atMost, closeQuietly, DEAD_CLOSE_MS } from './death'
import type { RestartPolicy } from './restart_policy'
import { createLike, probe, StartedExecutor } from './started_executor'

export interface RestartSource {
  create: () => Promise<Executor>
  policy: RestartPolicy
}

export interface RestartFailure {
  error: TensorRTError
  /** Attempts in a row that have failed. */
  attempt: number
  /** Milliseconds until the next; undefined: it was the last. */
  nextDelayMs: number | undefined
}

/** None may throw, but for `onReady`: then the executor is closed, and the attempt has failed. */
export interface RestartEvents {
  /** The executor works, and is the listener's from now on. */
  onReady(started: StartedExecutor): void
  onFailure(failure: RestartFailure): void
}

/** A first step may have to compile kernels and touch all the weights. */
const PROBE_TIMEOUT_MS = 60_000

export class Restart {
  /** Attempts in a row that failed, an early death among them. */
  attempts = 0
  private timer: NodeJS.Timeout | undefined
  private dueAt: number | undefined
  private active = false
  private stopped = false
  private gaveUp = false
  private returnedAt = -Infinity
  private lastFailure: TensorRTError | undefined

  constructor(
    private readonly source: RestartSource | undefined,
    private readonly events: RestartEvents,
    private readonly now: () => number,
    private readonly random: () => number = Math.random,
  ) {}

  /** An executor may still come. */
  get hopeful(): boolean {
    return this.active
  }

  /**
   * Whether an attempt in this process can succeed, as far as is known. A CUDA error that a new executor meets when it is made
   * is one that CUDA keeps until the process ends.
   */
  get restartable(): boolean {
    return this.source !== undefined && !this.gaveUp && !this.stopped && this.lastFailure?.code !== 'ERR_CUDA'
  }

  /** Milliseconds until the next attempt; 0 while one is under way, undefined when there will be none. */
  get nextAttemptMs(): number | undefined {
    if (!this.active) return undefined
    return this.dueAt === undefined ? 0 : Math.max(0, this.dueAt - this.now())
  }

  /**
   * The executor has died.
   * @param freed when it has given up what it held; waited for, but not for ever
   */
  begin(vocabSize: number, freed: Promise<unknown>): void {
    const { source } = this
    if (source === undefined || this.active || this.stopped) return
    const { policy } = source
    const stable = this.now() - this.returnedAt > policy.maxDelayMs
    this.attempts = stable ? 0 : this.attempts + 1
    this.lastFailure = undefined
    this.gaveUp = this.attempts >= policy.maxAttempts
    if (this.gaveUp) return
    this.active = true
    this.schedule(() => void this.attempt(source, vocabSize, atMost(DEAD_CLOSE_MS, freed)))
  }

  /** No more attempts. An executor that is being made is closed when it comes. */
  stop(): void {
    this.stopped = true
    this.active = false
    clearTimeout(this.timer)
  }

  /** Full delay or down to half of it, so that many processes do not come back at once. @returns it, in ms */
  private schedule(attempt: () => void): number {
    const { initialDelayMs, maxDelayMs } = this.source!.policy
    const delay = Math.min(maxDelayMs, initialDelayMs * 2 ** Math.min(this.attempts, 52)) * (1 - this.random() / 2)
    this.dueAt = this.now() + delay
    this.timer = setTimeout(() => {
      this.dueAt = undefined
      attempt()
    }, delay)
    // A model that nobody uses does not keep the process alive.
    this.timer.unref()
    return delay
  }

  /** Never rejects. */
  private async attempt(source: RestartSource, vocabSize: number, freed: Promise<void>): Promise<void> {
    let executor: Executor | undefined
    try {
      await freed
      if (this.stopped) return
      executor = await createLike(vocabSize, source.create, 'restart()')
      if (!this.stopped) {
        const started = new StartedExecutor(executor)
        await probe(started, PROBE_TIMEOUT_MS)
        if (!this.stopped) {
          this.ready(started)
          return
        }
      }
      void closeQuietly(executor)
    } catch (cause) {
      if (executor !== undefined) void closeQuietly(executor)
      if (!this.stopped) this.failed(cause, source, vocabSize)
    }
  }

  private ready(started: StartedExecutor): void {
    // Before anything runs on it: it may die in this very call.
    this.active = false
    this.returnedAt = this.now()
    this.events.onReady(started)
  }

  private failed(cause: unknown, source: RestartSource, vocabSize: number): void {
    this.attempts++
    const error =
      cause instanceof TensorRTError
        ? cause
        : new TensorRTError('ERR_BACKEND_DEAD', `The backend could not be restarted: ${String(cause)}`, { cause })
    this.lastFailure = error
    this.gaveUp = this.attempts >= source.policy.maxAttempts
    this.active = !this.gaveUp
    const nextDelayMs = this.gaveUp
      ? undefined
      : this.schedule(() => void this.attempt(source, vocabSize, Promise.resolve()))
    this.events.onFailure({ error, attempt: this.attempts, nextDelayMs })
  }
}
