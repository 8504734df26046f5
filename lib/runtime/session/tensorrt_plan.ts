/** How a batch of one shape and size runs on an engine: profile, shapes, and where tensors lie in a lane's memory. */
import type { DataType, NativeEngineInfo } from '../../native'
import { byteLengthOf } from '../dtype'
import { volume } from '../shape'
import type { ShapeClass } from './request_shapes'

/** TensorRT asks for this much of addresses. */
const ALIGNMENT = 256

export interface TensorPlace {
  /** Among the engine's tensors. */
  tensor: number
  dtype: DataType
  shape: readonly number[]
  /** From the start of a lane's block, device and pinned alike. */
  offset: number
  bytes: number
}

/** Indices of an engine's tensors, in the order of a session's inputs and outputs. */
export interface TensorOrder {
  info: NativeEngineInfo
  inputs: readonly number[]
  outputs: readonly number[]
}

export function tensorOrder(info: NativeEngineInfo): TensorOrder {
  const inputs: number[] = []
  const outputs: number[] = []
  for (const [i, { mode }] of info.tensors.entries()) (mode === 'input' ? inputs : outputs).push(i)
  return { info, inputs, outputs }
}

/** Places tensors one behind the other from `start` on. */
export function place(
  order: TensorOrder,
  tensors: readonly number[],
  shapes: readonly (readonly number[])[],
  start: number,
): { places: TensorPlace[]; end: number } {
  let end = start
  const places = tensors.map((tensor, i): TensorPlace => {
    const { dtype } = order.info.tensors[tensor]!
    const shape = Object.freeze([...shapes[i]!])
    const offset = align(end)
    const bytes = byteLengthOf(dtype, volume(shape))
    end = offset + bytes
    return { tensor, dtype, shape, offset, bytes }
  })
  return { places, end }
}

export function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
}

/** Where everything of a batch lies once output shapes are known. */
export interface PlanLayout {
  inputs: readonly TensorPlace[]
  /** Null where a size depends on the data: TensorRT allocates the outputs then. */
  outputs: readonly TensorPlace[] | null
  inputBytes: number
  outputOffset: number
  outputBytes: number
}

export class TensorRTPlan {
  readonly inputShapes: readonly (readonly number[])[]
  /** Set by the first lane that asks TensorRT. */
  layout: PlanLayout | null = null

  constructor(
    readonly order: TensorOrder,
    readonly shape: ShapeClass,
    readonly size: number,
    readonly profile: number,
  ) {
    this.inputShapes = order.inputs.map((_, input) => shape.inputShape(input, size))
  }

  /** @param shapes of all tensors of the engine, -1 for what depends on the data */
  layOut(shapes: readonly (readonly number[])[]): PlanLayout {
    const { order } = this
    // Shape tensors live on the host: they have values and no place.
    const placed = order.inputs.filter((_, input) => this.shape.values[input] === null)
    const inputs = place(order, placed, placed.map((tensor) => this.inputShapes[order.inputs.indexOf(tensor)]!), 0)
    const outputShapes = order.outputs.map((tensor) => shapes[tensor]!)
    if (outputShapes.some((shape) => shape.some((dim) => dim < 0))) {
      return { inputs: inputs.places, outputs: null, inputBytes: inputs.end, outputOffset: align(inputs.end), outputBytes: 0 }
    }
    const outputs = place(order, order.outputs, outputShapes, align(inputs.end))
    const outputOffset = outputs.places[0]?.offset ?? outputs.end
    return { inputs: inputs.places, outputs: outputs.places, inputBytes: inputs.end, outputOffset, outputBytes: outputs.end - outputOffset }
  }

  /** Bytes of a lane's block that it takes. */
  get blockBytes(): number {
    const { outputOffset, outputBytes } = this.layout!
    return outputOffset + outputBytes
  }
}

/**
 * The profile whose range holds these input shapes and whose OPT is nearest to them, as ratios go: the kernels were picked for OPT.
 * -1: none holds them.
 */
export function bestProfile(order: TensorOrder, candidates: readonly number[], shapes: readonly (readonly number[])[]): number {
  let best = -1
  let bestDistance = Infinity
  for (const profile of candidates) {
    let distance = 0
    for (const [i, shape] of shapes.entries()) {
      const { min, opt, max } = order.info.tensors[order.inputs[i]!]!.profiles![profile]!
      for (const [axis, size] of shape.entries()) {
        if (size < min[axis]! || size > max[axis]!) distance = Infinity
        else distance += Math.abs(Math.log(Math.max(size, 1) / Math.max(opt[axis]!, 1)))
      }
    }
    if (distance < bestDistance) {
      best = profile
      bestDistance = distance
    }
  }
  return best
}
