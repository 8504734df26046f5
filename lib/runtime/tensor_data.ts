/** Takes what a caller gives as a tensor's data into the typed array of its data type. */
import { TensorRTError } from '../errors'
import { describeValue } from './argument_reader'
import { arrayTypeOf, type DataType, type TensorData, type TensorDataTypes } from './dtype'
import { BFLOAT16, encodeFloats, FLOAT16, FLOAT8_E4M3 } from './float_formats'

/** Numbers, in an array or in a typed array. */
type Numbers = readonly number[] | Float32Array | Float64Array
type Integers = readonly number[] | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array

/** A Float16Array, where the runtime has it. */
export interface Float16ArrayLike extends ArrayBufferView {
  readonly [Symbol.toStringTag]: 'Float16Array'
  readonly length: number
  readonly [index: number]: number
}

interface Convertible {
  float32: Numbers | Integers
  float16: Numbers | Float16ArrayLike
  bfloat16: Numbers
  float8: Numbers
  int8: readonly number[]
  uint8: readonly number[] | Uint8ClampedArray
  int32: readonly number[] | Int8Array | Uint8Array | Int16Array | Uint16Array
  int64: readonly bigint[] | Integers
  bool: readonly (boolean | number)[]
  int4: readonly number[] | Int8Array
}

/** What a tensor of a data type can be made of: its own typed array, or numbers that are converted. */
export type TensorSource<D extends DataType> = { [T in DataType]: TensorDataTypes[T] | Convertible[T] }[D]

export interface PackedData<D extends DataType> {
  array: TensorData<D>
  /** Number of elements; undefined where bytes of int4 leave it open. */
  count: number | undefined
}

const INTEGER_RANGES = {
  int4: [-8, 7],
  int8: [-128, 127],
  uint8: [0, 255],
  int32: [-(2 ** 31), 2 ** 31 - 1],
} as const

const FLOAT_FORMATS = { float16: FLOAT16, bfloat16: BFLOAT16, float8: FLOAT8_E4M3 } as const

/** @throws ERR_INVALID_TENSOR, naming the first element that does not fit */
export function packTensorData<D extends DataType>(dtype: D, data: unknown): PackedData<D> {
  const { array, count } = pack(dtype, data)
  return { array: array as TensorData<D>, count }
}

function pack(dtype: DataType, data: unknown): PackedData<DataType> {
  if (data instanceof arrayTypeOf(dtype)) {
    if (dtype === 'bool') checkElements(dtype, data as Uint8Array, isBit, '0 or 1')
    return { array: data, count: dtype === 'int4' ? undefined : data.length }
  }
  if (dtype === 'float16' && isFloat16Array(data)) {
    return { array: new Uint16Array(data.buffer, data.byteOffset, data.length), count: data.length }
  }
  if (!isList(data)) throw wrongData(dtype, data)
  return { array: convert(dtype, data), count: data.length }
}

function convert(dtype: DataType, data: ArrayLike<unknown>): TensorData {
  switch (dtype) {
    case 'float32':
      checkElements(dtype, data, isNumber, 'a number')
      return Float32Array.from(data as ArrayLike<number>)
    case 'float16':
    case 'bfloat16':
    case 'float8': {
      checkElements(dtype, data, isNumber, 'a number')
      // Bits of one format must not be read as numbers of another.
      if (ArrayBuffer.isView(data) && !(data instanceof Float32Array) && !(data instanceof Float64Array)) throw wrongData(dtype, data)
      return encodeFloats(FLOAT_FORMATS[dtype], data as ArrayLike<number>, new (arrayTypeOf(dtype))(data.length))
    }
    case 'int64':
      return toInt64(data)
    case 'bool':
      checkElements(dtype, data, (value) => typeof value === 'boolean' || isBit(value), 'true, false, 0 or 1')
      return Uint8Array.from(data as ArrayLike<number>, Number)
    default: {
      const [min, max] = INTEGER_RANGES[dtype]
      const fits = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= min && (value as number) <= max
      checkElements(dtype, data, fits, `an integer from ${min} to ${max}`)
      if (dtype === 'int4') return packInt4(data as ArrayLike<number>)
      const array = new (arrayTypeOf(dtype))(data.length)
      array.set(data as ArrayLike<number>)
      return array
    }
  }
}

function packInt4(values: ArrayLike<number>): Uint8Array {
  const packed = new Uint8Array(Math.ceil(values.length / 2))
  for (let i = 0; i < values.length; i++) packed[i >> 1]! |= (values[i]! & 15) << (i & 1 ? 4 : 0)
  return packed
}

const INT64_MIN = -(2n ** 63n)
const INT64_MAX = 2n ** 63n - 1n

function toInt64(data: ArrayLike<unknown>): BigInt64Array {
  const fits = (value: unknown): boolean =>
    typeof value === 'bigint' ? value >= INT64_MIN && value <= INT64_MAX : Number.isSafeInteger(value)
  checkElements('int64', data, fits, 'a bigint of 64 bits or a safe integer')
  return BigInt64Array.from(data as ArrayLike<bigint>, BigInt)
}

function isNumber(value: unknown): boolean {
  return typeof value === 'number'
}

function isBit(value: unknown): boolean {
  return value === 0 || value === 1
}

function isList(data: unknown): data is ArrayLike<unknown> {
  return Array.isArray(data) || (ArrayBuffer.isView(data) && !(data instanceof DataView))
}

function isFloat16Array(data: unknown): data is Float16ArrayLike {
  return ArrayBuffer.isView(data) && Object.prototype.toString.call(data) === '[object Float16Array]'
}

function checkElements(dtype: DataType, data: ArrayLike<unknown>, fits: (value: unknown) => boolean, expected: string): void {
  for (let i = 0; i < data.length; i++) {
    if (fits(data[i])) continue
    throw new TensorRTError('ERR_INVALID_TENSOR', `Element ${i} of a tensor of ${dtype} must be ${expected}, not ${describeValue(data[i])}`, {
      hint: Array.isArray(data[i]) ? 'give all numbers in one array, the last dimension fastest, and the shape beside it' : undefined,
    })
  }
}

function wrongData(dtype: DataType, data: unknown): TensorRTError {
  const own = arrayTypeOf(dtype).name
  return new TensorRTError('ERR_INVALID_TENSOR', `A tensor of ${dtype} is made of a ${own} or of numbers, not ${describeValue(data)}`, { hint: dataHint(dtype, own, data) })
}

function dataHint(dtype: DataType, own: string, data: unknown): string | undefined {
  if (data instanceof ArrayBuffer || data instanceof SharedArrayBuffer) return `give a typed array over it: new ${own}(buffer)`
  if (typeof data === 'number' || typeof data === 'bigint' || typeof data === 'boolean') return `a scalar is Tensor.${dtype}([${String(data)}], [])`
  return undefined
}
