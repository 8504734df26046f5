/** Runtimes that engines share, where the caller gives none. */
import { Runtime } from './runtime'

interface Entry {
  runtime: Promise<Runtime>
  users: number
}

/** By library path and device. */
const entries = new Map<string, Entry>()

export interface SharedRuntime {
  runtime: Runtime
  /** Once. The last one closes the runtime. */
  release(): Promise<void>
}

/**
 * One runtime per (device, libraryPath), for as long as somebody uses it.
 *
 * @param libraryPath '' = the usual places
 * @throws (as a rejection) what Runtime.create() throws
 */
export async function shareRuntime(device: number, libraryPath: string): Promise<SharedRuntime> {
  const key = JSON.stringify([device, libraryPath])
  let entry = entries.get(key)
  if (entry === undefined) {
    entry = { runtime: Runtime.create({ device, ...(libraryPath === '' ? {} : { libraryPath }) }), users: 0 }
    entries.set(key, entry)
  }
  const mine = entry
  mine.users++
  const forget = (): void => {
    if (entries.get(key) === mine) entries.delete(key)
  }
  let runtime: Runtime
  try {
    runtime = await mine.runtime
  } catch (error) {
    // The next one tries anew.
    forget()
    throw error
  }
  if (runtime.closed) {
    // Somebody closed it by hand.
    forget()
    return shareRuntime(device, libraryPath)
  }
  return {
    runtime,
    release: async () => {
      if (--mine.users > 0) return
      forget()
      // Where it was closed by hand, it is waiting for its engines, of which this may be one.
      if (!runtime.closed) await runtime.close()
    },
  }
}
