/** Builds an engine folder from a model folder: what LLM.load() runs on a GPU. */
import { readFile, rename, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { TensorRTError } from '../errors'
import { buildPlan, type NativeBuildProgress, type Precision, probeTensorRT, problemError } from '../native'
import {
  ArgumentReader,
  checkProfiles,
  DEFAULT_MAX_STEP_TOKENS,
  defaultHeadProfiles,
  defaultProfiles,
  ENGINE_FORMAT,
  formatCudaVersion,
  formatLibraryVersion,
  guardListener,
  invalidArgument,
  type LLMEngineManifest,
  packProfiles,
  requireUsable,
  requireWritable,
  type RowProfile,
  sha256File,
  type WeightFile,
  writeEngineFolder,
} from '../runtime'
import { version } from '../version'
import { orAbort, throwIfAborted } from './abort'
import { readModelFolder } from './model_folder'

/** What a model folder has beside weights; copied as far as it is there. */
const COPIED_FILES = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
]

/** What the builder does at the moment. */
export type BuildProgress = NativeBuildProgress

export interface BuildEngineOptions {
  /** What the engine computes in. Default: 'fp16' for float16 checkpoints, else 'bf16'. 'fp32' is there for verification. */
  precision?: Precision | undefined
  /** Most tokens in one step. Default 8192. */
  maxStepTokens?: number | undefined
  /**
   * Row counts to build for, instead of the default ones up to `maxStepTokens`: `layer` for the tokens of a step, `head` for the rows
   * whose logits are wanted. Ascending, without a gap from 1 row on.
   */
  profiles?: { layer?: readonly RowProfile[] | undefined; head?: readonly RowProfile[] | undefined } | undefined
  /** How long TensorRT looks for fast kernels, 0 (least) to 5. Default: TensorRT's own. */
  optimizationLevel?: number | undefined
  /** Most bytes of scratch memory for one kernel. Default: TensorRT's own. */
  workspaceBytes?: number | undefined
  /** File that keeps the timings of kernels: it is read if it is there and written after the build, and makes the next one faster. */
  timingCache?: string | undefined
  /** Number of the GPU, as CUDA counts. The engine runs on GPUs of its compute capability. Default 0. */
  device?: number | undefined
  /** libnvinfer, or the folder that has it. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  /** Replace an engine folder that is there. Default false. */
  force?: boolean | undefined
  /** Ends the build; nothing of it is left behind. */
  signal?: AbortSignal | undefined
  onProgress?: ((progress: BuildProgress) => void) | undefined
}

export interface BuiltEngine {
  /** Absolute. */
  path: string
  manifest: LLMEngineManifest
}

const OPTION_NAMES = [
  'precision',
  'maxStepTokens',
  'profiles',
  'optimizationLevel',
  'workspaceBytes',
  'timingCache',
  'device',
  'libraryPath',
  'force',
  'signal',
  'onProgress',
] as const satisfies readonly (keyof BuildEngineOptions)[]

function checkOptions(options: unknown) {
  const reader = new ArgumentReader(options, OPTION_NAMES, 'buildLLMEngine()')
  const given = reader.get('profiles') ?? {}
  if (typeof given !== 'object') throw invalidArgument('profiles', 'an object { layer, head }', given)
  const { layer, head } = given as NonNullable<BuildEngineOptions['profiles']>
  const maxStepTokens = reader.integer('maxStepTokens', 1, 1_048_576)
  if (maxStepTokens !== undefined && layer !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', 'Give "maxStepTokens" or "profiles.layer", not both')
  }
  const layerProfiles = layer ?? defaultProfiles(maxStepTokens ?? DEFAULT_MAX_STEP_TOKENS)
  checkProfiles('profiles.layer', layerProfiles)
  const headProfiles = head ?? defaultHeadProfiles(layerProfiles.at(-1)!.max)
  checkProfiles('profiles.head', headProfiles)
  return {
    precision: reader.choice('precision', ['bf16', 'fp16', 'fp32']),
    layer: layerProfiles.map(({ min, opt, max }) => ({ min, opt, max })),
    head: headProfiles.map(({ min, opt, max }) => ({ min, opt, max })),
    optimizationLevel: reader.integer('optimizationLevel', 0, 5) ?? -1,
    workspaceBytes: reader.integer('workspaceBytes', 1, Number.MAX_SAFE_INTEGER) ?? 0,
    timingCache: reader.path('timingCache'),
    device: reader.integer('device', 0, 1023) ?? 0,
    libraryPath: reader.path('libraryPath') ?? '',
    force: reader.boolean('force') ?? false,
    signal: reader.signal('signal'),
    onProgress: guardListener('onProgress', reader.callback('onProgress') as BuildEngineOptions['onProgress']),
  }
}

/**
 * Builds an engine of a model for the GPU of this machine. Takes seconds to minutes, whatever the number of layers, and needs the
 * GPU to itself: TensorRT picks kernels by timing them. The weights are hashed meanwhile and stay where they are.
 *
 * @param folder of the model, in Hugging Face layout
 * @param outFolder is there complete afterwards, or as it was before
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, also where `outFolder` exists and `force` is not set; what LLM.load() throws for the
 * model folder; what keeps the GPU from being used, such as ERR_DRIVER_NOT_FOUND; ERR_TENSORRT_NOT_FOUND also where the builder resource is
 * missing; ERR_MODEL_UNSUPPORTED, ERR_OUT_OF_DEVICE_MEMORY, ERR_BUILD_FAILED, ERR_IO; AbortError after an abort
 */
