/**
 * Joins the scheduler, which decides, and an executor, which computes. On a result: account, plan and submit the next
 * step first; turn tokens into text and hand them out afterwards, while the executor is busy.
 *
 * The loop owns no thread and polls nothing: it runs when a request comes, when a result arrives and when a deadline or
 * timeout is due, and leaves nothing behind that would keep an idle process alive.
 *
 * When the executor dies and there is another to fall back to, everything that lives waits in the dead executor's
 * scheduler, which is halted, until the other is there; then it moves to a new scheduler over that one. Meanwhile requests
 * come, are aborted and run out of time as ever. In the background the model's own executor is made again where it can be;
 * once it is back and has run a step, everything moves to it in the same way. Without another, requests are refused until
 * then.
 */
import { TensorRTError } from '../errors'
import {
  type Executor,
  type ExecutorInfo,
  type GenerationRequest,
  NO_TOKEN,
  type PlannedStep,
  Scheduler,
  type SchedulerLimits,
  type SchedulerLoad,
  type SchedulerOptions,
  type SchedulerStats,
  type Sequence,
  type SequenceEvents,
  type SlotInit,
  type SlotMask,
  StepMode,
  type StepResult,
} from '../scheduler'
import { atMost, closeQuietly, DEAD_CLOSE_MS, deathByTimeout, deathOf, isDeath, noneLeft, outage, refusedResult } from './death'
import { Fallback, type FallbackSource } from './fallback'
import type { RequestState } from './request_state'
import { Restart, type RestartFailure, type RestartSource } from './restart'
import { StartedExecutor } from './started_executor'
import { type StepListener, StepRecorder } from './step_recorder'
import { StepWatch } from './step_watch'

type RequestId = string | number

interface ActiveRequest {
  id: RequestId
  state: RequestState
  sequences: readonly Sequence[]
}

interface StepInFlight {
  stepId: number
  tokens: number
  /** Set when the executor refused the step: what stands in for its result. */
  refused: StepResult | undefined
}

export interface LoopCounters {
  /** Sum over all completed steps, in microseconds: waiting at the executor, and running. */
  stepQueueUs: number
  stepRunUs: number
  /** Steps with a result. */
  stepsCompleted: number
  generatedTokens: number
  cachedPromptTokens: number
  failovers: number
  restarts: number
}

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

export interface EngineLoopOptions extends SchedulerOptions {
  /** Takes over when the executor dies. */
  fallback?: FallbackSource | undefined
  /** Makes the executor again when it has died. */
  restart?: RestartSource | undefined
  /** A step that takes longer, in ms, is the death of its executor. Default: none is. */
  stepTimeoutMs?: number | undefined
  events?: LoopEvents | undefined
  /** Called when the scheduler has taken a step's tokens, before the next step is planned. Must not throw. */
  afterTokens?: (() => void) | undefined
}

const MAX_TIMER_MS = 2 ** 31 - 1
export class EngineLoop {
  readonly counters: LoopCounters = {
    stepQueueUs: 0,
    stepRunUs: 0,
    stepsCompleted: 0,
    generatedTokens: 0,
    cachedPromptTokens: 0,
    failovers: 0,
    restarts: 0,
  }
  private started: StartedExecutor
  private scheduler: Scheduler
  private readonly active = new Map<RequestId, ActiveRequest>()
  /** Requests with something new to deliver, in the course of one call. */
  private readonly touched = new Set<ActiveRequest>()
  private readonly inFlight: StepInFlight[] = []
  private pumpScheduled = false
  /** Set while the next step waits for masks. */
  private hold: NodeJS.Timeout | undefined
  /** What a step takes, about. */
  private stepMs = 0
  private timer: NodeJS.Timeout | undefined
  private timerAt = Infinity
  /** Why no more work is taken, for ever or for now: closed, or the executor died. */
  private refusal: TensorRTError | undefined
  private draining = false
  private onIdle: (() => void) | undefined
  /** Why nothing more is submitted: the executor said so while work was handed to it. */
  private death: TensorRTError | undefined
  private current: LoopPhase = 'serving'
  /** The last death of the model's own executor: why, and when. */
  private lost: { cause: TensorRTError; info: ExecutorInfo; at: number } | undefined
  private readonly fallback: Fallback
  readonly restart: Restart
  private readonly watch: StepWatch
  /** Executors that are being closed: dead ones, and ones that were in for another. */
  private readonly retired = new Set<Promise<void>>()
  /** Takes times; there while somebody listens. */
  private recorder: StepRecorder | undefined
  /** Listeners who want to know how long the parts of a step took. */
  private timesParts = 0
  private readonly endListeners = new Set<(reason: TensorRTError) => void>()

