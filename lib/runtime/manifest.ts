/** engine.json: what an engine folder was built from, by what and for what. */
import { TensorRTError } from '../errors'
import type { Precision } from '../native'
import { Fields, invalidManifest, isObject } from './manifest_fields'
import { type OnnxEngineManifest, readOnnxManifest } from './onnx_manifest'
import { checkProfiles, type RowProfile } from './profiles'
import { type EngineVerification, readVerification } from './verification'

/** To be raised when a reader of the old format would misread the new one. */
export const ENGINE_FORMAT = 1

export interface WeightFile {
  /** In the folder of the weights. */
  name: string
  bytes: number
  /** Modification time in milliseconds since the epoch: an untouched file need not be hashed again. */
  mtimeMs: number
  sha256: string
}

/** What an engine is of: a language model's graph, or an ONNX model. */
export type EngineKind = 'llm' | 'onnx'

export type EngineManifest = LLMEngineManifest | OnnxEngineManifest

/** Of an engine that LLM.load() runs. */
export interface LLMEngineManifest {
  format: typeof ENGINE_FORMAT
  /** Folders of older versions do not say it. */
  kind?: 'llm'
  /** Version of this package that built it. */
  packageVersion: string
  /** ISO 8601 */
  createdAt: string
  family: string
  precision: Precision
  profiles: { layer: RowProfile[]; head: RowProfile[] }
  /** Of graph.json's bytes. */
  graphSha256: string
  plan: { bytes: number; sha256: string }
  /** '10.6.0'. That TensorRT alone runs the plan. */
  tensorrtVersion: string
  /** What the driver served, and what the build needed: '13.0'. */
  cuda: { driver: string; required: string }
  gpu: { name: string; computeCapability: string; memoryBytes: number }
  /** The weights stay where they are. `relative` to the engine folder is tried before `absolute`. */
  weights: { relative: string; absolute: string; files: WeightFile[] }
  build: {
    seconds: number
    /** -1 = TensorRT's default. */
    optimizationLevel: number
    /** One per engine in the plan. */
    parts: { name: string; planBytes: number; seconds: number }[]
  }
  /** Of the last `verify`; undefined = never verified. */
  verification?: EngineVerification
}

/** 100600 -> '10.6.0' */
export function formatLibraryVersion(version: number): string {
  return `${Math.trunc(version / 10_000)}.${Math.trunc(version / 100) % 100}.${version % 100}`
}

/** 13000 -> '13.0' */
export function formatCudaVersion(version: number): string {
  return version === 0 ? 'unknown' : `${Math.trunc(version / 1000)}.${Math.trunc((version % 1000) / 10)}`
}

/**
 * @param where path of the file, for messages
 * @throws ERR_ENGINE_INVALID, ERR_VERSION_MISMATCH for a format of another version of this package
 */
export function parseManifest(text: string, where: string): EngineManifest {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw invalidManifest(`${where} is no valid JSON: ${(cause as Error).message}`)
  }
  if (!isObject(value)) throw invalidManifest(`${where} must hold a JSON object`)
  const fields = new Fields(value as Record<string, unknown>, where)
  const format = fields.number('format')
  const packageVersion = fields.string('packageVersion')
  if (format !== ENGINE_FORMAT) {
    throw new TensorRTError(
      'ERR_VERSION_MISMATCH',
      `${where} has format ${format} of node-tensorrt ${packageVersion}, this version reads format ${ENGINE_FORMAT}`,
      { hint: 'build the engine again with this version' },
    )
  }
  const kind = fields.optionalString('kind') ?? 'llm'
  if (kind === 'onnx') return readOnnxManifest(fields, packageVersion)
  if (kind !== 'llm') throw invalidManifest(`${where}: unknown kind "${kind}"`)
  return readLLMManifest(fields, packageVersion, where)
}

function readLLMManifest(fields: Fields, packageVersion: string, where: string): LLMEngineManifest {
  const precision = fields.string('precision')
  if (precision !== 'bf16' && precision !== 'fp16' && precision !== 'fp32') throw invalidManifest(`${where}: unknown precision "${precision}"`)
  const profiles = fields.object('profiles')
  const readProfiles = (name: string): RowProfile[] => {
    const list = profiles.list(name, (item) => ({ min: item.number('min'), opt: item.number('opt'), max: item.number('max') }))
    try {
      checkProfiles(name, list)
    } catch (cause) {
      throw invalidManifest(`${where}: profiles: ${(cause as Error).message}`)
    }
    return list
  }
  const plan = fields.object('plan')
  const cuda = fields.object('cuda')
  const gpu = fields.object('gpu')
  const weights = fields.object('weights')
  const build = fields.object('build')
  return {
    format: ENGINE_FORMAT,
    kind: 'llm',
    packageVersion,
    createdAt: fields.string('createdAt'),
    family: fields.string('family'),
    precision,
    profiles: { layer: readProfiles('layer'), head: readProfiles('head') },
    graphSha256: fields.sha256('graphSha256'),
    plan: { bytes: plan.bytes('bytes'), sha256: plan.sha256('sha256') },
    tensorrtVersion: fields.string('tensorrtVersion'),
    cuda: { driver: cuda.string('driver'), required: cuda.string('required') },
    gpu: {
      name: gpu.string('name'),
      computeCapability: gpu.string('computeCapability'),
      memoryBytes: gpu.bytes('memoryBytes'),
    },
    weights: {
      relative: weights.string('relative'),
      absolute: weights.string('absolute'),
      files: weights.list('files', (file) => {
        const name = file.string('name')
        // Nothing outside the folder of the weights is opened.
        if (!/^[^/\\\0]+\.safetensors$/.test(name)) throw invalidManifest(`${where}: weights: ${JSON.stringify(name)} is no safetensors file's name`)
        return { name, bytes: file.bytes('bytes'), mtimeMs: file.number('mtimeMs'), sha256: file.sha256('sha256') }
      }),
    },
    build: {
      seconds: build.number('seconds'),
      optimizationLevel: build.number('optimizationLevel'),
      parts: build.list('parts', (part) => ({
        name: part.string('name'),
        planBytes: part.bytes('planBytes'),
        seconds: part.number('seconds'),
      })),
    },
    ...(fields.has('verification') ? { verification: readVerification(fields.object('verification'), where) } : {}),
  }
}
