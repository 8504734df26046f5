/** Loads a plan in a process of its own, which may crash or hang without harm to this one. */
import { type ChildProcess, spawn } from 'node:child_process'
import { AbortError } from '../errors'
import { loadAddon } from './load'
import { findModule } from './tensorrt'

export interface PlanTrialOptions {
  /** Absolute. */
  planPath: string
  /** '' = TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath: string
  device: number
  /** Take plans that hold a lean runtime, which is host code. */
  hostCode: boolean
  timeoutMs: number
  signal?: AbortSignal | undefined
}

/** How it went. */
export type PlanTrial =
  | { outcome: 'loaded'; /** JSON text of a NativeEngineInfo. */ info: string }
  | { outcome: 'refused'; code: string; message: string; hint: string }
  | { outcome: 'crashed'; signal: NodeJS.Signals | null; exitCode: number | null; /** The end of what it wrote on stderr. */ stderr: string }
  | { outcome: 'timed-out'; stderr: string }

/** Text, so that it runs the same from TypeScript sources, dist/ and a bundle. It needs the addon and nothing else. */
const PROGRAM = `
const { closeSync, fstatSync, openSync, readSync } = require('node:fs')
process.once('disconnect', () => process.exit(0))
const end = (answer) => process.send(answer, () => process.exit(0))
process.once('message', async ({ addonPath, modulePath, libraryPath, device, planPath, hostCode }) => {
  try {
    const runtime = await require(addonPath).createRuntime({ modulePath, libraryPath, device })
    const file = openSync(planPath, 'r')
    const plan = new ArrayBuffer(fstatSync(file).size)
    for (let at = 0, bytes; at < plan.byteLength; at += bytes) {
      bytes = readSync(file, new Uint8Array(plan, at, Math.min(1 << 30, plan.byteLength - at)))
      if (bytes === 0) throw new Error('the plan became shorter')
    }
    closeSync(file)
    const engine = await runtime.deserialize(plan, hostCode)
    // Its memory would say something of this moment's GPU, and nothing of the plan.
    await engine.createContext({ profile: 0, memory: 'user' })
    end({ outcome: 'loaded', info: engine.info })
  } catch ({ code, message, hint }) {
    end({ outcome: 'refused', code: String(code ?? ''), message: String(message), hint: String(hint ?? '') })
  }
})`

const STDERR_BYTES = 4096

/**
 * Starts a process that deserialises the plan and makes a context, and tells how it went.
 *
 * @throws TensorRTError (as a rejection) the addon's load errors, ERR_TENSORRT_MODULE_NOT_FOUND; AbortError, once the process is gone
 */
export async function tryPlan({ signal, timeoutMs, ...plan }: PlanTrialOptions): Promise<PlanTrial> {
  const { path: addonPath } = loadAddon()
  const modulePath = findModule(addonPath)
  const throwIfAborted = (): void => {
    if (signal?.aborted === true) throw new AbortError(signal.reason)
  }
  throwIfAborted()
  const child = spawn(process.execPath, ['-e', PROGRAM], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
  const stop = (): void => void child.kill('SIGKILL')
  signal?.addEventListener('abort', stop, { once: true })
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    stop()
  }, timeoutMs)
  try {
    const trial = await outcomeOf(child, { ...plan, addonPath, modulePath })
    throwIfAborted()
    return timedOut && trial.outcome === 'crashed' ? { outcome: 'timed-out', stderr: trial.stderr } : trial
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
    stop()
  }
}

function outcomeOf(child: ChildProcess, request: object): Promise<PlanTrial> {
  return new Promise((resolve, reject) => {
    let stderr = ''
    let answer: PlanTrial | undefined
    child.stderr?.on('data', (chunk: Buffer) => (stderr = (stderr + chunk.toString('utf8')).slice(-STDERR_BYTES)))
    child.on('message', (message) => (answer = message as PlanTrial))
    child.once('error', reject)
    child.once('close', (exitCode, signal) => resolve(answer ?? { outcome: 'crashed', signal, exitCode, stderr: stderr.trim() }))
    // Where it is gone already, `close` tells why.
    child.send(request, () => {})
  })
}
