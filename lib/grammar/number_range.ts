/** EBNF of decimal numbers within bounds: exact, so that no digit leads out of them. */
import { repeated } from './regex'

/** A bound as an exact decimal: `digits * 10 ** -scale`. */
interface Decimal {
  digits: bigint
  scale: number
}

/** What a bound is where none is given: all digits of it are exact in a double. */
const LARGEST = 999_999_999_999_999
/** Most digits behind the point; more where a bound has more. */
const FRACTION_DIGITS = 6
const MAX_FRACTION_DIGITS = 12

/** A number of so many digits; each unit is one digit. */
type Units = string[]

function digit(from: number, to: number): string {
  return from === to ? `"${from}"` : `[${from}-${to}]`
}

const anyDigits = (count: number): Units => Array.from({ length: count }, () => digit(0, 9))

function atLeast(digits: string): Units[] {
  if (/^0*$/.test(digits)) return [anyDigits(digits.length)]
  const first = Number(digits[0])
  const rest = digits.slice(1)
  const found = atLeast(rest).map((units) => [digit(first, first), ...units])
  if (first < 9) found.push([digit(first + 1, 9), ...anyDigits(rest.length)])
  return found
}

function atMost(digits: string): Units[] {
  if (/^9*$/.test(digits)) return [anyDigits(digits.length)]
  const first = Number(digits[0])
  const rest = digits.slice(1)
  const found = atMost(rest).map((units) => [digit(first, first), ...units])
  if (first > 0) found.push([digit(0, first - 1), ...anyDigits(rest.length)])
  return found
}

/** Numbers of equally many digits from `low` to `high`. */
function between(low: string, high: string): Units[] {
  if (low === '') return [[]]
  const [a, b] = [Number(low[0]), Number(high[0])]
  if (a === b) return between(low.slice(1), high.slice(1)).map((units) => [digit(a, a), ...units])
  if (/^0*$/.test(low.slice(1)) && /^9*$/.test(high.slice(1))) return [[digit(a, b), ...anyDigits(low.length - 1)]]
  const found = atLeast(low.slice(1)).map((units) => [digit(a, a), ...units])
  if (b - a > 1) found.push([digit(a + 1, b - 1), ...anyDigits(low.length - 1)])
  return [...found, ...atMost(high.slice(1)).map((units) => [digit(b, b), ...units])]
}

/** Numbers of `least` digits and more, padded with zeros to that. Both bounds are 0 or above. */
function unsigned(low: bigint, high: bigint, least: number): Units[] {
  const found: Units[] = []
  for (let from = low; from <= high; ) {
    const length = Math.max(from.toString().length, least)
    const end = 10n ** BigInt(length) - 1n
    const to = end < high ? end : high
    found.push(...between(from.toString().padStart(length, '0'), to.toString().padStart(length, '0')))
    from = to + 1n
  }
  return found
}

function print(units: Units): string {
  const parts: string[] = []
  for (let i = 0; i < units.length; ) {
    let end = i + 1
    while (end < units.length && units[end] === units[i]) end++
    parts.push(end - i > 2 ? repeated(units[i]!, end - i, end - i) : units.slice(i, end).join(' '))
    i = end
  }
  return parts.join(' ')
}

/** Numbers with `fraction` digits behind the point, from `low` to `high` units of the last of them. */
function signed(low: bigint, high: bigint, fraction: number): string[] {
  const point = (units: Units): string => {
    if (fraction === 0) return print(units)
    return `${print(units.slice(0, -fraction))} "\\U0000002e" ${print(units.slice(-fraction))}`
  }
  const found: string[] = []
  const negativeEnd = high < -1n ? high : -1n
  if (low <= negativeEnd) found.push(...unsigned(-negativeEnd, -low, fraction + 1).map((units) => `"\\U0000002d" ${point(units)}`))
  const positiveStart = low > 0n ? low : 0n
  if (positiveStart <= high) found.push(...unsigned(positiveStart, high, fraction + 1).map(point))
  return found
}

function decimalOf(value: number): Decimal {
  const [mantissa = '0', exponent = '0'] = value.toString().split('e')
  const [whole = '0', fraction = ''] = mantissa.split('.')
  const scale = fraction.length - Number(exponent)
  const digits = BigInt(whole + fraction)
  return scale < 0 ? { digits: digits * 10n ** BigInt(-scale), scale: 0 } : { digits, scale }
}

/** `value * 10 ** fraction`, rounded towards the inside of the range. */
function scaled({ digits, scale }: Decimal, fraction: number, up: boolean, exclusive: boolean): bigint {
  const factor = 10n ** BigInt(Math.abs(fraction - scale))
  if (fraction >= scale) return digits * factor + (exclusive ? (up ? 1n : -1n) : 0n)
  let quotient = digits / factor
  const rest = digits % factor
  if (rest === 0n) return quotient + (exclusive ? (up ? 1n : -1n) : 0n)
  // BigInt's division goes towards zero.
  if (up && rest > 0n) quotient += 1n
  if (!up && rest < 0n) quotient -= 1n
  return quotient
}

export interface NumberBounds {
  minimum?: number | undefined
  maximum?: number | undefined
  exclusiveMinimum?: number | undefined
  exclusiveMaximum?: number | undefined
}

/** @returns alternatives; none where no number lies within the bounds */
export function numberRange(bounds: NumberBounds, whole: boolean): string[] {
  const { minimum = -LARGEST, maximum = LARGEST, exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity } = bounds
  const lowExclusive = exclusiveMinimum >= minimum
  const highExclusive = exclusiveMaximum <= maximum
  const low = decimalOf(lowExclusive ? exclusiveMinimum : minimum)
  const high = decimalOf(highExclusive ? exclusiveMaximum : maximum)
  const most = whole ? 0 : Math.min(Math.max(FRACTION_DIGITS, low.scale, high.scale), MAX_FRACTION_DIGITS)
  const found: string[] = []
  for (let fraction = 0; fraction <= most; fraction++) {
    found.push(...signed(scaled(low, fraction, true, lowExclusive), scaled(high, fraction, false, highExclusive), fraction))
  }
  return found
}
