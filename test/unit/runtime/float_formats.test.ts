/** Conversions between numbers and the narrow floating-point formats, against what the formats are by definition. */
import { describe, expect, it } from 'vitest'
import { BFLOAT16, decodeFloat, decodeFloats, encodeFloat, encodeFloats, FLOAT16, FLOAT8_E4M3 } from '../../../lib/runtime/float_formats'
import fc from '../../support/fast_check'

const FORMATS = { float16: FLOAT16, bfloat16: BFLOAT16, float8: FLOAT8_E4M3 } as const
type Name = keyof typeof FORMATS
const names = Object.keys(FORMATS) as Name[]

/** All bit patterns of a format, with the numbers that they stand for by the definition in text books. */
function enumerate(name: Name): { bits: number; value: number }[] {
  const width = { float16: [5, 10, 15], bfloat16: [8, 7, 127], float8: [4, 3, 7] }[name]
  const [exponentBits, mantissaBits, bias] = width as [number, number, number]
  return Array.from({ length: 2 ** (1 + exponentBits + mantissaBits) }, (_, bits) => {
    const sign = bits >> (exponentBits + mantissaBits) === 0 ? 1 : -1
    const exponent = (bits >> mantissaBits) & (2 ** exponentBits - 1)
    const mantissa = (bits & (2 ** mantissaBits - 1)) / 2 ** mantissaBits
    const allOnes = exponent === 2 ** exponentBits - 1
    if (name === 'float8' && allOnes && mantissa === 7 / 8) return { bits, value: NaN }
    if (name !== 'float8' && allOnes) return { bits, value: mantissa === 0 ? sign * Infinity : NaN }
    return { bits, value: sign * (exponent === 0 ? mantissa * 2 ** (1 - bias) : (1 + mantissa) * 2 ** (exponent - bias)) }
  })
}

/** Round to nearest, ties to even, by looking at all numbers there are. */
function nearest(name: Name, finite: { bits: number; value: number }[], value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? FORMATS[name].signBit : 0
  const magnitude = Math.abs(value)
  let low = 0
  let high = finite.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (finite[middle]!.value <= magnitude) low = middle
    else high = middle - 1
  }
  const below = finite[low]!
  const above = finite[low + 1]
  if (above === undefined) {
    // Beyond the largest: half a unit more rounds down still, a tie goes up as the largest is odd.
    const unit = below.value - finite[low - 1]!.value
    return sign | (name === 'float8' || magnitude < below.value + unit / 2 ? below.bits : FORMATS[name].overflow)
  }
  const toBelow = magnitude - below.value
  const toAbove = above.value - magnitude
  const up = toAbove < toBelow || (toAbove === toBelow && below.bits % 2 === 1)
  return sign | (up ? above.bits : below.bits)
}

describe.each(names)('%s', (name) => {
  const format = FORMATS[name]
  const all = enumerate(name)
  const finite = all.filter(({ bits, value }) => bits < format.signBit && Number.isFinite(value))

  it('decodes every pattern as the format defines it, one by one and together', () => {
    const patterns = name === 'float8' ? Uint8Array.from(all, ({ bits }) => bits) : Uint16Array.from(all, ({ bits }) => bits)
    const together = decodeFloats(format, patterns)
    const wrong = all.filter(({ bits, value }) => !Object.is(decodeFloat(format, bits), value) || !Object.is(together[bits], value))
    expect(wrong).toEqual([])
  })

  it('gives every number back from its own bits', () => {
    const values = all.filter(({ value }) => !Number.isNaN(value))
    const wrong = values.filter(({ bits, value }) => Number.isFinite(value) && encodeFloat(format, value) !== bits)
    expect(wrong).toEqual([])
  })

  it('rounds every tie between neighbours to even, and what is next to a tie to its side', () => {
    for (let i = 0; i + 1 < finite.length; i++) {
      const [below, above] = [finite[i]!, finite[i + 1]!]
      const tie = (below.value + above.value) / 2
      const even = below.bits % 2 === 0 ? below.bits : above.bits
      const step = (above.value - below.value) / 1024
      expect([encodeFloat(format, tie - step), encodeFloat(format, tie), encodeFloat(format, tie + step)]).toEqual([below.bits, even, above.bits])
    }
  })

  it('rounds any double to the nearest number', () => {
    const numbers = fc.oneof(fc.double({ noNaN: true }), fc.double({ min: -700, max: 700, noNaN: true }), fc.double({ min: -1e-4, max: 1e-4, noNaN: true }))
    fc.assert(
      fc.property(numbers, (value) => {
        if (!Number.isFinite(value)) return
        expect(encodeFloat(format, value)).toBe(nearest(name, finite, value))
      }),
      { numRuns: 3000 },
    )
  })

  it('converts arrays of float32 as single numbers', () => {
    const bits = fc.oneof(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.integer({ min: 0x38000000, max: 0x48000000 }), fc.integer({ min: 0, max: 0x40000000 }))
    fc.assert(
      fc.property(fc.array(bits, { maxLength: 64 }), (words) => {
        const values = new Float32Array(Uint32Array.from(words).buffer)
        const out = name === 'float8' ? new Uint8Array(words.length) : new Uint16Array(words.length)
        encodeFloats(format, values, out)
        expect([...out]).toEqual([...values].map((value) => encodeFloat(format, value)))
      }),
      { numRuns: 2000 },
    )
  })

  it('keeps NaN, and the sign of zero', () => {
    expect(decodeFloat(format, encodeFloat(format, NaN))).toBeNaN()
    expect(Object.is(decodeFloat(format, encodeFloat(format, -0)), -0)).toBe(true)
    expect(encodeFloat(format, 0)).toBe(0)
    expect(encodeFloat(format, -Number.MIN_VALUE)).toBe(format.signBit)
  })
})

it('goes to infinity beyond the largest number, and float8 ends at 448', () => {
  expect(encodeFloat(FLOAT16, 65519.99)).toBe(0x7bff)
  expect(encodeFloat(FLOAT16, 65520)).toBe(0x7c00)
  expect(encodeFloat(FLOAT16, -Infinity)).toBe(0xfc00)
  expect(encodeFloat(BFLOAT16, 3.4e38)).toBe(0x7f80)
  expect(encodeFloat(BFLOAT16, Infinity)).toBe(0x7f80)
  for (const value of [449, 480, 1e300, Infinity]) expect([encodeFloat(FLOAT8_E4M3, value), encodeFloat(FLOAT8_E4M3, -value)]).toEqual([0x7e, 0xfe])
})

it('rounds a double once, where two roundings would end elsewhere', () => {
  // Just above the tie of 1 and the next float16, by less than float32 can tell.
  const value = 1 + 2 ** -11 + 2 ** -40
  expect(encodeFloat(FLOAT16, value)).toBe(0x3c01)
  expect(encodeFloat(FLOAT16, Math.fround(value))).toBe(0x3c00)
})
