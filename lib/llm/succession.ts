/**
 * Which executor runs the model: the model's own, another when that has died, and the model's own again. An executor that dies
 * is heard no more, and is closed in the background. Where another stands in, everything that lives moves to it; in any case the
 * model's own is made again where it can be, and once it is back and has run a step, everything moves to it.
 */
import type { TensorRTError } from '../errors'
import type { Executor, ExecutorInfo } from '../scheduler'
import { atMost, closeQuietly, DEAD_CLOSE_MS, noneLeft, outage } from './death'
import { Fallback, type FallbackSource } from './fallback'
import { Restart, type RestartFailure, type RestartSource } from './restart'
import { StartedExecutor } from './started_executor'

/**
 * `serving`: the model's own executor runs it, or `substituted`, another. `switching`: none does, the other is on its way.
 * `down`: none does until the model's own is back. `ended`: none will.
 */
export type LoopPhase = 'serving' | 'substituted' | 'switching' | 'down' | 'ended'

/** One executor in place of another, or the model's own back in its place. */
export interface Switchover {
  kind: 'failover' | 'return'
  from: ExecutorInfo
  to: ExecutorInfo
  /** Why the model's own executor died. */
  cause: TensorRTError
  /** Live sequences that moved. */
  sequences: number
  /** Milliseconds in which nothing ran. */
  durationMs: number
}

/** What happens to executors. None may throw. */
export interface LoopEvents {
  /** Another executor has taken over; called before it runs its first step. */
  onSwitchover?: ((switchover: Switchover) => void) | undefined
  /** There is no executor now, but there may be one again. */
  onOutage?: ((cause: TensorRTError, from: ExecutorInfo) => void) | undefined
  onRestartFailure?: ((failure: RestartFailure) => void) | undefined
}

export interface SuccessionOptions {
  /** Takes over when the executor dies. */
  fallback?: FallbackSource | undefined
  /** Makes the executor again when it has died. */
  restart?: RestartSource | undefined
  events?: LoopEvents | undefined
}

/** Those whose work the executors do. */
export interface Served {
  /** The executor is dead: forgets the steps in flight, and plans none until {@link moveTo}. */
  halt(now: number): void
  /**
   * Makes everything that lives ready to go on with another executor, and listens to that from now on.
   * @returns live sequences
   * @throws when that is impossible; nothing has changed then
   */
  moveTo(next: StartedExecutor, now: number): number
  /** Goes on with the executor that everything was moved to. */
  proceed(): void
  /** Rejects what is pending with the first, and refuses what comes until {@link moveTo} with the second. */
  refuse(pending: TensorRTError, reason: TensorRTError): void
}

/** The last death of the model's own executor: why, and when. */
interface Loss {
  cause: TensorRTError
  info: ExecutorInfo
  at: number
}

export class Succession {
  readonly restart: Restart
  private started: StartedExecutor
  private current: LoopPhase = 'serving'
  private lost: Loss | undefined
  private readonly fallback: Fallback
  private readonly events: LoopEvents
  /** Executors that are being closed: dead ones, and ones that were in for another. */
  private readonly retired = new Set<Promise<void>>()

  constructor(
    started: StartedExecutor,
    { fallback, restart, events }: SuccessionOptions,
    private readonly served: Served,
    private readonly now: () => number,
  ) {
    this.started = started
    this.events = events ?? {}
    this.fallback = new Fallback(fallback)
    this.restart = new Restart(
      restart,
      { onReady: (started) => this.moveTo(started, 'serving'), onFailure: (failure) => this.restartFailed(failure) },
      now,
    )
  }

  /** The one that runs the model; while there is none, the one that did. */
  get executor(): Executor {
    return this.started.executor
  }

  get phase(): LoopPhase {
    return this.current
  }

  /** Whether an executor runs the model. */
  get runs(): boolean {
    return this.current === 'serving' || this.current === 'substituted'
  }

  get ended(): boolean {
    return this.current === 'ended'
  }

