/** The part of engine.json that engines of ONNX models have. */
import type { LayerPrecision, OnnxPrecision } from '../native'
import type { Fields } from './manifest_fields'
import type { InputProfile, InputRange } from './onnx_profiles'

export const ONNX_PRECISIONS = ['fp32', 'tf32', 'fp16', 'bf16', 'int8', 'fp8', 'strongly-typed'] as const satisfies readonly OnnxPrecision[]
export const LAYER_PRECISIONS = ['fp32', 'fp16', 'bf16'] as const satisfies readonly LayerPrecision[]
export const REFIT_KINDS = ['none', 'identical', 'any'] as const
export const HARDWARE_LEVELS = ['none', 'ampere+', 'same-compute-capability'] as const
export const VERBOSITIES = ['layer-names', 'none', 'detailed'] as const
export const IO_TYPES = ['model', 'fp16', 'bf16'] as const

/** Layers whose name matches the pattern ('*' any characters, '?' one) compute in this type. */
export interface LayerRule {
  pattern: string
  precision: LayerPrecision
}

/** What decides what a build makes, beside model, machine and versions. */
export interface OnnxBuildFlags {
  /** 0 = TensorRT's default. */
  workspaceBytes: number
  /** -1 = TensorRT's default. */
  optimizationLevel: number
  /** -1 = TensorRT's choice. */
  maxAuxStreams: number
  strip: boolean
  refit: (typeof REFIT_KINDS)[number]
  versionCompatible: boolean
  excludeLeanRuntime: boolean
  hardwareCompatibility: (typeof HARDWARE_LEVELS)[number]
  profilingVerbosity: (typeof VERBOSITIES)[number]
  directIo: boolean
  ioType: (typeof IO_TYPES)[number]
  sparseWeights: boolean
}

export interface OnnxReference {
  /** To the engine folder; tried before `absolute`. '' for a model that came as bytes. */
  relative: string
  absolute: string
  sha256: string
  bytes: number
  /** Files beside the model that hold weights. */
  externalFiles: { name: string; sha256: string; bytes: number }[]
}

export interface OnnxEngineManifest {
  format: 1
  kind: 'onnx'
  /** Version of this package that built it. */
  packageVersion: string
  /** ISO 8601 */
  createdAt: string
  precision: OnnxPrecision
  layers: LayerRule[]
  profiles: InputProfile[]
  /** As the model declares them; -1 = dynamic. Null: the model does not say the rank. */
  tensors: { name: string; mode: 'input' | 'output'; dtype: string; shape: number[] | null }[]
  onnx: OnnxReference & { opset: number; producer: string }
  plan: { bytes: number; sha256: string }
  /** '10.6.0'. That TensorRT alone runs the plan, unless the build was version-compatible. */
  tensorrtVersion: string
  /** What the driver served, and what the build needed: '13.0'. */
  cuda: { driver: string; required: string }
  gpu: { name: string; computeCapability: string; memoryBytes: number }
  build: OnnxBuildFlags & {
    seconds: number
    parseSeconds: number
    /** Layers of the network before TensorRT fused them, and how many of them `layers` held to a type. */
    layers: number
    constrainedLayers: number
    /** TensorRT's warnings. */
    log: string[]
  }
  /** Of all that decided the build; equal keys are equal engines. */
  cacheKey: string
  /** Measured figures that later runs are compared with, by name. */
  baselines?: Record<string, number>
}

export function readOnnxManifest(fields: Fields, packageVersion: string): OnnxEngineManifest {
  const onnx = fields.object('onnx')
  const plan = fields.object('plan')
  const cuda = fields.object('cuda')
  const gpu = fields.object('gpu')
  const build = fields.object('build')
  const manifest: OnnxEngineManifest = {
    format: 1,
    kind: 'onnx',
    packageVersion,
    createdAt: fields.string('createdAt'),
    precision: fields.choice('precision', ONNX_PRECISIONS),
    layers: fields.list('layers', (rule) => ({
      pattern: rule.string('pattern'),
      precision: rule.choice('precision', LAYER_PRECISIONS),
    })),
    profiles: fields.list('profiles', (profile) =>
      Object.fromEntries(profile.names().map((name) => [name, readRange(profile.object(name))])),
    ),
    tensors: fields.list('tensors', (tensor) => ({
      name: tensor.string('name'),
      mode: tensor.choice('mode', ['input', 'output']),
      dtype: tensor.string('dtype'),
      shape: tensor.isNull('shape') ? null : tensor.integers('shape'),
    })),
    onnx: {
      relative: onnx.string('relative'),
      absolute: onnx.string('absolute'),
      sha256: onnx.sha256('sha256'),
      bytes: onnx.bytes('bytes'),
      externalFiles: onnx.list('externalFiles', (file) => ({
        name: file.string('name'),
        sha256: file.sha256('sha256'),
        bytes: file.bytes('bytes'),
      })),
      opset: onnx.number('opset'),
      producer: onnx.string('producer'),
    },
    plan: { bytes: plan.bytes('bytes'), sha256: plan.sha256('sha256') },
    tensorrtVersion: fields.string('tensorrtVersion'),
    cuda: { driver: cuda.string('driver'), required: cuda.string('required') },
    gpu: {
      name: gpu.string('name'),
      computeCapability: gpu.string('computeCapability'),
      memoryBytes: gpu.bytes('memoryBytes'),
    },
    build: {
      workspaceBytes: build.bytes('workspaceBytes'),
      optimizationLevel: build.number('optimizationLevel'),
      maxAuxStreams: build.number('maxAuxStreams'),
      strip: build.boolean('strip'),
      refit: build.choice('refit', REFIT_KINDS),
      versionCompatible: build.boolean('versionCompatible'),
      excludeLeanRuntime: build.boolean('excludeLeanRuntime'),
      hardwareCompatibility: build.choice('hardwareCompatibility', HARDWARE_LEVELS),
      profilingVerbosity: build.choice('profilingVerbosity', VERBOSITIES),
      directIo: build.boolean('directIo'),
      ioType: build.choice('ioType', IO_TYPES),
      sparseWeights: build.boolean('sparseWeights'),
      seconds: build.number('seconds'),
      parseSeconds: build.number('parseSeconds'),
      layers: build.number('layers'),
      constrainedLayers: build.number('constrainedLayers'),
      log: build.strings('log'),
    },
    cacheKey: fields.sha256('cacheKey'),
  }
  if (fields.has('baselines')) {
    const baselines = fields.object('baselines')
    manifest.baselines = Object.fromEntries(baselines.names().map((name) => [name, baselines.number(name)]))
  }
  return manifest
}

function readRange(fields: Fields): InputRange {
  const range: InputRange = { min: fields.integers('min'), opt: fields.integers('opt'), max: fields.integers('max') }
  if (fields.has('values') && fields.boolean('values')) range.values = true
  return range
}
