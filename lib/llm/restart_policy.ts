export interface RestartPolicy {
  /** Before the first attempt, in ms. Doubles with each attempt that fails. */
  initialDelayMs: number
  maxDelayMs: number
  /** In a row. An executor that dies within `maxDelayMs` of its return counts as one that did not come. */
  maxAttempts: number
}

export const DEFAULT_RESTART: Readonly<RestartPolicy> = { initialDelayMs: 1000, maxDelayMs: 60_000, maxAttempts: Infinity }
