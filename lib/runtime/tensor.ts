/** Tensors of the host: what goes into a session and comes out of it. */
import { TensorRTError } from '../errors'
import { arrayLengthOf, arrayTypeOf, byteLengthOf, checkDataType, type DataType, type TensorData } from './dtype'
import { BFLOAT16, decodeFloats, FLOAT16, FLOAT8_E4M3 } from './float_formats'
import { checkShape, formatShape, volume } from './shape'
import { packTensorData, type TensorSource } from './tensor_data'

/** A tensor of any type; `tensor.dtype === 'float32'` narrows `tensor.data`. */
export type AnyTensor = { [D in DataType]: Tensor<D> }[DataType]

/**
 * An array of numbers with a data type and a shape, in row-major order. The type of `data` follows from the data type.
 *
 * A typed array of the tensor's own kind is taken as it is, not copied: who changes it changes the tensor. Everything else is converted into
 * an array of the tensor's own.
 */
export class Tensor<D extends DataType = DataType> {
  readonly dtype: D
  /** Sizes, the slowest first; `[]` is a scalar. */
  readonly shape: readonly number[]
  /** See {@link TensorDataTypes} for the array of each data type. */
  readonly data: TensorData<D>

  private constructor(dtype: D, data: TensorData<D>, shape: readonly number[]) {
    this.dtype = dtype
    this.data = data
    this.shape = shape
  }

  /** @param shape default: one dimension */
  static float32(data: TensorSource<'float32'>, shape?: readonly number[]): Tensor<'float32'> {
    return Tensor.from('float32', data, shape)
  }

  /** A Uint16Array is taken as bits; numbers are rounded to nearest, ties to even, and become infinite beyond 65504. */
  static float16(data: TensorSource<'float16'>, shape?: readonly number[]): Tensor<'float16'> {
    return Tensor.from('float16', data, shape)
  }

  /** A Uint16Array is taken as bits; numbers are rounded to nearest, ties to even. */
  static bfloat16(data: TensorSource<'bfloat16'>, shape?: readonly number[]): Tensor<'bfloat16'> {
    return Tensor.from('bfloat16', data, shape)
  }

  /** E4M3. A Uint8Array is taken as bits; numbers are rounded to nearest, ties to even, and end at 448 (infinity too). */
  static float8(data: TensorSource<'float8'>, shape?: readonly number[]): Tensor<'float8'> {
    return Tensor.from('float8', data, shape)
  }

  static int8(data: TensorSource<'int8'>, shape?: readonly number[]): Tensor<'int8'> {
    return Tensor.from('int8', data, shape)
  }

  static uint8(data: TensorSource<'uint8'>, shape?: readonly number[]): Tensor<'uint8'> {
    return Tensor.from('uint8', data, shape)
  }

  static int32(data: TensorSource<'int32'>, shape?: readonly number[]): Tensor<'int32'> {
    return Tensor.from('int32', data, shape)
  }

  static int64(data: TensorSource<'int64'>, shape?: readonly number[]): Tensor<'int64'> {
    return Tensor.from('int64', data, shape)
  }

  /** Booleans, or the numbers 0 and 1. */
  static bool(data: TensorSource<'bool'>, shape?: readonly number[]): Tensor<'bool'> {
    return Tensor.from('bool', data, shape)
  }

  /** A Uint8Array is taken as packed pairs, and needs a shape; numbers from -8 to 7 are packed. */
  static int4(data: TensorSource<'int4'>, shape?: readonly number[]): Tensor<'int4'> {
    return Tensor.from('int4', data, shape)
  }

