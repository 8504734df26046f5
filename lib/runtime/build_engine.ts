/** Builds engine folders from ONNX models. */
import { mkdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { TensorRTError } from '../errors'
import { buildOnnxPlan, type OnnxPrecision, probeTensorRT, problemError, type TensorRTProbe } from '../native'
import { version } from '../version'
import { buildKey, cachedEnginePath, copyEngine, findCachedEngine, referenceTo, timingCachePath } from './build_cache'
import { type CheckedBuild, checkBuildOptions, type OnnxBuildOptions } from './build_options'
import { PLAN_FILE, replaceFolder, requireUsable, requireWritable, writeManifest } from './engine_folder'
import { sha256Bytes, sha256File } from './file_hash'
import { throwIfAborted, untilAborted } from './handle'
import { ENGINE_FORMAT, formatCudaVersion, formatLibraryVersion } from './manifest'
import type { OnnxEngineManifest } from './onnx_manifest'
import { type OnnxModelInfo, readOnnxModel, requireExternalFiles } from './onnx_model'
import { checkInputProfiles, packInputProfiles } from './onnx_profiles'

export interface BuiltOnnxEngine {
  /** Absolute, of the engine folder. */
  path: string
  manifest: OnnxEngineManifest
  /** Whether it was built before. */
  cached: boolean
}

/** Of the whole, what hashing takes in `onProgress`. */
const HASHED = 0.02

/**
 * Builds an engine of an ONNX model for a GPU of this machine, or takes the one that was built before of the same model, options, TensorRT
 * and GPU. A build takes seconds to minutes, and the GPU to itself: TensorRT picks kernels by timing them. What can be said without a GPU
 * is checked first.
 *
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, also for profiles, patterns or a precision that do not go with the model, and where `out`
 * exists and `force` is not set; ERR_MODEL_NOT_FOUND, ERR_ONNX_INVALID, ERR_ONNX_UNSUPPORTED (the message names the node); what keeps
 * the GPU from being used, such as ERR_DRIVER_NOT_FOUND; ERR_TENSORRT_NOT_FOUND also where the parser or the builder resource is missing;
 * ERR_VERSION_MISMATCH, ERR_OUT_OF_DEVICE_MEMORY, ERR_OUT_OF_MEMORY, ERR_BUILD_FAILED, ERR_IO; AbortError after an abort
 */
export async function buildEngine(options: OnnxBuildOptions): Promise<BuiltOnnxEngine> {
  const checked = checkBuildOptions(options)
  const { onnx, out, force, signal, device, libraryPath, cacheDir } = checked
  throwIfAborted(signal)
  const name = typeof onnx === 'string' ? onnx : 'The ONNX model'
  const model = await readOnnxModel(onnx, signal)
  await requireExternalFiles(model, name)
  checkQuantization(model, checked.precision, name)
  checkInputProfiles(checked.profiles, model)
  if (out !== undefined) await requireWritable(out, force)

  const facts = await untilAborted(probeTensorRT(libraryPath), signal, () => {})
  requireUsable(facts, device)
  if (facts.builderResource !== null) throw problemError(facts.builderResource)
  checked.onProgress?.({ phase: 'Hashing the model', fraction: 0 })
  const hashed = await hashModel(onnx, model, signal)
  const key = keyOf(checked, hashed, facts)
  const cachePath = cacheDir === undefined ? undefined : cachedEnginePath(cacheDir, key)
  const onnxPath = typeof onnx === 'string' ? onnx : ''

  const found = cachePath === undefined ? undefined : await findCachedEngine(cachePath, key, signal)
  const path = cachePath ?? out!
  const manifest = found ?? (await build(checked, path, { facts, model, hashed, key }))
  throwIfAborted(signal)
  if (out === undefined || out === path) return { path, manifest, cached: found !== undefined }
  return { path: out, manifest: await copyEngine(path, manifest, { to: out, onnxPath, force, signal }), cached: found !== undefined }
}

/**
 * Throws unless a precision goes with the model's Q/DQ nodes.
 *
 * @throws ERR_INVALID_ARGUMENT
 */
function checkQuantization({ quantization }: OnnxModelInfo, precision: OnnxPrecision, name: string): void {
  const { int8, float8, other } = quantization
  const invalid = (message: string, hint: string): TensorRTError => new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint })
  const quantized = int8 + float8 + other > 0
  if (precision === 'int8' && int8 === 0) {
    if (float8 > 0) throw invalid(`${name} is quantized to fp8, not to int8`, "ask for precision 'fp8'")
    throw invalid(
      `${name} has no Q/DQ nodes, so there is nothing to run in int8`,
      "quantize the model first: insert QuantizeLinear / DequantizeLinear nodes, as onnxruntime's quantize_static or NVIDIA's ModelOpt do",
    )
  }
  if (precision === 'fp8' && float8 === 0) {
    if (int8 > 0) throw invalid(`${name} is quantized to int8, not to fp8`, "ask for precision 'int8'")
    throw invalid(
      `${name} has no Q/DQ nodes of 8-bit floats, so there is nothing to run in fp8`,
      "quantize the model first: insert QuantizeLinear / DequantizeLinear of type float8e4m3fn, as NVIDIA's ModelOpt does",
    )
  }
  if (precision !== 'int8' && precision !== 'fp8' && precision !== 'strongly-typed' && quantized) {
    throw invalid(`${name} is quantized: it has Q/DQ nodes`, `ask for precision '${float8 > 0 ? 'fp8' : 'int8'}'`)
  }
}

