/** Files that are read once, into memory that nobody else writes. */
import { type FileHandle, open } from 'node:fs/promises'
import { TensorRTError } from '../errors'
import { throwIfAborted } from './handle'

/** One read of the system's; between two of them an abort takes effect. */
const CHUNK_BYTES = 16 << 20

export interface ReadOptions {
  /** Throws for a file of this many bytes, before any is read. */
  checkSize?: ((bytes: number) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * A file's bytes, in an ArrayBuffer of exactly their size.
 *
 * @throws (as a rejection) ERR_IO, ERR_OUT_OF_MEMORY, what `checkSize` throws, AbortError
 */
export async function readPrivately(path: string, { checkSize, signal }: ReadOptions = {}): Promise<ArrayBuffer> {
  let file: FileHandle | undefined
  try {
    file = await open(path, 'r')
    const { size } = await file.stat()
    checkSize?.(size)
    const memory = allocatePrivately(size, path)
    for (let at = 0; at < size; ) {
      throwIfAborted(signal)
      const { bytesRead } = await file.read(new Uint8Array(memory, at, Math.min(CHUNK_BYTES, size - at)), 0, undefined, at)
      if (bytesRead === 0) throw new TensorRTError('ERR_IO', `${path} became shorter while it was read: ${at} of ${size} bytes`)
      at += bytesRead
    }
    return memory
  } catch (cause) {
    if (typeof (cause as NodeJS.ErrnoException).errno !== 'number') throw cause
    throw new TensorRTError('ERR_IO', `Reading ${path} failed: ${(cause as Error).message}`, { cause })
  } finally {
    await file?.close()
  }
}

/** @throws ERR_OUT_OF_MEMORY */
export function allocatePrivately(bytes: number, what: string): ArrayBuffer {
  try {
    return new ArrayBuffer(bytes)
  } catch (cause) {
    throw new TensorRTError('ERR_OUT_OF_MEMORY', `There is no room for the ${bytes} bytes of ${what}`, { cause })
  }
}
