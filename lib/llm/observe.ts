/** Figures of single steps, for those who watch an engine all the time. */
import type { TensorRTError } from '../errors'
import { invalidArgument } from '../runtime'
import type { EngineLoop } from './engine_loop'
import type { StepProfile } from './step_recorder'

/** Gets the figures of a step once its tokens are handed out. The object is the listener's own. */
export type StepObserver = (step: StepProfile) => void

/** Hears why no more steps will come: ERR_DISPOSED after a close, ERR_BACKEND_DEAD. */
export type EndObserver = (reason: TensorRTError) => void

/**
 * @returns ends it; may be called again
 * @throws ERR_INVALID_ARGUMENT
 */
export function observeLoop(loop: EngineLoop, onStep: StepObserver, onEnd?: EndObserver): () => void {
  if (typeof onStep !== 'function') throw invalidArgument('onStep', 'a function', onStep)
  if (onEnd !== undefined && typeof onEnd !== 'function') throw invalidArgument('onEnd', 'a function', onEnd)
  let stopped = false
  let end = (): void => {}
  const stop = (): void => {
    stopped = true
    end()
  }
  /** An error must not come in the way of requests: it ends the observation, and is a warning of the process. */
  const guarded = (call: () => void): void => {
    if (stopped) return
    try {
      call()
    } catch (error) {
      stop()
      process.emitWarning(error instanceof Error ? error : String(error))
    }
  }
  end = loop.observe(
    ({ profile }) => guarded(() => onStep(profile)),
    (reason) => guarded(() => onEnd?.(reason)),
  )
  if (stopped) end()
  return stop
}
