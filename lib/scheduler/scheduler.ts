/**
 * Continuous batching over a paged KV cache: decides which tokens of which sequences run in the next step.
 *
 * The scheduler is pure: it does no I/O, starts no timer and reads no clock (`now` is an argument, in ms, on any
 * monotonic clock that all calls share). The caller drives it:
 *
 * ```ts
 * const step = scheduler.plan(now())              // at most 1 + runAhead steps in flight
 * for (const slot of step.close) executor.closeSlot(slot)
 * for (const init of step.open) executor.openSlot(init)
 * for (const { slot, mask } of step.masks) executor.setMask(slot, mask)
 * executor.submit(step.packed)
 * // when its result arrives:
 * const events = scheduler.complete(result, now())  // then plan and submit again, and only then hand out the events
 * ```
 */
import { TensorRTError } from '../errors'
import { BlockManager } from './block_manager'
import { StepCostModel } from './cost_model'
import { Deadlines } from './deadlines'
import type { SlotInit, StepResult } from './executor'
import { LiveRequests } from './live_requests'
import { EventBuffer, type FinishReason, NO_TOKEN, type SequenceEvents } from './output'
import { atLeast, checkRequest, type GenerationRequest, type SchedulerLimits } from './request'
import { Residency } from './residency'
import { ResultAccounts } from './result_accounts'
import { malformed } from './result_check'
import { Sequence } from './sequence'
import { SequencePages } from './sequence_pages'
import { StepLimits } from './step_limits'
import { StepPlanner } from './step_planner'
import { StepRecord } from './step_record'
import type { Evacuation, PlannedStep, SchedulerCounters, SchedulerLoad, SchedulerOptions, SchedulerStats } from './types'

export class Scheduler {
  readonly limits: Readonly<SchedulerLimits>
  private readonly prefixCache: boolean
  private readonly runAhead: number
  private readonly maxQueue: number
  private readonly preemptForPriority: boolean

  private readonly blocks: BlockManager
  private readonly residency: Residency
  private readonly requests: LiveRequests
  private readonly planner: StepPlanner
  private readonly accounts: ResultAccounts
  private readonly cost = new StepCostModel()
  private readonly steps: StepLimits
  private readonly deadlines = new Deadlines((seq) => this.leastServiceMs(seq))
  private readonly inFlight: StepRecord[] = []
  private readonly spareRecords: StepRecord[] = []
  private readonly completed = new EventBuffer()
  private readonly expired = new EventBuffer()
  private readonly adopted = new EventBuffer()

  private nextStep = 0
  private arrivals = 0
  private draining = false
  private halted = false
  private readonly counters: SchedulerCounters = {
    steps: 0,
    stepFailures: 0,
    retries: 0,
    preemptions: 0,
    wastedRows: 0,
    prefillTokens: 0,
    decodeTokens: 0,
    prefixQueryTokens: 0,
    prefixHitTokens: 0,
    requestsAdded: 0,
    sequencesFinished: 0,
    sequencesFailed: 0,
    sequencesAborted: 0,
  }

  /** @throws ERR_INVALID_ARGUMENT when an option is out of range. */
  constructor(limits: SchedulerLimits, options: SchedulerOptions = {}) {
    this.prefixCache = options.prefixCache ?? true
    this.runAhead = atLeast('runAhead', options.runAhead ?? 1, 0)
    this.maxQueue = atLeast('maxQueue', options.maxQueue ?? 1024, 1)
    const maxRetries = atLeast('maxRetries', options.maxRetries ?? 1, 0)
    const agingMs = atLeast('agingMs', options.agingMs ?? 5000, 1)
    const maxStepTokens = Math.min(
      atLeast('maxStepTokens', options.maxStepTokens ?? limits.maxStepTokens, 1),
      limits.maxStepTokens,
    )
    this.steps = new StepLimits(maxStepTokens, options.maxStepMs)
    this.preemptForPriority = options.preemptForPriority ?? false
    const slots = Math.min(atLeast('maxSequences', options.maxSequences ?? limits.maxSlots, 1), limits.maxSlots)
    this.limits = { ...limits, maxSlots: slots, maxStepTokens }
    this.blocks = new BlockManager({
      numPages: limits.numPages,
      pageSize: limits.pageSize,
      maxStepsInFlight: this.runAhead + 1,
      retain: this.prefixCache,
      ...(options.hash === undefined ? {} : { hash: options.hash }),
    })
    const { counters } = this
    const pages = new SequencePages(this.blocks, slots, limits.maxPositions)
    const residency = new Residency(pages, slots, limits.vocabSize, agingMs)
    const requests = new LiveRequests(residency, this.deadlines, counters)
    this.residency = residency
    this.requests = requests
    this.planner = new StepPlanner(residency, this.steps, this.limits, counters, this.preemptForPriority)
    this.accounts = new ResultAccounts(residency, this.limits, counters, maxRetries, requests)
    for (let i = 0; i <= this.runAhead; i++) this.spareRecords.push(new StepRecord(slots, limits.hiddenRows === true))
  }

