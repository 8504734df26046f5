/** The TensorRT backend: a module of its own beside the addon, for it needs what is NVIDIA's. */
import { existsSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { isErrorCode, TensorRTError } from '../errors'
import type { Graph } from '../models/graph'
import { abortableBuild } from './abortable_build'
import type {
  NativeAddon,
  NativeBuildOptions,
  NativeBuildProgress,
  NativeBuildResult,
  NativeProblem,
  NativeTensorRTOptions,
  TensorRTFacts,
} from './addon'
import { fromNativeError, NativeExecutor } from './backend'
import { inspectElf } from './elf'
import { loadAddon } from './load'
import { explainLoadError, hostFacts } from './load_error'

/** Environment variable with the path of the backend module; no other place is looked at then. */
export const MODULE_PATH_VARIABLE = 'NODE_TENSORRT_MODULE'

const MODULE_FILE = 'nt-tensorrt.so'

export interface TensorRTProbe extends TensorRTFacts {
  /** Absolute path of the backend module. */
  modulePath: string
}

export interface TensorRTBackendOptions extends Omit<NativeTensorRTOptions, 'graph' | 'modulePath'> {
  graph: Graph
}

export interface PlanBuildOptions extends Omit<NativeBuildOptions, 'graph' | 'modulePath'> {
  graph: Graph
  signal?: AbortSignal | undefined
  onProgress?: ((progress: NativeBuildProgress) => void) | undefined
}

/**
 * Path of the backend module: what `NODE_TENSORRT_MODULE` names, else the file beside the addon.
 *
 * @internal
 * @throws TensorRTError ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED for a file that is cut short
 */
export function findModule(addonPath: string): string {
  const named = process.env[MODULE_PATH_VARIABLE]
  const path = named === undefined || named === '' ? join(dirname(addonPath), MODULE_FILE) : resolve(named)
  if (!existsSync(path)) {
    const supported = process.platform === 'linux' && process.arch === 'x64'
    throw new TensorRTError('ERR_TENSORRT_MODULE_NOT_FOUND', `The TensorRT backend module is not installed; looked at ${path}`, {
      hint: supported
        ? `in a checkout, build it: npm run build:tensorrt; or let ${MODULE_PATH_VARIABLE} name it`
        : `the TensorRT backend runs on linux-x64, this is ${process.platform}-${process.arch}: use backend: 'cpu'`,
    })
  }
  // glibc would map a file that ends early all the same, and the process die of SIGBUS.
  if (process.platform === 'linux' && inspectElf(path)?.complete === false) throw moduleLoadFailed(path, new Error('truncated'))
  return path
}

function moduleLoadFailed(path: string, error: unknown): TensorRTError {
  const { reason, hint } = explainLoadError(path, error, hostFacts())
  return new TensorRTError('ERR_TENSORRT_MODULE_LOAD_FAILED', `The TensorRT backend module ${path} does not load: ${reason}`, {
    hint,
    cause: error,
  })
}

/** @internal */
export async function withModule<T>(call: (addon: NativeAddon, modulePath: string) => Promise<T>): Promise<T> {
  const { addon, path } = loadAddon()
  const modulePath = findModule(path)
  try {
    return await call(addon, modulePath)
  } catch (error) {
    throw fromModuleError(modulePath, error)
  }
}

/**
 * A native error of a call that opens the module.
 *
 * @internal
 */
export function fromModuleError(modulePath: string, error: unknown): unknown {
  const known = fromNativeError(error)
  const broken = known instanceof TensorRTError && known.code === 'ERR_TENSORRT_MODULE_LOAD_FAILED'
  return broken ? moduleLoadFailed(modulePath, error) : known
}

/** The error that a part of the facts stands for. */
export function problemError(problem: NativeProblem): TensorRTError {
  const code = isErrorCode(problem.code) ? problem.code : 'ERR_INTERNAL'
  return new TensorRTError(code, problem.message, { hint: problem.hint === '' ? undefined : problem.hint })
}

/**
 * Looks what this machine has for TensorRT: driver, GPUs, library, builder resource. What it lacks is in the facts; the
 * promise rejects only when the backend module itself cannot be asked. The driver may take a second to wake up.
 *
 * @param libraryPath libnvinfer or its folder; '' = TENSORRT_LIB_DIR, then the system's search path
 * @throws TensorRTError (as a rejection) the addon's load errors, ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED,
 *   ERR_VERSION_MISMATCH for a module of another build
 */
export function probeTensorRT(libraryPath = ''): Promise<TensorRTProbe> {
  return withModule(async (addon, modulePath) => ({ modulePath, ...(await addon.probeTensorRt({ modulePath, libraryPath })) }))
}

/**
 * Loads a built model, off the event loop.
 *
 * @throws TensorRTError (as a rejection) what {@link probeTensorRT} throws, ERR_DRIVER_NOT_FOUND, ERR_DRIVER_TOO_OLD, ERR_NO_GPU, ERR_CUDA,
 *   ERR_TENSORRT_NOT_FOUND, ERR_VERSION_MISMATCH, ERR_ENGINE_INVALID, ERR_ENGINE_INCOMPATIBLE, ERR_GRAPH_INVALID, ERR_MODEL_UNSUPPORTED,
 *   ERR_WEIGHTS_INVALID, ERR_WEIGHTS_MISSING, ERR_IO, ERR_OUT_OF_DEVICE_MEMORY, ERR_OUT_OF_MEMORY
 */
export function createTensorRTBackend(options: TensorRTBackendOptions): Promise<NativeExecutor> {
  return withModule(async (addon, modulePath) => {
    const graph = JSON.stringify(options.graph)
    return new NativeExecutor(await addon.createTensorRtBackend({ ...options, modulePath, graph }))
  })
}

/**
 * Builds the plan of a model, off the event loop. Takes seconds to minutes, and the whole GPU: kernels are timed on it.
 *
 * @throws (as a rejection) what {@link createTensorRTBackend} throws of driver, library, graph and memory; ERR_INVALID_ARGUMENT,
 *   ERR_BUILD_FAILED; AbortError after an abort, once TensorRT has let go
 */
export function buildPlan(options: PlanBuildOptions): Promise<NativeBuildResult> {
  const { signal, onProgress, graph, ...native } = options
  return withModule((addon, modulePath) =>
    abortableBuild(signal, () => addon.buildEngine({ ...native, modulePath, graph: JSON.stringify(graph) }, onProgress)),
  )
}