  /** @throws ERR_INVALID_ARGUMENT when an option is out of range */
  constructor(
    executor: Executor,
    private readonly options: EngineLoopOptions,
    readonly now: () => number = () => performance.now(),
  ) {
    this.fallback = new Fallback(options.fallback)
    this.restart = new Restart(
      options.restart,
      { onReady: (started) => this.moveTo(started, 'serving'), onFailure: (failure) => this.restartFailed(failure) },
      now,
    )
    this.watch = new StepWatch(options.stepTimeoutMs, (ms) => this.onStepTimeout(ms), now)
    this.scheduler = new Scheduler(limitsOf(executor), options)
    this.started = new StartedExecutor(executor)
    this.listen()
  }

  private get executor(): Executor {
    return this.started.executor
  }

  get phase(): LoopPhase {
    return this.current
  }

  /** Why the last executor that died did so. */
  get lastError(): TensorRTError | undefined {
    return this.lost?.cause
  }

  get isDraining(): boolean {
    return this.draining
  }

  /** The oldest step in flight: milliseconds that it has been running, and its tokens; 0 and 0 without one. */
  get oldestStep(): { ms: number; tokens: number } {
    return { ms: this.watch.ms, tokens: this.inFlight[0]?.tokens ?? 0 }
  }

  private get runs(): boolean {
    return this.current === 'serving' || this.current === 'substituted'
  }

  /** Of the executor that runs the model; while there is none, of the one that did. */
  get info(): ExecutorInfo {
    return this.executor.info
  }

  get pending(): number {
    return this.active.size
  }

  get limits(): Scheduler['limits'] {
    return this.scheduler.limits
  }

  /**
   * Queues a request; its events go to `state`.
   * @throws what {@link Scheduler.add} throws, ERR_DISPOSED when closed, ERR_BACKEND_DEAD when the executor has died
   */
  add(request: GenerationRequest, state: RequestState): void {
    if (this.refusal !== undefined) throw this.refusal
    const sequences = this.scheduler.add(request, this.now())
    this.active.set(request.id, { id: request.id, state, sequences })
    this.schedulePump()
  }

  /**
   * See {@link Scheduler.assertTakes}.
   * @throws ERR_QUEUE_FULL, ERR_DISPOSED when closed, ERR_BACKEND_DEAD when the executor has died
   */
  assertTakes(n: number): void {
    if (this.refusal !== undefined) throw this.refusal
    this.scheduler.assertTakes(n)
  }

  /** Ends a request without telling its state: the state is who asks. */
  abort(id: RequestId): void {
    if (!this.active.has(id)) return
    this.forget(id)
    this.schedulePump()
  }

  /**
   * Has `onStep` called with each step from now on, once its tokens are handed out. With `onEnd` the observation ends, and
   * that is called, when no more steps will come for now; without, it outlasts the restart of an executor. Neither may throw.
   * `parts` has the steps report how long their parts took.
   * @returns ends it
   */
  observe(onStep: StepListener, onEnd?: (reason: TensorRTError) => void, parts = false): () => void {
    if (this.current === 'ended' || (this.refusal !== undefined && onEnd !== undefined)) {
      if (this.refusal !== undefined) onEnd?.(this.refusal)
      return () => {}
    }
    const recorder = (this.recorder ??= new StepRecorder(this.now))
    recorder.listeners.add(onStep)
    if (onEnd !== undefined) this.endListeners.add(onEnd)
    if (parts) this.timesParts++
    return () => {
      if (parts && recorder.listeners.has(onStep)) this.timesParts--
      recorder.listeners.delete(onStep)
      if (onEnd !== undefined) this.endListeners.delete(onEnd)
      if (recorder.listeners.size === 0 && this.recorder === recorder) this.recorder = undefined
    }
  }

  stats(): SchedulerStats {
    return this.scheduler.stats()
  }

  load(): SchedulerLoad {
    return this.scheduler.load()
  }

  /** Verifies that no page is lost. @throws ERR_INTERNAL */
  check(): void {
    this.scheduler.check()
  }

  /** Takes no new requests from now on. @returns a promise of the moment when the pending ones have ended */
  drain(): Promise<void> {
    this.draining = true
    this.scheduler.drain()
    if (this.active.size === 0) return Promise.resolve()
    return new Promise((resolve) => (this.onIdle = resolve))
  }

