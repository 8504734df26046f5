/** The requests that an engine loop has under way, and the hand-out of what steps brought to those who wait for it. */
import type { TensorRTError } from '../errors'
import { NO_TOKEN, type Scheduler, type Sequence, type SequenceEvents } from '../scheduler'
import type { RequestState } from './request_state'

export type RequestId = string | number

interface ActiveRequest {
  id: RequestId
  state: RequestState
  sequences: readonly Sequence[]
}

/** Counts since the start. */
export interface RequestCounters {
  generatedTokens: number
  cachedPromptTokens: number
}

export class ActiveRequests {
  private readonly active = new Map<RequestId, ActiveRequest>()
  /** Requests with something new to deliver, in the course of one call. */
  private readonly touched = new Set<ActiveRequest>()
  private onIdle: (() => void) | undefined

  /** @param onEarlyEnd called when an output has ended by its text: what it held is free */
  constructor(
    private readonly counters: RequestCounters,
    private readonly now: () => number,
    private readonly onEarlyEnd: () => void,
  ) {}

  get size(): number {
    return this.active.size
  }

  has(id: RequestId): boolean {
    return this.active.has(id)
  }

  add(id: RequestId, state: RequestState, sequences: readonly Sequence[]): void {
    this.active.set(id, { id, state, sequences })
  }

  /** @returns a promise of the moment when there is none; call once */
  idle(): Promise<void> {
    if (this.active.size === 0) return Promise.resolve()
    return new Promise((resolve) => (this.onIdle = resolve))
  }

  /** @param scheduler the one whose events these are */
  handOut(events: SequenceEvents, scheduler: Scheduler): void {
    for (let i = 0; i < events.count; i++) {
      const { id, index } = events.sequences[i]!
      const request = this.active.get(id)
      // It may have failed through a sibling earlier in this very list.
      if (request === undefined) continue
      const error = events.errors[i]!
      if (error !== null) {
        this.forget(id, scheduler)
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
        if (ended && finish === null && scheduler.finish(id, 'stop', index)) this.onEarlyEnd()
      } else if (finish !== null) {
        request.state.addEnd(index, finish)
      }
      this.touched.add(request)
    }
    // The newest first: a first token is waited for more than those that follow, and what consumers do takes its time.
    const touched = [...this.touched].reverse()
    this.touched.clear()
    for (const request of touched) this.deliver(request)
  }

  /** The output of a choice is complete as it is. @returns false if it does not live */
  complete(id: RequestId, index: number, scheduler: Scheduler): boolean {
    const request = this.active.get(id)
    if (request === undefined || !scheduler.finish(id, 'stop', index)) return false
    request.state.addEnd(index, 'stop')
    this.deliver(request)
    return true
  }

  /** Ends a request. @returns who waits for it, and is told nothing; undefined if it does not live */
  forget(id: RequestId, scheduler: Scheduler): RequestState | undefined {
    const request = this.active.get(id)
    if (request === undefined) return undefined
    this.active.delete(id)
    scheduler.abort(id)
    this.tellIdle()
    return request.state
  }

  /** Fails all of them, whose sequences have ended. */
  failAll(reason: TensorRTError): void {
    const pending = [...this.active.values()]
    this.active.clear()
    for (const { state } of pending) state.fail(reason)
    this.tellIdle()
  }

  private deliver(request: ActiveRequest): void {
    if (request.state.ended) this.settle(request)
    else request.state.deliver()
  }

  private settle(request: ActiveRequest): void {
    this.active.delete(request.id)
    const { cachedTokens, admittedAt } = request.sequences[0]!
    this.counters.cachedPromptTokens += cachedTokens
    // A grammar may leave nothing to say: it ends before it is admitted.
    request.state.finish({ cachedTokens, admittedAt: Number.isNaN(admittedAt) ? this.now() : admittedAt })
    this.tellIdle()
  }

  private tellIdle(): void {
    if (this.active.size === 0) this.onIdle?.()
  }
}
