/**
 * Joins the scheduler, which decides, and an executor, which computes. On a result: account, plan and submit the next
 * step first; turn tokens into text and hand them out afterwards, while the executor is busy.
 *
 * The loop owns no thread and polls nothing: it runs when a request comes, when a result arrives and when a deadline or
 * timeout is due, and leaves nothing behind that would keep an idle process alive.
 *
 * When the executor dies and there is another to fall back to, everything that lives waits in the dead executor's
 * scheduler, which is halted, until the other is there; then it moves to a new scheduler over that one. Meanwhile requests
 * come, are aborted and run out of time as ever.
 */
import { TensorRTError } from '../errors'
import {
  type Executor,
  type ExecutorInfo,
  type GenerationRequest,
  NO_TOKEN,
  type PlannedStep,
  Scheduler,
  type SchedulerOptions,
  type SchedulerStats,
  type Sequence,
  type SequenceEvents,
  type SlotInit,
  type StepResult,
} from '../scheduler'
import { atMost, closeQuietly, Fallback, type FallbackSource } from './fallback'
import type { GenerationState } from './generation'
import { type StepListener, StepRecorder } from './step_recorder'

type RequestId = string | number

interface ActiveRequest {
  id: RequestId
  state: GenerationState
  sequences: readonly Sequence[]
}

interface StepInFlight {
  stepId: number
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
}

/** One executor in place of another. */
export interface Failover {
  from: ExecutorInfo
  to: ExecutorInfo
  /** Why the first one died. */
  cause: TensorRTError
  /** Live sequences that moved. */
  sequences: number
  /** Milliseconds in which nothing ran. */
  durationMs: number
}

export interface EngineLoopOptions extends SchedulerOptions {
  /** Takes over when the executor dies; once. */
  fallback?: FallbackSource | undefined
  /** Called when another executor has taken over, before it runs its first step. Must not throw. */
  onFailover?: ((failover: Failover) => void) | undefined
}

const MAX_TIMER_MS = 2 ** 31 - 1
/** How long `close` waits for a dead executor, whose device may never answer. */
const DEAD_CLOSE_MS = 5000

/** Failures after which an executor runs no more steps. */
function isDeath({ code, retryable }: NonNullable<StepResult['error']>): boolean {
  return code === 'ERR_BACKEND_DEAD' || code === 'ERR_DISPOSED' || (code === 'ERR_CUDA' && !retryable)
}

export class EngineLoop {
  readonly counters: LoopCounters = {
    stepQueueUs: 0,
    stepRunUs: 0,
    stepsCompleted: 0,
    generatedTokens: 0,
    cachedPromptTokens: 0,
    failovers: 0,
  }
  private executor: Executor
  private scheduler: Scheduler
  private readonly active = new Map<RequestId, ActiveRequest>()
  /** Requests with something new to deliver, in the course of one call. */
  private readonly touched = new Set<ActiveRequest>()
  private readonly inFlight: StepInFlight[] = []
  private pumpScheduled = false
  private timer: NodeJS.Timeout | undefined
  private timerAt = Infinity
  /** Why no more work is taken: closed, or the executor died. */
  private ended: TensorRTError | undefined
  private onIdle: (() => void) | undefined
  /** Why nothing more is submitted: the executor said so while work was handed to it. */
  private death: TensorRTError | undefined
  /** True while the executor is dead and the next one is not there yet. */
  private switching = false
  private readonly fallback: Fallback
  /** Dead executors that are being closed. */
  private readonly retired: Promise<void>[] = []
  /** Takes times; there while somebody listens. */
  private recorder: StepRecorder | undefined
  private readonly endListeners = new Set<(reason: TensorRTError) => void>()

