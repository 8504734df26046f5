/** SHA-256 off the event loop. */
import { createHash } from 'node:crypto'
import { Worker } from 'node:worker_threads'
import { AbortError, TensorRTError } from '../errors'

/** Text, so that it runs the same from TypeScript sources, dist/ and a bundle. */
const HASH_FILE = `
const { createHash } = require('node:crypto')
const { closeSync, openSync, readSync } = require('node:fs')
const { parentPort, workerData } = require('node:worker_threads')
const hash = createHash('sha256')
const chunk = Buffer.allocUnsafe(4 << 20)
try {
  const file = openSync(workerData, 'r')
  for (let bytes; (bytes = readSync(file, chunk)) > 0; ) hash.update(chunk.subarray(0, bytes))
  closeSync(file)
  parentPort.postMessage({ sha256: hash.digest('hex') })
} catch ({ message }) {
  parentPort.postMessage({ message })
}`

/**
 * Hex SHA-256 of a file of any size, read in pieces on a thread of its own.
 *
 * @throws (as a rejection) TensorRTError ERR_IO, AbortError
 */
export async function sha256File(path: string, signal?: AbortSignal): Promise<string> {
  if (signal?.aborted === true) throw new AbortError(signal.reason)
  const worker = new Worker(HASH_FILE, { eval: true, workerData: path, name: 'node-tensorrt-hash' })
  let onAbort: (() => void) | undefined
  try {
    return await new Promise<string>((resolve, reject) => {
      onAbort = () => reject(new AbortError(signal?.reason))
      signal?.addEventListener('abort', onAbort, { once: true })
      const fail = (why: string): void => reject(new TensorRTError('ERR_IO', `Reading ${path} failed: ${why}`))
      worker.once('message', ({ sha256, message }: { sha256?: string; message?: string }) => {
        if (sha256 === undefined) fail(message ?? 'unknown reason')
        else resolve(sha256)
      })
      worker.once('error', (error) => fail(error.message))
      worker.once('exit', () => fail('its thread ended'))
    })
  } finally {
    if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort)
    await worker.terminate()
  }
}

/** Hex SHA-256 of bytes, on libuv's thread pool. */
export async function sha256Bytes(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return Buffer.from(await globalThis.crypto.subtle.digest('SHA-256', bytes)).toString('hex')
}

/** The memory changes hands twice, so that there is one copy of it at any time. */
const HASH_MEMORY = `
const { createHash } = require('node:crypto')
const { parentPort } = require('node:worker_threads')
parentPort.once('message', (memory) => {
  const hash = createHash('sha256')
  const chunk = 4 << 20
  for (let at = 0; at < memory.byteLength; at += chunk) hash.update(new Uint8Array(memory, at, Math.min(chunk, memory.byteLength - at)))
  parentPort.postMessage({ memory, sha256: hash.digest('hex') }, [memory])
})`

/** Less than this is hashed at once: it takes less than starting a thread. */
const SMALL = 1 << 20

export interface HashedMemory {
  memory: ArrayBuffer
  sha256: string
}

/**
 * Hex SHA-256 of memory of any size, without a copy of it: `memory` is detached and comes back as another ArrayBuffer over the same bytes,
 * which nobody can change meanwhile.
 *
 * @throws (as a rejection) AbortError, after which the memory is gone; TensorRTError ERR_INTERNAL where the thread ends
 */
export async function sha256Memory(memory: ArrayBuffer, signal?: AbortSignal): Promise<HashedMemory> {
  if (signal?.aborted === true) throw new AbortError(signal.reason)
  if (memory.byteLength <= SMALL) return { memory, sha256: createHash('sha256').update(new Uint8Array(memory)).digest('hex') }
  const worker = new Worker(HASH_MEMORY, { eval: true, name: 'node-tensorrt-hash' })
  let onAbort: (() => void) | undefined
  try {
    return await new Promise<HashedMemory>((resolve, reject) => {
      onAbort = () => reject(new AbortError(signal?.reason))
      signal?.addEventListener('abort', onAbort, { once: true })
      const fail = (cause: unknown): void => reject(new TensorRTError('ERR_INTERNAL', 'The thread that hashes ended', { cause }))
      worker.once('message', resolve)
      worker.once('error', fail)
      worker.once('exit', fail)
      worker.postMessage(memory, [memory])
    })
  } finally {
    if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort)
    await worker.terminate()
  }
}
