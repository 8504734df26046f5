/**
 * Joins the scheduler, which decides, and an executor, which computes. On a result: account, plan and submit the next
 * step first; turn tokens into text and hand them out afterwards, while the executor is busy.
 *
 * The loop owns no thread and polls nothing: it runs when a request comes, when a result arrives and when a deadline or
 * timeout is due, and leaves nothing behind that would keep an idle process alive.
 *
 * When the executor dies and there is another to fall back to ({@link Succession}), everything that lives waits in the dead
 * executor's scheduler, which is halted, until the other is there; then it moves to a new scheduler over that one. Meanwhile
 * requests come, are aborted and run out of time as ever. Without another, requests are refused until the model's own is back.
 */
import { TensorRTError } from '../errors'
import {
  assertResult,
  type Executor,
  type ExecutorInfo,
  type GenerationRequest,
  type PlannedStep,
  Scheduler,
  type SchedulerLimits,
  type SchedulerLoad,
  type SchedulerOptions,
  type SchedulerStats,
  type SequenceEvents,
  type SlotInit,
  type SlotMask,
  StepMode,
  type StepResult,
} from '../scheduler'
import { ActiveRequests, type RequestCounters, type RequestId } from './active_requests'
import { BurstGate } from './burst_gate'
import { deathByTimeout, deathOf, isDeath, refusedResult } from './death'
import { MaskHold } from './mask_hold'
import type { RequestState } from './request_state'
import type { Restart } from './restart'
import { StartedExecutor } from './started_executor'
import { StepObservers } from './step_observers'
import type { StepListener } from './step_recorder'
import { StepWatch } from './step_watch'
import { type LoopEvents, type LoopPhase, Succession, type SuccessionOptions, type Switchover } from './succession'
import { WakeupTimer } from './wakeup_timer'

interface StepInFlight {
  stepId: number
  tokens: number
  /** Set when the executor refused the step: what stands in for its result. */
  refused: StepResult | undefined
}

export interface LoopCounters extends RequestCounters {
  /** Sum over all completed steps, in microseconds: waiting at the executor, and running. */
  stepQueueUs: number
  stepRunUs: number
  /** Steps with a result. */
  stepsCompleted: number
  failovers: number
  restarts: number
}

