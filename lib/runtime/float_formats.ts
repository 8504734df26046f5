/**
 * The narrow floating-point formats, by their bits. Rounding is to nearest, ties to even, and happens once: a JavaScript number
 * (a double) is not rounded to float32 on the way.
 *
 * What lies beyond the largest number becomes infinity in float16 and bfloat16 (IEEE 754), and the largest number itself in float8, which
 * has no infinity: that is what CUDA's saturating conversion and TensorRT's Quantize layer do. NaN stays NaN, of no particular payload;
 * the sign of zero is kept. Subnormal numbers are kept, not flushed.
 */
interface FloatFormat {
  /** Stored bits of the mantissa. */
  mantissaBits: number
  /** Exponent of the smallest normal number. */
  minExponent: number
  signBit: number
  nan: number
  /** Bits of the largest number, whatever its sign. */
  largest: number
  /** What numbers that round beyond it become. */
  overflow: number
}

export const FLOAT16: FloatFormat = { mantissaBits: 10, minExponent: -14, signBit: 0x8000, nan: 0x7e00, largest: 0x7bff, overflow: 0x7c00 }
export const BFLOAT16: FloatFormat = { mantissaBits: 7, minExponent: -126, signBit: 0x8000, nan: 0x7fc0, largest: 0x7f7f, overflow: 0x7f80 }
/** E4M3 as TensorRT, ONNX (FLOAT8E4M3FN) and OCP have it: no infinity, one NaN of each sign, largest number 448. */
export const FLOAT8_E4M3: FloatFormat = { mantissaBits: 3, minExponent: -6, signBit: 0x80, nan: 0x7f, largest: 0x7e, overflow: 0x7e }

const double = new Float64Array(1)
const doubleBits = new BigUint64Array(double.buffer)
const EXPONENT_SHIFT = 52n
const EXPONENT_MASK = 0x7ffn
/** Adding and taking away 2^52 rounds a double below it to an integer, ties to even. */
const INTEGERS_FROM = 2 ** 52

/** Bits of the number of `format` that is nearest to `value`. */
export function encodeFloat(format: FloatFormat, value: number): number {
  const { mantissaBits, minExponent, signBit, nan, largest, overflow } = format
  const sign = value < 0 || Object.is(value, -0) ? signBit : 0
  if (Number.isNaN(value)) return nan
  const magnitude = Math.abs(value)
  if (magnitude === Infinity) return sign | overflow
  double[0] = magnitude
  const exponent = Math.max(Number((doubleBits[0]! >> EXPONENT_SHIFT) & EXPONENT_MASK) - 1023, minExponent)
  // Units in the last place: below 2^mantissaBits for subnormal numbers, and a carry into the next exponent comes out right by itself.
  const units = magnitude * 2 ** (mantissaBits - exponent)
  const rounded = units + INTEGERS_FROM - INTEGERS_FROM
  const bits = (exponent - minExponent) * 2 ** mantissaBits + rounded
  return sign | (bits > largest ? overflow : bits)
}

/** The number that the bits stand for. */
export function decodeFloat(format: FloatFormat, bits: number): number {
  const { mantissaBits, minExponent, signBit, largest, overflow } = format
  const magnitude = bits & (signBit - 1)
  const sign = (bits & signBit) === 0 ? 1 : -1
  if (magnitude > largest) return magnitude === overflow ? sign * Infinity : NaN
  const exponent = magnitude >> mantissaBits
  const mantissa = magnitude & (2 ** mantissaBits - 1)
  // Subnormal numbers have no hidden bit and the exponent of the smallest normal ones.
  const units = exponent === 0 ? mantissa : mantissa + 2 ** mantissaBits
  return sign * units * 2 ** (minExponent + Math.max(exponent - 1, 0) - mantissaBits)
}

/** Bits of each number. */
export function encodeFloats<T extends Uint8Array | Uint16Array>(format: FloatFormat, values: ArrayLike<number>, out: T): T {
  if (values instanceof Float32Array && format === FLOAT16) return encodeFloat16(values, out)
  if (values instanceof Float32Array && format === BFLOAT16) return encodeBfloat16(values, out)
  for (let i = 0; i < out.length; i++) out[i] = encodeFloat(format, values[i]!)
  return out
}

/** The bits of float32 numbers, of an array that may lie anywhere in its buffer. */
function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length)
}

const single = new Float32Array(1)
const singleBits = new Uint32Array(single.buffer)

function encodeFloat16<T extends Uint8Array | Uint16Array>(values: Float32Array, out: T): T {
  const bits = bitsOf(values)
  for (let i = 0; i < bits.length; i++) {
    const sign = (bits[i]! >>> 16) & 0x8000
    const magnitude = bits[i]! & 0x7fffffff
    let half: number
    if (magnitude > 0x7f800000) {
      out[i] = FLOAT16.nan
      continue
    } else if (magnitude >= 0x47800000) {
      half = 0x7c00
    } else if (magnitude < 0x38800000) {
      // Adding 0.5 makes the processor round to units of 2^-24, those of subnormal numbers.
      singleBits[0] = magnitude
      single[0] = single[0]! + 0.5
      half = singleBits[0]! - 0x3f000000
    } else {
      half = (magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13
    }
    out[i] = sign | half
  }
  return out
}

function encodeBfloat16<T extends Uint8Array | Uint16Array>(values: Float32Array, out: T): T {
  const bits = bitsOf(values)
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!
    out[i] = (word & 0x7fffffff) > 0x7f800000 ? BFLOAT16.nan : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
  return out
}

const tables = new Map<FloatFormat, Float32Array>()

/** All numbers of a format by their bits: at most 256 KiB, made when it is first asked for. */
function tableOf(format: FloatFormat): Float32Array {
  let table = tables.get(format)
  if (table === undefined) {
    table = Float32Array.from({ length: 2 * format.signBit }, (_, bits) => decodeFloat(format, bits))
    tables.set(format, table)
  }
  return table
}

/** float32 holds every number of the narrow formats. */
export function decodeFloats(format: FloatFormat, bits: Uint8Array | Uint16Array): Float32Array {
  const out = new Float32Array(bits.length)
  if (format === BFLOAT16) {
    const words = bitsOf(out)
    for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16
    return out
  }
  const table = tableOf(format)
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]!]!
  return out
}