  /**
   * Rejects everything that is pending with `reason`, then ends the executor. Call once.
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

  // --- the way in ---

  /** Requests that are made in one go are planned together. */
  private schedulePump(): void {
    if (this.pumpScheduled) return
    this.pumpScheduled = true
    queueMicrotask(() => {
      this.pumpScheduled = false
      this.guarded(() => this.turn())
    })
  }

  /**
   * Masks are on their way: the next step waits for them, so that those who need them come along. It waits for at most half the
   * time of a step, and not longer than for the next result: those who need none must not notice.
   */
  private holdsFor({ timings }: StepResult): boolean {
    this.stepMs = 0.75 * this.stepMs + (0.25 * timings.runUs) / 1000
    if (this.hold !== undefined || this.death !== undefined || this.scheduler.masksAwaited === 0) {
      this.endHold()
      return false
    }
    this.hold = setTimeout(() => {
      this.hold = undefined
      this.guarded(() => this.turn())
    }, Math.max(1, this.stepMs / 2))
    return true
  }

  private endHold(): void {
    clearTimeout(this.hold)
    this.hold = undefined
  }

  /** The mask of a choice has come. */
  resume(id: RequestId, index: number): void {
    if (!this.active.has(id)) return
    const error = this.scheduler.resume(id, index, this.now())
    if (error !== undefined) this.fail(id, error)
    this.afterMask()
  }

  /** The output of a choice is complete as it is. */
  complete(id: RequestId, index: number): void {
    const request = this.active.get(id)
    if (request === undefined || !this.scheduler.finish(id, 'stop', index)) return
    request.state.addEnd(index, 'stop')
    if (request.state.ended) this.settle(request)
    else request.state.deliver()
    this.afterMask()
  }

  /** Ends a request that cannot go on. */
  fail(id: RequestId, error: TensorRTError): void {
    const request = this.active.get(id)
    if (request === undefined) return
    this.forget(id)
    request.state.fail(error)
    this.afterMask()
  }

  private afterMask(): void {
    if (this.hold !== undefined && this.scheduler.masksAwaited > 0) return
    this.endHold()
    this.schedulePump()
  }

  /** Keeps the executor busy first, then hands out what has happened. */
  private turn(events?: SequenceEvents): void {
    this.pump()
    if (events !== undefined) this.handOut(events)
    const { death } = this
    this.death = undefined
    if (death !== undefined) this.lose(death)
  }

  private pump(): void {
    if (this.current === 'ended') return
    const now = this.now()
    if (this.runs) {
      while (this.death === undefined) {
        const { recorder } = this
        const step = recorder === undefined ? this.scheduler.plan(now) : recorder.plan(this.scheduler, now)
        if (step === null) break
        const from = recorder === undefined ? 0 : this.now()
        this.submit(step)
        recorder?.submitted(from)
      }
      if (this.death === undefined) this.moveSlots(this.scheduler.takeClosedSlots(), [], [])
      if (this.death !== undefined) return
      if (this.inFlight.length === 0 && this.scheduler.hasWork && !this.scheduler.awaitsMasks) {
        // Nothing would ever wake the loop again: better an error than promises that never settle.
        this.die(new TensorRTError('ERR_INTERNAL', 'Requests are pending, but none of them can run'))
        return
      }
    }
    this.setTimer(now)
  }

  private submit(step: PlannedStep): void {
    if (!this.moveSlots(step.close, step.open, step.masks)) return
    const entry: StepInFlight = { stepId: step.stepId, tokens: step.tokens, refused: undefined }
    this.inFlight.push(entry)
    this.watch.submitted()
    if (this.timesParts > 0) step.packed[5] = StepMode.TIME_PARTS
    try {
      this.executor.submit(step.packed)
    } catch (error) {
      const refused = refusedResult(step.stepId, error)
      entry.refused = refused
      if (isDeath(refused.error)) this.death = deathOf(error)
      else setImmediate(() => this.guarded(() => this.takeRefused()))
    }
  }

  /** An executor that does not take its slots is as good as dead: what it has is unknown. @returns false then */
  private moveSlots(close: readonly number[], open: readonly SlotInit[], masks: readonly SlotMask[]): boolean {
    try {
      for (const slot of close) this.executor.closeSlot(slot)
      for (const init of open) this.executor.openSlot(init)
      for (const { slot, mask } of masks) this.executor.setMask!(slot, mask)
      return true
    } catch (error) {
      this.death = deathOf(error)
      return false
    }
  }

  // --- the way out ---

  private listen(): void {
    this.started.listener = (result) => this.onResult(result)
  }

  private onResult(result: StepResult): void {
    this.guarded(() => {
      this.takeRefused()
      this.take(result)
      this.takeRefused()
    })
  }

