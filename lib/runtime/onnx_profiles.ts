/** Optimization profiles of ONNX models: ranges of shapes, checked against what the model says of its inputs. */
import { TensorRTError } from '../errors'
import { closest, describeValue } from './argument_reader'
import type { OnnxModelInfo, OnnxTensorInfo } from './onnx_model'

/** The shapes of one input that an engine takes. */
export interface InputRange {
  min: number[]
  /** What TensorRT picks kernels for. */
  opt: number[]
  max: number[]
  /** The input is a shape tensor (its values decide shapes), and this is the range of its values. Default false. */
  values?: boolean | undefined
}

/** Ranges of the inputs whose shape may vary, by name. */
export type InputProfile = Record<string, InputRange>

const SIDES = ['min', 'opt', 'max'] as const
/** TensorRT takes tensors of so many elements at most. */
const MAX_DIMENSION = 2 ** 31 - 1

function invalid(message: string, hint?: string): TensorRTError {
  return new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint })
}

function shapeText(shape: readonly number[] | null): string {
  return shape === null ? 'of a rank that the model does not say' : `[${shape.join(', ')}]`
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * Whether `given` is a list of profiles, whatever the model. Copies them.
 *
 * @throws ERR_INVALID_ARGUMENT
 */
export function readInputProfiles(given: unknown): InputProfile[] {
  if (given === undefined) return []
  if (!Array.isArray(given)) throw invalid(`"profiles" must be an array of { input: { min, opt, max } }, not ${describeValue(given)}`)
  return given.map((profile, i) => {
    if (!isObject(profile)) throw invalid(`"profiles[${i}]" must be an object { input: { min, opt, max } }, not ${describeValue(profile)}`)
    const ranges = Object.entries(profile).map(([input, range]) => [input, readRange(range, `profiles[${i}]["${input}"]`)] as const)
    return Object.fromEntries(ranges)
  })
}

function readRange(given: unknown, where: string): InputRange {
  if (!isObject(given)) throw invalid(`"${where}" must be an object { min, opt, max }, not ${describeValue(given)}`)
  for (const key of Object.keys(given)) {
    if (key === 'values' || (SIDES as readonly string[]).includes(key)) continue
    throw invalid(`"${where}" has no "${key}"`, 'there are: min, opt, max, values')
  }
  const { values = false } = given
  if (typeof values !== 'boolean') throw invalid(`"${where}.values" must be true or false, not ${describeValue(values)}`)
  const side = (name: (typeof SIDES)[number]): number[] => {
    const shape = given[name]
    const integer = (extent: unknown): boolean =>
      Number.isSafeInteger(extent) && (values || ((extent as number) >= 0 && (extent as number) <= MAX_DIMENSION))
    if (Array.isArray(shape) && shape.every(integer)) return [...(shape as number[])]
    const expected = values ? 'an array of integers' : `an array of dimensions, integers from 0 to ${MAX_DIMENSION}`
    throw invalid(`"${where}.${name}" must be ${expected}, not ${Array.isArray(shape) ? shapeText(shape as number[]) : describeValue(shape)}`)
  }
  const range: InputRange = { min: side('min'), opt: side('opt'), max: side('max') }
  if (values) range.values = true
  return range
}

/**
 * Throws unless the profiles cover the model's inputs. What the model does not say (which inputs are shape tensors) TensorRT checks.
 *
 * @throws ERR_INVALID_ARGUMENT, naming profile, input, what is expected and what was given
 */
export function checkInputProfiles(profiles: readonly InputProfile[], { inputs }: OnnxModelInfo): void {
  const dynamic = inputs.filter(({ shape }) => shape === null || shape.includes(-1))
  if (profiles.length === 0) {
    if (dynamic.length === 0) return
    throw invalid(
      `The model has inputs whose shape may vary, and no profile says how: ${dynamic.map(describeInput).join(', ')}`,
      `give min, opt and max shapes of each, such as ${exampleProfile(dynamic)}`,
    )
  }
  for (const [i, profile] of profiles.entries()) {
    const where = `Profile ${i}`
    for (const [name, range] of Object.entries(profile)) {
      const input = inputs.find((known) => known.name === name)
      if (input === undefined) {
        const meant = closest(name, inputs.map((known) => known.name))
        throw invalid(
          `${where} names input "${name}", which the model does not have`,
          meant === undefined ? `it has ${inputs.map(describeInput).join(', ')}` : `did you mean "${meant}"?`,
        )
      }
      checkRange(range, input, `${where}: input "${name}"`)
    }
    const missing = dynamic.filter(({ name }) => profile[name] === undefined)
    if (missing.length > 0) throw invalid(`${where} has no range for ${missing.map(describeInput).join(', ')}`)
  }
}

/** A profile that the model takes, as code and as an option of the command line. */
function exampleProfile(dynamic: readonly OnnxTensorInfo[]): string {
  const ranges = dynamic.map(({ name, shape }) => {
    const side = (varying: number): number[] => shape?.map((extent) => (extent === -1 ? varying : extent)) ?? [varying]
    return { name, sides: [side(1), side(8), side(32)] }
  })
  const code = ranges.map(({ name, sides }) => `${JSON.stringify(name)}: { ${SIDES.map((side, i) => `${side}: ${shapeText(sides[i]!)}`).join(', ')} }`)
  const option = ranges.map(({ name, sides }) => `${name}:${sides.map((shape) => shape.join('x')).join('..')}`)
  return `profiles: [{ ${code.join(', ')} }], on the command line --profile '${option.join(',')}'`
}

function describeInput({ name, dtype, shape, dimensionNames }: OnnxTensorInfo): string {
  const extents = shape?.map((extent, axis) => (extent === -1 && dimensionNames[axis] !== '' ? dimensionNames[axis] : extent))
  return `"${name}" ${dtype} ${extents === undefined ? shapeText(shape) : `[${extents.join(', ')}]`}`
}

function checkRange(range: InputRange, { shape, dtype }: OnnxTensorInfo, where: string): void {
  if (range.values === true && dtype !== 'int32' && dtype !== 'int64') {
    throw invalid(`${where} is of type ${dtype}, so it is no shape tensor: it takes shapes, not values`)
  }
  for (const side of SIDES) {
    const given = range[side]
    if (given.length !== range.min.length) {
      throw invalid(`${where}: min ${shapeText(range.min)}, opt ${shapeText(range.opt)} and max ${shapeText(range.max)} differ in length`)
    }
    if (range.values === true || shape === null) continue
    const fits = given.length === shape.length && given.every((extent, axis) => shape[axis] === -1 || shape[axis] === extent)
    if (!fits) throw invalid(`${where}: ${side} is ${shapeText(given)}, the model has ${shapeText(shape)}`, '-1 stands for a dimension that may vary')
  }
  if (range.min.every((least, axis) => least <= range.opt[axis]! && range.opt[axis]! <= range.max[axis]!)) return
  throw invalid(`${where}: min ${shapeText(range.min)}, opt ${shapeText(range.opt)} and max ${shapeText(range.max)} must not fall`, 'in each dimension min <= opt <= max')
}

/** As the native side takes them: JSON of a list of ranges for each profile. */
export function packInputProfiles(profiles: readonly InputProfile[]): string {
  return JSON.stringify(
    profiles.map((profile) =>
      Object.entries(profile).map(([input, { min, opt, max, values = false }]) => ({ input, min, opt, max, values })),
    ),
  )
}