  /** @throws ERR_INVALID_ARGUMENT when an option is out of range */
  constructor(
    executor: Executor,
    private readonly options: EngineLoopOptions,
    readonly now: () => number = () => performance.now(),
  ) {
    this.fallback = new Fallback(options.fallback)
    this.executor = executor
    this.scheduler = new Scheduler(executor.info, options)
    this.listen()
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
  add(request: GenerationRequest, state: GenerationState): void {
    if (this.ended !== undefined) throw this.ended
    const sequences = this.scheduler.add(request, this.now())
    this.active.set(request.id, { id: request.id, state, sequences })
    this.schedulePump()
  }

  /**
   * See {@link Scheduler.assertTakes}.
   * @throws ERR_QUEUE_FULL, ERR_DISPOSED when closed, ERR_BACKEND_DEAD when the executor has died
   */
  assertTakes(n: number): void {
    if (this.ended !== undefined) throw this.ended
    this.scheduler.assertTakes(n)
  }

  /** Ends a request without telling its state: the state is who asks. */
  abort(id: RequestId): void {
    if (!this.active.has(id)) return
    this.forget(id)
    this.schedulePump()
  }

  /**
   * Has `onStep` called with each step from now on, once its tokens are handed out, and `onEnd` when no more will come.
   * Neither may throw.
   * @returns ends it
   */
  observe(onStep: StepListener, onEnd: (reason: TensorRTError) => void): () => void {
    if (this.ended !== undefined) {
      onEnd(this.ended)
      return () => {}
    }
    const recorder = (this.recorder ??= new StepRecorder(this.now))
    recorder.listeners.add(onStep)
    this.endListeners.add(onEnd)
    return () => {
      recorder.listeners.delete(onStep)
      this.endListeners.delete(onEnd)
      if (recorder.listeners.size === 0 && this.recorder === recorder) this.recorder = undefined
    }
  }

  stats(): SchedulerStats {
    return this.scheduler.stats()
  }

  /** Verifies that no page is lost. @throws ERR_INTERNAL */
  check(): void {
    this.scheduler.check()
  }

  /** Takes no new requests from now on. @returns a promise of the moment when the pending ones have ended */
  drain(): Promise<void> {
    this.scheduler.drain()
    if (this.active.size === 0) return Promise.resolve()
    return new Promise((resolve) => (this.onIdle = resolve))
  }

  /**
   * Rejects everything that is pending with `reason`, then ends the executor. Call once.
   * @throws (as a rejection) what the `close` of a living executor throws
   */
  async close(reason: TensorRTError): Promise<void> {
    const alive = this.ended === undefined && !this.switching
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

  /** Keeps the executor busy first, then hands out what has happened. */
  private turn(events?: SequenceEvents): void {
    this.pump()
    if (events !== undefined) this.handOut(events)
    const { death } = this
    this.death = undefined
    if (death !== undefined) this.lose(death)
  }

  private pump(): void {
    if (this.ended !== undefined) return
    const now = this.now()
    if (!this.switching) {
      while (this.death === undefined) {
        const { recorder } = this
        const step = recorder === undefined ? this.scheduler.plan(now) : recorder.plan(this.scheduler, now)
        if (step === null) break
        const from = recorder === undefined ? 0 : this.now()
        this.submit(step)
        recorder?.submitted(from)
      }
      if (this.death === undefined) this.moveSlots(this.scheduler.takeClosedSlots(), [])
      if (this.death !== undefined) return
      if (this.inFlight.length === 0 && this.scheduler.hasWork) {
        // Nothing would ever wake the loop again: better an error than promises that never settle.
        this.die(new TensorRTError('ERR_INTERNAL', 'Requests are pending, but none of them can run'))
        return
      }
    }
    this.setTimer(now)
  }

  private submit(step: PlannedStep): void {
    if (!this.moveSlots(step.close, step.open)) return
    const entry: StepInFlight = { stepId: step.stepId, refused: undefined }
    this.inFlight.push(entry)
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
  private moveSlots(close: readonly number[], open: readonly SlotInit[]): boolean {
    try {
      for (const slot of close) this.executor.closeSlot(slot)
      for (const init of open) this.executor.openSlot(init)
      return true
    } catch (error) {
      this.death = deathOf(error)
      return false
    }
  }

  // --- the way out ---

  /** What an executor still says after its death goes nowhere. */
  private listen(): void {
    const { executor } = this
    executor.start((result) => {
      if (executor === this.executor && !this.switching) this.onResult(result)
    })
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
    if (this.ended !== undefined) return
    try {
      handle()
    } catch (cause) {
      this.die(new TensorRTError('ERR_INTERNAL', `The engine loop failed: ${(cause as Error).message}`, { cause }))
    }
  }

  private take(result: StepResult): void {
    if (this.ended !== undefined || this.switching) return
    const { error } = result
    if (error !== undefined && isDeath(error)) {
      this.lose(deathOf(new TensorRTError(error.code, error.message)))
      return
    }
    this.inFlight.shift()
    this.counters.stepsCompleted++
    this.counters.stepQueueUs += result.timings.queueUs
    this.counters.stepRunUs += result.timings.runUs
    const { recorder } = this
    recorder?.arrived(result)
    const events = this.scheduler.complete(result, this.now())
    recorder?.completed()
    this.turn(events)
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
    for (const request of this.touched) {
      if (request.state.ended) this.complete(request)
      else request.state.deliver()
    }
    this.touched.clear()
  }

  private complete(request: ActiveRequest): void {
    this.active.delete(request.id)
    const { cachedTokens, admittedAt } = request.sequences[0]!
    this.counters.cachedPromptTokens += cachedTokens
    request.state.finish({ cachedTokens, admittedAt })
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

  /** The executor is dead. Another takes over, or this is the end. */
  private lose(death: TensorRTError): void {
    if (this.ended !== undefined || this.switching) return
    const dead = this.executor
    this.scheduler.halt(this.now())
    this.inFlight.length = 0
    this.recorder?.reset()
    if (this.fallback.available) {
      this.switching = true
      void this.switchOver(death)
    } else {
      this.end(death)
    }
    // Only now: it may answer for its queued steps at once, and nobody listens any more.
    this.retired.push(closeQuietly(dead))
  }

  /** Never rejects. */
  private async switchOver(death: TensorRTError): Promise<void> {
    const from = this.executor.info
    const since = this.now()
    let next: Executor | undefined
    try {
      next = await this.fallback.take(from.vocabSize)
      if (this.ended === undefined) this.moveTo(next, { from, to: next.info, cause: death, since })
      else void closeQuietly(next)
    } catch (cause) {
      if (next !== undefined) this.retired.push(closeQuietly(next))
      this.end(noneLeft(death, cause))
    }
  }

  private moveTo(next: Executor, { since, ...of }: Pick<Failover, 'from' | 'to' | 'cause'> & { since: number }): void {
    const scheduler = new Scheduler(next.info, this.options)
    const now = this.now()
    const { waiting: sequences } = this.scheduler.stats()
    this.executor = next
    this.switching = false
    this.listen()
    const events = scheduler.adopt(this.scheduler.evacuate(now), now)
    this.scheduler = scheduler
    this.counters.failovers++
    this.options.onFailover?.({ ...of, sequences, durationMs: now - since })
    this.guarded(() => this.turn(events))
  }

  /** Something is wrong that another executor would not put right. */
  private die(error: TensorRTError): void {
    if (this.ended !== undefined) return
    this.end(error)
    if (!this.switching) this.retired.push(closeQuietly(this.executor))
  }

  private end(reason: TensorRTError): void {
    this.ended ??= reason
    clearTimeout(this.timer)
    this.inFlight.length = 0
    this.scheduler.clear()
    const pending = [...this.active.values()]
    this.active.clear()
    for (const { state } of pending) state.fail(reason)
    this.tellIdle()
    for (const onEnd of this.endListeners) onEnd(this.ended)
    this.endListeners.clear()
  }
}

function deathOf(cause: unknown): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `The executor has ended: ${messageOf(cause)}`, { cause })
}

function noneLeft(death: TensorRTError, failure: unknown): TensorRTError {
  return new TensorRTError('ERR_BACKEND_DEAD', `${death.message}; and no other took over: ${messageOf(failure)}`, {
    cause: new AggregateError([death.cause, failure], 'A backend died, and so did the attempt to replace it'),
  })
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function refusedResult(stepId: number, error: unknown): StepResult & { error: NonNullable<StepResult['error']> } {
  const { code, message } =
    error instanceof TensorRTError ? error : { code: 'ERR_STEP_FAILED' as const, message: String(error) }
  return {
    stepId,
    error: { code, message, retryable: false },
    tokens: new Int32Array(0),
    logprobs: [],
    logits: new Float32Array(0),
    timings: { queueUs: 0, runUs: 0 },
  }
}
