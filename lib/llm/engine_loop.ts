/**
 * Joins the scheduler, which decides, and an executor, which computes. On a result: account, plan and submit the next
 * step first; turn tokens into text and hand them out afterwards, while the executor is busy.
 *
 * The loop owns no thread and polls nothing: it runs when a request comes, when a result arrives and when a deadline or
 * timeout is due, and leaves nothing behind that would keep an idle process alive.
 */
import { TensorRTError } from '../errors'
import {
  type Executor,
  type GenerationRequest,
  NO_TOKEN,
  type PlannedStep,
  Scheduler,
  type SchedulerOptions,
  type SchedulerStats,
  type Sequence,
  type SequenceEvents,
  type StepResult,
} from '../scheduler'
import type { GenerationState } from './generation'

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
}

const MAX_TIMER_MS = 2 ** 31 - 1

/** Codes after which an executor runs no more steps. */
const DEAD: ReadonlySet<string> = new Set(['ERR_BACKEND_DEAD', 'ERR_DISPOSED'])

export class EngineLoop {
  readonly counters: LoopCounters = {
    stepQueueUs: 0,
    stepRunUs: 0,
    stepsCompleted: 0,
    generatedTokens: 0,
    cachedPromptTokens: 0,
  }
  private readonly scheduler: Scheduler
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
  private executorClosed: Promise<void> | undefined

  /** @throws ERR_INVALID_ARGUMENT when an option is out of range */
  constructor(
    private readonly executor: Executor,
    options: SchedulerOptions,
    readonly now: () => number = () => performance.now(),
  ) {
    this.scheduler = new Scheduler(executor.info, options)
    executor.start((result) => this.onResult(result))
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

  /** Ends a request without telling its state: the state is who asks. */
  abort(id: RequestId): void {
    if (!this.active.has(id)) return
    this.forget(id)
    this.schedulePump()
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

  /** Rejects everything that is pending with `reason`, then ends the executor. Call once. */
  async close(reason: TensorRTError): Promise<void> {
    this.end(reason)
    await this.closeExecutor()
  }

  // --- the way in ---

  /** Requests that are made in one go are planned together. */
  private schedulePump(): void {
    if (this.pumpScheduled) return
    this.pumpScheduled = true
    queueMicrotask(() => {
      this.pumpScheduled = false
      this.pump()
    })
  }

  private pump(): void {
    if (this.ended !== undefined) return
    const now = this.now()
    try {
      for (let step = this.scheduler.plan(now); step !== null; step = this.scheduler.plan(now)) this.submit(step)
      for (const slot of this.scheduler.takeClosedSlots()) this.executor.closeSlot(slot)
    } catch (cause) {
      this.die(new TensorRTError('ERR_BACKEND_DEAD', `The executor failed: ${(cause as Error).message}`, { cause }))
      return
    }
    if (this.inFlight.length === 0 && this.scheduler.hasWork) {
      // Nothing would ever wake the loop again: better an error than promises that never settle.
      this.die(new TensorRTError('ERR_INTERNAL', 'Requests are pending, but none of them can run'))
      return
    }
    this.setTimer(now)
  }

  private submit(step: PlannedStep): void {
    for (const slot of step.close) this.executor.closeSlot(slot)
    for (const init of step.open) this.executor.openSlot(init)
    const entry: StepInFlight = { stepId: step.stepId, refused: undefined }
    this.inFlight.push(entry)
    try {
      this.executor.submit(step.packed)
    } catch (error) {
      entry.refused = refusedResult(step.stepId, error)
      setImmediate(() => this.guarded(() => this.takeRefused()))
    }
  }

  // --- the way out ---

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
    if (this.ended !== undefined) return
    const { error } = result
    if (error !== undefined && DEAD.has(error.code)) {
      const cause = new TensorRTError(error.code, error.message)
      this.die(new TensorRTError('ERR_BACKEND_DEAD', `The executor has ended: ${error.message}`, { cause }))
      return
    }
    this.inFlight.shift()
    this.counters.stepsCompleted++
    this.counters.stepQueueUs += result.timings.queueUs
    this.counters.stepRunUs += result.timings.runUs
    const events = this.scheduler.complete(result, this.now())
    this.pump()
    this.emit(events)
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
      this.pump()
    })
  }

  // --- the end ---

  private die(error: TensorRTError): void {
    if (this.ended !== undefined) return
    this.end(error)
    // Nobody waits for it; close() reports what comes of it.
    this.closeExecutor().catch(() => {})
  }

  private closeExecutor(): Promise<void> {
    return (this.executorClosed ??= this.executor.close())
  }

  private end(reason: TensorRTError): void {
    this.ended ??= reason
    clearTimeout(this.timer)
    this.scheduler.clear()
    const pending = [...this.active.values()]
    this.active.clear()
    for (const { state } of pending) state.fail(reason)
    this.tellIdle()
  }
}

function refusedResult(stepId: number, error: unknown): StepResult {
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
