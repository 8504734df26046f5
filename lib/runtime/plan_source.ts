/** Where an engine's plan comes from, and the checks before TensorRT sees a byte of it. */
import { readFile, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { TensorRTError } from '../errors'
import { invalidArgument } from './argument_reader'
import { MANIFEST_FILE } from './engine_folder'
import { sha256Memory } from './file_hash'
import { throwIfAborted } from './handle'
import { type EngineManifest, formatLibraryVersion, parseManifest } from './manifest'
import { allocatePrivately, readPrivately } from './private_file'
import type { RuntimeInfo } from './runtime'

const PLAN_FILE = 'plan'

export type PlanSource =
  | { kind: 'folder'; path: string; manifest: EngineManifest }
  | { kind: 'file'; path: string }
  | { kind: 'bytes'; memory: ArrayBuffer }

/**
 * @param source path of a plan or of an engine folder; or a plan's bytes, which are copied before this returns
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_ENGINE_INVALID, ERR_VERSION_MISMATCH, ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function openPlanSource(source: unknown): Promise<PlanSource> {
  if (source instanceof Uint8Array || source instanceof ArrayBuffer) {
    const memory = allocatePrivately(source.byteLength, 'the plan')
    new Uint8Array(memory).set(source instanceof Uint8Array ? source : new Uint8Array(source))
    return { kind: 'bytes', memory }
  }
  if (typeof source !== 'string' || source === '' || source.includes('\0')) {
    throw invalidArgument('source', 'the path of a plan or of an engine folder, or the bytes of a plan', source)
  }
  const path = resolve(source)
  const found = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') throw new TensorRTError('ERR_ENGINE_INVALID', `There is no engine at ${path}`, { cause })
    throw new TensorRTError('ERR_IO', `${path} cannot be used: ${cause.message}`, { cause })
  })
  if (!found.isDirectory()) return { kind: 'file', path }
  return { kind: 'folder', path, manifest: await readManifest(path) }
}

async function readManifest(folder: string): Promise<EngineManifest> {
  const file = join(folder, MANIFEST_FILE)
  const text = await readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code !== 'ENOENT') throw new TensorRTError('ERR_IO', `Reading ${file} failed: ${cause.message}`, { cause })
    throw new TensorRTError('ERR_ENGINE_INVALID', `${folder} is no engine folder: it has no ${MANIFEST_FILE}`, { cause })
  })
  return parseManifest(text, file)
}

/**
 * Throws unless a folder's engine runs on the device.
 *
 * @throws ERR_ENGINE_INCOMPATIBLE, naming both sides
 */
export function requireRuntimeFit({ tensorrtVersion, gpu }: EngineManifest, info: RuntimeInfo): void {
  const incompatible = (built: string, here: string): TensorRTError =>
    new TensorRTError('ERR_ENGINE_INCOMPATIBLE', `The engine was built ${built}; ${here}`, { hint: 'build the engine on this machine' })
  const version = formatLibraryVersion(info.libraryVersion)
  if (tensorrtVersion !== version) throw incompatible(`by TensorRT ${tensorrtVersion}`, `${info.libraryPath} is ${version}`)
  if (gpu.computeCapability !== info.computeCapability) {
    throw incompatible(
      `for compute capability ${gpu.computeCapability} (${gpu.name})`,
      `device ${info.device}, ${info.name}, has ${info.computeCapability}`,
    )
  }
}

/**
 * Reads a plan once, into memory that nobody else has, and checks what it is to be.
 *
 * @param sha256 hex, of the plan
 * @throws (as a rejection) ERR_ENGINE_INVALID for other bytes than those of manifest or hash, ERR_IO, ERR_OUT_OF_MEMORY, AbortError
 */
export async function readPlan(source: PlanSource, sha256: string | undefined, signal: AbortSignal | undefined): Promise<ArrayBuffer> {
  const name = source.kind === 'bytes' ? 'The plan' : source.kind === 'file' ? source.path : join(source.path, PLAN_FILE)
  const mismatch = (found: string, expected: string): TensorRTError =>
    new TensorRTError('ERR_ENGINE_INVALID', `${name} has ${found}, expected is ${expected}`, {
      hint: 'the plan was changed after the build: build the engine again',
    })
  const expected = source.kind === 'folder' ? source.manifest.plan : undefined
  const checkSize = (bytes: number): void => {
    if (expected !== undefined && bytes !== expected.bytes) throw mismatch(`${bytes} bytes`, `${expected.bytes}`)
    if (bytes === 0) throw new TensorRTError('ERR_ENGINE_INVALID', `${name} is empty`)
  }
  if (source.kind === 'bytes') checkSize(source.memory.byteLength)
  let memory = source.kind === 'bytes' ? source.memory : await readPrivately(name, { checkSize, signal })
  for (const hash of new Set([expected?.sha256, sha256])) {
    if (hash === undefined) continue
    throwIfAborted(signal)
    const hashed = await sha256Memory(memory, signal)
    if (hashed.sha256 !== hash) throw mismatch(`SHA-256 ${hashed.sha256}`, hash)
    memory = hashed.memory
  }
  return memory
}
