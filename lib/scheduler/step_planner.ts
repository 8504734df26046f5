import type { SlotInit } from './executor'
import { prefixComing } from './prefix_coming'
import type { SchedulerLimits } from './request'
import type { Residency } from './residency'
import { before, keepIf, leastUrgentBelow, type Sequence, SequenceState } from './sequence'
import type { StepLimits } from './step_limits'
import type { StepRecord } from './step_record'
import type { SchedulerCounters, SlotMask } from './types'

/** Sequences that may be passed over in one plan because a running one computes their prefix just now. */
const MAX_SET_ASIDE = 16
const NO_MASKS: readonly SlotMask[] = Object.freeze([])

/** Which tokens of which sequences a step gets, and which sequences are admitted or preempted for that. */
export class StepPlanner {
  private readonly decodes: Sequence[] = []
  private readonly prefills: Sequence[] = []
  /** Decoding by itself is put off, see {@link collect}. */
  private decodesWait = false

  constructor(
    private readonly residency: Residency,
    private readonly steps: StepLimits,
    private readonly limits: SchedulerLimits,
    private readonly counters: SchedulerCounters,
    private readonly preemptForPriority: boolean,
  ) {}

  /**
   * Gives a step its rows: first those that decode, then the running prompts, then what is admitted.
   * @param open gets the slots of what is admitted
   * @returns rows that decode; they come first
   */
  fill(record: StepRecord, open: SlotInit[], now: number): number {
    const { prefills, limits } = this
    this.residency.waiting.promote(now)
    if (this.preemptForPriority) this.makeWay(now)
    const relieved = this.collect(now)
    const decodeRows = this.addDecodes(record)
    const budget = this.steps.tokens(decodeRows)
    for (const seq of prefills) {
      const left = budget - record.tokens
      if (left <= 0) break
      record.add(seq, Math.min(seq.known - seq.computed, left), limits.pageSize)
    }
    if (!relieved) this.admit(record, decodeRows, budget, open, now)
    if (this.decodesWait && record.rows === decodeRows) {
      record.reset(record.stepId)
      return 0
    }
    return decodeRows
  }

  /** Accounts for the rows of a packed step. @returns masks of those that it samples under one */
  advance(record: StepRecord): readonly SlotMask[] {
    const { sequences } = record
    const { pages } = this.residency
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
    for (let row = 0; row < sequences.length; row++) pages.publish(sequences[row]!)
    return masks ?? NO_MASKS
  }

  /**
   * Sorts the running sequences into those with one token to run and those with more, and finds pages for the former.
   *
   * Where all that could decode is constrained, and so is some of what is sampled just now, that comes first: a step with the rest
   * would run behind it, and from then on the two would take turns, each with half of the rows. A step that is run for a prompt anyway
   * takes the rest along: else newcomers could hold it up as long as they come.
   * @returns whether sequences were preempted for that: then nothing must be admitted
   */
  private collect(now: number): boolean {
    const { decodes, prefills } = this
    const { running, pages } = this.residency
    const { pageSize } = this.limits
    decodes.length = 0
    prefills.length = 0
    let pagesNeeded = 0
    let kept = 0
    let [free, constrainedInFlight] = [false, false]
    for (let i = 0; i < running.length; i++) {
      const seq = running[i]!
      if (seq.state !== SequenceState.RUNNING) continue
      running[kept++] = seq
      if (seq.constraint !== null && seq.pending > 0) constrainedInFlight = true
      const length = seq.known + seq.pending
      const left = length - seq.computed
      if (left > 1) {
        prefills.push(seq)
      } else if (left === 1) {
        const sampled = length - seq.promptLength
        if (seq.awaitsMask || (sampled > 0 && (sampled >= seq.maxTokens || (seq.pending > 0 && seq.constraint !== null))))
          continue
        decodes.push(seq)
        if (seq.constraint === null) free = true
        if (seq.computed === seq.pageCount * pageSize) pagesNeeded++
      }
    }
    running.length = kept
    this.decodesWait = constrainedInFlight && !free
    if (this.preemptForPriority) prefills.sort((a, b) => a.rank - b.rank)
    if (pagesNeeded <= pages.blocks.available) return false
    if (this.decodesWait) {
      // What is in flight may free what they need: nobody is preempted for those who wait.
      decodes.length = 0
      return false
    }
    this.relieve(pagesNeeded, now)
    return true
  }