  /** Results of refused steps come in their turn: after those of the steps before, before those of the steps after. */
  private takeRefused(): void {
    for (let refused = this.inFlight[0]?.refused; refused !== undefined; refused = this.inFlight[0]?.refused) {
      this.take(refused)
    }
  }

  private guarded(handle: () => void): void {
    if (this.current === 'ended') return
    try {
      handle()
    } catch (cause) {
      this.die(new TensorRTError('ERR_INTERNAL', `The engine loop failed: ${(cause as Error).message}`, { cause }))
    }
  }

  private take(result: StepResult): void {
    if (!this.runs) return
    const { error } = result
    if (error !== undefined && isDeath(error)) {
      this.lose(deathOf(new TensorRTError(error.code, error.message)))
      return
    }
    this.inFlight.shift()
    this.watch.restart(this.inFlight.length)
    this.counters.stepsCompleted++
    this.counters.stepQueueUs += result.timings.queueUs
    this.counters.stepRunUs += result.timings.runUs
    const { recorder } = this
    recorder?.arrived(result)
    const events = this.scheduler.complete(result, this.now())
    this.options.afterTokens?.()
    recorder?.completed()
    if (this.holdsFor(result)) this.handOut(events)
    else this.turn(events)
    if (this.recorder !== undefined && this.inFlight.length === 0 && !this.scheduler.hasWork) this.recorder.rest()
  }

  private handOut(events: SequenceEvents): void {
    const { recorder } = this
    if (recorder === undefined) {
      this.emit(events)
      return
    }
    const from = this.now()
    this.emit(events)
    recorder.emitted(from)
  }

  private emit(events: SequenceEvents): void {
    for (let i = 0; i < events.count; i++) {
      const { id, index } = events.sequences[i]!
      const request = this.active.get(id)
      // It may have failed through a sibling earlier in this very list.
      if (request === undefined) continue
      const error = events.errors[i]!
      if (error !== null) {
        this.forget(id)
        request.state.fail(error)
        continue
      }
      const promptRows = events.promptLogprobs[i]!
      if (promptRows !== null) request.state.addPromptLogprobs(promptRows)
      const hidden = events.hidden[i]!
      if (hidden !== null) request.state.addHidden?.(hidden)
      const finish = events.finish[i]!
      const token = events.tokens[i]!
      if (token !== NO_TOKEN) {
        this.counters.generatedTokens++
        const ended = request.state.addToken(index, token, events.logprobs[i]!, finish)
        if (ended && finish === null && this.scheduler.finish(id, 'stop', index)) this.schedulePump()
      } else if (finish !== null) {
        request.state.addEnd(index, finish)
      }
      this.touched.add(request)
    }
    // The newest first: a first token is waited for more than those that follow, and what consumers do takes its time.
    const touched = [...this.touched].reverse()
    this.touched.clear()
    for (const request of touched) {
      if (request.state.ended) this.settle(request)
      else request.state.deliver()
    }
  }

  private settle(request: ActiveRequest): void {
    this.active.delete(request.id)
    const { cachedTokens, admittedAt } = request.sequences[0]!
    this.counters.cachedPromptTokens += cachedTokens
    // A grammar may leave nothing to say: it ends before it is admitted.
    request.state.finish({ cachedTokens, admittedAt: Number.isNaN(admittedAt) ? this.now() : admittedAt })
    this.tellIdle()
  }

  private forget(id: RequestId): void {
    this.active.delete(id)
    this.scheduler.abort(id)
    this.tellIdle()
  }

  private tellIdle(): void {
    if (this.active.size === 0) this.onIdle?.()
  }

  // --- time ---

  private setTimer(now: number): void {
    const wait = this.scheduler.nextWakeup(now)
    if (wait === null) {
      clearTimeout(this.timer)
      this.timer = undefined
      this.timerAt = Infinity
      return
    }
    // A timer that comes too early does no harm, and is cheaper than setting one with each step.
    if (this.timerAt <= now + wait) return
    clearTimeout(this.timer)
    const delay = Math.min(Math.ceil(wait), MAX_TIMER_MS)
    this.timerAt = now + delay
    this.timer = setTimeout(() => this.onTimer(), delay)
  }

  private onTimer(): void {
    this.timer = undefined
    this.timerAt = Infinity
    this.guarded(() => {
      this.emit(this.scheduler.expire(this.now()))
      this.turn()
    })
  }

  // --- the end ---

