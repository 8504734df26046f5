/** Where an engine's plan comes from, and the checks before TensorRT sees a byte of it. */
import { stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { TensorRTError } from '../errors'
import { invalidArgument } from './argument_reader'
import { PLAN_FILE, readEngineManifest } from './engine_folder'
import { sha256Memory } from './file_hash'
import { throwIfAborted } from './handle'
import type { OnnxEngineManifest } from './onnx_manifest'
import { allocatePrivately, readPrivately } from './private_file'

export type PlanSource =
  | { kind: 'folder'; path: string; manifest: OnnxEngineManifest }
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
  if (!found.isDirectory()) {
    if (!/\.onnx$/i.test(path)) return { kind: 'file', path }
    throw new TensorRTError('ERR_ENGINE_INVALID', `${path} is an ONNX file, and a GPU runs a built engine`, {
      hint: `build one: buildEngine({ onnx }), or npx node-tensorrt build ${path}`,
    })
  }
  const manifest = await readEngineManifest(path)
  if (manifest.kind === 'onnx') return { kind: 'folder', path, manifest }
  throw new TensorRTError('ERR_ENGINE_INVALID', `${path} holds the engines of a language model`, { hint: 'LLM.load() runs them' })
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
  let memory = source.kind === 'bytes' ? source.memory : await readPrivately(name, { checkSize, signal }).catch((error: Error) => {
    if ((error.cause as NodeJS.ErrnoException | undefined)?.code !== 'ENOENT') throw error
    throw new TensorRTError('ERR_ENGINE_INVALID', `${name} is not there`, { hint: 'build the engine again', cause: error.cause })
  })
  for (const hash of new Set([expected?.sha256, sha256])) {
    if (hash === undefined) continue
    throwIfAborted(signal)
    const hashed = await sha256Memory(memory, signal)
    if (hashed.sha256 !== hash) throw mismatch(`SHA-256 ${hashed.sha256}`, hash)
    memory = hashed.memory
  }
  return memory
}
