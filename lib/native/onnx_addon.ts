/** The hand-typed native surface for ONNX models: cpp/core/onnx_build.h as JavaScript sees it. */
import type { NativeBuildProgress } from './addon'

/** What an engine of an ONNX model computes in. */
export type OnnxPrecision = 'fp32' | 'tf32' | 'fp16' | 'bf16' | 'int8' | 'fp8' | 'strongly-typed'

/** What single layers can be held to. */
export type LayerPrecision = 'fp32' | 'fp16' | 'bf16'

export interface NativeOnnxSource {
  modulePath: string
  /** libnvinfer or its folder; '' = TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath: string
  device: number
  /** Absolute; '' = `modelBytes`. */
  modelPath: string
  /** Copied at the call. */
  modelBytes: Buffer
}

export interface NativeOnnxBuildOptions extends NativeOnnxSource {
  /** Absolute, of a file that is not there. */
  planPath: string
  precision: OnnxPrecision
  /** JSON: `{ pattern, precision }[]` */
  layers: string
  /** JSON: `{ input, min, opt, max, values }[][]`, the ranges of each profile. */
  profiles: string
  /** 0 = TensorRT's default. */
  workspaceBytes: number
  /** 0 ... 5; -1 = TensorRT's default. */
  optimizationLevel: number
  /** -1 = TensorRT's choice. */
  maxAuxStreams: number
  /** '' = none. */
  timingCachePath: string
  strip: boolean
  refit: 'none' | 'identical' | 'any'
  versionCompatible: boolean
  excludeLeanRuntime: boolean
  hardwareCompatibility: 'none' | 'ampere+' | 'same-compute-capability'
  profilingVerbosity: 'layer-names' | 'none' | 'detailed'
  directIo: boolean
  ioType: 'model' | 'fp16' | 'bf16'
  sparseWeights: boolean
}

export interface NativeOnnxBuildResult {
  planBytes: number
  /** 10000 * major + 100 * minor + patch */
  libraryVersion: number
  parserVersion: number
  computeMajor: number
  computeMinor: number
  /** Of the network, before TensorRT fuses them. */
  layers: number
  /** How many of them the patterns held to a type. */
  constrainedLayers: number
  timingCacheUsed: boolean
  parseSeconds: number
  buildSeconds: number
  /** TensorRT's warnings. */
  log: string[]
}

export interface NativeOnnxBuild {
  /** Rejects with ABORT_ERR after `cancel`. */
  promise: Promise<NativeOnnxBuildResult>
  /** May be called at any time, also after the end. */
  cancel(): void
}

/** One complaint of TensorRT's parser. */
export interface NativeOnnxProblem {
  /** An ErrorCode. */
  code: string
  message: string
  /** Index in the model's graph; -1 = none in particular. */
  node: number
  nodeName: string
  op: string
  /** In TensorRT's parser, and the line there. */
  function: string
  line: number
}

export interface NativeOnnxReport {
  supported: boolean
  libraryVersion: number
  problems: NativeOnnxProblem[]
  /** Indices in the model's graph, ascending. */
  unsupportedNodes: number[]
}

/** What the addon exports beside {@link NativeAddon}'s. */
export interface NativeOnnxExports {
  /** Throws for arguments of a wrong type. Progress is of the whole: `step` of 1000 `steps`; `part` is 0 of 1. */
  buildOnnxEngine(
    options: NativeOnnxBuildOptions,
    onProgress: ((progress: NativeBuildProgress) => void) | undefined,
  ): NativeOnnxBuild
  inspectOnnx(options: NativeOnnxSource): Promise<NativeOnnxReport>
}
