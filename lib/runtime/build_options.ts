/** Options of buildEngine(), checked. */
import { resolve } from 'node:path'
import { TensorRTError } from '../errors'
import type { LayerPrecision, OnnxPrecision } from '../native'
import { ArgumentReader, describeValue, invalidArgument } from './argument_reader'
import { defaultCacheDir } from './build_cache'
import { guardListener } from './listeners'
import {
  HARDWARE_LEVELS,
  IO_TYPES,
  LAYER_PRECISIONS,
  type LayerRule,
  ONNX_PRECISIONS,
  type OnnxBuildFlags,
  REFIT_KINDS,
  VERBOSITIES,
} from './onnx_manifest'
import { type InputProfile, readInputProfiles } from './onnx_profiles'

/** What a build does at the moment. */
export interface OnnxBuildProgress {
  /** TensorRT's name of what it does, or 'Hashing the model'. */
  phase: string
  /** Of the whole, 0 to 1. Never falls. */
  fraction: number
}

export interface OnnxBuildOptions {
  /** Path of a .onnx file, beside which its external data is found; or the model's bytes. */
  onnx: string | Uint8Array
  /** The engine folder to make. Default: the one in the cache. */
  out?: string | undefined
  /**
   * What the engine computes in. 'fp32' is strict, 'tf32' takes 10-bit mantissas in products; 'fp16' and 'bf16' fall back to float32 where
   * that is faster or the only way. 'int8' and 'fp8' need a model with Q/DQ nodes: 'int8' takes float16 for the rest, 'fp8' the model's own
   * types. 'strongly-typed' takes every type from the model, Q/DQ nodes included, and turns TF32 off: TensorRT chooses kernels, and no
   * types. For models that were exported in the types they are to run in. Default 'fp32'.
   */
  precision?: OnnxPrecision | undefined
  /**
   * Holds layers to a type, by patterns of their names ('*' any characters, '?' one): ONNX's node names. The last pattern that matches
   * counts. Not with 'fp8' and 'strongly-typed'.
   */
  layers?: Readonly<Record<string, LayerPrecision>> | undefined
  /** Ranges of the inputs whose shape may vary; any number of them. A model of static shapes needs none. */
  profiles?: readonly Readonly<InputProfile>[] | undefined
  /** Most bytes of scratch memory for one kernel. Default: TensorRT's own. */
  workspaceBytes?: number | undefined
  /** How long TensorRT looks for fast kernels, 0 (least) to 5. Default: TensorRT's own. */
  optimizationLevel?: number | undefined
  /** Most streams that the engine uses beside the one it is enqueued on. Default: TensorRT's choice. */
  maxAuxStreams?: number | undefined
  /**
   * File of kernels' timings, shared by any number of processes. False: none. Default: one in `cacheDir`, for each GPU and version of
   * TensorRT; none where `cache` is false.
   */
  timingCache?: string | false | undefined
  /** Leave weights out of the plan; a refit supplies them. Default false. */
  strip?: boolean | undefined
  /** 'identical': a refit takes the build's own weights, and costs no speed; 'any': others too. Default: 'identical' with `strip`, else 'none'. */
  refit?: 'none' | 'identical' | 'any' | undefined
  /** A plan that later TensorRT versions of the same major run too. It holds a lean runtime, which is host code. Default false. */
  versionCompatible?: boolean | undefined
  /** A version-compatible plan without the lean runtime. Default false. */
  excludeLeanRuntime?: boolean | undefined
  /** GPUs that run the plan beside the one it was built on. Default 'none'. */
  hardwareCompatibility?: 'none' | 'ampere+' | 'same-compute-capability' | undefined
  /** What the engine tells of its layers. Default 'layer-names'. */
  profilingVerbosity?: 'layer-names' | 'none' | 'detailed' | undefined
  /** No reformatting at inputs and outputs: the build fails where it would be needed. Default false. */
  directIo?: boolean | undefined
  /** Type of inputs and outputs that are float32 in the model. Default 'model': as they are. */
  ioType?: 'model' | 'fp16' | 'bf16' | undefined
  /** Use kernels for 2:4 sparse weights where the weights are so. Default false. */
  sparseWeights?: boolean | undefined
  /** Take engines that were built before, and keep this one. Default true. */
  cache?: boolean | undefined
  /** Default: XDG_CACHE_HOME/node-tensorrt, or ~/.cache/node-tensorrt. */
  cacheDir?: string | undefined
  /** Number of the GPU, as CUDA counts. Default 0. */
  device?: number | undefined
  /** libnvinfer, or the folder that has it and libnvonnxparser. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  /** Replace an engine folder at `out`. Default false. */
  force?: boolean | undefined
  /** Ends the build; nothing of it is left behind. */
  signal?: AbortSignal | undefined
  /** Called as the build goes on. What it throws becomes a warning of the process, and the build goes on. */
  onProgress?: ((progress: OnnxBuildProgress) => void) | undefined
}

