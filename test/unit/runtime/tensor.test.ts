/** Tensors: what they are made of, and what they refuse. */
import { describe, expect, it } from 'vitest'
import { DATA_TYPES, type DataType, Tensor } from '../../../lib/runtime'
import { arrayTypeOf, byteLengthOf } from '../../../lib/runtime/dtype'
import fc from '../../support/fast_check'
import '../matchers'

describe('what a tensor is made of', () => {
  it.each([
    ['float32', new Float32Array(4)],
    ['float16', new Uint16Array(4)],
    ['bfloat16', new Uint16Array(4)],
    ['float8', new Uint8Array(4)],
    ['int8', new Int8Array(4)],
    ['uint8', new Uint8Array(4)],
    ['int32', new Int32Array(4)],
    ['int64', new BigInt64Array(4)],
    ['bool', new Uint8Array(4)],
  ] as const)('%s takes its own typed array as it is', (dtype, array) => {
    const tensor = Tensor.from(dtype as DataType, array as never, [2, 2])
    expect(tensor.data).toBe(array)
    expect(tensor).toMatchObject({ dtype, shape: [2, 2], size: 4, byteLength: array.byteLength })
  })

  it.each<[DataType, unknown, unknown]>([
    ['float32', [1, 2.5, -0], new Float32Array([1, 2.5, -0])],
    ['float32', new Float64Array([1, 2.5]), new Float32Array([1, 2.5])],
    ['float16', [1, -2, 65520], new Uint16Array([0x3c00, 0xc000, 0x7c00])],
    ['float16', new Float32Array([0.5]), new Uint16Array([0x3800])],
    ['bfloat16', [1, -2], new Uint16Array([0x3f80, 0xc000])],
    ['float8', [1, -448, 1000], new Uint8Array([0x38, 0xfe, 0x7e])],
    ['int8', [-128, 127], new Int8Array([-128, 127])],
    ['uint8', [0, 255], new Uint8Array([0, 255])],
    ['uint8', new Uint8ClampedArray([7]), new Uint8Array([7])],
    ['int32', [-(2 ** 31), 2 ** 31 - 1], new Int32Array([-(2 ** 31), 2 ** 31 - 1])],
    ['int32', new Uint16Array([65535]), new Int32Array([65535])],
    ['int64', [1, -(2 ** 53) + 1], new BigInt64Array([1n, -9007199254740991n])],
    ['int64', [2n ** 63n - 1n, -(2n ** 63n)], new BigInt64Array([9223372036854775807n, -9223372036854775808n])],
    ['int64', new Int32Array([-5]), new BigInt64Array([-5n])],
    ['bool', [true, false, 1, 0], new Uint8Array([1, 0, 1, 0])],
    ['int4', [-8, 7, 1], new Uint8Array([0x78, 0x01])],
    ['int4', new Int8Array([-1, 2]), new Uint8Array([0x2f])],
  ])('%s converts %o', (dtype, data, expected) => {
    expect(Tensor.from(dtype, data as never).data).toStrictEqual(expected)
  })

  it('has one dimension unless a shape is given, and a scalar has none', () => {
    expect(Tensor.float32([1, 2, 3]).shape).toEqual([3])
    expect(Tensor.int64([5], []).shape).toEqual([])
    expect(Tensor.float32([], [0, 7])).toMatchObject({ size: 0, byteLength: 0, shape: [0, 7] })
    expect(Tensor.int4(new Uint8Array(2), [3])).toMatchObject({ size: 3, byteLength: 2 })
  })

  it('takes a Float16Array as its bits', () => {
    // A view that says it is one, as this runtime may have none.
    const half = Object.defineProperty(new Int16Array([0x3c00, 0x4000]), Symbol.toStringTag, { value: 'Float16Array' })
    const tensor = Tensor.float16(half as never)
    expect([...tensor.toFloat32()]).toEqual([1, 2])
    expect(tensor.data.buffer).toBe(half.buffer)
  })

  it('does not change with the shape that the caller gave', () => {
    const shape = [2, 1]
    const tensor = Tensor.float32([1, 2], shape)
    shape[0] = 9
    expect(tensor.shape).toEqual([2, 1])
    expect(Object.isFrozen(tensor.shape)).toBe(true)
  })

  it('gives zeros, bytes, and another shape over the same data', () => {
    const tensor = Tensor.zeros('float16', [2, 3])
    expect(tensor.data).toStrictEqual(new Uint16Array(6))
    tensor.bytes[0] = 1
    expect(tensor.data[0]).toBe(1)
    expect(tensor.reshape([3, 2]).data).toBe(tensor.data)
    expect(() => tensor.reshape([4])).toThrowCode('ERR_INVALID_TENSOR', /\[2, 3\] has 6 elements, \[4\] needs 4/)
    const part = Tensor.float32(new Float32Array(new ArrayBuffer(16), 8, 2))
    expect(part.bytes).toMatchObject({ byteOffset: 8, byteLength: 8 })
  })
})

