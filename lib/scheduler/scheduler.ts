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
import { type LogprobRow, NOTHING_ALLOWED, type SlotInit, type StepResult } from './executor'
import { EventBuffer, type FinishReason, NO_TOKEN, type SequenceEvents } from './output'
import { atLeast, checkRequest, type GenerationRequest, type SchedulerLimits } from './request'
import { malformed } from './result_check'
import { prefixComing } from './prefix_coming'
import { before, keepIf, leastUrgentBelow, Sequence, SequenceState } from './sequence'
import { SequencePages } from './sequence_pages'
import { spreadFailure } from './step_failure'
import { StepLimits } from './step_limits'
import { StepRecord } from './step_record'
import type { Evacuation, PlannedStep, SchedulerLoad, SchedulerOptions, SchedulerStats, SlotMask } from './types'
import { WaitingQueue } from './waiting_queue'

interface Group {
  sequences: Sequence[]
  live: number
}

/** Sequences that may be passed over in one plan because a running one computes their prefix just now. */
const MAX_SET_ASIDE = 16
const NO_MASKS: readonly SlotMask[] = Object.freeze([])

export class Scheduler {
  readonly limits: Readonly<SchedulerLimits>
  private readonly prefixCache: boolean
  private readonly runAhead: number
  private readonly maxStepTokens: number
  private readonly maxQueue: number
  private readonly maxRetries: number

  private readonly blocks: BlockManager
  private readonly pages: SequencePages
  private readonly cost = new StepCostModel()
  private readonly steps: StepLimits
  private readonly preemptForPriority: boolean
  private readonly groups = new Map<string | number, Group>()
  private readonly waiting: WaitingQueue
  private readonly deadlines = new Deadlines((seq) => this.leastServiceMs(seq))
  /** In order of admission. Finished sequences stay until the next plan. */
  private running: Sequence[] = []
  private readonly freeSlots: number[] = []
  private toClose: number[] = []
  private readonly inFlight: StepRecord[] = []
  private readonly spareRecords: StepRecord[] = []
  private readonly completed = new EventBuffer()
  private readonly expired = new EventBuffer()
  private readonly adopted = new EventBuffer()
  private readonly decodes: Sequence[] = []
  private readonly prefills: Sequence[] = []
  private readonly parked = new Set<Sequence>()

  private nextStep = 0
  private arrivals = 0
  private draining = false
  private halted = false
  private readonly counters = {
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
    this.maxRetries = atLeast('maxRetries', options.maxRetries ?? 1, 0)
    this.waiting = new WaitingQueue(atLeast('agingMs', options.agingMs ?? 5000, 1))
    this.maxStepTokens = Math.min(
      atLeast('maxStepTokens', options.maxStepTokens ?? limits.maxStepTokens, 1),
      limits.maxStepTokens,
    )
    this.steps = new StepLimits(this.maxStepTokens, options.maxStepMs)
    this.preemptForPriority = options.preemptForPriority ?? false
    const slots = Math.min(atLeast('maxSequences', options.maxSequences ?? limits.maxSlots, 1), limits.maxSlots)
    this.limits = { ...limits, maxSlots: slots, maxStepTokens: this.maxStepTokens }
    this.blocks = new BlockManager({
      numPages: limits.numPages,
      pageSize: limits.pageSize,
      maxStepsInFlight: this.runAhead + 1,
      retain: this.prefixCache,
      ...(options.hash === undefined ? {} : { hash: options.hash }),
    })
    this.pages = new SequencePages(this.blocks, slots, limits.maxPositions)
    for (let slot = slots - 1; slot >= 0; slot--) this.freeSlots.push(slot)
    for (let i = 0; i <= this.runAhead; i++) this.spareRecords.push(new StepRecord(slots))
  }

  /** True while a sequence lives or a step is in flight. */
  get hasWork(): boolean {
    return this.groups.size > 0 || this.inFlight.length > 0
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
    if (this.groups.has(request.id))
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
    this.groups.set(request.id, { sequences, live: n })
    this.counters.requestsAdded++
    for (const seq of sequences) {
      this.waiting.push(seq, now)
      this.deadlines.set(seq)
    }
    return sequences
  }