export async function buildLLMEngine(
  folder: string,
  outFolder: string,
  options: BuildEngineOptions = {},
): Promise<BuiltEngine> {
  const checked = checkOptions(options)
  const { signal, device, libraryPath, force, optimizationLevel } = checked
  if (typeof outFolder !== 'string' || outFolder === '' || outFolder.includes('\0')) {
    throw invalidArgument('outFolder', 'a path, a string that is not empty', outFolder)
  }
  throwIfAborted(signal)
  const path = resolve(outFolder)
  await requireWritable(path, force)
  const model = await readModelFolder(folder)
  if (model.engine !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${model.path} is an engine folder already`, {
      hint: 'build from the folder in Hugging Face layout that it was made of',
    })
  }
  const facts = await orAbort(probeTensorRT(libraryPath), signal, () => {})
  requireUsable(facts, device)
  if (facts.builderResource !== null) throw problemError(facts.builderResource)
  const precision = checked.precision ?? (model.graph.dtype === 'F16' ? 'fp16' : 'bf16')
  const timingCache = await readTimingCache(checked.timingCache)

  const started = performance.now()
  const { result, weightFiles } = await together(signal, (both) => ({
    result: buildPlan({
      graph: model.graph,
      libraryPath,
      device,
      precision,
      layerProfiles: packProfiles(checked.layer),
      headProfiles: packProfiles(checked.head),
      optimizationLevel,
      workspaceBytes: checked.workspaceBytes,
      timingCache,
      signal: both,
      onProgress: checked.onProgress,
    }),
    weightFiles: describeWeights(model.weightFiles, both),
  }))
  const seconds = (performance.now() - started) / 1000
  if (checked.timingCache !== undefined) await writeTimingCache(checked.timingCache, result.timingCache)
  const files = await readCopied(model.path, [...COPIED_FILES, ...model.embeddingFiles])
  throwIfAborted(signal)

  const gpu = facts.gpus[device]!
  const manifest = await writeEngineFolder({
    path,
    force,
    graph: model.graph,
    plan: result.plan,
    files,
    weightsFolder: model.path,
    weightFiles,
    manifest: {
      format: ENGINE_FORMAT,
      packageVersion: version,
      createdAt: new Date().toISOString(),
      family: model.graph.family,
      precision,
      profiles: { layer: checked.layer, head: checked.head },
      tensorrtVersion: formatLibraryVersion(result.libraryVersion),
      cuda: { driver: formatCudaVersion(facts.driverCuda), required: formatCudaVersion(facts.requiredCuda) },
      gpu: {
        name: gpu.name,
        computeCapability: `${result.computeMajor}.${result.computeMinor}`,
        memoryBytes: gpu.memoryBytes,
      },
      build: { seconds, optimizationLevel, parts: result.parts },
    },
  })
  return { path, manifest }
}

/** Runs two things at once. When one fails the other is aborted, and both have ended before this rejects. */
async function together<A, B>(
  signal: AbortSignal | undefined,
  start: (both: AbortSignal) => { result: Promise<A>; weightFiles: Promise<B> },
): Promise<{ result: A; weightFiles: B }> {
  const controller = new AbortController()
  const both = signal === undefined ? controller.signal : AbortSignal.any([signal, controller.signal])
  const { result, weightFiles } = start(both)
  let first: unknown
  const stop = (error: unknown): void => {
    first ??= error
    controller.abort(error)
  }
  result.catch(stop)
  weightFiles.catch(stop)
  const [a, b] = await Promise.allSettled([result, weightFiles])
  if (a.status === 'fulfilled' && b.status === 'fulfilled') return { result: a.value, weightFiles: b.value }
  throw first
}

async function describeWeights(files: readonly string[], signal: AbortSignal): Promise<WeightFile[]> {
  const described: WeightFile[] = []
  for (const file of files) {
    const { size, mtimeMs } = await stat(file)
    const sha256 = await sha256File(file, signal)
    const after = await stat(file)
    if (after.size !== size || after.mtimeMs !== mtimeMs) {
      throw new TensorRTError('ERR_WEIGHTS_INVALID', `${file} changed while the engine was built`)
    }
    described.push({ name: basename(file), bytes: size, mtimeMs, sha256 })
  }
  return described
}

async function readCopied(folder: string, names: readonly string[]): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>()
  for (const name of names) {
    const bytes = await readFile(join(folder, name)).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'ENOENT') return undefined
      throw new TensorRTError('ERR_IO', `Reading ${join(folder, name)} failed: ${cause.message}`, { cause })
    })
    if (bytes !== undefined) files.set(name, bytes)
  }
  return files
}

async function readTimingCache(path: string | undefined): Promise<Buffer> {
  if (path === undefined) return Buffer.alloc(0)
  return readFile(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return Buffer.alloc(0)
    throw new TensorRTError('ERR_IO', `Reading the timing cache ${path} failed: ${cause.message}`, { cause })
  })
}

async function writeTimingCache(path: string, bytes: Buffer): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}-${process.pid}`)
  try {
    await writeFile(temporary, bytes)
    await rename(temporary, path)
  } catch (cause) {
    throw new TensorRTError('ERR_IO', `Writing the timing cache ${path} failed: ${(cause as Error).message}`, { cause })
  }
}
