import { TensorRTError } from '../errors'
import type { Executor } from '../scheduler'
import { checkExecutor } from './validate'

/** An executor that stands by, or what makes one when it is needed. */
export type FallbackSource = Executor | (() => Promise<Executor>)

/** The executor that takes over when another dies. Serves once. */
export class Fallback {
  private source: FallbackSource | undefined

  constructor(source: FallbackSource | undefined) {
    this.source = source
  }

  get available(): boolean {
    return this.source !== undefined
  }

  /**
   * @param vocabSize of the executor that died: tokens would not mean the same otherwise
   * @throws (as a rejection) what making the executor throws; ERR_INVALID_ARGUMENT for one of another vocabulary
   */
  async take(vocabSize: number): Promise<Executor> {
    const { source } = this
    this.source = undefined
    if (source === undefined) throw new TensorRTError('ERR_INTERNAL', 'There is no executor to fall back to')
    const executor = typeof source === 'function' ? await source() : source
    checkExecutor('failover()', executor)
    if (executor.info.vocabSize === vocabSize) return executor
    closeQuietly(executor)
    throw new TensorRTError(
      'ERR_INVALID_ARGUMENT',
      `The executor that was to take over has a vocabulary of ${executor.info.vocabSize} tokens, not ${vocabSize}`,
    )
  }

  /** Closes an executor that stands by in vain. */
  async close(): Promise<void> {
    const { source } = this
    this.source = undefined
    if (source !== undefined && typeof source !== 'function') await source.close()
  }
}

/** Closes an executor whose end interests nobody: one that has died, or came too late. @returns when it has ended */
export async function closeQuietly(executor: Executor): Promise<void> {
  try {
    await executor.close()
  } catch {
    // That it does not work any more is known.
  }
}

/** Settles with `work`, or after `ms` milliseconds without it. */
export async function atMost(ms: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const over = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))
  try {
    await Promise.race([work, over])
  } finally {
    clearTimeout(timer)
  }
}
