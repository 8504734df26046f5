/** What a running engine spends its time on. */
import { monitorEventLoopDelay, performance } from 'node:perf_hooks'
import { AbortError, type TensorRTError } from '../errors'
import { ArgumentReader, followSignal, invalidArgument } from '../runtime'
import type { EngineLoop } from './engine_loop'
import { type Quantiles, quantiles } from './statistics'
import { type LayerProfile, LayerSums } from './layer_times'
import type { RecordedStep, StepProfile } from './step_recorder'

/** When a profile ends: with the first of these that is given. Default: after one second. */
export interface ProfileOptions {
  /** After so many steps. While no request runs there are none, and the profile waits for them. */
  steps?: number | undefined
  /** After so many milliseconds. */
  durationMs?: number | undefined
  /** When this settles, such as the results of a load. */
  until?: PromiseLike<unknown> | undefined
  /** How many of the last steps are kept as they are. Default 100. */
  keep?: number | undefined
  /**
   * Time the parts of each step too: embedding, attention and the rest of each layer, head, sampling. The TensorRT backend can; its
   * steps then run without CUDA graphs and without overlap, so take other figures from a profile without. Default false.
   */
  layers?: boolean | undefined
  /** Gives up the profile: it rejects with an AbortError. */
  signal?: AbortSignal | undefined
}

/**
 * Where the time of an engine's steps went. Figures are of steps that were planned and ended within the profile. Quantiles
 * are NaN, and shares 0, where there was no step.
 */
export interface LLMProfile {
  backend: string
  device: string
  /** How long was profiled. */
  durationMs: number
  /** From the start of the first step at the executor to the end of the last, without rests. Shares are of this. */
  workMs: number
  /** Between steps, while no request was there. */
  restMs: number
  steps: number
  shares: {
    /** The executor worked. */
    run: number
    /** The device was busy, by its own clock; NaN where there is none. */
    device: number
    /** The executor waited for the next step although there was work: what a GPU lost to the host. */
    gap: number
    /** The event loop's thread worked on steps; in part while the executor ran others. */
    host: number
    /** Of that the scheduler: planning, packing, accounting. */
    scheduler: number
  }
  /** Quantiles over steps of each of {@link StepProfile}'s figures. */
  perStep: Record<Exclude<keyof StepProfile, 'stepId'>, Quantiles>
  /** Steps of generated tokens only, and steps with rows of prompts; times of the executor's work. */
  decodeSteps: { steps: number; runUs: Quantiles }
  prefillSteps: { steps: number; runUs: Quantiles }
  eventLoop: {
    /** Share of the profile's time in which the event loop did something. */
    utilisation: number
    /** How late timers were, sampled each millisecond. */
    delayMs: Quantiles
  }
  /** With `layers`, where the backend can tell. */
  layers: LayerProfile | undefined
  /** The last steps, oldest first. */
  recent: StepProfile[]
}

const DEFAULT_DURATION_MS = 1000
const DEFAULT_KEEP = 100
/** Bounds what a profile keeps in memory. */
const MAX_STEPS = 100_000
const DELAY_RESOLUTION_MS = 1

const FIGURES = [
  'planUs',
  'packUs',
  'submitUs',
  'queueUs',
  'runUs',
  'deviceUs',
  'gapUs',
  'completeUs',
  'emitUs',
  'prefillRows',
  'decodeRows',
  'sequences',
  'kvPagesUsed',
  'kvUtilisation',
] as const satisfies readonly Exclude<keyof StepProfile, 'stepId'>[]

interface CheckedProfileOptions {
  steps: number
  durationMs: number | undefined
  until: PromiseLike<unknown> | undefined
  keep: number
  layers: boolean
  signal: AbortSignal | undefined
}

function checkProfileOptions(options: unknown): CheckedProfileOptions {
  const reader = new ArgumentReader(options, ['steps', 'durationMs', 'until', 'keep', 'layers', 'signal'], 'profile()')
  const steps = reader.integer('steps', 1, MAX_STEPS)
  // The most that a timer takes.
  const durationMs = reader.number('durationMs', 1, 2 ** 31 - 1)
  const until = reader.get('until') as PromiseLike<unknown> | undefined
  if (until !== undefined && typeof (until as { then?: unknown } | null)?.then !== 'function') {
    throw invalidArgument('until', 'a promise', until)
  }
  const unbounded = steps === undefined && durationMs === undefined && until === undefined
  return {
    steps: steps ?? MAX_STEPS,
    durationMs: unbounded ? DEFAULT_DURATION_MS : durationMs,
    until,
    keep: reader.integer('keep', 0, MAX_STEPS) ?? DEFAULT_KEEP,
    layers: reader.boolean('layers') ?? false,
    signal: reader.signal('signal'),
  }
}