  /**
   * Too few pages for all that decode: preempts from the least urgent up until the rest fits, now or when the steps in
   * flight have completed. The most urgent always stays, so that there is progress. Who gets no page yet sits this step
   * out.
   */
  private relieve(needed: number, now: number): void {
    const { residency } = this
    const { blocks } = residency.pages
    const { pageSize } = this.limits
    const order = [...residency.running].sort((a, b) => (before(a, b) ? -1 : 1))
    const decodes = new Set(this.decodes)
    for (let i = order.length - 1; i > 0 && needed > blocks.available + blocks.soonAvailable; i--) {
      const victim = order.pop()!
      if (decodes.delete(victim) && victim.computed === victim.pageCount * pageSize) needed--
      this.preempt(victim, now)
    }
    let available = blocks.available
    residency.sweep()
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
    const { residency } = this
    const { pages } = residency
    const { blocks } = pages
    const seq = residency.waiting.peek()
    if (seq === undefined || residency.parkedBefore(seq)) return
    pages.lookUp(seq)
    const cost = pages.cost(seq)
    const most = Math.min(this.steps.sequences, this.limits.maxSlots)
    let live = residency.usedSlotCount
    while (live >= most || cost + live > blocks.available + blocks.soonAvailable) {
      const victim = leastUrgentBelow(seq, residency.running)
      if (victim === undefined) return
      this.preempt(victim, now)
      live--
    }
  }

  private preempt(seq: Sequence, now: number): void {
    this.counters.preemptions++
    this.residency.suspend(seq, now)
  }

  /** Within the budget, in order of admission. More decode than that only when sequences sat out a step. */
  private addDecodes(record: StepRecord): number {
    const { decodes } = this
    const { pages } = this.residency
    const { pageSize, maxStepTokens } = this.limits
    const count = Math.min(decodes.length, maxStepTokens)
    for (let i = 0; i < count; i++) {
      const seq = decodes[i]!
      if (seq.computed === seq.pageCount * pageSize) pages.grow(seq)
      record.add(seq, 1, pageSize)
    }
    return count
  }

  /** Admits from the queue in order. Rows from `firstPrefill` on are prefills. */
  private admit(record: StepRecord, firstPrefill: number, budget: number, open: SlotInit[], now: number): void {
    const { residency, counters } = this
    const { waiting, pages, running } = residency
    const { pageSize } = this.limits
    // Those passed over keep their claim to a slot.
    const most = this.steps.sequences
    while (
      record.tokens < budget &&
      running.length < most &&
      residency.freeSlotCount > waiting.setAsideCount &&
      waiting.setAsideCount < MAX_SET_ASIDE
    ) {
      const seq = waiting.peek()
      if (seq === undefined || residency.parkedBefore(seq)) break
      const found = pages.lookUp(seq)
      if (prefixComing(seq, found, pages.shareable(seq), record, firstPrefill, pageSize)) {
        waiting.setAside()
        continue
      }
      // A page in reserve for each running sequence, or the newcomer would be preempted again at the next page
      // boundary.
      if (pages.cost(seq) + running.length > pages.blocks.available) break
      residency.admit(seq)
      if (Number.isNaN(seq.admittedAt)) {
        seq.admittedAt = now
        seq.cachedTokens = seq.computed
        counters.prefixQueryTokens += pages.shareable(seq) * pageSize
        counters.prefixHitTokens += seq.computed
      }
      open.push(seq.slotInit())
      record.add(seq, Math.min(seq.known - seq.computed, budget - record.tokens), pageSize)
    }
    waiting.restore()
  }
}
