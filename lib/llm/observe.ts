/** Figures of single steps, for those who watch an engine all the time. */
import { invalidArgument } from '../runtime'
import type { EngineLoop } from './engine_loop'
import type { StepProfile } from './step_recorder'

/** Gets the figures of a step once its tokens are handed out. The object is the observer's own. */
export type StepObserver = (step: StepProfile) => void

/**
 * @returns ends it; may be called again
 * @throws ERR_INVALID_ARGUMENT
 */
export function observeLoop(loop: EngineLoop, onStep: StepObserver): () => void {
  if (typeof onStep !== 'function') throw invalidArgument('onStep', 'a function', onStep)
  // It must not come in the way of requests.
  const fail = (error: unknown): void => {
    end()
    process.emitWarning(error instanceof Error ? error : String(error))
  }
  const end = loop.observe(({ profile }) => {
    try {
      const returned: unknown = onStep(profile)
      if (returned instanceof Promise) returned.catch(fail)
    } catch (error) {
      fail(error)
    }
  })
  return end
}
