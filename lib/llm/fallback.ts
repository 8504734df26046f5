import { TensorRTError } from '../errors'
import type { Executor } from '../scheduler'
import { atMost, closeQuietly, DEAD_CLOSE_MS } from './death'
import { createLike } from './started_executor'

/** What takes over when an executor dies. */
export interface FallbackSource {
  create: () => Promise<Executor>
  /** The first one, made beforehand. With one, each later one is made beforehand too. */
  standby?: Executor | undefined
}

/** The executor that takes over when the model's own dies: once, and once more each time that one has come back. */
export class Fallback {
  private standby: Promise<Executor | undefined> | undefined
  private readonly keepsStandby: boolean
  private taken = false
  private closed = false

  constructor(private readonly source: FallbackSource | undefined) {
    this.keepsStandby = source?.standby !== undefined
    if (source?.standby !== undefined) this.standby = Promise.resolve(source.standby)
  }

  get available(): boolean {
    return this.source !== undefined && !this.taken
  }

  /**
   * @param vocabSize of the executor that died
   * @throws (as a rejection) what making the executor throws; ERR_INVALID_ARGUMENT for one of another vocabulary
   */
  async take(vocabSize: number): Promise<Executor> {
    const { source, standby } = this
    if (source === undefined || this.taken) {
      throw new TensorRTError('ERR_INTERNAL', 'There is no executor to fall back to')
    }
    this.taken = true
    this.standby = undefined
    return createLike(vocabSize, async () => (await standby) ?? (await source.create()), 'failover()')
  }

  /**
   * The model's own executor is back, and may die again. A new standby is made when `freed` says that the last one has ended;
   * where that fails, the next is made when it is needed.
   */
  renew(freed: Promise<unknown>): void {
    if (this.source === undefined || this.closed) return
    this.taken = false
    if (this.keepsStandby && this.standby === undefined) this.standby = this.makeStandby(this.source, freed)
  }

  private async makeStandby(source: FallbackSource, freed: Promise<unknown>): Promise<Executor | undefined> {
    try {
      await freed
      if (this.closed) return undefined
      return await source.create()
    } catch {
      return undefined
    }
  }

  /** Closes an executor that stands by in vain. */
  async close(): Promise<void> {
    this.closed = this.taken = true
    const { standby } = this
    this.standby = undefined
    if (standby === undefined) return
    const ended = standby.then((executor) => (executor === undefined ? undefined : closeQuietly(executor)))
    await atMost(DEAD_CLOSE_MS, ended)
  }
}