export interface EngineLoopOptions extends SchedulerOptions, SuccessionOptions {
  /** A step that takes longer, in ms, is the death of its executor. Default: none is. */
  stepTimeoutMs?: number | undefined
  /** Called when the scheduler has taken a step's tokens, before the next step is planned. Must not throw. */
  afterTokens?: (() => void) | undefined
}

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
  private scheduler: Scheduler
  private readonly requests: ActiveRequests
  private readonly inFlight: StepInFlight[] = []
  private pumpScheduled = false
  private readonly maskHold = new MaskHold(() => this.guarded(() => this.turn()))
  private readonly wakeup = new WakeupTimer(() => this.expire())
  /** Set where requests come one by one: see {@link BurstGate}. */
  private gate: BurstGate | undefined
  /** Why no more work is taken, for ever or for now: closed, or the executor died. */
  private refusal: TensorRTError | undefined
  private draining = false
  /** Why nothing more is submitted: the executor said so while work was handed to it. */
  private death: TensorRTError | undefined
  private readonly succession: Succession
  /** What became of sequences as they moved to another executor; handed out when that is busy. */
  private moved: SequenceEvents | undefined
  private readonly watch: StepWatch
  private readonly observers: StepObservers

  /** @throws ERR_INVALID_ARGUMENT when an option is out of range */
  constructor(
    executor: Executor,
    private readonly options: EngineLoopOptions,
    readonly now: () => number = () => performance.now(),
  ) {
    const { events } = options
    this.requests = new ActiveRequests(this.counters, now, () => this.schedulePump())
    this.observers = new StepObservers(now)
    this.watch = new StepWatch(options.stepTimeoutMs, (ms) => this.onStepTimeout(ms), now)
    this.scheduler = new Scheduler(limitsOf(executor), options)
    const started = new StartedExecutor(executor)
    const served = {
      halt: (now: number) => this.halt(now),
      moveTo: (next: StartedExecutor, now: number) => this.moveTo(next, now),
      proceed: () => this.proceed(),
      refuse: (pending: TensorRTError, reason: TensorRTError) => this.refuse(pending, reason),
    }
    const counted: LoopEvents = { ...events, onSwitchover: (switchover) => this.onSwitchover(switchover) }
    this.succession = new Succession(started, { ...options, events: counted }, served, now)
    this.listen(started)
  }

  get phase(): LoopPhase {
    return this.succession.phase
  }

  get restart(): Restart {
    return this.succession.restart
  }

  /** Why the last executor that died did so. */
  get lastError(): TensorRTError | undefined {
    return this.succession.lastError
  }

  get isDraining(): boolean {
    return this.draining
  }

  /** The oldest step in flight: milliseconds that it has been running, and its tokens; 0 and 0 without one. */
  get oldestStep(): { ms: number; tokens: number } {
    return { ms: this.watch.ms, tokens: this.inFlight[0]?.tokens ?? 0 }
  }

  /** Of the executor that runs the model; while there is none, of the one that did. */
  get info(): ExecutorInfo {
    return this.succession.executor.info
  }

  get pending(): number {
    return this.requests.size
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
    // A step that was planned ahead may still run: nobody waits for it.
    const idle = this.requests.size === 0
    this.requests.add(request.id, state, this.scheduler.add(request, this.now()))
    if (this.gate?.add(idle ? this.scheduler.loneRequestMs : 0) !== true) this.schedulePump()
  }

  /** Requests that come one by one from now on start together where nothing runs: see {@link BurstGate}. */
  gatherBursts(): void {
    this.gate ??= new BurstGate(() => this.guarded(() => this.turn()), this.now)
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
    if (this.requests.forget(id, this.scheduler) !== undefined) this.schedulePump()
  }

  /**
   * Has `onStep` called with each step from now on, once its tokens are handed out. With `onEnd` the observation ends, and
   * that is called, when no more steps will come for now; without, it outlasts the restart of an executor. Neither may throw.
   * `parts` has the steps report how long their parts took.
   * @returns ends it
   */
  observe(onStep: StepListener, onEnd?: (reason: TensorRTError) => void, parts = false): () => void {
    if (this.succession.ended || (this.refusal !== undefined && onEnd !== undefined)) {
      if (this.refusal !== undefined) onEnd?.(this.refusal)
      return () => {}
    }
    return this.observers.add(onStep, onEnd, parts)
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
    return this.requests.idle()
  }

  /**
   * Rejects everything that is pending with `reason`, then ends the executor. Call once.
   * @throws (as a rejection) what the `close` of a living executor throws
   */
  close(reason: TensorRTError): Promise<void> {
    return this.succession.close(reason)
  }

  /** The mask of a choice has come. */
  resume(id: RequestId, index: number): void {
    if (!this.requests.has(id)) return
    const error = this.scheduler.resume(id, index, this.now())
    if (error !== undefined) this.fail(id, error)
    this.afterMask()
  }

  /** The output of a choice is complete as it is. */
  complete(id: RequestId, index: number): void {
    if (this.requests.complete(id, index, this.scheduler)) this.afterMask()
  }

  /** Ends a request that cannot go on. */
  fail(id: RequestId, error: TensorRTError): void {
    const state = this.requests.forget(id, this.scheduler)
    if (state === undefined) return
    state.fail(error)
    this.afterMask()
  }

  private afterMask(): void {
    if (this.maskHold.holds && this.scheduler.masksAwaited > 0) return
    this.maskHold.end()
    this.schedulePump()
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

  /** Keeps the executor busy first, then hands out what has happened. */
  private turn(events?: SequenceEvents): void {
    this.pump()
    if (events !== undefined) this.handOut(events)
    const { death } = this
    this.death = undefined
    if (death !== undefined) this.succession.lose(death)
  }

  private pump(): void {
    if (this.succession.ended) return
    const now = this.now()
    if (this.succession.runs) {
      const { recorder } = this.observers
      while (this.death === undefined) {
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
        this.succession.die(new TensorRTError('ERR_INTERNAL', 'Requests are pending, but none of them can run'))
        return
      }
    }
    this.wakeup.set(this.scheduler.nextWakeup(now), now)
  }

  private submit(step: PlannedStep): void {
    if (!this.moveSlots(step.close, step.open, step.masks)) return
    const entry: StepInFlight = { stepId: step.stepId, tokens: step.tokens, refused: undefined }
    this.inFlight.push(entry)
    this.watch.submitted()
    if (this.observers.timesParts) step.packed[5] = StepMode.TIME_PARTS
    try {
      this.succession.executor.submit(step.packed)
    } catch (error) {
      const refused = refusedResult(step.stepId, error)
      entry.refused = refused
      if (isDeath(refused.error)) this.death = deathOf(error)
      else setImmediate(() => this.guarded(() => this.takeRefused()))
    }
  }

  /** An executor that does not take its slots is as good as dead: what it has is unknown. @returns false then */
  private moveSlots(close: readonly number[], open: readonly SlotInit[], masks: readonly SlotMask[]): boolean {
    const { executor } = this.succession
    try {
      for (const slot of close) executor.closeSlot(slot)
      for (const init of open) executor.openSlot(init)
      for (const { slot, mask } of masks) executor.setMask!(slot, mask)
      return true
    } catch (error) {
      this.death = deathOf(error)
      return false
    }
  }

  // --- the way out ---

  private listen(started: StartedExecutor): void {
    started.listener = (result) => this.onResult(result)
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
    if (this.succession.ended) return
    try {
      handle()
    } catch (cause) {
      const { message } = cause as Error
      this.succession.die(new TensorRTError('ERR_INTERNAL', `The engine loop failed: ${message}`, { cause }))
    }
  }

  private take(result: StepResult): void {
    if (!this.succession.runs) return
    assertResult(result)
    const { error, timings } = result
    if (error !== undefined && isDeath(error)) {
      this.succession.lose(deathOf(new TensorRTError(error.code, error.message)))
      return
    }
    this.inFlight.shift()
    this.watch.restart(this.inFlight.length)
    this.counters.stepsCompleted++
    this.counters.stepQueueUs += timings.queueUs
    this.counters.stepRunUs += timings.runUs
    const { recorder } = this.observers
    recorder?.arrived(result)
    const events = this.scheduler.complete(result, this.now())
    this.options.afterTokens?.()
    recorder?.completed()
    const awaited = this.death === undefined && this.scheduler.masksAwaited > 0
    if (this.maskHold.stepEnded(timings.runUs, awaited)) this.handOut(events)
    else this.turn(events)
    if (this.inFlight.length === 0 && !this.scheduler.hasWork) this.observers.recorder?.rest()
  }

  private handOut(events: SequenceEvents): void {
    const { recorder } = this.observers
    const from = recorder === undefined ? 0 : this.now()
    this.requests.handOut(events, this.scheduler)
    recorder?.emitted(from)
  }

  private expire(): void {
    this.guarded(() => {
      this.requests.handOut(this.scheduler.expire(this.now()), this.scheduler)
      this.turn()
    })
  }

  // --- the ends of executors ---

  private onStepTimeout(ms: number): void {
    const stepId = this.inFlight[0]?.stepId
    if (stepId !== undefined) this.guarded(() => this.succession.lose(deathByTimeout(stepId, ms)))
  }

  private halt(now: number): void {
    this.scheduler.halt(now)
    this.dropSteps()
  }

  private dropSteps(): void {
    this.inFlight.length = 0
    this.death = undefined
    this.watch.stop()
    this.observers.recorder?.reset()
  }

  /** See {@link Served.moveTo}. */
  private moveTo(next: StartedExecutor, now: number): number {
    const scheduler = new Scheduler(limitsOf(next.executor), this.options)
    this.dropSteps()
    const evacuation = this.scheduler.evacuate(now)
    const sequences = evacuation.requests.flat().filter((seq) => !seq.finished).length
    this.refusal = undefined
    this.listen(next)
    this.moved = scheduler.adopt(evacuation, now)
    this.scheduler = scheduler
    return sequences
  }

  private onSwitchover(switchover: Switchover): void {
    if (switchover.kind === 'return') this.counters.restarts++
    else this.counters.failovers++
    this.options.events?.onSwitchover?.(switchover)
  }

  private proceed(): void {
    const { moved } = this
    this.moved = undefined
    this.guarded(() => this.turn(moved))
  }

  /** Rejects what is pending, and refuses what comes. */
  private refuse(pending: TensorRTError, reason: TensorRTError): void {
    this.refusal = reason
    this.maskHold.end()
    this.wakeup.clear()
    this.inFlight.length = 0
    this.watch.stop()
    this.scheduler.clear()
    this.requests.failAll(pending)
    this.observers.end(pending, this.succession.ended)
  }
}

function limitsOf({ info, setMask }: Executor): SchedulerLimits {
  return { ...info, takesMasks: setMask !== undefined }
}
