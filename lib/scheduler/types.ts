/** What goes into a scheduler and what comes out, besides requests and events. */
import type { PageHash } from './block_manager'
import type { SlotInit } from './executor'
import type { Sequence } from './sequence'
import type { StepCurve } from './step_curve'

export interface SchedulerOptions {
  /** Share equal prefixes between requests (default true). The siblings of one request share its prompt either way. */
  prefixCache?: boolean | undefined
  /** Steps that may be planned before the results of the ones before are known (default 1). */
  runAhead?: number | undefined
  /** Most tokens in a step (default: the executor's limit, which also bounds it). */
  maxStepTokens?: number | undefined
  /** Most sequences at once (default: the executor's limit, which also bounds it). */
  maxSequences?: number | undefined
  /** Sequences that may wait (default 1024); beyond that `add` throws ERR_QUEUE_FULL. */
  maxQueue?: number | undefined
  /** How often a sequence is run again after a retryable step failure (default 1). */
  maxRetries?: number | undefined
  /**
   * A waiting sequence becomes one priority level more urgent each `agingMs` (default 5000). So nothing that arrives
   * later than
   * `(priority - most urgent priority in use + 1) * agingMs` after a sequence is served before it.
   */
  agingMs?: number | undefined
  /**
   * Longest time, in ms, that a step should take which outputs wait for: bounds the pause between two tokens (default: no
   * bound). Prompts are prefilled in smaller chunks then, and fewer sequences run at once, as the times of the steps before
   * say. About one step in a hundred takes longer.
   */
  maxStepMs?: number | undefined
  /**
   * A waiting sequence takes slot and pages of running ones that were asked for with less priority; those wait, and go on
   * where they were (default false). Prompts run in order of urgency then.
   */
  preemptForPriority?: boolean | undefined
  /** Replaces the hash of page contents (tests). */
  hash?: PageHash | undefined
}

export interface SlotMask {
  slot: number
  /** Read before the next call of the scheduler's. */
  mask: Int32Array | null
}

/** What to hand to the executor, in this order: close the slots, open the slots, set the masks, submit. */
export interface PlannedStep {
  /** As the packed step and its result carry it. */
  stepId: number
  close: readonly number[]
  open: readonly SlotInit[]
  masks: readonly SlotMask[]
  packed: Int32Array
  /** Tokens that the step computes, and sequences that it has rows of. */
  tokens: number
  /** Those of `tokens` that go on with an output, one a sequence. */
  decodeTokens: number
  sequences: number
}

/** Counts since the start. */
export interface SchedulerCounters {
  steps: number
  stepFailures: number
  retries: number
  preemptions: number
  /** Rows of steps whose result nobody needed: the sequence had ended by then, or an earlier step failed. */
  wastedRows: number
  prefillTokens: number
  decodeTokens: number
  /** Tokens of admitted prompts that could have come from the prefix cache, and that did. */
  prefixQueryTokens: number
  prefixHitTokens: number
  requestsAdded: number
  sequencesFinished: number
  sequencesFailed: number
  sequencesAborted: number
}

export interface SchedulerStats extends SchedulerCounters {
  /** Sequences with a slot, in the queue, and preempted ones that wait for steps in flight. */
  running: number
  waiting: number
  stepsInFlight: number
  pagesTotal: number
  pagesFree: number
  pagesCached: number
  pagesUsed: number
  /** Computed positions per position of the used pages, 0 to 1. */
  kvUtilization: number
}

/** What a forecast of waiting times is made from; cheap to read. */
export interface SchedulerLoad {
  /** Sequences with a slot, and without. */
  running: number
  waiting: number
  /** Most sequences that may wait, and that may run at once at the moment. */
  maxQueue: number
  maxRunning: number
  /** Options of these names. */
  maxStepMs: number | undefined
  preemptForPriority: boolean
  /** Tokens that a step may have which so many sequences wait for that decode. */
  stepTokens(decodeRows: number): number
  /** Tokens of the steps in flight, oldest first. */
  inFlightTokens: readonly number[]
  /** Since the start: tokens of prompts that steps were given, that could have come from the prefix cache, and that did. */
  prefillTokens: number
  prefixQueryTokens: number
  prefixHitTokens: number
  pageSize: number
  totalPages: number
  /** Pages that are free, or cached and used by nobody. */
  availablePages: number
  /** By number of tokens, as observed until now. Live: it goes on changing. */
  stepTimes: Pick<StepCurve, 'observations' | 'isKnown' | 'meanMs' | 'p99Ms'>
  /** How much longer a step takes in the mean than it runs, in ms: until its result is taken, and the next one can begin. */
  stepDelayMs: number
}

/** What one scheduler gives up and another takes over. */
export interface Evacuation {
  /** The live requests in order of arrival, each with all its sequences, also those that have finished. */
  readonly requests: readonly (readonly Sequence[])[]
  /** Sequences that ever arrived: arrival numbers go on from here. */
  readonly arrivals: number
  readonly draining: boolean
  readonly counters: SchedulerCounters
}