const OPTION_NAMES = [
  'onnx',
  'out',
  'precision',
  'layers',
  'profiles',
  'workspaceBytes',
  'optimizationLevel',
  'maxAuxStreams',
  'timingCache',
  'strip',
  'refit',
  'versionCompatible',
  'excludeLeanRuntime',
  'hardwareCompatibility',
  'profilingVerbosity',
  'directIo',
  'ioType',
  'sparseWeights',
  'cache',
  'cacheDir',
  'device',
  'libraryPath',
  'force',
  'signal',
  'onProgress',
] as const satisfies readonly (keyof OnnxBuildOptions)[]

export interface CheckedBuild {
  /** Absolute path, or bytes. */
  onnx: string | Uint8Array
  /** Absolute. */
  out: string | undefined
  precision: OnnxPrecision
  layers: LayerRule[]
  profiles: InputProfile[]
  flags: OnnxBuildFlags
  /** Undefined = the default one. */
  timingCache: string | false | undefined
  /** Undefined = no cache. */
  cacheDir: string | undefined
  device: number
  libraryPath: string
  force: boolean
  signal: AbortSignal | undefined
  onProgress: OnnxBuildOptions['onProgress']
}

function invalid(message: string, hint?: string): TensorRTError {
  return new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint })
}

/** @throws ERR_INVALID_ARGUMENT */
export function checkBuildOptions(options: unknown): CheckedBuild {
  const reader = new ArgumentReader(options, OPTION_NAMES, 'buildEngine()')
  const cache = reader.boolean('cache') ?? true
  const cacheDir = reader.path('cacheDir')
  const out = reader.path('out')
  if (!cache && out === undefined) throw invalid('Give "out", or leave "cache" on: the engine must go somewhere')
  if (!cache && cacheDir !== undefined) throw invalid('"cacheDir" goes with "cache"')
  const strip = reader.boolean('strip') ?? false
  const checked: CheckedBuild = {
    onnx: readModelOption(reader.get('onnx')),
    out: out === undefined ? undefined : resolve(out),
    precision: reader.choice('precision', ONNX_PRECISIONS) ?? 'fp32',
    layers: readLayers(reader.get('layers')),
    profiles: readInputProfiles(reader.get('profiles')),
    flags: {
      workspaceBytes: reader.integer('workspaceBytes', 1, Number.MAX_SAFE_INTEGER) ?? 0,
      optimizationLevel: reader.integer('optimizationLevel', 0, 5) ?? -1,
      maxAuxStreams: reader.integer('maxAuxStreams', 0, 128) ?? -1,
      strip,
      refit: reader.choice('refit', REFIT_KINDS) ?? (strip ? 'identical' : 'none'),
      versionCompatible: reader.boolean('versionCompatible') ?? false,
      excludeLeanRuntime: reader.boolean('excludeLeanRuntime') ?? false,
      hardwareCompatibility: reader.choice('hardwareCompatibility', HARDWARE_LEVELS) ?? 'none',
      profilingVerbosity: reader.choice('profilingVerbosity', VERBOSITIES) ?? 'layer-names',
      directIo: reader.boolean('directIo') ?? false,
      ioType: reader.choice('ioType', IO_TYPES) ?? 'model',
      sparseWeights: reader.boolean('sparseWeights') ?? false,
    },
    timingCache: readTimingCache(reader),
    cacheDir: cache ? resolve(cacheDir ?? defaultCacheDir()) : undefined,
    device: reader.integer('device', 0, 1023) ?? 0,
    libraryPath: reader.path('libraryPath') ?? '',
    force: reader.boolean('force') ?? false,
    signal: reader.signal('signal'),
    onProgress: guardListener('onProgress', reader.callback('onProgress') as OnnxBuildOptions['onProgress']),
  }
  checkTogether(checked)
  return checked
}