  /** Why the last executor that died did so. */
  get lastError(): TensorRTError | undefined {
    return this.lost?.cause
  }

  /** The executor is dead. Another takes over, or requests are refused until it is back, or this is the end. */
  lose(death: TensorRTError): void {
    if (!this.runs) return
    const now = this.now()
    const substituted = this.current === 'substituted'
    const { executor: dead } = this
    const { info } = dead
    // What it still says goes nowhere.
    this.started.listener = undefined
    this.served.halt(now)
    const lost = { cause: death, info, at: now }
    this.lost = lost
    let close!: () => void
    const closing = new Promise<void>((resolve) => (close = () => resolve(closeQuietly(dead))))
    this.retire(closing)
    if (!substituted) this.restart.begin(info.vocabSize, closing)
    if (!substituted && this.fallback.available) {
      this.current = 'switching'
      void this.switchOver(lost)
    } else {
      this.standDown(death)
    }
    // Only now: it may answer for its queued steps at once.
    close()
  }

  /** Something is wrong that another executor would not put right. */
  die(error: TensorRTError): void {
    if (this.ended) return
    const alive = this.runs
    this.end(error)
    if (alive) this.retire(closeQuietly(this.executor))
  }

  /**
   * Refuses everything with `reason`, then ends the executors. Call once.
   * @throws (as a rejection) what the `close` of a living executor throws
   */
  async close(reason: TensorRTError): Promise<void> {
    const alive = this.runs
    this.end(reason)
    const standby = this.fallback.close()
    try {
      if (alive) await this.executor.close()
    } finally {
      await standby
      await atMost(DEAD_CLOSE_MS, Promise.all(this.retired))
    }
  }

  /** There is no executor: everything pending rejects, and what comes is refused until the model's own is back. */
  private standDown(death: TensorRTError): void {
    if (!this.restart.hopeful) {
      this.end(death)
      return
    }
    this.current = 'down'
    this.served.refuse(death, outage(death))
    this.events.onOutage?.(death, this.executor.info)
  }

  /** Never rejects. */
  private async switchOver(lost: Loss): Promise<void> {
    let next: Executor | undefined
    try {
      next = await this.fallback.take(lost.info.vocabSize)
      if (this.current === 'switching' && this.lost === lost) this.moveTo(new StartedExecutor(next), 'substituted')
      else void closeQuietly(next)
    } catch (cause) {
      if (next !== undefined) this.retire(closeQuietly(next))
      if (this.current === 'switching' && this.lost === lost) this.standDown(noneLeft(lost.cause, cause))
    }
  }

  private restartFailed(failure: RestartFailure): void {
    this.events.onRestartFailure?.(failure)
    if (failure.nextDelayMs === undefined && this.current === 'down') this.end(noneLeft(this.lost!.cause, failure.error))
  }

  /** @throws when that is impossible; nothing has changed then */
  private moveTo(next: StartedExecutor, phase: 'serving' | 'substituted'): void {
    const { started, runs } = this
    const now = this.now()
    const { cause, at } = this.lost!
    const sequences = this.served.moveTo(next, now)
    this.started = next
    this.current = phase
    started.listener = undefined
    const left = runs ? closeQuietly(started.executor) : Promise.resolve()
    if (runs) this.retire(left)
    // Before anything runs: what comes back may die in this very call.
    if (phase === 'serving') this.fallback.renew(left)
    const kind = phase === 'serving' ? 'return' : 'failover'
    const durationMs = runs ? 0 : now - at
    this.events.onSwitchover?.({ kind, from: started.executor.info, to: next.executor.info, cause, sequences, durationMs })
    this.served.proceed()
  }

  private end(reason: TensorRTError): void {
    if (this.ended) return
    this.current = 'ended'
    this.restart.stop()
    this.served.refuse(reason, reason)
  }

  private retire(closing: Promise<void>): void {
    this.retired.add(closing)
    void closing.then(() => this.retired.delete(closing))
  }
}