/** Adds up steps. */
class ProfileSums {
  readonly columns: Record<(typeof FIGURES)[number], number[]>
  readonly recent: StepProfile[] = []
  readonly layers = new LayerSums()
  steps = 0
  restMs = 0
  private startedAt = 0
  private endedAt = 0

  constructor(private readonly keep: number) {
    this.columns = Object.fromEntries(FIGURES.map((name) => [name, [] as number[]])) as typeof this.columns
  }

  add(recorded: RecordedStep): void {
    const { profile: step, endedAt, restMs } = recorded
    this.layers.add(recorded)
    const first = this.steps++ === 0
    // What was before it is not of this profile.
    const profile = first ? { ...step, gapUs: 0 } : step
    if (first) this.startedAt = endedAt - profile.runUs / 1000
    else this.restMs += restMs
    this.endedAt = endedAt
    for (const name of FIGURES) this.columns[name].push(profile[name])
    if (this.keep === 0) return
    this.recent.push(profile)
    // Now and then, as each shift would move them all.
    if (this.recent.length >= 2 * this.keep) this.recent.splice(0, this.recent.length - this.keep)
  }

  get workMs(): number {
    return this.steps === 0 ? 0 : Math.max(0, this.endedAt - this.startedAt - this.restMs)
  }

  share(...names: (typeof FIGURES)[number][]): number {
    let us = 0
    for (const name of names) for (const value of this.columns[name]) us += value
    return this.workMs === 0 ? 0 : us / 1000 / this.workMs
  }

  runUsOf(wanted: (prefillRows: number) => boolean): { steps: number; runUs: Quantiles } {
    const { prefillRows, runUs } = this.columns
    const samples = runUs.filter((_, i) => wanted(prefillRows[i]!))
    return { steps: samples.length, runUs: quantiles(samples) }
  }
}

/**
 * Profiles what runs from now on.
 *
 * @throws (as a rejection) ERR_INVALID_ARGUMENT; AbortError; the error with which the engine ended meanwhile
 */
export async function profileLoop(loop: EngineLoop, options: ProfileOptions): Promise<LLMProfile> {
  const { steps, durationMs, until, keep, layers, signal } = checkProfileOptions(options)
  if (signal?.aborted === true) throw new AbortError(signal.reason)
  const sums = new ProfileSums(keep)
  const delays = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS })
  const startedAt = loop.now()
  const utilisation = performance.eventLoopUtilization()
  const ends: (() => void)[] = []
  delays.enable()
  try {
    await new Promise<void>((resolve, reject) => {
      const onStep = (step: RecordedStep): void => {
        if (sums.steps < steps) sums.add(step)
        if (sums.steps >= steps) resolve()
      }
      ends.push(loop.observe(onStep, (reason: TensorRTError) => reject(reason), layers))
      if (signal !== undefined) ends.push(followSignal(signal, () => reject(new AbortError(signal.reason))))
      if (durationMs !== undefined) {
        const timer = setTimeout(resolve, durationMs)
        ends.push(() => clearTimeout(timer))
      }
      until?.then(
        () => resolve(),
        () => resolve(),
      )
    })
  } finally {
    for (const end of ends) end()
    delays.disable()
  }
  const { name, device } = loop.info
  const delay = (ns: number): number => Math.max(0, ns / 1e6 - DELAY_RESOLUTION_MS)
  const perStep = Object.fromEntries(
    FIGURES.map((figure) => [figure, quantiles(sums.columns[figure].filter((value) => !Number.isNaN(value)))]),
  )
  return {
    backend: name,
    device,
    durationMs: loop.now() - startedAt,
    workMs: sums.workMs,
    restMs: sums.restMs,
    steps: sums.steps,
    shares: {
      run: sums.share('runUs'),
      device: sums.share('deviceUs'),
      gap: sums.share('gapUs'),
      host: sums.share('planUs', 'packUs', 'submitUs', 'completeUs', 'emitUs'),
      scheduler: sums.share('planUs', 'packUs', 'completeUs'),
    },
    perStep: perStep as LLMProfile['perStep'],
    decodeSteps: sums.runUsOf((rows) => rows === 0),
    prefillSteps: sums.runUsOf((rows) => rows > 0),
    eventLoop: {
      utilisation: performance.eventLoopUtilization(utilisation).utilization,
      delayMs: {
        mean: delay(delays.mean),
        p50: delay(delays.percentile(50)),
        p90: delay(delays.percentile(90)),
        p99: delay(delays.percentile(99)),
        max: delay(delays.max),
      },
    },
    layers: sums.layers.result(),
    recent: keep === 0 ? [] : sums.recent.slice(-keep),
  }
}
