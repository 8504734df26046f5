/** Drives a scheduler against the example executor, one result at a time, on virtual time. */
import { expect } from 'vitest'
import { emptyResult, HashExecutor } from '../../../examples/custom-executor/hash_executor'
import {
  type ExecutorInfo,
  type FinishReason,
  type GenerationRequest,
  GREEDY_SAMPLING,
  type LogprobRow,
  type PlannedStep,
  type RequestSampling,
  Scheduler,
  type SchedulerOptions,
  type Sequence,
  type SequenceEvents,
  type SlotInit,
  StepFlag,
  type StepResult,
  type StepView,
  type TokenConstraint,
} from '../../../lib/scheduler'

export const GREEDY: RequestSampling = { ...GREEDY_SAMPLING, seed: 1 }

export function request(
  id: string | number,
  prompt: number[] | Int32Array,
  rest: Partial<GenerationRequest> = {},
): GenerationRequest {
  return { id, prompt: Int32Array.from(prompt), sampling: GREEDY, maxTokens: 8, ...rest }
}

/** Deterministic pseudo-random numbers in [0, 1). */
export function randomSource(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

export function randomPrompt(random: () => number, length: number, vocabSize = 97): Int32Array {
  return Int32Array.from({ length }, () => Math.floor(random() * vocabSize))
}

export type Allowed = (tokens: readonly number[], token: number) => boolean
/** Depends on the number of tokens before: who misses one, or tells one twice, gets another text. */
export const oddThenEven: Allowed = (tokens, token) => token % 2 !== tokens.length % 2

/** Allows what `allowed` says of the output so far, in one array that it writes again and again. */
export class Constraint implements TokenConstraint {
  readonly accepted: number[] = []
  private readonly words: Int32Array

  constructor(
    private readonly allowed: Allowed = () => true,
    private readonly vocabSize = 97,
  ) {
    this.words = new Int32Array(Math.ceil(vocabSize / 32))
  }

  mask(): Int32Array {
    this.words.fill(0)
    for (let token = 0; token < this.vocabSize; token++) {
      if (this.allowed(this.accepted, token)) this.words[token >> 5]! |= 1 << (token & 31)
    }
    return this.words
  }

  accept(token: number): void {
    this.accepted.push(token)
  }
}

/** Runs when told to, and can fail a step the bad way: what the step wrote and sampled is garbage. */
export class SteppedExecutor extends HashExecutor {
  fault: (step: StepView) => StepResult['error'] = () => undefined
  runUs: (tokens: number) => number = () => 0
  readonly submitted: StepView[] = []
  private readonly work: (() => void)[] = []

  pump(): boolean {
    const next = this.work.shift()
    next?.()
    return next !== undefined
  }

  override submit(step: Int32Array): void {
    super.submit(step)
    this.submitted.push(unpack(step))
  }

  protected override defer(work: () => void): void {
    this.work.push(work)
  }

  protected override run(step: StepView): StepResult {
    const result = super.run(step)
    const runUs = this.runUs(step.sequences.reduce((sum, seq) => sum + seq.tokens.length, 0))
    const error = this.fault(step)
    if (error === undefined) return { ...result, timings: { queueUs: 0, runUs } }
    for (const seq of step.sequences) {
      for (let i = 0; i < seq.tokens.length; i++) this.cache[this.address(seq, seq.cached + i)] = -77 - i
      if ((seq.flags & StepFlag.SAMPLE) !== 0) this.slots.get(seq.slot)!.last = 13
    }
    return { ...emptyResult(step), error }
  }
}

/** A packed step, read as the contract's table says. */
export function unpack(packed: Int32Array): StepView {
  const [, stepId, count, , pageCount] = packed as unknown as [number, number, number, number, number]
  let pageAt = 6 + 5 * count
  let tokenAt = pageAt + pageCount
  const sequences = Array.from({ length: count }, (_, i) => {
    const [slot, rows, cached, pages, flags] = packed.subarray(6 + 5 * i) as unknown as [
      number,
      number,
      number,
      number,
      number,
    ]
    return {
      slot,
      cached,
      flags,
      pages: packed.subarray(pageAt, (pageAt += pages)),
      tokens: packed.subarray(tokenAt, (tokenAt += rows)),
    }
  })
  return { stepId, sequences }
}

export interface Outcome {
  tokens: number[]
  logprobs: (LogprobRow | null)[]
  promptLogprobs: LogprobRow[]
  finish: FinishReason | null
  error: string | null
}

export class Driver {
  executor: SteppedExecutor
  scheduler: Scheduler
  readonly outcomes = new Map<Sequence, Outcome>()
  readonly opened: SlotInit[] = []
  readonly planned: PlannedStep[] = []
  now = 0
  msPerStep = 1
  private results: StepResult[] = []

  constructor(sizes: Partial<ExecutorInfo> = {}, options: SchedulerOptions = {}) {
    this.executor = new SteppedExecutor(sizes)
    this.scheduler = new Scheduler(this.executor.info, options)
    this.executor.start((result) => this.results.push(result))
  }

  add(of: GenerationRequest): readonly Sequence[] {
    const sequences = this.scheduler.add(of, this.now)
    for (const seq of sequences)
      this.outcomes.set(seq, { tokens: [], logprobs: [], promptLogprobs: [], finish: null, error: null })
    return sequences
  }

  of(seq: Sequence): Outcome {
    return this.outcomes.get(seq)!
  }

  /** Submits as many steps as the scheduler gives. */
  submitAll(): number {
    let count = 0
    for (let step = this.scheduler.plan(this.now); step !== null; step = this.scheduler.plan(this.now)) {
      for (const slot of step.close) this.executor.closeSlot(slot)
      for (const init of step.open) {
        this.opened.push(init)
        this.executor.openSlot(init)
      }
      for (const { slot, mask } of step.masks) this.executor.setMask(slot, mask)
      this.executor.submit(step.packed)
      this.planned.push(step)
      this.expectNoPageReused()
      this.scheduler.check()
      count++
    }
    return count
  }

  /** Plans what can be planned, then takes one result. @returns false when there was nothing to do. */
  step(): boolean {
    this.submitAll()
    const ran = this.executor.pump()
    this.now += this.msPerStep
    const result = this.results.shift()
    if (result !== undefined) this.take(this.scheduler.complete(result, this.now))
    this.take(this.scheduler.expire(this.now))
    this.scheduler.check()
    return ran
  }

  /** The executor dies with whatever is in flight, and another takes over. `between` runs while there is none. */
  failOver(sizes: Partial<ExecutorInfo>, options: SchedulerOptions = {}, between: () => void = () => {}): void {
    this.scheduler.halt(this.now)
    this.scheduler.check()
    const { pagesFree, pagesTotal, running, stepsInFlight } = this.scheduler.stats()
    expect({ pagesFree, running, stepsInFlight }).toEqual({ pagesFree: pagesTotal, running: 0, stepsInFlight: 0 })
    expect(this.scheduler.plan(this.now)).toBeNull()
    between()
    this.take(this.scheduler.expire(this.now))
    const before = this.scheduler.stats()
    const evacuation = this.scheduler.evacuate(this.now)
    expect(this.scheduler.hasWork).toBe(false)
    expect(this.scheduler.nextWakeup(this.now)).toBeNull()
    this.executor = new SteppedExecutor(sizes)
    this.scheduler = new Scheduler(this.executor.info, options)
    this.results = []
    // What the dead executor still says goes nowhere.
    this.executor.start((result) => this.results.push(result))
    const events = this.scheduler.adopt(evacuation, this.now)
    expect(this.scheduler.stats().waiting).toBe(before.waiting - events.count)
    expect(this.scheduler.stats().requestsAdded).toBe(before.requestsAdded)
    this.take(events)
    this.scheduler.check()
  }

  /** Of the step that ran last, before the scheduler gets it. */
  patchNextResult(patch: (result: StepResult) => StepResult): void {
    this.results[0] = patch(this.results[0]!)
  }

  runToEnd(maxSteps = 100_000): void {
    while (this.scheduler.hasWork) {
      if (maxSteps-- === 0) throw new Error('The scheduler does not come to an end')
      if (!this.step() && this.scheduler.hasWork && this.scheduler.nextWakeup(this.now) === null)
        throw new Error('The scheduler is stuck')
    }
    const { pagesUsed, running, waiting } = this.scheduler.stats()
    expect({ pagesUsed, running, waiting }).toEqual({ pagesUsed: 0, running: 0, waiting: 0 })
  }

  /** A step must not write a page that another sequence's rows in an earlier step in flight read or write. */
  private expectNoPageReused(): void {
    const steps = this.executor.submitted.slice(-this.scheduler.stats().stepsInFlight)
    const { pageSize } = this.executor.info
    const last = steps.pop()!
    for (const seq of last.sequences) {
      for (const page of seq.pages.subarray(Math.floor(seq.cached / pageSize))) {
        for (const earlier of steps) {
          const other = earlier.sequences.find((candidate) => candidate.pages.includes(page))
          if (other !== undefined && other.slot !== seq.slot)
            throw new Error(`Page ${page} is written while step ${earlier.stepId} uses it`)
        }
      }
    }
  }

  private take(events: SequenceEvents): void {
    for (let i = 0; i < events.count; i++) {
      const outcome = this.of(events.sequences[i]!)
      expect(outcome.finish ?? outcome.error, 'an event after the last').toBeNull()
      if (events.tokens[i]! >= 0) {
        outcome.tokens.push(events.tokens[i]!)
        outcome.logprobs.push(events.logprobs[i]!)
      }
      outcome.promptLogprobs.push(...(events.promptLogprobs[i] ?? []))
      outcome.finish = events.finish[i]!
      outcome.error = events.errors[i]?.code ?? null
    }
  }
}

const soloTexts = new Map<string, number[]>()

/** Greedy text of a prompt by the executor alone, without a scheduler: one sequence, one contiguous run of pages. */
export function soloText(
  prompt: Int32Array,
  maxTokens: number,
  stopTokens: readonly number[] = [],
  allowed?: Allowed,
): number[] {
  const key = `${prompt.join()}|${maxTokens}|${stopTokens.join()}|${allowed?.name}`
  const present = soloTexts.get(key)
  if (present !== undefined) return present
  const executor = new SteppedExecutor({ maxStepTokens: 4096, maxPositions: 4096, numPages: 1024 })
  const { pageSize } = executor.info
  const text: number[] = []
  executor.start((result) => text.push(...result.tokens))
  executor.openSlot({
    slot: 0,
    sampling: { ...GREEDY, bannedTokens: new Int32Array(0) },
    prompt,
    output: new Int32Array(0),
  })
  let cached = 0
  let tokens = [...prompt]
  const constraint = new Constraint(allowed)
  while (text.length < maxTokens && !stopTokens.includes(text.at(-1) ?? -1)) {
    executor.setMask(0, constraint.mask())
    const pages = Array.from({ length: Math.ceil((cached + tokens.length) / pageSize) }, (_, i) => i)
    executor.submit(
      Int32Array.from([
        1,
        0,
        1,
        tokens.length,
        pages.length,
        0,
        0,
        tokens.length,
        cached,
        pages.length,
        1,
        ...pages,
        ...tokens,
      ]),
    )
    executor.pump()
    constraint.accept(text.at(-1)!)
    cached += tokens.length
    tokens = [text.at(-1)!]
  }
  soloTexts.set(key, text)
  return text
}