  private assertOpen(): void {
    if (this.draining) throw new TensorRTError('ERR_DISPOSED', 'No new requests are taken: the scheduler is draining')
  }

  private assertRoom(n: number): void {
    const { size } = this.waiting
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
    const group = this.groups.get(id)
    if (group === undefined) return false
    for (const seq of group.sequences) if (!seq.finished) this.end(seq, 'sequencesAborted')
    return true
  }

  /**
   * Ends one sequence on the caller's judgement (a stop string). Tokens of it that steps in flight still sample are
   * dropped. No event reports it.
   * @returns false if it does not live.
   */
  finish(id: string | number, reason: FinishReason = 'stop', index = 0): boolean {
    const seq = this.groups.get(id)?.sequences[index]
    if (seq === undefined || seq.finished) return false
    this.end(seq, reason === 'abort' ? 'sequencesAborted' : 'sequencesFinished')
    return true
  }

  /**
   * The constraint of a sequence has become ready: it takes its turn again.
   * @returns why the sequence cannot go on; it has ended then, and no event reports it
   */
  resume(id: string | number, index: number, now: number): TensorRTError | undefined {
    const seq = this.groups.get(id)?.sequences[index]
    if (seq === undefined || seq.finished || !seq.awaitsMask) return undefined
    const error = seq.resume(this.limits.vocabSize)
    if (error !== undefined) this.end(seq, 'sequencesFailed')
    else if (!seq.awaitsMask) this.waiting.resume(seq, now)
    return error
  }

  /** Running sequences whose constraint is not ready. */
  get masksAwaited(): number {
    let awaited = 0
    for (const seq of this.running) if (seq.awaitsMask && !seq.finished) awaited++
    return awaited
  }

  /** Whether nothing may be running because constraints are not ready. */
  get awaitsMasks(): boolean {
    return this.waiting.heldCount > 0 || this.masksAwaited > 0
  }

  /** From now on `add` throws ERR_DISPOSED; what is queued still runs to its end ({@link hasWork}). */
  drain(): void {
    this.draining = true
  }

  /** Ends everything that lives, without events. @returns the sequences that were ended. */
  clear(): Sequence[] {
    const ended: Sequence[] = []
    for (const group of this.groups.values()) {
      for (const seq of group.sequences) {
        if (seq.finished) continue
        this.end(seq, 'sequencesAborted')
        ended.push(seq)
      }
    }
    return ended
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
    for (const seq of this.running) {
      if (seq.state !== SequenceState.RUNNING) continue
      this.leaveSlot(seq)
      this.waiting.push(seq, now)
    }
    this.running = []
    for (const seq of this.parked) this.waiting.push(seq, now)
    this.parked.clear()
    // The executor's slots are gone with it.
    this.toClose = []
    for (let page = 0; page < this.limits.numPages; page++) this.blocks.unpublish(page)
  }