  private onStepTimeout(ms: number): void {
    const stepId = this.inFlight[0]?.stepId
    if (stepId !== undefined) this.guarded(() => this.lose(deathByTimeout(stepId, ms)))
  }

  /** The executor is dead. Another takes over, or requests are refused until it is back, or this is the end. */
  private lose(death: TensorRTError): void {
    if (!this.runs) return
    const now = this.now()
    const substituted = this.current === 'substituted'
    const { executor: dead } = this
    const { info } = dead
    // What it still says goes nowhere.
    this.started.listener = undefined
    this.scheduler.halt(now)
    this.dropSteps()
    this.lost = { cause: death, info, at: now }
    let close!: () => void
    const closing = new Promise<void>((resolve) => (close = () => resolve(closeQuietly(dead))))
    this.retire(closing)
    if (!substituted) this.restart.begin(info.vocabSize, closing)
    if (!substituted && this.fallback.available) {
      this.current = 'switching'
      void this.switchOver(this.lost)
    } else {
      this.standDown(death)
    }
    // Only now: it may answer for its queued steps at once.
    close()
  }

  private retire(closing: Promise<void>): void {
    this.retired.add(closing)
    void closing.then(() => this.retired.delete(closing))
  }

  private dropSteps(): void {
    this.inFlight.length = 0
    this.death = undefined
    this.watch.stop()
    this.recorder?.reset()
  }

  /** There is no executor: everything pending rejects, and what comes is refused until the model's own is back. */
  private standDown(death: TensorRTError): void {
    if (!this.restart.hopeful) {
      this.end(death)
      return
    }
    this.current = 'down'
    this.refuse(death, outage(death))
    this.options.events?.onOutage?.(death, this.info)
  }

  /** Never rejects. */
  private async switchOver(lost: NonNullable<EngineLoop['lost']>): Promise<void> {
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
    this.options.events?.onRestartFailure?.(failure)
    if (failure.nextDelayMs === undefined && this.current === 'down') this.end(noneLeft(this.lost!.cause, failure.error))
  }

  /** Everything that lives goes on with another executor. @throws when that is impossible; nothing has changed then */
  private moveTo(next: StartedExecutor, phase: 'serving' | 'substituted'): void {
    const scheduler = new Scheduler(limitsOf(next.executor), this.options)
    const now = this.now()
    const { cause, at } = this.lost!
    const from = this.info
    const idleSince = this.runs ? now : at
    let left: Promise<unknown> = Promise.resolve()
    this.started.listener = undefined
    if (this.runs) {
      const closing = closeQuietly(this.executor)
      this.retire(closing)
      left = closing
    }
    // Before anything runs: what comes back may die in this very call.
    if (phase === 'serving') this.fallback.renew(left)
    this.dropSteps()
    const evacuation = this.scheduler.evacuate(now)
    const sequences = evacuation.requests.flat().filter((seq) => !seq.finished).length
    this.started = next
    this.current = phase
    this.refusal = undefined
    this.listen()
    const events = scheduler.adopt(evacuation, now)
    this.scheduler = scheduler
    const kind = phase === 'serving' ? 'return' : 'failover'
    if (kind === 'return') this.counters.restarts++
    else this.counters.failovers++
    const { info: to } = next.executor
    this.options.events?.onSwitchover?.({ kind, from, to, cause, sequences, durationMs: now - idleSince })
    this.guarded(() => this.turn(events))
  }

  /** Something is wrong that another executor would not put right. */
  private die(error: TensorRTError): void {
    if (this.current === 'ended') return
    const alive = this.runs
    this.end(error)
    if (alive) this.retire(closeQuietly(this.executor))
  }

  private end(reason: TensorRTError): void {
    if (this.current === 'ended') return
    this.current = 'ended'
    this.restart.stop()
    this.refuse(reason, reason)
  }

  /** Rejects what is pending, and refuses what comes. */
  private refuse(pendingReason: TensorRTError, reason: TensorRTError): void {
    this.refusal = reason
    this.endHold()
    clearTimeout(this.timer)
    this.timer = undefined
    this.timerAt = Infinity
    this.inFlight.length = 0
    this.watch.stop()
    this.scheduler.clear()
    const pending = [...this.active.values()]
    this.active.clear()
    for (const { state } of pending) state.fail(pendingReason)
    this.tellIdle()
    for (const onEnd of this.endListeners) onEnd(pendingReason)
    this.endListeners.clear()
    if (this.current === 'ended') this.recorder = undefined
    else this.recorder?.reset()
  }
}

function limitsOf({ info, setMask }: Executor): SchedulerLimits {
  return { ...info, takesMasks: setMask !== undefined }
}
