/** What a comparison of an engine with a reference found, as engine.json keeps it. */
import { TensorRTError } from '../errors'
import { type Fields, invalidManifest } from './manifest_fields'

/** What an engine may differ by and be fit. What is undefined is not judged. Differences are absolute. */
export interface VerificationLimits {
  /** Of natural log-probabilities: the mean over positions, and the largest. */
  meanDifference?: number | undefined
  maxDifference?: number | undefined
  /** Of raw logits: the largest. */
  maxLogitDifference?: number | undefined
  /** Least share of positions where the most probable token is the same, 0 to 1. */
  top1Agreement?: number | undefined
}

/** What came of verifying an engine. */
export interface EngineVerification {
  /** ISO 8601 */
  at: string
  /** Version of this package that ran the engine: kernels of its own are in the package, not in the plan. */
  packageVersion: string
  /** The CPU backend, or stored references. */
  against: 'cpu' | 'references'
  prompts: number
  /** Log-probabilities that were compared. */
  positions: number
  meanDifference: number
  maxDifference: number
  /** Over the positions whose logits were compared, those after each prompt. */
  maxLogitDifference: number
  top1Agreement: number
  /** Positions where the engine gave no finite numbers; differences are those of the others. */
  invalidPositions: number
  limits: VerificationLimits
  fit: boolean
}

const LIMITS = ['meanDifference', 'maxDifference', 'maxLogitDifference', 'top1Agreement'] as const

/** @throws ERR_ENGINE_INVALID */
export function readVerification(fields: Fields, where: string): EngineVerification {
  const atLeastZero = (from: Fields, name: string): number => {
    const value = from.number(name)
    if (value >= 0) return value
    throw invalidManifest(`${where}: verification: "${name}" must not be negative`)
  }
  const count = (name: string): number => {
    const value = fields.number(name)
    if (Number.isSafeInteger(value) && value >= 0) return value
    throw invalidManifest(`${where}: verification: "${name}" must be a count`)
  }
  const share = (from: Fields, name: string): number => {
    const value = atLeastZero(from, name)
    if (value <= 1) return value
    throw invalidManifest(`${where}: verification: "${name}" must be from 0 to 1`)
  }
  const given = fields.object('limits')
  const limits: VerificationLimits = {}
  for (const name of LIMITS) if (given.has(name)) limits[name] = name === 'top1Agreement' ? share(given, name) : atLeastZero(given, name)
  return {
    at: fields.string('at'),
    packageVersion: fields.string('packageVersion'),
    against: fields.choice('against', ['cpu', 'references']),
    prompts: count('prompts'),
    positions: count('positions'),
    meanDifference: atLeastZero(fields, 'meanDifference'),
    maxDifference: atLeastZero(fields, 'maxDifference'),
    maxLogitDifference: atLeastZero(fields, 'maxLogitDifference'),
    top1Agreement: share(fields, 'top1Agreement'),
    invalidPositions: count('invalidPositions'),
    limits,
    fit: fields.boolean('fit'),
  }
}

type Figures = Omit<EngineVerification, 'fit'>

/** What exceeds its limit, each as "what: found, limit": empty for an engine that is fit. */
export function excesses(figures: Figures): string[] {
  const { limits, invalidPositions } = figures
  const found: string[] = []
  const show = (value: number): string => String(Number(value.toPrecision(4)))
  const judge = (what: string, value: number, limit: number | undefined, exceeded: boolean): void => {
    if (limit !== undefined && exceeded) found.push(`${what} ${show(value)}, the limit is ${show(limit)}`)
  }
  const { meanDifference, maxDifference, maxLogitDifference, top1Agreement } = figures
  if (invalidPositions > 0) found.push(`positions without finite numbers ${invalidPositions}, the limit is 0`)
  judge('mean difference of log-probabilities', meanDifference, limits.meanDifference, meanDifference > limits.meanDifference!)
  judge('largest difference of log-probabilities', maxDifference, limits.maxDifference, maxDifference > limits.maxDifference!)
  judge('largest difference of logits', maxLogitDifference, limits.maxLogitDifference, maxLogitDifference > limits.maxLogitDifference!)
  judge('agreement on the best token', top1Agreement, limits.top1Agreement, top1Agreement < limits.top1Agreement!)
  return found
}

/**
 * Throws for an engine that a verification found unfit. One that was never verified passes.
 *
 * @param path of the folder, for the message
 * @throws ERR_ENGINE_INCOMPATIBLE, naming what was found and the limit
 */
export function requireVerifiedFit(path: string, verification: EngineVerification | undefined): void {
  if (verification === undefined || verification.fit) return
  const against = verification.against === 'cpu' ? 'the CPU backend' : 'stored references'
  throw new TensorRTError(
    'ERR_ENGINE_INCOMPATIBLE',
    `${path} was found unfit on ${verification.at}, compared with ${against}: ${excesses(verification).join('; ')}`,
    { hint: 'build the engine again, or verify it again; allowUnfit: true, or --allow-unfit, runs it all the same' },
  )
}
