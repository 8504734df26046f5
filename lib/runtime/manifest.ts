/** engine.json: what an engine folder was built from, by what and for what. */
import { TensorRTError } from '../errors'
import type { Precision } from '../native'
import { checkProfiles, type RowProfile } from './profiles'

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

export interface EngineManifest {
  format: typeof ENGINE_FORMAT
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
}

/** 100600 -> '10.6.0' */
export function formatLibraryVersion(version: number): string {
  return `${Math.trunc(version / 10_000)}.${Math.trunc(version / 100) % 100}.${version % 100}`
}

/** 13000 -> '13.0' */
export function formatCudaVersion(version: number): string {
  return version === 0 ? 'unknown' : `${Math.trunc(version / 1000)}.${Math.trunc((version % 1000) / 10)}`
}

class Fields {
  constructor(
    private readonly value: Record<string, unknown>,
    private readonly where: string,
  ) {}

  #read<T>(name: string, expected: string, matches: (value: unknown) => boolean): T {
    const value = this.value[name]
    if (matches(value)) return value as T
    throw invalid(`${this.where}: "${name}" must be ${expected}`)
  }
  string(name: string): string {
    return this.#read(name, 'a string', (value) => typeof value === 'string')
  }
  sha256(name: string): string {
    return this.#read(name, 'a SHA-256', (value) => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value))
  }
  number(name: string): number {
    return this.#read(name, 'a number', (value) => typeof value === 'number' && Number.isFinite(value))
  }
  bytes(name: string): number {
    return this.#read(name, 'a number of bytes', (value) => Number.isSafeInteger(value) && (value as number) >= 0)
  }
  object(name: string): Fields {
    return new Fields(this.#read(name, 'an object', isObject), `${this.where}: ${name}`)
  }
  list<T>(name: string, read: (fields: Fields) => T): T[] {
    const items = this.#read<unknown[]>(name, 'an array of objects', (value) => Array.isArray(value) && value.every(isObject))
    return items.map((item, i) => read(new Fields(item as Record<string, unknown>, `${this.where}: ${name}[${i}]`)))
  }
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function invalid(message: string): TensorRTError {
  return new TensorRTError('ERR_ENGINE_INVALID', message, { hint: 'build the engine again' })
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
    throw invalid(`${where} is no valid JSON: ${(cause as Error).message}`)
  }
  if (!isObject(value)) throw invalid(`${where} must hold a JSON object`)
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
  const precision = fields.string('precision')
  if (precision !== 'bf16' && precision !== 'fp16' && precision !== 'fp32') throw invalid(`${where}: unknown precision "${precision}"`)
  const profiles = fields.object('profiles')
  const readProfiles = (name: string): RowProfile[] => {
    const list = profiles.list(name, (item) => ({ min: item.number('min'), opt: item.number('opt'), max: item.number('max') }))
    try {
      checkProfiles(name, list)
    } catch (cause) {
      throw invalid(`${where}: profiles: ${(cause as Error).message}`)
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
        if (!/^[^/\\\0]+\.safetensors$/.test(name)) throw invalid(`${where}: weights: ${JSON.stringify(name)} is no safetensors file's name`)
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
  }
}
