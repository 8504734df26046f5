/** Engines that were built before: found by a key of all that decided their build. */
import { constants } from 'node:fs'
import { copyFile, rm } from 'node:fs/promises'
import { createHash } from 'node:crypto'
import { homedir } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { TensorRTError } from '../errors'
import { isEngineFolder, PLAN_FILE, readEngineManifest, replaceFolder, verifyPlan, writeManifest } from './engine_folder'
import { throwIfAborted } from './handle'
import type { OnnxEngineManifest } from './onnx_manifest'

/** To be raised when the same key would stand for another engine. */
export const BUILD_FORMAT = 1

/** XDG_CACHE_HOME/node-tensorrt, or ~/.cache/node-tensorrt. */
export function defaultCacheDir(): string {
  const named = process.env['XDG_CACHE_HOME']
  return join(named === undefined || named === '' ? join(homedir(), '.cache') : resolve(named), 'node-tensorrt')
}

/** Hex SHA-256 of values that JSON holds; members keep their order. */
export function buildKey(decisive: object): string {
  return createHash('sha256').update(JSON.stringify({ buildFormat: BUILD_FORMAT, ...decisive })).digest('hex')
}

/** Where an engine of this key is kept. */
export function cachedEnginePath(cacheDir: string, key: string): string {
  return join(cacheDir, 'engines', key)
}

/** File of TensorRT's timings, which hold for a GPU and a version. */
export function timingCachePath(cacheDir: string, gpuName: string, computeCapability: string, tensorrtVersion: string): string {
  const gpu = gpuName.replace(/[^A-Za-z0-9.]+/g, '-')
  return join(cacheDir, 'timings', `${gpu}-${computeCapability}-trt${tensorrtVersion}.bin`)
}

/**
 * The engine of this key, where a whole one is in the cache. One that is damaged is removed.
 *
 * @throws (as a rejection) ERR_IO, AbortError
 */
export async function findCachedEngine(
  path: string,
  key: string,
  signal: AbortSignal | undefined,
): Promise<OnnxEngineManifest | undefined> {
  if (!(await isEngineFolder(path))) return undefined
  try {
    const manifest = await readEngineManifest(path)
    if (manifest.kind !== 'onnx' || manifest.cacheKey !== key) return undefined
    await verifyPlan(path, manifest, signal)
    return manifest
  } catch (error) {
    const damaged = error instanceof TensorRTError && (error.code === 'ERR_ENGINE_INVALID' || error.code === 'ERR_VERSION_MISMATCH')
    if (!damaged) throw error
    await rm(path, { recursive: true, force: true })
    return undefined
  }
}

interface EngineCopy {
  to: string
  /** Absolute, of the model that the copy refers to; '' for one that came as bytes. */
  onnxPath: string
  force: boolean
  signal: AbortSignal | undefined
}

/**
 * Copies an engine folder of an ONNX model to where it was asked for.
 *
 * @throws (as a rejection) what replaceFolder() throws; AbortError, once the plan is copied, and nothing is left of the copy
 */
export async function copyEngine(from: string, manifest: OnnxEngineManifest, { to, onnxPath, force, signal }: EngineCopy): Promise<OnnxEngineManifest> {
  const copied = { ...manifest, onnx: { ...manifest.onnx, ...referenceTo(onnxPath, to) } }
  return replaceFolder(to, force, async (temporary) => {
    await copyFile(join(from, PLAN_FILE), join(temporary, PLAN_FILE), constants.COPYFILE_FICLONE)
    throwIfAborted(signal)
    await writeManifest(temporary, copied)
    return copied
  })
}

/** How the engine folder `folder` names the model at `onnxPath`. */
export function referenceTo(onnxPath: string, folder: string): { relative: string; absolute: string } {
  return onnxPath === '' ? { relative: '', absolute: '' } : { relative: relative(folder, onnxPath), absolute: onnxPath }
}