  /** True while a sequence lives or a step is in flight. */
  get hasWork(): boolean {
    return this.requests.size > 0 || this.inFlight.length > 0
  }

  /**
   * Queues a request.
   * @returns its sequences, `n` of them.
   * @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN, ERR_PROMPT_TOO_LONG, ERR_REQUEST_TOO_LARGE (it would not fit into
   * the empty pool), ERR_QUEUE_FULL, ERR_DEADLINE_EXCEEDED (the deadline cannot be met even if nothing else ran),
   * ERR_DISPOSED (draining), or what a constraint throws. Nothing has changed then.
   */
  add(request: GenerationRequest, now: number): readonly Sequence[] {
    this.assertOpen()
    if (this.requests.has(request.id))
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `A request with the id ${request.id} is live`)
    const maxTokens = checkRequest(request, this.limits)
    const n = request.n ?? 1
    this.assertRoom(n)
    const order = this.arrivals
    // The first letter keeps private salts apart from those that callers choose.
    const salt = this.prefixCache ? `s${request.cacheSalt ?? ''}` : n > 1 ? `p${order}` : null
    const sequences: Sequence[] = []
    try {
      for (let i = 0; i < n; i++) {
        const seq = new Sequence(request, i, order + i, now, maxTokens, salt)
        sequences.push(seq)
        if (seq.constraint !== null) seq.takeMask(this.limits.vocabSize)
      }
      const first = sequences[0]!
      if (this.deadlines.isHopeless(first, now)) {
        throw new TensorRTError('ERR_DEADLINE_EXCEEDED', 'The deadline cannot be met even if nothing else ran')
      }
    } catch (error) {
      for (const { constraint } of sequences) constraint?.close?.()
      throw error
    }
    this.arrivals += n
    this.requests.add(sequences)
    this.counters.requestsAdded++
    for (const seq of sequences) {
      this.residency.waiting.push(seq, now)
      this.deadlines.set(seq)
    }
    return sequences
  }

  private assertOpen(): void {
    if (this.draining) throw new TensorRTError('ERR_DISPOSED', 'No new requests are taken: the scheduler is draining')
  }

  private assertRoom(n: number): void {
    const { size } = this.residency.waiting
    if (size + n <= this.maxQueue) return
    throw new TensorRTError('ERR_QUEUE_FULL', `${size} sequences wait, ${n} more exceed the limit of ${this.maxQueue}`, {
      hint: 'retry later, or raise maxQueue',
    })
  }

  /**
   * Whether {@link add} would take a request of `n` sequences now, whatever it asks for: refusing one must not cost the
   * time of preparing it.
   * @throws ERR_DISPOSED, ERR_QUEUE_FULL
   */
  assertTakes(n: number): void {
    this.assertOpen()
    this.assertRoom(n)
  }

  /**
   * Ends all sequences of a request, in whatever state. No event reports it.
   * @returns false if no such request lives.
   */
  abort(id: string | number): boolean {
    return this.requests.abort(id) !== undefined
  }

  /**
   * Ends one sequence on the caller's judgement (a stop string). Tokens of it that steps in flight still sample are
   * dropped. No event reports it.
   * @returns false if it does not live.
   */
  finish(id: string | number, reason: FinishReason = 'stop', index = 0): boolean {
    const seq = this.requests.find(id, index)
    if (seq === undefined) return false
    this.requests.end(seq, reason === 'abort' ? 'sequencesAborted' : 'sequencesFinished')
    return true
  }

  /**
   * The constraint of a sequence has become ready: it takes its turn again.
   * @returns why the sequence cannot go on; it has ended then, and no event reports it
   */
  resume(id: string | number, index: number, now: number): TensorRTError | undefined {
    const seq = this.requests.find(id, index)
    if (seq === undefined || !seq.awaitsMask) return undefined
    const error = this.residency.resume(seq, now)
    if (error !== undefined) this.requests.end(seq, 'sequencesFailed')
    return error
  }

  /** Running sequences whose constraint is not ready. */
  get masksAwaited(): number {
    return this.residency.masksAwaited
  }

  /** Whether nothing may be running because constraints are not ready. */
  get awaitsMasks(): boolean {
    return this.residency.waiting.heldCount > 0 || this.masksAwaited > 0
  }

  /** From now on `add` throws ERR_DISPOSED; what is queued still runs to its end ({@link hasWork}). */
  drain(): void {
    this.draining = true
  }

  /** Ends everything that lives, without events. @returns the sequences that were ended. */
  clear(): Sequence[] {
    return this.requests.clear()
  }

  /**
   * The executor is lost: forgets the steps in flight, whose results must not be given to {@link complete} any more, and
   * all that the pool holds. What ran is in the queue again, with the output that was reported. From now on `plan`
   * returns null; everything else goes on, and {@link evacuate} gives the sequences to another scheduler.
   */
  halt(now: number): void {
    if (this.halted) return
    this.halted = true
    this.counters.stepFailures += this.inFlight.length
    for (const record of this.inFlight) {
      this.blocks.completeStep(record.stepId)
      this.counters.wastedRows += record.rows
      for (const seq of record.sequences) {
        seq.inFlight--
        seq.pending = 0
      }
      record.sequences.length = 0
      this.spareRecords.push(record)
    }
    this.inFlight.length = 0
    this.residency.vacate(now)
    for (let page = 0; page < this.limits.numPages; page++) this.blocks.unpublish(page)
  }

  /** Gives up everything that lives, for {@link adopt}; halts first. Nothing is left here but the statistics. */
  evacuate(now: number): Evacuation {
    this.halt(now)
    const requests = this.requests.release()
    return { requests, arrivals: this.arrivals, draining: this.draining, counters: { ...this.counters } }
  }

  /**
   * Takes over what another scheduler on the same clock gave up, to be called first of all. Output, arrival, priority,
   * deadline and timeout stay as they are; a sequence continues as if it had been preempted. Counters go on from the
   * other scheduler's.
   * @returns what became of sequences that this executor cannot continue: the errors of {@link add} where the request
   * exceeds its limits, the finish `length` where the output has reached them. Valid until the next call of `adopt`.
   * @throws ERR_INVALID_ARGUMENT when this scheduler has been used.
   */
  adopt(evacuation: Evacuation, now: number): SequenceEvents {
    if (this.halted || this.arrivals > 0) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', 'Only a new scheduler can take over the sequences of another')
    }
    this.arrivals = evacuation.arrivals
    this.draining = evacuation.draining
    Object.assign(this.counters, evacuation.counters)
    const events = this.adopted.clear()
    for (const sequences of evacuation.requests) {
      const live = sequences.filter((seq) => !seq.finished)
      const { request } = sequences[0]!
      this.requests.add(sequences)
      let error: TensorRTError | null = null
      let maxTokens = Infinity
      try {
        maxTokens = checkRequest(request, this.limits)
      } catch (reason) {
        error = reason as TensorRTError
      }
      for (const seq of live) {
        this.residency.waiting.push(seq, now)
        seq.maxTokens = Math.min(seq.maxTokens, maxTokens)
        const full = seq.outputLength > 0 && seq.outputLength >= seq.maxTokens
        if (error !== null || full) {
          this.requests.end(seq, error === null ? 'sequencesFinished' : 'sequencesFailed')
          events.push(seq, NO_TOKEN, null, null, error === null ? 'length' : null, error)
        } else {
          this.deadlines.set(seq)
        }
      }
    }
    return events
  }

  /**
   * Plans the next step. Null when nothing can run now: no work, all that runs waits for results, `1 + runAhead` steps
   * are in flight, or {@link halt} was called. Every planned step must be submitted and its result given to {@link complete}; if submitting
   * throws, give complete() a failed result in its place, in order.
   * @param onPack called when it is decided what runs, before that is packed
   */
  plan(now: number, onPack?: () => void): PlannedStep | null {
    if (this.halted || this.inFlight.length > this.runAhead) return null
    const record = this.spareRecords.pop()!
    record.reset(this.nextStep)
    record.plannedAt = now
    const open: SlotInit[] = []
    const decodeRows = this.planner.fill(record, open, now)
    if (record.rows === 0) {
      this.spareRecords.push(record)
      return null
    }

    onPack?.()
    const { pages } = this.residency
    const packed = record.pack(pages.table, pages.stride)
    const masks = this.planner.advance(record)
    this.nextStep++
    this.inFlight.push(record)
    this.counters.steps++
    this.counters.decodeTokens += decodeRows
    this.counters.prefillTokens += record.tokens - decodeRows
    const close = this.residency.takeLeftSlots()
    const { tokens, rows: sequences } = record
    return { stepId: record.wireId(), close, open, masks, packed, tokens, decodeTokens: decodeRows, sequences }
  }

  /** Slots to close although no step follows (an idle executor). Otherwise {@link PlannedStep.close} brings them. */
  takeClosedSlots(): readonly number[] {
    return this.residency.takeLeftSlots()
  }

  /**
   * Takes the result of the oldest step in flight.
   * @returns what became of its sequences; valid until the next call of `complete`.
   * @throws ERR_INTERNAL when the result is not of that step.
   */
  complete(result: StepResult, now: number): SequenceEvents {
    const events = this.completed.clear()
    const record = this.inFlight[0]
    if (record === undefined || record.wireId() !== result.stepId) {
      throw new TensorRTError(
        'ERR_INTERNAL',
        `A result of step ${result.stepId} arrived, expected was ${record?.wireId() ?? 'none'}`,
      )
    }
    this.inFlight.shift()
    this.blocks.completeStep(record.stepId)
    const error = result.error ?? malformed(record, result, this.limits)
    if (error === undefined) {
      this.cost.observe(record.tokens, result.timings)
      this.steps.observe(record.tokens, result.timings, record.plannedAt, now)
      this.accounts.takeTokens(record, result, events)
    } else {
      this.accounts.takeFailure(record, error, this.inFlight, now, events)
    }
    this.residency.stepEnded(record.sequences, now)
    record.sequences.length = 0
    this.spareRecords.push(record)
    return events
  }

  /**
   * Fails what has run out of time: ERR_TIMEOUT, and ERR_DEADLINE_EXCEEDED for deadlines that have passed or, of
   * waiting sequences, cannot be met any more.
   * @returns valid until the next call of `expire`.
   */
  expire(now: number): SequenceEvents {
    const events = this.expired.clear()
    this.deadlines.expire(now, (seq, error) => {
      this.requests.end(seq, 'sequencesFailed')
      events.push(seq, NO_TOKEN, null, null, null, error)
    })
    return events
  }

  /** Milliseconds until {@link expire} has something to look at; null = nothing is timed. */
  nextWakeup(now: number): number | null {
    return this.deadlines.nextWakeup(now)
  }

  stats(): SchedulerStats {
    const { blocks, limits, residency } = this
    const capacity = blocks.used * limits.pageSize
    let running = 0
    let unfilled = 0
    for (const seq of residency.running) {
      if (seq.finished) continue
      running++
      unfilled += seq.pageCount * limits.pageSize - seq.computed
    }
    return {
      running,
      waiting: residency.queued,
      stepsInFlight: this.inFlight.length,
      pagesTotal: limits.numPages,
      pagesFree: blocks.free,
      pagesCached: blocks.cached,
      pagesUsed: blocks.used,
      kvUtilization: capacity === 0 ? 0 : (capacity - unfilled) / capacity,
      ...this.counters,
    }
  }

  /**
   * Milliseconds of the steps that are planned at once where nothing runs and a short request comes: one that comes just behind it
   * waits for them. 0 while it is not known how long steps take.
   */
  get loneRequestMs(): number {
    const { curve } = this.steps
    return curve.isKnown ? (1 + this.runAhead) * curve.meanMs(1) : 0
  }

  /** What a request that comes now finds; see {@link SchedulerLoad}. */
  load(): SchedulerLoad {
    const { blocks, limits, residency, steps, counters } = this
    return {
      running: residency.usedSlotCount,
      waiting: residency.queued,
      maxQueue: this.maxQueue,
      maxRunning: Math.min(steps.sequences, limits.maxSlots),
      maxStepMs: steps.maxMs,
      preemptForPriority: this.preemptForPriority,
      stepTokens: (decodeRows) => steps.tokens(decodeRows),
      inFlightTokens: this.inFlight.map(({ tokens }) => tokens),
      prefillTokens: counters.prefillTokens,
      prefixQueryTokens: counters.prefixQueryTokens,
      prefixHitTokens: counters.prefixHitTokens,
      pageSize: limits.pageSize,
      totalPages: limits.numPages,
      availablePages: blocks.available,
      stepTimes: steps.curve,
      stepDelayMs: steps.delay.ms,
    }
  }

  /** Verifies that no page or slot is lost and every reference is accounted for; O(pages). @throws ERR_INTERNAL */
  check(): void {
    this.residency.check()
  }

  /** The least time, in ms, that the rest of a sequence takes if nothing else runs. */
  private leastServiceMs(seq: Sequence): number {
    const found = this.residency.pages.lookUp(seq) * this.limits.pageSize
    const outputs = Math.min(Math.max(seq.request.sampling.minTokens, 1), seq.maxTokens) - seq.outputLength
    return this.cost.leastMs(seq.known - found, Math.max(outputs, 1), this.limits.maxStepTokens)
  }
}