interface HashedModel {
  sha256: string
  /** Modification times before the build, to see whether the model changed meanwhile. */
  stamps: Map<string, number>
  externalFiles: { name: string; sha256: string; bytes: number }[]
}

async function hashModel(onnx: string | Uint8Array, model: OnnxModelInfo, signal: AbortSignal | undefined): Promise<HashedModel> {
  const stamps = new Map<string, number>()
  const hash = async (path: string): Promise<{ sha256: string; bytes: number }> => {
    const { mtimeMs, size } = await stat(path).catch((cause: Error) => {
      throw new TensorRTError('ERR_IO', `Reading ${path} failed: ${cause.message}`, { cause })
    })
    stamps.set(path, mtimeMs)
    return { sha256: await sha256File(path, signal), bytes: size }
  }
  const sha256 = typeof onnx === 'string' ? (await hash(onnx)).sha256 : await sha256Bytes(onnx as Uint8Array<ArrayBuffer>)
  const externalFiles = []
  // One after the other: the disk is the limit.
  for (const { name, path } of model.externalFiles) externalFiles.push({ name, ...(await hash(path)) })
  return { sha256, stamps, externalFiles }
}

async function requireUnchanged({ stamps }: HashedModel): Promise<void> {
  for (const [path, mtimeMs] of stamps) {
    const now = await stat(path).catch(() => undefined)
    if (now?.mtimeMs !== mtimeMs) throw new TensorRTError('ERR_ONNX_INVALID', `${path} changed while the engine was built`)
  }
}

/** All that decides what a build makes. */
function keyOf({ precision, layers, profiles, flags, device }: CheckedBuild, hashed: HashedModel, facts: TensorRTProbe): string {
  const gpu = facts.gpus[device]!
  const sorted = profiles.map((profile) => Object.entries(profile).sort(([a], [b]) => (a < b ? -1 : 1)))
  return buildKey({
    onnx: hashed.sha256,
    externalFiles: hashed.externalFiles.map(({ name, sha256 }) => [name, sha256]).sort(),
    precision,
    layers,
    profiles: sorted,
    flags,
    tensorrt: facts.libraryVersion,
    gpu: [gpu.name, gpu.computeMajor, gpu.computeMinor],
  })
}

interface BuildPlace {
  facts: TensorRTProbe
  model: OnnxModelInfo
  hashed: HashedModel
  key: string
}