  /** Gives up everything that lives, for {@link adopt}; halts first. Nothing is left here but the statistics. */
  evacuate(now: number): Evacuation {
    this.halt(now)
    const requests = [...this.groups.values()].map((group) => group.sequences)
    this.groups.clear()
    for (const sequences of requests) {
      for (const seq of sequences) {
        if (seq.finished) continue
        this.waiting.remove(seq)
        this.deadlines.remove(seq)
        seq.lastStep = seq.taint = -1
      }
    }
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
      this.groups.set(request.id, { sequences, live: live.length })
      let error: TensorRTError | null = null
      let maxTokens = Infinity
      try {
        maxTokens = checkRequest(request, this.limits)
      } catch (reason) {
        error = reason as TensorRTError
      }
      for (const seq of live) {
        this.waiting.push(seq, now)
        seq.maxTokens = Math.min(seq.maxTokens, maxTokens)
        const full = seq.outputLength > 0 && seq.outputLength >= seq.maxTokens
        if (error !== null || full) {
          this.end(seq, error === null ? 'sequencesFinished' : 'sequencesFailed')
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
    this.waiting.promote(now)
    if (this.preemptForPriority) this.makeWay(now)
    const relieved = this.collect(now)

    const record = this.spareRecords.pop()!
    record.reset(this.nextStep)
    const open: SlotInit[] = []
    const decodeRows = this.addDecodes(record)
    const budget = this.steps.tokens(decodeRows)
    for (const seq of this.prefills) {
      const left = budget - record.tokens
      if (left <= 0) break
      record.add(seq, Math.min(seq.known - seq.computed, left), this.limits.pageSize)
    }
    if (!relieved) this.admit(record, decodeRows, budget, open, now)
    if (record.rows === 0) {
      this.spareRecords.push(record)
      return null
    }

    onPack?.()
    const packed = record.pack(this.pages.table, this.pages.stride)
    const masks = this.advance(record)
    this.nextStep++
    this.inFlight.push(record)
    this.counters.steps++
    this.counters.decodeTokens += decodeRows
    this.counters.prefillTokens += record.tokens - decodeRows
    const close = this.toClose
    this.toClose = []
    const { tokens, rows: sequences } = record
    return { stepId: record.wireId(), close, open, masks, packed, tokens, decodeTokens: decodeRows, sequences }
  }

  /** Slots to close although no step follows (an idle executor). Otherwise {@link PlannedStep.close} brings them. */
  takeClosedSlots(): readonly number[] {
    const close = this.toClose
    this.toClose = []
    return close
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
      this.steps.curve.observe(record.tokens, result.timings)
      this.takeTokens(record, result, events)
    } else {
      this.takeFailure(record, error, now, events)
    }
    for (const seq of record.sequences) {
      seq.inFlight--
      if (seq.state === SequenceState.PARKED && seq.inFlight === 0) {
        this.parked.delete(seq)
        this.waiting.push(seq, now)
      }
    }
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
      this.end(seq, 'sequencesFailed')
      events.push(seq, NO_TOKEN, null, null, null, error)
    })
    return events
  }

  /** Milliseconds until {@link expire} has something to look at; null = nothing is timed. */
  nextWakeup(now: number): number | null {
    return this.deadlines.nextWakeup(now)
  }

  stats(): SchedulerStats {
    const { blocks, limits } = this
    const capacity = blocks.used * limits.pageSize
    let running = 0
    let unfilled = 0
    for (const seq of this.running) {
      if (seq.finished) continue
      running++
      unfilled += seq.pageCount * limits.pageSize - seq.computed
    }
    return {
      running,
      waiting: this.waiting.size + this.parked.size,
      stepsInFlight: this.inFlight.length,
      pagesTotal: limits.numPages,
      pagesFree: blocks.free,
      pagesCached: blocks.cached,
      pagesUsed: blocks.used,
      kvUtilization: capacity === 0 ? 0 : (capacity - unfilled) / capacity,
      ...this.counters,
    }
  }

  /** What a request that comes now finds; see {@link SchedulerLoad}. */
  load(): SchedulerLoad {
    const { blocks, limits, steps, counters } = this
    return {
      running: limits.maxSlots - this.freeSlots.length,
      waiting: this.waiting.size + this.parked.size,
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
    }
  }

  /** Verifies that no page is lost and every reference is accounted for; O(pages). @throws ERR_INTERNAL */
  check(): void {
    this.pages.check(this.running.filter((seq) => seq.state === SequenceState.RUNNING))
    const slots = new Set(this.freeSlots)
    for (const seq of this.running) if (!seq.finished) slots.add(seq.slot)
    if (slots.size !== this.limits.maxSlots)
      throw new TensorRTError('ERR_INTERNAL', `${slots.size} of ${this.limits.maxSlots} slots are accounted for`)
  }

  // --- planning ---

  /**
   * Sorts the running sequences into those with one token to run and those with more, and finds pages for the former.
   */
  private collect(now: number): boolean {
    const { running, decodes, prefills } = this
    const { pageSize } = this.limits
    decodes.length = 0
    prefills.length = 0
    let pagesNeeded = 0
    let kept = 0
    for (let i = 0; i < running.length; i++) {
      const seq = running[i]!
      if (seq.state !== SequenceState.RUNNING) continue
      running[kept++] = seq
      const length = seq.known + seq.pending
      const left = length - seq.computed
      if (left > 1) {
        prefills.push(seq)
      } else if (left === 1) {
        const sampled = length - seq.promptLength
        if (seq.awaitsMask || (sampled > 0 && (sampled >= seq.maxTokens || (seq.pending > 0 && seq.constraint !== null))))
          continue
        decodes.push(seq)
        if (seq.computed === seq.pageCount * pageSize) pagesNeeded++
      }
    }
    running.length = kept
    if (this.preemptForPriority) prefills.sort((a, b) => a.rank - b.rank)
    if (pagesNeeded <= this.blocks.available) return false
    this.relieve(pagesNeeded, now)
    return true
  }

  /**
   * Too few pages for all that decode: preempts from the least urgent up until the rest fits, now or when the steps in
   * flight have completed. The most urgent always stays, so that there is progress. Who gets no page yet sits this step
   * out.
   */
  private relieve(needed: number, now: number): void {
    const { blocks } = this
    const { pageSize } = this.limits
    const order = [...this.running].sort((a, b) => (before(a, b) ? -1 : 1))
    const decodes = new Set(this.decodes)
    for (let i = order.length - 1; i > 0 && needed > blocks.available + blocks.soonAvailable; i--) {
      const victim = order.pop()!
      if (decodes.delete(victim) && victim.computed === victim.pageCount * pageSize) needed--
      this.counters.preemptions++
      this.suspend(victim, now)
    }
    let available = blocks.available
    this.running = this.running.filter((seq) => seq.state === SequenceState.RUNNING)
    for (const seq of order) {
      if (decodes.has(seq) && seq.computed === seq.pageCount * pageSize && available-- <= 0) decodes.delete(seq)
    }
    keepIf(this.decodes, (seq) => decodes.has(seq))
    keepIf(this.prefills, (seq) => seq.state === SequenceState.RUNNING)
  }

  /**
   * The most urgent waiting sequence lacks a slot or pages: running ones that were asked for with less priority, and have
   * not waited their way up, give theirs. Pages come with the end of the steps in flight.
   */
  private makeWay(now: number): void {
    const { blocks, pages } = this
    const seq = this.waiting.peek()
    if (seq === undefined || this.parkedBefore(seq)) return
    pages.lookUp(seq)
    const cost = pages.cost(seq)
    const most = Math.min(this.steps.sequences, this.limits.maxSlots)
    let live = this.limits.maxSlots - this.freeSlots.length
    while (live >= most || cost + live > blocks.available + blocks.soonAvailable) {
      const victim = leastUrgentBelow(seq, this.running)
      if (victim === undefined) return
      this.counters.preemptions++
      this.suspend(victim, now)
      live--
    }
  }

  /** Within the budget, in order of admission. More decode than that only when sequences sat out a step. */
  private addDecodes(record: StepRecord): number {
    const { decodes } = this
    const { pageSize } = this.limits
    const count = Math.min(decodes.length, this.maxStepTokens)
    for (let i = 0; i < count; i++) {
      const seq = decodes[i]!
      if (seq.computed === seq.pageCount * pageSize) this.pages.grow(seq)
      record.add(seq, 1, pageSize)
    }
    return count
  }

  /** Admits from the queue in order. Rows from `firstPrefill` on are prefills. */
  private admit(record: StepRecord, firstPrefill: number, budget: number, open: SlotInit[], now: number): void {
    const { waiting, pages, blocks } = this
    // Those passed over keep their claim to a slot.
    const most = this.steps.sequences
    while (
      record.tokens < budget &&
      this.running.length < most &&
      this.freeSlots.length > waiting.setAsideCount &&
      waiting.setAsideCount < MAX_SET_ASIDE
    ) {
      const seq = waiting.peek()
      if (seq === undefined || this.parkedBefore(seq)) break
      const found = pages.lookUp(seq)
      if (prefixComing(seq, found, pages.shareable(seq), record, firstPrefill, this.limits.pageSize)) {
        waiting.setAside()
        continue
      }
      // A page in reserve for each running sequence, or the newcomer would be preempted again at the next page
      // boundary.
      if (pages.cost(seq) + this.running.length > blocks.available) break
      waiting.remove(seq)
      seq.state = SequenceState.RUNNING
      seq.slot = this.freeSlots.pop()!
      pages.admit(seq)
      if (Number.isNaN(seq.admittedAt)) {
        seq.admittedAt = now
        seq.cachedTokens = seq.computed
        this.counters.prefixQueryTokens += pages.shareable(seq) * this.limits.pageSize
        this.counters.prefixHitTokens += seq.computed
      }
      this.running.push(seq)
      open.push(seq.slotInit())
      record.add(seq, Math.min(seq.known - seq.computed, budget - record.tokens), this.limits.pageSize)
    }
    waiting.restore()
  }

  /**
   * True when a sequence that only waits for its last step to complete comes first: it must not lose its turn to a
   * newcomer.
   */
  private parkedBefore(seq: Sequence): boolean {
    for (const parked of this.parked) if (before(parked, seq)) return true
    return false
  }

  /** Accounts for the rows of a packed step. @returns masks of those that it samples under one */
  private advance(record: StepRecord): readonly SlotMask[] {
    const { sequences } = record
    let masks: SlotMask[] | undefined
    for (let row = 0; row < sequences.length; row++) {
      const seq = sequences[row]!
      seq.computed += record.tokensOf(row)
      if (record.samplesRow(row)) {
        seq.pending++
        if (seq.constraint !== null) (masks ??= []).push({ slot: seq.slot, mask: seq.mask })
      }
      seq.inFlight++
      seq.lastStep = record.stepId
    }
    // Only now: pages that this step writes must not be found by others while it is planned.
    for (let row = 0; row < sequences.length; row++) this.pages.publish(sequences[row]!)
    return masks ?? NO_MASKS
  }

  // --- results ---

  private takeTokens(record: StepRecord, result: StepResult, events: EventBuffer): void {
    const { logprobs } = result
    let sampleAt = 0
    let hiddenAt = 0
    let logprobAt = 0
    for (let row = 0; row < record.rows; row++) {
      const seq = record.sequences[row]!
      const samples = record.samplesRow(row)
      const token = samples ? result.tokens[sampleAt++]! : NO_TOKEN
      let hidden: Float32Array | null = null
      if (record.hiddens > 0 && record.reportsHidden(row)) {
        const size = this.limits.hiddenSize!
        hidden = result.hidden!.slice(hiddenAt, (hiddenAt += size))
      }
      const live = record.dropped[row] === 0
      if (samples && live) seq.pending--
      if (!live || seq.finished) {
        this.counters.wastedRows++
        while (logprobAt < logprobs.length && logprobs[logprobAt]!.sequence === row) logprobAt++
        continue
      }
      let promptRows: LogprobRow[] | null = null
      let tokenRow: LogprobRow | null = null
      for (; logprobAt < logprobs.length && logprobs[logprobAt]!.sequence === row; logprobAt++) {
        const reported = logprobs[logprobAt]!
        if (reported.position >= seq.promptLength) {
          tokenRow = reported
        } else if (reported.position >= seq.nextPromptLogprob) {
          // A recomputed prompt reports again what was reported before it was preempted.
          seq.nextPromptLogprob = reported.position + 1
          ;(promptRows ??= []).push(reported)
        }
      }
      let finish: FinishReason | null = null
      if (samples) {
        if (seq.constraint !== null && token === NOTHING_ALLOWED) {
          this.fail(seq, new TensorRTError('ERR_INVALID_ARGUMENT', 'The token mask leaves no token to sample'), events)
          continue
        }
        seq.append(token)
        if (seq.state === SequenceState.RUNNING) this.pages.publish(seq)
        // Before minTokens a stop token is what a mask has left.
        const mayStop = seq.outputLength > seq.request.sampling.minTokens || seq.constraint !== null
        if (mayStop && seq.stopsAt(token)) finish = 'stop'
        else if (seq.outputLength >= seq.maxTokens) finish = 'length'
      } else if (seq.maxTokens === 0 && record.cachedOf(row) + record.tokensOf(row) === seq.promptLength) {
        finish = 'length'
      }
      if (finish !== null) {
        this.end(seq, 'sequencesFinished')
      } else if (seq.constraint !== null && samples) {
        const error = seq.follow(token, this.limits.vocabSize)
        if (error !== undefined) {
          this.fail(seq, error, events)
          continue
        }
      }
      if (samples || finish !== null || promptRows !== null)
        events.push(seq, token, tokenRow, promptRows, finish, null, hidden)
    }
  }

  private fail(seq: Sequence, error: TensorRTError, events: EventBuffer): void {
    this.end(seq, 'sequencesFailed')
    events.push(seq, NO_TOKEN, null, null, null, error)
  }

  private takeFailure(
    record: StepRecord,
    error: NonNullable<StepResult['error']>,
    now: number,
    events: EventBuffer,
  ): void {
    this.counters.stepFailures++
    const damaged = spreadFailure(record, this.inFlight, this.blocks, record.stepId)
    for (let row = 0; row < record.rows; row++) {
      const seq = record.sequences[row]!
      const dropped = record.dropped[row] !== 0
      if (!dropped && record.samplesRow(row)) seq.pending--
      if (seq.finished || dropped) {
        this.counters.wastedRows++
      } else if (error.retryable && seq.failures < this.maxRetries) {
        seq.failures++
        this.counters.retries++
        damaged.push(seq)
      } else {
        const cause = new TensorRTError(error.code, error.message)
        const again = seq.failures > 0 ? ` (after ${seq.failures} retries)` : ''
        this.fail(seq, new TensorRTError('ERR_STEP_FAILED', `${error.message}${again}`, { cause }), events)
      }
    }
    for (const seq of damaged) if (seq.state === SequenceState.RUNNING) this.suspend(seq, now)
    this.running = this.running.filter((seq) => seq.state === SequenceState.RUNNING)
  }

  // --- the life of a sequence ---

  /** Gives up pages and slot and goes back to the queue, keeping its output. The caller takes it out of `running`. */
  private suspend(seq: Sequence, now: number): void {
    this.leaveSlot(seq)
    if (seq.inFlight === 0) {
      this.waiting.push(seq, now)
    } else {
      seq.state = SequenceState.PARKED
      this.parked.add(seq)
    }
  }

  private end(seq: Sequence, counter: 'sequencesFinished' | 'sequencesFailed' | 'sequencesAborted'): void {
    if (seq.state === SequenceState.RUNNING) this.leaveSlot(seq)
    else if (seq.state === SequenceState.PARKED) this.parked.delete(seq)
    else this.waiting.remove(seq)
    seq.state = SequenceState.FINISHED
    this.deadlines.remove(seq)
    seq.constraint?.close?.()
    this.counters[counter]++
    const group = this.groups.get(seq.id)!
    if (--group.live === 0) this.groups.delete(seq.id)
  }

  private leaveSlot(seq: Sequence): void {
    this.pages.release(seq)
    this.toClose.push(seq.slot)
    this.freeSlots.push(seq.slot)
    seq.slot = -1
  }

  // --- time ---

  private leastServiceMs(seq: Sequence): number {
    const found = this.pages.lookUp(seq) * this.limits.pageSize
    const outputs = Math.min(Math.max(seq.request.sampling.minTokens, 1), seq.maxTokens) - seq.outputLength
    return this.cost.leastMs(seq.known - found, Math.max(outputs, 1), this.maxStepTokens)
  }
}
