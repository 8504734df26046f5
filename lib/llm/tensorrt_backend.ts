/** Runs a built engine on a GPU. */
import { TensorRTError } from '../errors'
import { kvPageBytes } from '../models'
import { createTensorRTBackend, probeTensorRT } from '../native'
import { readPlan, requireFit, requireUsable, requireVerifiedFit } from '../runtime'
import type { Executor } from '../scheduler'
import { pagesWithin } from './kv_sizing'
import type { ModelFolder } from './model_folder'
import type { CheckedLoadOptions } from './validate'

const DEFAULT_SEQUENCES = 256
const DEFAULT_KV_FRACTION = 0.9

/**
 * The executor for a model on a GPU. The machine is asked before anything large is read.
 *
 * @throws (as a rejection) what keeps the GPU from being used: ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED,
 * ERR_DRIVER_NOT_FOUND, ERR_DRIVER_TOO_OLD, ERR_NO_GPU, ERR_CUDA, ERR_TENSORRT_NOT_FOUND, ERR_VERSION_MISMATCH; ERR_ENGINE_REQUIRED for a folder
 * without an engine; ERR_ENGINE_INVALID, ERR_ENGINE_INCOMPATIBLE, ERR_INVALID_ARGUMENT and what {@link createTensorRTBackend} throws
 */
export async function createTensorRT(model: ModelFolder, options: CheckedLoadOptions): Promise<Executor> {
  const { device, libraryPath, pageSize } = options
  const { engine, graph } = model
  const facts = await probeTensorRT(libraryPath)
  if (engine === undefined) {
    requireUsable(facts, device)
    throw new TensorRTError('ERR_ENGINE_REQUIRED', `A GPU runs a built engine, and ${model.path} has none`, {
      hint: `build one: npx node-tensorrt build ${shellQuote(model.path)} -o ${shellQuote(`${model.path}-engine`)}`,
    })
  }
  const { manifest } = engine
  requireFit(manifest, facts, device)
  if (!options.allowUnfit) requireVerifiedFit(model.path, manifest.verification)
  const mostTokens = manifest.profiles.layer.at(-1)!.max
  const maxStepTokens = options.maxStepTokens ?? mostTokens
  if (maxStepTokens > mostTokens) {
    throw new TensorRTError(
      'ERR_INVALID_ARGUMENT',
      `"maxStepTokens" is ${maxStepTokens}, and the engine was built for steps of up to ${mostTokens} tokens`,
      { hint: `build it with --max-step-tokens ${maxStepTokens}, or ask for less` },
    )
  }
  const pageBytes = kvPageBytes(graph, pageSize, manifest.precision === 'fp32' ? 4 : 2)
  const { numPages, kvCacheMemory } = options
  return createTensorRTBackend({
    graph,
    plan: await readPlan(engine),
    files: model.weightFiles,
    libraryPath,
    device,
    pageSize,
    numPages: numPages ?? (kvCacheMemory === undefined ? 0 : pagesWithin(kvCacheMemory, pageBytes)),
    kvCacheFraction: options.kvCacheFraction ?? DEFAULT_KV_FRACTION,
    maxSlots: options.maxSequences ?? DEFAULT_SEQUENCES,
    maxStepTokens,
    cudaGraphs: options.cudaGraphs,
    plainKernels: false,
    faultAtStep: 0,
  })
}

function shellQuote(path: string): string {
  return /^[\w./~+-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`
}
