/** Chooses the backend of a model, sizes its KV cache and creates it. */
import { freemem, totalmem } from 'node:os'
import { type ErrorCode, TensorRTError } from '../errors'
import { kvPageBytes } from '../models'
import { CpuBackend } from '../native'
import type { Executor, ExecutorInfo } from '../scheduler'
import { closeQuietly } from './death'
import type { FallbackSource } from './fallback'
import type { LLMWarning } from './options'
import type { ModelFolder } from './model_folder'
import { kvPages } from './kv_sizing'
import { createTensorRT } from './tensorrt_backend'
import type { CheckedLoadOptions } from './validate'

const DEFAULT_SEQUENCES = 64
/** A processor is as fast with 256 rows as with more, and shorter steps give shorter pauses between tokens. */
const CPU_STEP_TOKENS = 256
/** The CPU backend keeps keys and values in float32. */
const CPU_KV_ELEMENT_BYTES = 4

/** Bytes that this process can still take: the machine's, or what is left of its control group's limit. */
function freeMemory(): number {
  const limit = process.constrainedMemory()
  const free = freemem()
  return limit > 0 && limit < Number.MAX_SAFE_INTEGER
    ? Math.min(free, Math.max(limit - process.memoryUsage.rss(), 0))
    : free
}

/** Bytes that this process could have if nothing else ran. */
function memoryLimit(): number {
  const limit = process.constrainedMemory()
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem()
}

const mebibytes = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`

type CpuOptions = Pick<
  CheckedLoadOptions,
  'pageSize' | 'numPages' | 'kvCacheMemory' | 'maxSequences' | 'maxStepTokens' | 'threads' | 'simd'
>

/**
 * @throws ERR_OUT_OF_MEMORY, ERR_WEIGHTS_MISSING, ERR_WEIGHTS_INVALID and what else {@link CpuBackend.create} throws
 */
export async function createCpu(model: ModelFolder, options: CpuOptions): Promise<Executor> {
  const { graph } = model
  const { pageSize, kvCacheMemory } = options
  const maxSlots = options.maxSequences ?? DEFAULT_SEQUENCES
  const numPages = kvPages(graph, CPU_KV_ELEMENT_BYTES, {
    pageSize,
    numPages: options.numPages,
    kvCacheMemory,
    maxSequences: maxSlots,
    freeBytes: freeMemory(),
  })
  const kvBytes = numPages * kvPageBytes(graph, pageSize, CPU_KV_ELEMENT_BYTES)
  const cache = `the KV cache was to take ${mebibytes(kvBytes)} for ${numPages * pageSize} tokens, of a context of ${graph.maxPositions} ("max_position_embeddings")`
  const hint = `${cache}: give the bytes that it may take with "kvCacheMemory"`
  const limit = memoryLimit()
  if (kvBytes > limit) {
    throw new TensorRTError('ERR_OUT_OF_MEMORY', `The KV cache does not fit into the memory: this process may use ${mebibytes(limit)}`, { hint })
  }
  try {
    return await CpuBackend.create({
      graph,
      files: model.weightFiles,
      pageSize,
      numPages,
      maxSlots,
      maxStepTokens: options.maxStepTokens ?? Math.max(CPU_STEP_TOKENS, maxSlots),
      threads: options.threads,
      simd: options.simd,
    })
  } catch (cause) {
    if (!(cause instanceof TensorRTError) || cause.code !== 'ERR_OUT_OF_MEMORY') throw cause
    throw new TensorRTError(cause.code, cause.message, { hint, cause })
  }
}

/** Reasons why a GPU cannot be used for a model, as against failures of a GPU that can. */
const UNUSABLE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_TENSORRT_NOT_FOUND',
  'ERR_TENSORRT_MODULE_NOT_FOUND',
  'ERR_TENSORRT_MODULE_LOAD_FAILED',
  'ERR_DRIVER_NOT_FOUND',
  'ERR_DRIVER_TOO_OLD',
  'ERR_NO_GPU',
  'ERR_VERSION_MISMATCH',
  'ERR_ENGINE_REQUIRED',
])

/**
 * The CPU in place of a GPU that died. The KV cache is sized for the machine's memory, not by what was given for the GPU's;
 * but it has no more pages than the GPU's had, and room for a full context, so that whatever fitted there fits here.
 */
async function createSubstitute(model: ModelFolder, options: CheckedLoadOptions, gpu: ExecutorInfo): Promise<Executor> {
  const maxSequences = options.maxSequences ?? DEFAULT_SEQUENCES
  const sizing = { pageSize: options.pageSize, numPages: undefined, kvCacheMemory: undefined, maxSequences }
  const affordable = kvPages(model.graph, CPU_KV_ELEMENT_BYTES, { ...sizing, freeBytes: freeMemory() })
  return createCpu(model, {
    ...options,
    numPages: Math.min(affordable, gpu.numPages),
    maxStepTokens: Math.min(options.maxStepTokens ?? Infinity, Math.max(CPU_STEP_TOKENS, maxSequences)),
  })
}

export interface ModelBackend {
  executor: Executor
  /** What takes over when the executor dies; undefined = nothing. */
  fallback: FallbackSource | undefined
  /** Makes the executor again, with the same choice of device. */
  recreate: () => Promise<Executor>
}

/**
 * The executor for a model, and what is to take over from it. With `auto` an unusable GPU is a warning, and the CPU runs
 * the model; a GPU that is usable but fails while the model is loaded is an error in any case.
 *
 * @throws what {@link createTensorRT} and {@link createCpu} throw
 */
export async function createBackend(
  model: ModelFolder,
  options: CheckedLoadOptions,
  warn: (warning: LLMWarning) => void,
): Promise<ModelBackend> {
  const gpu = await tryTensorRT(model, options, warn)
  if (gpu === undefined) {
    const recreate = (): Promise<Executor> => createCpu(model, options)
    return { executor: await recreate(), fallback: undefined, recreate }
  }
  const fallback = await prepareFallback(model, options, gpu)
  return { executor: gpu, fallback, recreate: () => createTensorRT(model, options) }
}

async function tryTensorRT(
  model: ModelFolder,
  options: CheckedLoadOptions,
  warn: (warning: LLMWarning) => void,
): Promise<Executor | undefined> {
  if (options.backend !== 'cpu') {
    try {
      return await createTensorRT(model, options)
    } catch (cause) {
      const unusable = cause instanceof TensorRTError && UNUSABLE.has(cause.code)
      if (options.backend === 'tensorrt' || !unusable) throw cause
      warn({ code: 'CPU_FALLBACK', message: `The CPU runs the model, as no GPU can. ${cause.message}`, cause })
    }
  }
  return undefined
}

async function prepareFallback(
  model: ModelFolder,
  options: CheckedLoadOptions,
  executor: Executor,
): Promise<FallbackSource | undefined> {
  if (options.failover === false) return undefined
  const create = (): Promise<Executor> => createSubstitute(model, options, executor.info)
  if (options.failover === true) return { create }
  try {
    return { create, standby: await create() }
  } catch (error) {
    await closeQuietly(executor)
    throw error
  }
}
