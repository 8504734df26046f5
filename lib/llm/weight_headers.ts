/** Looks at the headers of safetensors files, without the weights: enough to say whether a model is whole. */
import { open } from 'node:fs/promises'
import { TensorRTError } from '../errors'
import type { WeightDType } from '../models'

/** As in the reference implementation of the format. */
const MAX_HEADER_BYTES = 100_000_000

const READABLE: ReadonlySet<string> = new Set<WeightDType>(['F32', 'F16', 'BF16'])

interface TensorEntry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

/**
 * @param weights name -> shape that the model needs
 * @throws ERR_WEIGHTS_INVALID for a file that is no safetensors, or is cut short; ERR_WEIGHTS_MISSING; ERR_MODEL_INVALID for other
 *   shapes; ERR_MODEL_UNSUPPORTED for types that are not computed with; ERR_IO
 */
export async function checkWeightHeaders(
  files: readonly string[],
  weights: Readonly<Record<string, readonly number[]>>,
): Promise<void> {
  const found = new Map<string, TensorEntry & { file: string }>()
  for (const file of files) {
    for (const [name, entry] of await readHeader(file)) found.set(name, { ...entry, file })
  }
  for (const [name, expected] of Object.entries(weights)) {
    const weight = found.get(name)
    if (weight === undefined) {
      throw new TensorRTError('ERR_WEIGHTS_MISSING', `The weight "${name}" is in none of ${files.length} files`, {
        hint: 'the download may be incomplete, or config.json of another model',
      })
    }
    if (expected.length !== weight.shape.length || expected.some((size, i) => size !== weight.shape[i])) {
      throw new TensorRTError(
        'ERR_MODEL_INVALID',
        `"${name}" in ${weight.file} has the shape [${weight.shape.join(', ')}], config.json asks for [${expected.join(', ')}]`,
      )
    }
    if (!READABLE.has(weight.dtype)) {
      throw new TensorRTError('ERR_MODEL_UNSUPPORTED', `"${name}" in ${weight.file} is of type ${weight.dtype}`, {
        hint: 'weights must be F32, F16 or BF16: convert the checkpoint',
      })
    }
  }
}

async function readHeader(path: string): Promise<[string, TensorEntry][]> {
  const { size, text } = await readHeaderText(path)
  let entries: [string, TensorEntry][]
  try {
    const header = JSON.parse(text) as Record<string, TensorEntry>
    entries = Object.entries(header).filter(([name]) => name !== '__metadata__')
    for (const [, { shape, data_offsets: offsets }] of entries) {
      if (!Array.isArray(shape) || !offsets.every(Number.isSafeInteger)) throw new TypeError('its entries lack shapes and offsets')
    }
  } catch (cause) {
    throw invalid(path, `its header cannot be read: ${(cause as Error).message}`)
  }
  const end = 8 + Buffer.byteLength(text) + entries.reduce((most, [, { data_offsets: [, to] }]) => Math.max(most, to), 0)
  if (end > size) throw invalid(path, `it has ${size} bytes, its header speaks of ${end}`)
  return entries
}

async function readHeaderText(path: string): Promise<{ size: number; text: string }> {
  try {
    const file = await open(path)
    try {
      const { size } = await file.stat()
      const length = Buffer.alloc(8)
      const { bytesRead } = await file.read(length, 0, 8, 0)
      const bytes = bytesRead < 8 ? Infinity : Number(length.readBigUInt64LE())
      if (bytes > Math.min(MAX_HEADER_BYTES, size - 8)) throw invalid(path, 'it is no safetensors file, or cut short')
      const header = Buffer.alloc(bytes)
      await file.read(header, 0, bytes, 8)
      return { size, text: header.toString('utf8') }
    } finally {
      await file.close()
    }
  } catch (cause) {
    if (cause instanceof TensorRTError) throw cause
    throw new TensorRTError('ERR_IO', `Reading ${path} failed: ${(cause as Error).message}`, { cause })
  }
}

function invalid(path: string, what: string): TensorRTError {
  return new TensorRTError('ERR_WEIGHTS_INVALID', `${path}: ${what}`, { hint: 'the download may be incomplete' })
}
