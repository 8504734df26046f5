/** What one request may ask for: the server's limits, and those of an API key. */
import { ArgumentReader } from '../runtime'
import type { RequestLimits } from './seams'

export const DEFAULT_LIMITS: Readonly<RequestLimits> = Object.freeze({
  maxBodyBytes: 4 * 1024 * 1024,
  maxJsonDepth: 100,
  maxChoices: 128,
  maxInputs: 2048,
  maxLogprobs: 20,
  maxOutputTokens: Infinity,
  maxPromptTokens: Infinity,
  bodyTimeoutMs: 30_000,
  requestTimeoutMs: Infinity,
  minPriority: -1000,
})

const MAX_TIMER_MS = 2 ** 31 - 1

/** @returns those that are given. @throws ERR_INVALID_ARGUMENT */
export function checkLimits(given: unknown, what: string): Partial<RequestLimits> {
  if (given === undefined) return {}
  const reader = new ArgumentReader(given, Object.keys(DEFAULT_LIMITS), what)
  /** A number up to which Infinity, no limit, is fine, too. */
  const unlimited = (name: keyof RequestLimits): number | undefined =>
    reader.get(name) === Infinity ? Infinity : reader.integer(name, 1, Number.MAX_SAFE_INTEGER)
  const limits: { [name in keyof RequestLimits]: number | undefined } = {
    maxBodyBytes: reader.integer('maxBodyBytes', 1, 2 ** 28),
    maxJsonDepth: reader.integer('maxJsonDepth', 1, 1000),
    maxChoices: reader.integer('maxChoices', 1, 1024),
    maxInputs: reader.integer('maxInputs', 1, 65_536),
    maxLogprobs: reader.integer('maxLogprobs', 0, 256),
    maxOutputTokens: unlimited('maxOutputTokens'),
    maxPromptTokens: unlimited('maxPromptTokens'),
    bodyTimeoutMs: reader.integer('bodyTimeoutMs', 1, MAX_TIMER_MS),
    requestTimeoutMs: unlimited('requestTimeoutMs'),
    minPriority: reader.integer('minPriority', -1000, 1000),
  }
  return Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined))
}
