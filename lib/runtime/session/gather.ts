/** Between the tensors of requests and the memory of a batch: each value is copied once. */
import { TensorRTError } from '../../errors'
import { arrayLengthOf, type TensorData } from '../dtype'
import { volume } from '../shape'
import { type AnyTensor, Tensor } from '../tensor'
import type { OutputMap } from './options'
import { BATCH, type RequestShapes } from './request_shapes'
import type { BatchOutput, SessionBatch, SessionRequest } from './session_request'

/** The typed arrays differ in the type of their elements only, which is the same on both sides. */
interface Values extends Omit<Uint8Array, 'set' | 'fill' | 'subarray' | 'slice'> {
  set(values: Values, offset?: number): void
  fill(value: number | bigint, from?: number, to?: number): void
  subarray(from: number, to: number): Values
  slice(from: number, to: number): Values
}

/**
 * Copies the inputs of a batch.
 * @param views one for each input that is not a shape tensor, of exactly the batch's size
 */
export function gatherBatch(shapes: RequestShapes, batch: SessionBatch, views: readonly (TensorData | null)[]): void {
  const { inputs } = shapes.signature
  for (let input = 0; input < inputs.length; input++) {
    const view = views[input]
    if (view != null) gatherInput(shapes, batch, input, view as unknown as Values)
  }
}

function gatherInput(shapes: RequestShapes, batch: SessionBatch, input: number, view: Values): void {
  const dims = batch.shape.inputs[input]!
  const rowValues = shapes.isBatched ? view.length / batch.size : view.length
  let at = 0
  for (const request of batch.requests) {
    const tensor = request.tensors[input]!
    const data = tensor.data as unknown as Values
    const count = rowValues * request.rows
    if (data.length !== arrayLengthOf(tensor.dtype, volume(tensor.shape))) {
      // Whoever transfers a buffer away while its request waits gets an error, and not what lay in memory before.
      request.failure ??= detached(shapes.signature.inputs[input]!.name)
      view.fill(zeroOf(view), at, at + count)
    } else if (request.lengths === null) {
      view.set(data, at)
    } else {
      const target = dims.map((dim) => (dim === BATCH ? request.rows : dim))
      copyPadded(view, at, target, data, 0, tensor.shape, 0, fillValue(shapes, input, view))
    }
    at += count
  }
  // Rows that nobody asked for hold valid values, as a model may not take any others.
  const last = at - rowValues
  for (; at < view.length; at += rowValues) view.copyWithin(at, last, last + rowValues)
}

function detached(name: string): TensorRTError {
  return new TensorRTError('ERR_INVALID_TENSOR', `The values of input "${name}" were gone when the request was to run`, {
    hint: 'its buffer was transferred to another thread: leave it until run() has settled',
  })
}

function zeroOf(view: Values): number | bigint {
  return view instanceof BigInt64Array ? 0n : 0
}

/** An input has one value for all its ragged dimensions: that of the first. */
function fillValue(shapes: RequestShapes, input: number, view: Values): number | bigint {
  const { name } = shapes.signature.inputs[input]!
  const value = shapes.ragged.find(({ inputs }) => inputs.has(name))?.inputs.get(name)?.value ?? 0
  return view instanceof BigInt64Array ? BigInt(value) : Number(value)
}

/** Copies a block into the corner of a larger one, and fills the rest. Both are contiguous, in row-major order. */
function copyPadded(
  to: Values,
  toAt: number,
  toShape: readonly number[],
  from: Values,
  fromAt: number,
  fromShape: readonly number[],
  axis: number,
  fill: number | bigint,
): void {
  let isSame = true
  for (let i = axis; i < toShape.length && isSame; i++) isSame = toShape[i] === fromShape[i]
  if (isSame) {
    to.set(from.subarray(fromAt, fromAt + volume(fromShape.slice(axis))), toAt)
    return
  }
  const toStride = volume(toShape.slice(axis + 1))
  const fromStride = volume(fromShape.slice(axis + 1))
  const count = fromShape[axis]!
  if (toStride === fromStride && axis === toShape.length - 1) to.set(from.subarray(fromAt, fromAt + count), toAt)
  else for (let i = 0; i < count; i++) copyPadded(to, toAt + i * toStride, toShape, from, fromAt + i * fromStride, fromShape, axis + 1, fill)
  to.fill(fill, toAt + count * toStride, toAt + toShape[axis]! * toStride)
}

/** The outputs of a request, in memory of their own. `row` is its first row in the batch. */
export function scatterRequest(shapes: RequestShapes, batch: SessionBatch, request: SessionRequest, row: number, outputs: readonly BatchOutput[]): OutputMap {
  const { signature } = shapes
  const result: Record<string, AnyTensor> = {}
  const { wanted } = request
  const count = wanted === null ? outputs.length : wanted.length
  for (let i = 0; i < count; i++) {
    const index = wanted === null ? i : wanted[i]!
    const { name, dtype } = signature.outputs[index]!
    const { data, shape } = outputs[index]!
    const values = data as unknown as Values
    if (!shapes.isBatched) {
      result[name] = wrap(dtype, values.slice(0, values.length), shape)
      continue
    }
    const rowValues = values.length / batch.size
    const own = values.slice(row * rowValues, (row + request.rows) * rowValues)
    const ownShape = shape.slice()
    ownShape[0] = request.rows
    result[name] = request.lengths === null ? wrap(dtype, own, ownShape) : wrapCut(shapes, request, index, own, ownShape)
  }
  return result
}

function wrap(dtype: Tensor['dtype'], values: Values, shape: readonly number[]): AnyTensor {
  return Tensor.wrap(dtype, values as unknown as TensorData, Object.freeze(shape)) as AnyTensor
}

/** Without what ragged dimensions were filled up with. */
function wrapCut(shapes: RequestShapes, request: SessionRequest, output: number, values: Values, shape: readonly number[]): AnyTensor {
  const { name, dtype } = shapes.signature.outputs[output]!
  const cut = shape.map((dim, axis) => {
    const index = shapes.raggedOutput(name, axis)
    return index < 0 ? dim : Math.min(dim, request.lengths![index]!)
  })
  if (cut.every((dim, axis) => dim === shape[axis])) return wrap(dtype, values, shape)
  const kept = values.slice(0, volume(cut))
  copyCorner(kept, 0, cut, values, 0, shape, 0)
  return wrap(dtype, kept, cut)
}

/** Copies the corner of a block. */
function copyCorner(to: Values, toAt: number, toShape: readonly number[], from: Values, fromAt: number, fromShape: readonly number[], axis: number): void {
  const toStride = volume(toShape.slice(axis + 1))
  const fromStride = volume(fromShape.slice(axis + 1))
  if (toStride === fromStride) {
    to.set(from.subarray(fromAt, fromAt + toShape[axis]! * fromStride), toAt)
    return
  }
  for (let i = 0; i < toShape[axis]!; i++) copyCorner(to, toAt + i * toStride, toShape, from, fromAt + i * fromStride, fromShape, axis + 1)
}
