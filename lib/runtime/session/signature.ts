/** What a model takes and gives, whatever runs it. */
import type { DataType, NativeEngineInfo } from '../../native'
import type { ShapeRange } from '../engine_info'

export interface InputSignature {
  name: string
  dtype: DataType
  /** -1 = dynamic */
  shape: readonly number[]
  /** Its values decide on shapes, so requests with other values don't run together. */
  isShapeTensor: boolean
  /** One per optimization profile; where there is no profile, one with a maximum of Infinity for each dynamic dimension. */
  ranges: readonly ShapeRange[]
}

export interface OutputSignature {
  name: string
  dtype: DataType
  /** -1 = dynamic */
  shape: readonly number[]
}

export interface ModelSignature {
  name: string
  inputs: readonly InputSignature[]
  outputs: readonly OutputSignature[]
}

/** Of one profile, or of all of them together. Tensors are in the engine's order. */
export function engineSignature(info: NativeEngineInfo, profile: number | undefined): ModelSignature {
  const inputs: InputSignature[] = []
  const outputs: OutputSignature[] = []
  for (const { name, mode, dtype, shape, isShapeTensor, profiles } of info.tensors) {
    if (mode === 'output') {
      outputs.push({ name, dtype, shape })
      continue
    }
    const all = profiles ?? [{ min: shape, opt: shape, max: shape }]
    const ranges = profile === undefined ? all : [all[profile]!]
    inputs.push({ name, dtype, shape, isShapeTensor, ranges })
  }
  return { name: info.name, inputs, outputs }
}