export function readModelOption(onnx: unknown): string | Uint8Array {
  if (onnx instanceof Uint8Array) {
    if (onnx.length === 0) throw new TensorRTError('ERR_ONNX_INVALID', 'The ONNX model is empty')
    // The caller may go on writing there.
    return Uint8Array.from(onnx)
  }
  if (typeof onnx !== 'string' || onnx === '' || onnx.includes('\0')) {
    throw invalidArgument('onnx', "the path of a .onnx file or the model's bytes", onnx)
  }
  return resolve(onnx)
}

function readTimingCache(reader: ArgumentReader): string | false | undefined {
  if (reader.get('timingCache') === false) return false
  const path = reader.path('timingCache')
  return path === undefined ? undefined : resolve(path)
}

function readLayers(given: unknown): LayerRule[] {
  if (given === undefined) return []
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw invalidArgument('layers', 'an object { pattern: precision }', given)
  }
  return Object.entries(given).map(([pattern, precision]) => {
    if (pattern === '') throw invalid('"layers" has an empty pattern', "'*' matches every layer")
    if (!(LAYER_PRECISIONS as readonly unknown[]).includes(precision)) {
      throw invalid(`"layers" must hold layers to 'fp32', 'fp16' or 'bf16', not ${describeValue(precision)} (pattern ${describeValue(pattern)})`)
    }
    return { pattern, precision: precision as LayerPrecision }
  })
}

/** Which 16-bit types an engine of this precision computes in. */
function sixteenBit(precision: OnnxPrecision): LayerPrecision[] {
  if (precision === 'fp16' || precision === 'int8') return ['fp16']
  return precision === 'bf16' ? ['bf16'] : []
}

function checkTogether({ precision, layers, flags }: CheckedBuild): void {
  if (precision === 'fp8' || precision === 'strongly-typed') {
    const hint = 'choose types where the model is exported'
    const what = precision === 'fp8' ? "An 'fp8' engine takes all other types from the model" : "A 'strongly-typed' engine takes its types from the model"
    if (layers.length > 0) throw invalid(`${what}: "layers" cannot hold them to others`, hint)
    if (flags.ioType !== 'model') throw invalid(`${what}: "ioType" cannot be '${flags.ioType}'`, hint)
  }
  if (precision === 'fp8') {
    if (flags.hardwareCompatibility === 'ampere+') throw invalid("GPUs before compute capability 8.9 have no fp8: not with hardwareCompatibility 'ampere+'")
  }
  const types = new Set([...sixteenBit(precision), ...layers.map((rule) => rule.precision).filter((type) => type !== 'fp32')])
  if (types.size > 1) throw invalid(`An engine has one 16-bit type, fp16 or bf16: precision '${precision}' and "layers" ask for both`)
  if (flags.ioType !== 'model' && !sixteenBit(precision).includes(flags.ioType)) {
    throw invalid(`"ioType" '${flags.ioType}' needs an engine that computes in it, not precision '${precision}'`)
  }
  if (flags.excludeLeanRuntime && !flags.versionCompatible) throw invalid('"excludeLeanRuntime" goes with "versionCompatible"')
  if (flags.strip && flags.refit === 'none') throw invalid('"strip" leaves out weights that a refit must supply: not with refit \'none\'')
}
