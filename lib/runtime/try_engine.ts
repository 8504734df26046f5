/** Tries an engine in a process of its own, before this one loads it. */
import { stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { isErrorCode, TensorRTError } from '../errors'
import { type NativeEngineInfo, tryPlan } from '../native'
import { ArgumentReader, invalidArgument } from './argument_reader'
import { PLAN_FILE, readEngineManifest, verifyPlan } from './engine_folder'

export interface TryEngineOptions {
  /** Number of the GPU, as CUDA counts. Default 0. */
  device?: number | undefined
  /** libnvinfer or the folder that has it. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  /** Take version-compatible plans that hold a runtime, which is code that runs on the host. Default false. */
  allowHostCode?: boolean | undefined
  /** After that the process is ended. Default 120,000. */
  timeoutMs?: number | undefined
  signal?: AbortSignal | undefined
}

export interface TryEngineResult {
  ok: boolean
  /** 'loaded': deserialised, and a context made. 'refused': TensorRT, or a check before it, said why not. */
  outcome: 'loaded' | 'refused' | 'crashed' | 'timed-out'
  /** What ended the process that crashed. */
  signal?: NodeJS.Signals | undefined
  exitCode?: number | undefined
  /** Why it is not ok. */
  error?: TensorRTError | undefined
  milliseconds: number
  /** Of an engine that loaded. */
  engine?: { name: string; inputs: string[]; outputs: string[]; profiles: number; layers: number } | undefined
}

/**
 * Loads an engine in a process of its own: a plan that crashes TensorRT, or never comes back, does no harm there. It tells nothing of what
 * the engine computes.
 *
 * @param path of a plan, or of an engine folder of an ONNX model, whose manifest is checked first
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_ENGINE_INVALID for a path that is not there or a folder that is not whole, ERR_IO, what
 * keeps the addon or the backend module from being found; AbortError
 */
export async function tryEngine(path: string, options: TryEngineOptions = {}): Promise<TryEngineResult> {
  const reader = new ArgumentReader(options, ['device', 'libraryPath', 'allowHostCode', 'timeoutMs', 'signal'], 'tryEngine()')
  const device = reader.integer('device', 0, 1023) ?? 0
  const libraryPath = reader.path('libraryPath') ?? ''
  const hostCode = reader.boolean('allowHostCode') ?? false
  const timeoutMs = reader.integer('timeoutMs', 1, 2 ** 31 - 1) ?? 120_000
  const signal = reader.signal('signal')
  if (typeof path !== 'string' || path === '' || path.includes('\0')) throw invalidArgument('path', 'a path, a string that is not empty', path)
  const planPath = await locatePlan(resolve(path), signal)
  const started = performance.now()
  const trial = await tryPlan({ planPath, libraryPath, device, hostCode, timeoutMs, signal })
  const milliseconds = performance.now() - started
  if (trial.outcome === 'loaded') {
    const { name, tensors, profiles, layers } = JSON.parse(trial.info) as NativeEngineInfo
    const names = (mode: string): string[] => tensors.filter((tensor) => tensor.mode === mode).map((tensor) => tensor.name)
    return { ok: true, outcome: 'loaded', milliseconds, engine: { name, inputs: names('input'), outputs: names('output'), profiles, layers } }
  }
  const hint = 'do not load it: build the engine again from its model'
  if (trial.outcome === 'refused') {
    const code = isErrorCode(trial.code) ? trial.code : 'ERR_INTERNAL'
    const error = new TensorRTError(code, trial.message, { hint: trial.hint === '' ? undefined : trial.hint })
    return { ok: false, outcome: 'refused', milliseconds, error }
  }
  const said = trial.stderr === '' ? '' : `; it said: ${trial.stderr}`
  if (trial.outcome === 'timed-out') {
    const error = new TensorRTError('ERR_TIMEOUT', `Loading ${planPath} did not end within ${timeoutMs} ms${said}`, { hint })
    return { ok: false, outcome: 'timed-out', milliseconds, error }
  }
  const how = trial.signal === null ? `with exit code ${trial.exitCode}` : `of ${trial.signal}`
  return {
    ok: false,
    outcome: 'crashed',
    milliseconds,
    signal: trial.signal ?? undefined,
    exitCode: trial.exitCode ?? undefined,
    error: new TensorRTError('ERR_ENGINE_INVALID', `Loading ${planPath} ended the process ${how}${said}`, { hint }),
  }
}

async function locatePlan(path: string, signal: AbortSignal | undefined): Promise<string> {
  const found = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') throw new TensorRTError('ERR_ENGINE_INVALID', `There is no engine at ${path}`, { cause })
    throw new TensorRTError('ERR_IO', `${path} cannot be used: ${cause.message}`, { cause })
  })
  if (!found.isDirectory()) return path
  const manifest = await readEngineManifest(path)
  if (manifest.kind !== 'onnx') {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${path} holds the engine of a language model, which is several plans`, {
      hint: 'LLM.load() runs it',
    })
  }
  await verifyPlan(path, manifest, signal)
  return join(path, PLAN_FILE)
}