async function build(checked: CheckedBuild, path: string, { facts, model, hashed, key }: BuildPlace): Promise<OnnxEngineManifest> {
  const { onnx, precision, layers, profiles, flags, device, libraryPath, signal, onProgress } = checked
  const gpu = facts.gpus[device]!
  const computeCapability = `${gpu.computeMajor}.${gpu.computeMinor}`
  const tensorrtVersion = formatLibraryVersion(facts.libraryVersion)
  const timings = timingsOf(checked, () => timingCachePath(checked.cacheDir!, gpu.name, computeCapability, tensorrtVersion))
  if (timings !== '') await makeFolder(dirname(timings))
  const started = performance.now()
  const make = async (temporary: string): Promise<OnnxEngineManifest> => {
    const planPath = join(temporary, PLAN_FILE)
    const result = await buildOnnxPlan({
      ...flags,
      modelPath: typeof onnx === 'string' ? onnx : '',
      modelBytes: typeof onnx === 'string' ? Buffer.alloc(0) : Buffer.from(onnx.buffer, onnx.byteOffset, onnx.length),
      planPath,
      precision,
      layers: JSON.stringify(layers),
      profiles: packInputProfiles(profiles),
      timingCachePath: timings,
      device,
      libraryPath,
      signal,
      onProgress:
        onProgress === undefined
          ? undefined
          : ({ phase, step, steps }) => onProgress({ phase, fraction: HASHED + (1 - HASHED) * (steps > 0 ? step / steps : 0) }),
    })
    const seconds = (performance.now() - started) / 1000
    await requireUnchanged(hashed)
    const manifest: OnnxEngineManifest = {
      format: ENGINE_FORMAT,
      kind: 'onnx',
      packageVersion: version,
      createdAt: new Date().toISOString(),
      precision,
      layers,
      profiles,
      tensors: [
        ...model.inputs.map(({ name, dtype, shape }) => ({ name, mode: 'input' as const, dtype, shape })),
        ...model.outputs.map(({ name, dtype, shape }) => ({ name, mode: 'output' as const, dtype, shape })),
      ],
      onnx: {
        ...referenceTo(typeof onnx === 'string' ? onnx : '', path),
        sha256: hashed.sha256,
        bytes: model.bytes,
        externalFiles: hashed.externalFiles,
        opset: model.opsets[''] ?? 0,
        producer: model.producer,
      },
      plan: { bytes: result.planBytes, sha256: await sha256File(planPath, signal) },
      tensorrtVersion: formatLibraryVersion(result.libraryVersion),
      cuda: { driver: formatCudaVersion(facts.driverCuda), required: formatCudaVersion(facts.requiredCuda) },
      gpu: { name: gpu.name, computeCapability: `${result.computeMajor}.${result.computeMinor}`, memoryBytes: gpu.memoryBytes },
      build: {
        ...flags,
        seconds,
        parseSeconds: result.parseSeconds,
        layers: result.layers,
        constrainedLayers: result.constrainedLayers,
        log: result.log,
      },
      cacheKey: key,
    }
    await writeManifest(temporary, manifest)
    return manifest
  }
  if (checked.cacheDir === undefined) return replaceFolder(path, checked.force, make)
  try {
    return await replaceFolder(path, true, make)
  } catch (error) {
    // Another process that built the same was faster.
    const theirs = error instanceof TensorRTError && error.code === 'ERR_IO' ? await findCachedEngine(path, key, signal) : undefined
    if (theirs === undefined) throw error
    return theirs
  }
}

function timingsOf({ timingCache, cacheDir }: CheckedBuild, defaultPath: () => string): string {
  if (timingCache === false || (timingCache === undefined && cacheDir === undefined)) return ''
  return timingCache ?? defaultPath()
}

async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true }).catch((cause: Error) => {
    throw new TensorRTError('ERR_IO', `${path} cannot be made: ${cause.message}`, { cause })
  })
}
