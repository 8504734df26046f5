/** The data types of tensors: how many bytes they take, and which typed array holds them. */
import { TensorRTError } from '../errors'
import type { DataType } from '../native'
import { describeValue } from './argument_reader'

export type { DataType } from '../native'

/**
 * The typed array that holds a tensor's data. float16 and bfloat16 are their bits; float8 (E4M3) is its bits; bool is 0 or 1; int4 is
 * packed, two to a byte, the first in the low half.
 */
export interface TensorDataTypes {
  float32: Float32Array
  float16: Uint16Array
  bfloat16: Uint16Array
  float8: Uint8Array
  int8: Int8Array
  uint8: Uint8Array
  int32: Int32Array
  int64: BigInt64Array
  bool: Uint8Array
  int4: Uint8Array
}

export type TensorData<D extends DataType = DataType> = TensorDataTypes[D]

interface ArrayType<T> {
  readonly name: string
  readonly BYTES_PER_ELEMENT: number
  new (length: number): T
  new (buffer: ArrayBufferLike, byteOffset?: number, length?: number): T
}

interface DataTypeFacts<D extends DataType> {
  bits: number
  array: ArrayType<TensorDataTypes[D]>
}

const FACTS: { readonly [D in DataType]: DataTypeFacts<D> } = {
  float32: { bits: 32, array: Float32Array },
  float16: { bits: 16, array: Uint16Array },
  bfloat16: { bits: 16, array: Uint16Array },
  float8: { bits: 8, array: Uint8Array },
  int8: { bits: 8, array: Int8Array },
  uint8: { bits: 8, array: Uint8Array },
  int32: { bits: 32, array: Int32Array },
  int64: { bits: 64, array: BigInt64Array },
  bool: { bits: 8, array: Uint8Array },
  int4: { bits: 4, array: Uint8Array },
}

/** All data types of tensors. */
export const DATA_TYPES = Object.freeze(Object.keys(FACTS)) as readonly DataType[]

/** @throws ERR_INVALID_TENSOR for what is no data type */
export function checkDataType(value: unknown, what: string): DataType {
  if (typeof value === 'string' && Object.hasOwn(FACTS, value)) return value as DataType
  throw new TensorRTError('ERR_INVALID_TENSOR', `${what} has no data type ${describeValue(value)}`, {
    hint: `there are: ${DATA_TYPES.join(', ')}`,
  })
}

/** Bits of one element. */
export function elementBits(dtype: DataType): number {
  return FACTS[dtype].bits
}

/** Bytes of `count` elements that lie together; a last byte that int4 fills by half counts whole. */
export function byteLengthOf(dtype: DataType, count: number): number {
  return Math.ceil((count * FACTS[dtype].bits) / 8)
}

/** Entries of the typed array that holds `count` elements. */
export function arrayLengthOf(dtype: DataType, count: number): number {
  return dtype === 'int4' ? Math.ceil(count / 2) : count
}

/** The class of the typed array that holds tensors of this type. */
export function arrayTypeOf<D extends DataType>(dtype: D): ArrayType<TensorDataTypes[D]> {
  return FACTS[dtype].array
}