  /**
   * @param data a typed array of the type's own (taken as it is), or numbers (converted)
   * @param shape default: one dimension
   * @throws ERR_INVALID_TENSOR for an unknown type, a number that the type cannot hold (integers; floating-point types round), or
   * a shape that asks for another number of elements than there are
   */
  static from<D extends DataType>(dtype: D, data: TensorSource<D>, shape?: readonly number[]): Tensor<D> {
    checkDataType(dtype, 'A tensor')
    const { array, count } = packTensorData(dtype, data)
    if (shape === undefined) {
      if (count === undefined) {
        throw new TensorRTError('ERR_INVALID_TENSOR', 'A tensor of int4 from packed bytes needs a shape', {
          hint: 'a byte holds two elements, and the last one may hold one',
        })
      }
      return new Tensor(dtype, array, Object.freeze([count]))
    }
    const sizes = checkShape(shape, `A tensor of ${dtype}`)
    if (array.length !== arrayLengthOf(dtype, volume(sizes)) || (count !== undefined && count !== volume(sizes))) {
      const given = count === undefined ? `${array.length} bytes` : `${count}`
      throw new TensorRTError(
        'ERR_INVALID_TENSOR',
        `A tensor of ${dtype} and shape ${formatShape(sizes)} has ${volume(sizes)} elements, and ${given} were given`,
      )
    }
    return new Tensor(dtype, array, sizes)
  }

  /** @throws ERR_INVALID_TENSOR */
  static zeros<D extends DataType>(dtype: D, shape: readonly number[]): Tensor<D> {
    checkDataType(dtype, 'A tensor')
    const sizes = checkShape(shape, `A tensor of ${dtype}`)
    let array: TensorData<D>
    try {
      array = new (arrayTypeOf(dtype))(arrayLengthOf(dtype, volume(sizes)))
    } catch (cause) {
      const bytes = byteLengthOf(dtype, volume(sizes))
      throw new TensorRTError('ERR_OUT_OF_MEMORY', `A tensor of ${dtype} and shape ${formatShape(sizes)} takes ${bytes} bytes`, { cause })
    }
    return new Tensor(dtype, array, sizes)
  }

  /**
   * Without checks of the values, for what a device wrote.
   * @internal
   */
  static wrap<D extends DataType>(dtype: D, data: TensorData<D>, shape: readonly number[]): Tensor<D> {
    return new Tensor(dtype, data, Object.isFrozen(shape) ? shape : Object.freeze([...shape]))
  }

  /** Number of elements. */
  get size(): number {
    return volume(this.shape)
  }

  get byteLength(): number {
    return this.data.byteLength
  }

  /** The same memory as bytes. */
  get bytes(): Uint8Array {
    return new Uint8Array(this.data.buffer, this.data.byteOffset, this.data.byteLength)
  }

  /**
   * The same data under another shape.
   * @throws ERR_INVALID_TENSOR for one with another number of elements
   */
  reshape(shape: readonly number[]): Tensor<D> {
    const sizes = checkShape(shape, `A tensor of ${this.dtype}`)
    if (volume(sizes) !== this.size) {
      throw new TensorRTError(
        'ERR_INVALID_TENSOR',
        `A tensor of shape ${formatShape(this.shape)} has ${this.size} elements, ${formatShape(sizes)} needs ${volume(sizes)}`,
      )
    }
    return new Tensor(this.dtype, this.data, sizes)
  }

  /** The values as float32, in an array of their own; int32 and int64 lose what is beyond 24 bits. */
  toFloat32(): Float32Array {
    const { data } = this
    switch (this.dtype as DataType) {
      case 'float16':
        return decodeFloats(FLOAT16, data as Uint16Array)
      case 'bfloat16':
        return decodeFloats(BFLOAT16, data as Uint16Array)
      case 'float8':
        return decodeFloats(FLOAT8_E4M3, data as Uint8Array)
      case 'int64':
        return Float32Array.from(data as BigInt64Array, Number)
      case 'int4':
        return Float32Array.from({ length: this.size }, (_, i) => (((data[i >> 1] as number) >> (i & 1 ? 4 : 0)) << 28) >> 28)
      default:
        return new Float32Array(data as Exclude<TensorData, BigInt64Array>)
    }
  }
}
