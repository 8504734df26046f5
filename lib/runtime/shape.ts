/** Shapes: their checks, and how they read in messages. */
import { TensorRTError } from '../errors'
import { describeValue } from './argument_reader'

/** TensorRT's limit. */
export const MAX_RANK = 8

/** '[1, 128]' */
export function formatShape(shape: ArrayLike<number>): string {
  return `[${Array.from(shape).join(', ')}]`
}

/** Number of elements; 1 for a scalar (`[]`). */
export function volume(shape: readonly number[]): number {
  let count = 1
  for (const size of shape) count *= size
  return count
}

/**
 * A frozen copy.
 * @param what stands at the beginning of a message, such as 'Tensor "x"'
 * @throws ERR_INVALID_TENSOR unless it is an array of at most eight sizes, integers from 0, whose product is a safe integer
 */
export function checkShape(shape: unknown, what: string): readonly number[] {
  if (!Array.isArray(shape)) {
    throw new TensorRTError('ERR_INVALID_TENSOR', `${what} needs a shape, an array of sizes, not ${describeValue(shape)}`)
  }
  if (shape.length > MAX_RANK) {
    throw new TensorRTError('ERR_INVALID_TENSOR', `${what} has ${shape.length} dimensions, and TensorRT takes ${MAX_RANK} at most`)
  }
  const sizes = Array.from(shape as unknown[])
  const wrong = sizes.findIndex((size) => !Number.isSafeInteger(size) || (size as number) < 0)
  if (wrong >= 0) {
    throw new TensorRTError(
      'ERR_INVALID_TENSOR',
      `${what} needs sizes that are integers from 0, and shape[${wrong}] is ${describeValue(sizes[wrong])}`,
    )
  }
  if (!Number.isSafeInteger(volume(sizes as number[]))) {
    throw new TensorRTError('ERR_INVALID_TENSOR', `${what} of shape ${formatShape(sizes as number[])} has more than 2^53 elements`)
  }
  return Object.freeze(sizes as number[])
}

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i])
}
