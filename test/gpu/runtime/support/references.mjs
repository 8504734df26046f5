/** Inputs and onnxruntime's outputs, as bench/gpu/models/export.py wrote them, and how far ours are from them. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { lib, modelsFolder } from './target.mjs'

const { Tensor } = lib
const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array }

/** @returns `{ inputs, outputs }[]`, tensors by name */
export function readCases(model) {
  const { cases } = JSON.parse(readFileSync(join(modelsFolder, `${model}.json`), 'utf8'))
  const file = readFileSync(join(modelsFolder, `${model}.bin`))
  const bytes = file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength)
  const tensor = ({ dtype, shape, offset }) => {
    const count = shape.reduce((product, size) => product * size, 1)
    return Tensor.from(dtype, new ARRAYS[dtype](bytes, offset, count), shape)
  }
  const tensors = (places) => Object.fromEntries(Object.entries(places).map(([name, place]) => [name, tensor(place)]))
  return cases.map(({ inputs, outputs }) => ({ inputs: tensors(inputs), outputs: tensors(outputs) }))
}

/**
 * How far `given` is from `expected`: the largest |a - b| / max(1, |b|), and the largest |a - b|. Integers must be equal.
 * `rows`, where given, says which values of the first two axes count.
 */
export function distance(given, expected, counts = () => true) {
  assert.deepEqual([...given.shape], [...expected.shape], 'shape')
  if (expected.dtype === 'int64') {
    assert.deepEqual(given.data, expected.data)
    return { relative: 0, absolute: 0 }
  }
  const ours = given.toFloat32()
  const theirs = expected.toFloat32()
  let relative = 0
  let absolute = 0
  for (let i = 0; i < theirs.length; i++) {
    if (!counts(i)) continue
    const difference = Math.abs(ours[i] - theirs[i])
    // NaN must not pass.
    if (!(difference <= absolute)) absolute = difference
    const scaled = difference / Math.max(1, Math.abs(theirs[i]))
    if (!(scaled <= relative)) relative = scaled
  }
  return { relative, absolute }
}
