import type { TensorRTError } from '../errors'
import { type StepListener, StepRecorder } from './step_recorder'

/** Who listens to an engine loop's steps. While nobody does, no times are taken. */
export class StepObservers {
  /** Takes times; there while somebody listens. */
  recorder: StepRecorder | undefined
  /** Listeners who want to know how long the parts of a step took. */
  private parts = 0
  private readonly endListeners = new Set<(reason: TensorRTError) => void>()

  constructor(private readonly now: () => number) {}

  get timesParts(): boolean {
    return this.parts > 0
  }

  /** See {@link EngineLoop.observe}. */
  add(onStep: StepListener, onEnd: ((reason: TensorRTError) => void) | undefined, parts: boolean): () => void {
    const recorder = (this.recorder ??= new StepRecorder(this.now))
    recorder.listeners.add(onStep)
    if (onEnd !== undefined) this.endListeners.add(onEnd)
    if (parts) this.parts++
    return () => {
      if (parts && recorder.listeners.has(onStep)) this.parts--
      recorder.listeners.delete(onStep)
      if (onEnd !== undefined) this.endListeners.delete(onEnd)
      if (recorder.listeners.size === 0 && this.recorder === recorder) this.recorder = undefined
    }
  }

  /** No more steps will come: for now, or `forGood`. */
  end(reason: TensorRTError, forGood: boolean): void {
    for (const onEnd of this.endListeners) onEnd(reason)
    this.endListeners.clear()
    if (forGood) this.recorder = undefined
    else this.recorder?.reset()
  }
}