describe('what a tensor refuses', () => {
  const refused: [what: string, make: () => unknown, message: RegExp][] = [
    ['an unknown type', () => Tensor.from('float64' as never, [1] as never), /no data type "float64".*there are: float32/],
    ['a type that is a method of objects', () => Tensor.from('toString' as never, [1] as never), /no data type "toString"/],
    ['no data', () => Tensor.float32(undefined as never), /made of a Float32Array or of numbers, not undefined/],
    ['a DataView', () => Tensor.float32(new DataView(new ArrayBuffer(4)) as never), /an object of DataView/],
    ['a Buffer of another type', () => Tensor.bfloat16(new Uint8Array(4) as never), /made of a Uint16Array or of numbers, not an object of Uint8Array/],
    ['bits as another format\'s', () => Tensor.float8(new Uint16Array(4) as never), /made of a Uint8Array/],
    ['an ArrayBuffer', () => Tensor.float32(new ArrayBuffer(4) as never), /an object of ArrayBuffer \(give a typed array over it: new Float32Array\(buffer\)\)/],
    ['a number', () => Tensor.int64(3 as never), /not 3 \(a scalar is Tensor.int64\(\[3\], \[\]\)\)/],
    ['nested arrays', () => Tensor.float32([[1, 2], [3, 4]] as never), /Element 0 .* not an array of 2 \(give all numbers in one array/],
    ['text', () => Tensor.float32(['1'] as never), /Element 0 of a tensor of float32 must be a number, not "1"/],
    ['a hole', () => Tensor.int32(Object.assign([1], { length: 3 })), /Element 1 of a tensor of int32 must be an integer .* not undefined/],
    ['a fraction', () => Tensor.int32([0, 0.5]), /Element 1 of a tensor of int32 must be an integer from -2147483648 to 2147483647, not 0.5/],
    ['an integer that wraps', () => Tensor.uint8([256]), /from 0 to 255, not 256/],
    ['an int4 that wraps', () => Tensor.int4([8]), /from -8 to 7, not 8/],
    ['an unsafe integer', () => Tensor.int64([2 ** 53]), /a bigint of 64 bits or a safe integer/],
    ['a bigint of 65 bits', () => Tensor.int64([2n ** 63n]), /9223372036854775808n/],
    ['a bool that is 2', () => Tensor.bool([2]), /must be true, false, 0 or 1, not 2/],
    ['a byte of bool that is 2', () => Tensor.bool(new Uint8Array([0, 2])), /Element 1 of a tensor of bool must be 0 or 1, not 2/],
    ['packed int4 without a shape', () => Tensor.int4(new Uint8Array(2)), /needs a shape/],
    ['a shape of more', () => Tensor.float32([1, 2], [3]), /shape \[3\] has 3 elements, and 2 were given/],
    ['an int4 shape that fits the bytes alone', () => Tensor.int4([1, 2, 3, 4], [3]), /shape \[3\] has 3 elements, and 4 were given/],
    ['a negative size', () => Tensor.float32([1], [-1]), /shape\[0\] is -1/],
    ['a size that is no number', () => Tensor.float32([1], ['1'] as never), /shape\[0\] is "1"/],
    ['a shape that is none', () => Tensor.float32([1], 1 as never), /an array of sizes, not 1/],
    ['nine dimensions', () => Tensor.float32([1], [1, 1, 1, 1, 1, 1, 1, 1, 1]), /9 dimensions, and TensorRT takes 8/],
    ['a volume beyond integers', () => Tensor.zeros('int8', [2 ** 30, 2 ** 30]), /more than 2\^53 elements/],
  ]
  it.each(refused)('%s', (_, make, message) => {
    expect(make).toThrowCode('ERR_INVALID_TENSOR', message)
  })

  it('says that memory is short where it is', () => {
    // More than the addresses of a process, so that no system promises it, however freely it promises memory.
    expect(() => Tensor.zeros('float32', [2 ** 48])).toThrowCode('ERR_OUT_OF_MEMORY', /takes 1125899906842624 bytes/)
  })
})

describe('float32', () => {
  it.each<[DataType, unknown, number[]]>([
    ['float32', [1.5, -2], [1.5, -2]],
    ['float16', [1.5, -2], [1.5, -2]],
    ['bfloat16', [1.5, -2], [1.5, -2]],
    ['float8', [1.5, -2], [1.5, -2]],
    ['int8', [-128, 5], [-128, 5]],
    ['uint8', [255, 5], [255, 5]],
    ['int32', [-70000, 5], [-70000, 5]],
    ['int64', [-5n, 2n ** 40n], [-5, 2 ** 40]],
    ['bool', [true, false], [1, 0]],
    ['int4', [-8, 7, -1], [-8, 7, -1]],
  ])('of %s', (dtype, data, expected) => {
    const tensor = Tensor.from(dtype, data as never)
    const values = tensor.toFloat32()
    expect([...values]).toEqual(expected)
    expect(values.buffer).not.toBe(tensor.data.buffer)
  })
})

it('takes the bytes that its type says, whatever the shape', () => {
  fc.assert(
    fc.property(fc.constantFrom(...DATA_TYPES), fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }), (dtype, shape) => {
      const tensor = Tensor.zeros(dtype, shape)
      expect(tensor.byteLength).toBe(byteLengthOf(dtype, tensor.size))
      expect(tensor.data).toBeInstanceOf(arrayTypeOf(dtype))
      expect(tensor.toFloat32()).toStrictEqual(new Float32Array(tensor.size))
    }),
  )
})
