import type { TensorRTError } from '../errors'
import type { EngineLoop } from './engine_loop'
import type { LoopPhase } from './succession'

/**
 * `ready`: the model's own backend serves. `fallback`: it died, and another serves. `switching`: it died, and the other is on
 * its way; requests wait. `restarting`: nothing serves, requests are refused, and the backend is being made again. `dead`:
 * nothing serves any more. `closing` and `closed`: after `close`.
 */
export type LLMState = 'ready' | 'fallback' | 'switching' | 'restarting' | 'dead' | 'closing' | 'closed'

/** Whether an LLM serves, and makes progress. */
export interface LLMHealth {
  state: LLMState
  /** Requests are taken and run: the state is `ready` or `fallback`, and no step is stuck. */
  ready: boolean
  /** Name of what runs the model, or ran it last. */
  backend: string
  /** How long the oldest step in flight has been running, in ms; 0 while nothing runs. */
  oldestStepMs: number
  /** That is longer than `stuckAfterMs`. */
  stuck: boolean
  /** How often another backend took over, and how often the model's own came back. */
  failovers: number
  restarts: number
  /**
   * Whether the model's own backend, if it is dead or dies, can come back in this process, as far as is known. When this is
   * false and the state is not `ready`, only another process will be.
   */
  restartable: boolean
  /** Attempts in a row to bring a dead backend back that failed; one that died again soon after its return is counted. */
  restartAttempts: number
  /** Milliseconds until the next attempt, 0 during one; undefined when none will come. */
  nextRestartMs: number | undefined
  /** Why the last backend that died did so. */
  lastError: TensorRTError | undefined
}

const STATES: Readonly<Record<LoopPhase, LLMState>> = {
  serving: 'ready',
  substituted: 'fallback',
  switching: 'switching',
  down: 'restarting',
  ended: 'dead',
}

/** A slow machine may take so long for a large step; a GPU that does hangs. */
const STUCK_AFTER_MS = 30_000
const STUCK_FACTOR = 50

export function collectHealth(
  loop: EngineLoop,
  stuckAfterMs: number | undefined,
  closing: 'closing' | 'closed' | undefined,
): LLMHealth {
  const { restart, counters } = loop
  const { ms, tokens } = loop.oldestStep
  const limit = stuckAfterMs ?? Math.max(STUCK_AFTER_MS, STUCK_FACTOR * (loop.load().stepTimes.meanMs(tokens) || 0))
  const stuck = ms > limit
  const state = closing ?? STATES[loop.phase]
  return {
    state,
    ready: (state === 'ready' || state === 'fallback') && !stuck && !loop.isDraining,
    backend: loop.info.name,
    oldestStepMs: ms,
    stuck,
    failovers: counters.failovers,
    restarts: counters.restarts,
    restartable: restart.restartable,
    restartAttempts: restart.attempts,
    nextRestartMs: restart.nextAttemptMs,
    lastError: loop.lastError,
  }
}
