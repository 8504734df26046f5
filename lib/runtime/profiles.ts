/**
 * Optimization profiles: the row counts that an engine is built for. The OPT of a profile decides which kernels TensorRT picks,
 * so decode gets narrow ones (docs/performance.md).
 */
import { TensorRTError } from '../errors'

/** Row counts of one profile, 1 <= min <= opt <= max. */
export interface RowProfile {
  min: number
  opt: number
  max: number
}

export const DEFAULT_MAX_STEP_TOKENS = 8192
/** Most rows whose logits are computed at one time. */
const MAX_HEAD_ROWS = 256

/**
 * `[rows that end a profile, OPT]`. A kernel picked for twice the rows costs up to half as much again, and a profile only seconds
 * of building; decode buckets end profiles up to 256 rows.
 */
const STEPS: readonly (readonly [max: number, opt: number])[] = [
  [8, 8],
  [16, 16],
  [32, 32],
  [64, 64],
  [128, 128],
  [256, 256],
  [512, 512],
  [1024, 1024],
  [2048, 2048],
  [8192, 4096],
]

/** Profiles without a gap from 1 row to `maxRows`. */
export function defaultProfiles(maxRows: number): RowProfile[] {
  const steps = STEPS.filter(([max]) => max < maxRows)
  const opt = STEPS[steps.length]?.[1] ?? maxRows
  const profiles: RowProfile[] = []
  for (const [max, best] of [...steps, [maxRows, Math.min(opt, maxRows)] as const]) {
    const min = (profiles.at(-1)?.max ?? 0) + 1
    profiles.push({ min, opt: Math.max(best, min), max })
  }
  return profiles
}

/** The same for the rows of a step whose logits are wanted. */
export function defaultHeadProfiles(maxStepTokens: number): RowProfile[] {
  return defaultProfiles(Math.min(maxStepTokens, MAX_HEAD_ROWS))
}

/** @throws ERR_INVALID_ARGUMENT unless each has 1 <= min <= opt <= max, and together they leave no gap */
export function checkProfiles(name: string, profiles: readonly RowProfile[]): void {
  const fail = (what: string): never => {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" ${what}`)
  }
  if (!Array.isArray(profiles) || profiles.length === 0 || profiles.length > 64) fail('must be an array of 1 to 64 profiles')
  let last = 0
  for (const profile of profiles as readonly unknown[]) {
    const { min, opt, max } = (typeof profile === 'object' && profile !== null ? profile : {}) as Partial<RowProfile>
    const integers = [min, opt, max].every((value) => Number.isInteger(value) && value! >= 1 && value! < 2 ** 31)
    if (!integers || min! > opt! || opt! > max!) fail('must hold profiles { min, opt, max } with 1 <= min <= opt <= max')
    if (max! <= last || min! > last + 1) fail('must hold profiles whose maxima ascend, and that leave no gap from 1 row on')
    last = max!
  }
}

/** `[profiles, 3]`: min, opt, max. */
export function packProfiles(profiles: readonly RowProfile[]): Int32Array {
  return Int32Array.from(profiles.flatMap(({ min, opt, max }) => [min, opt, max]))
}
