/** Takes the times of an engine loop's steps, while somebody profiles. Without one the loop has no recorder. */
import type { PlannedStep, Scheduler, StepResult } from '../scheduler'

/** One step, from its plan to the hand-out of its tokens. Times are microseconds. */
export interface StepProfile {
  stepId: number
  /** Host: deciding what runs, and packing it for the executor. */
  planUs: number
  packUs: number
  /** Host: opening and closing slots, and handing the step over. */
  submitUs: number
  /** Executor: from the hand-over to the start of the work, and the work. */
  queueUs: number
  runUs: number
  /** Executor: between the device's own time stamps of the step's begin and end; NaN where it has no clock of its own. */
  deviceUs: number
  /** Executor: idle before this step although there was work; 0 for the first step after a rest. */
  gapUs: number
  /** Host: accounting for the result, before the next step is planned. */
  completeUs: number
  /** Host: detokenising and handing out, after the next step was submitted. */
  emitUs: number
  /** Rows of prompts, and of generated tokens. */
  prefillRows: number
  decodeRows: number
  sequences: number
  /** Used pages of the pool's, and filled token places of those in used pages; 0 to 1. At the plan. */
  kvPagesUsed: number
  kvUtilisation: number
}

/** A step of the profile, with moments on the loop's clock, in ms. */
export interface RecordedStep {
  profile: StepProfile
  plannedAt: number
  submittedAt: number
  /** When the executor had done it, by its own account. */
  endedAt: number
  /** When its tokens had been handed out. */
  handedOutAt: number
  /** Milliseconds without any work before it. */
  restMs: number
  /** See {@link StepResult.partUs}. */
  partUs: Float32Array | undefined
}

export type StepListener = (step: RecordedStep) => void

export class StepRecorder {
  readonly listeners = new Set<StepListener>()
  private readonly inFlight: RecordedStep[] = []
  /** Planned, and not yet submitted. */
  private planned: RecordedStep | undefined
  /** Whose result is worked on. */
  private current: RecordedStep | undefined
  private packedFrom = 0
  private lastEnd: number | undefined
  private resting = false

  constructor(private readonly now: () => number) {}

  /** {@link Scheduler.plan}, timed. */
  plan(scheduler: Scheduler, now: number): PlannedStep | null {
    const from = this.now()
    this.packedFrom = from
    const step = scheduler.plan(now, this.onPack)
    const to = this.now()
    if (step === null) return null
    const { pagesUsed, pagesTotal, kvUtilization } = scheduler.stats()
    const profile: StepProfile = {
      stepId: step.stepId,
      planUs: (this.packedFrom - from) * 1000,
      packUs: (to - this.packedFrom) * 1000,
      submitUs: 0,
      queueUs: 0,
      runUs: 0,
      deviceUs: Number.NaN,
      gapUs: 0,
      completeUs: 0,
      emitUs: 0,
      prefillRows: step.tokens - step.decodeTokens,
      decodeRows: step.decodeTokens,
      sequences: step.sequences,
      kvPagesUsed: pagesUsed / pagesTotal,
      kvUtilisation: kvUtilization,
    }
    this.planned = { profile, plannedAt: from, submittedAt: 0, endedAt: 0, handedOutAt: 0, restMs: 0, partUs: undefined }
    return step
  }

  private readonly onPack = (): void => {
    this.packedFrom = this.now()
  }

  /** @param from when the hand-over began */
  submitted(from: number): void {
    const { planned } = this
    if (planned === undefined) return
    this.planned = undefined
    planned.submittedAt = this.now()
    planned.profile.submitUs = (planned.submittedAt - from) * 1000
    this.inFlight.push(planned)
  }

  /** A result is there. What was submitted before the recorder was there, or failed, is not recorded. */
  arrived({ stepId, timings, partUs, error }: StepResult): void {
    this.current = undefined
    if (this.inFlight[0]?.profile.stepId !== stepId) return
    const step = this.inFlight.shift()!
    if (error !== undefined) return
    const { profile } = step
    profile.queueUs = timings.queueUs
    profile.runUs = timings.runUs
    profile.deviceUs = timings.deviceUs ?? Number.NaN
    step.partUs = partUs
    const startedAt = step.submittedAt + timings.queueUs / 1000
    step.endedAt = startedAt + timings.runUs / 1000
    // The executor's clock starts within the hand-over, so a start may seem to be before the end of the step before.
    const idleMs = this.lastEnd === undefined ? 0 : Math.max(0, startedAt - this.lastEnd)
    if (this.resting) step.restMs = idleMs
    else profile.gapUs = idleMs * 1000
    this.resting = false
    this.lastEnd = step.endedAt
    step.handedOutAt = this.now()
    this.current = step
  }

  /** The result is accounted for. */
  completed(): void {
    const { current } = this
    if (current !== undefined) current.profile.completeUs = (this.now() - current.handedOutAt) * 1000
  }

  /** The result is handed out. @param from when that began */
  emitted(from: number): void {
    const { current } = this
    if (current === undefined) return
    this.current = undefined
    current.handedOutAt = this.now()
    current.profile.emitUs = (current.handedOutAt - from) * 1000
    for (const listener of this.listeners) listener(current)
  }

  /** There is nothing to do: what passes now until the next step is no gap. */
  rest(): void {
    this.resting = true
  }

  /** Steps in flight are lost with their executor. */
  reset(): void {
    this.inFlight.length = 0
    this.planned = this.current = undefined
    this.lastEnd = undefined
    this.resting = false
  }
}
