/** What an engine says of itself. */
import { TensorRTError } from '../errors'
import type { DataType, NativeEngineInfo } from '../native'
import { closest, describeValue } from './argument_reader'

/** Shapes, or values, that an optimization profile allows: from min to max, and fastest at opt. */
export interface ShapeRange {
  min: readonly number[]
  opt: readonly number[]
  max: readonly number[]
}

/** An input or output of an engine. */
export interface TensorInfo {
  readonly name: string
  readonly mode: 'input' | 'output'
  readonly dtype: DataType
  /** -1 = dynamic; an output whose size depends on the data has -1 there in every run. */
  readonly shape: readonly number[]
  /** Where its memory must be. Shape tensors live on the host: inputs are set by `setShapeValues()`. */
  readonly location: 'device' | 'host'
  /** Its values decide shapes. */
  readonly isShapeTensor: boolean
  /** TensorRT's words, such as 'Row major linear FP32 format (kLINEAR)', per profile. */
  readonly formats: readonly string[]
  /** Of an input, by profile; null for an output. */
  readonly profiles: readonly ShapeRange[] | null
  /** Of a shape tensor that is an input, by profile; null elsewhere. */
  readonly values: readonly ShapeRange[] | null
}

/** A range of shapes that an engine was built for. */
export interface ProfileInfo {
  readonly index: number
  /** By input. */
  readonly inputs: Readonly<Record<string, ShapeRange>>
  /** Of shape tensors, by input. */
  readonly values: Readonly<Record<string, ShapeRange>>
  /** Bytes of activation memory that a context needs under it. */
  readonly deviceMemory: number
}

export interface EngineInfo {
  readonly name: string
  readonly layers: number
  /** Bytes of weights that TensorRT could stream; 0 = unknown. */
  readonly streamableWeights: number
  readonly auxStreams: number
  readonly refittable: boolean
  /** 'none', 'ampere+' or 'same-compute-capability' */
  readonly hardwareCompatibility: string
  /** 'standard' or 'safe' */
  readonly capability: string
  /** How much {@link Engine.layers} tells. */
  readonly profilingVerbosity: 'layer-names' | 'none' | 'detailed'
}

/** An engine's tensors by name and by the index that the native side knows them by. */
export class TensorTable {
  readonly tensors: readonly TensorInfo[]
  readonly inputs: readonly TensorInfo[]
  readonly outputs: readonly TensorInfo[]
  readonly profiles: readonly ProfileInfo[]
  readonly #indices: ReadonlyMap<string, number>

  constructor(info: NativeEngineInfo) {
    this.tensors = Object.freeze(info.tensors.map(deepFreeze))
    this.inputs = Object.freeze(this.tensors.filter(({ mode }) => mode === 'input'))
    this.outputs = Object.freeze(this.tensors.filter(({ mode }) => mode === 'output'))
    this.#indices = new Map(this.tensors.map(({ name }, index) => [name, index]))
    this.profiles = deepFreeze(
      Array.from({ length: info.profiles }, (_, index) => {
        const pick = (key: 'profiles' | 'values'): Record<string, ShapeRange> =>
          Object.fromEntries(this.inputs.flatMap((input) => (input[key]?.[index] === undefined ? [] : [[input.name, input[key][index]]])))
        return { index, inputs: pick('profiles'), values: pick('values'), deviceMemory: info.deviceMemory[index] ?? 0 }
      }),
    )
  }

  /** @throws ERR_INVALID_TENSOR for an unknown name, with the closest one; or for a tensor of the other mode */
  index(name: unknown, mode?: 'input' | 'output'): number {
    const index = typeof name === 'string' ? this.#indices.get(name) : undefined
    const found = index === undefined ? undefined : this.tensors[index]!
    if (found !== undefined && (mode === undefined || found.mode === mode)) return index!
    const candidates = mode === undefined ? this.tensors : mode === 'input' ? this.inputs : this.outputs
    const names = candidates.map((tensor) => tensor.name)
    const what = found === undefined ? `The engine has no ${mode ?? 'tensor'} ${describeValue(name)}` : `"${found.name}" is an ${found.mode}, no ${mode!}`
    const meant = typeof name === 'string' && found === undefined ? closest(name, names) : undefined
    throw new TensorRTError('ERR_INVALID_TENSOR', what, {
      hint: meant === undefined ? `there are: ${names.join(', ')}` : `did you mean "${meant}"?`,
    })
  }
}

/** Freezes plain objects and arrays, all the way down. */
export function deepFreeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value
  for (const inner of Object.values(value)) deepFreeze(inner)
  return Object.freeze(value)
}

/** @throws ERR_INVALID_ARGUMENT unless it is a profile's number */
export function checkProfile(profile: unknown, count: number): number {
  if (typeof profile === 'number' && Number.isInteger(profile) && profile >= 0 && profile < count) return profile
  const expected = count === 1 ? '0, as the engine has one profile' : `an integer from 0 to ${count - 1}, a profile of the engine`
  throw new TensorRTError('ERR_INVALID_ARGUMENT', `"profile" must be ${expected}, not ${describeValue(profile)}`)
}
