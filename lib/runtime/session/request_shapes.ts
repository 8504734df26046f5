/**
 * Checks the inputs of requests, and finds out what they can share a batch with: requests of one {@link ShapeClass} differ in their rows
 * alone, once ragged dimensions are filled up to their bucket.
 */
import { TensorRTError } from '../../errors'
import { describeValue } from '../argument_reader'
import { arrayLengthOf } from '../dtype'
import type { ShapeRange } from '../engine_info'
import { formatShape, volume } from '../shape'
import type { Tensor } from '../tensor'
import { BatchCost } from './batch_cost'
import type { CheckedBatching, CheckedRagged, TensorMap } from './options'
import type { BatchShape } from './request_queue'
import type { InputSignature, ModelSignature } from './signature'

/** Stands for the batch axis among the dimensions of a {@link ShapeClass}. */
export const BATCH = -1

/** What all requests have in common that may run together. */
export class ShapeClass implements BatchShape {
  readonly cost = new BatchCost()
  /** What the backend made of it, by size. */
  readonly plans = new Map<number, unknown>()

  constructor(
    /** By input: dimensions as they run, with BATCH for the rows. */
    readonly inputs: readonly (readonly number[])[],
    /** By input: values of shape tensors; null elsewhere. */
    readonly values: readonly (readonly number[] | null)[],
    readonly maxRows: number,
    readonly preferredSizes: readonly number[],
    readonly runSizes: readonly number[],
  ) {}

  /** Shape of an input in a batch of `size` rows. */
  inputShape(input: number, size: number): number[] {
    return this.inputs[input]!.map((dim) => (dim === BATCH ? size : dim))
  }
}

export interface ClassifiedRequest {
  shape: ShapeClass
  rows: number
  /** In the order of the model's inputs. */
  tensors: Tensor[]
  /** By ragged dimension its own size; null: there is none. */
  lengths: number[] | null
}

export interface Ragged extends CheckedRagged {
  /** Ascending. */
  buckets: readonly number[]
}

interface InputRules {
  signature: InputSignature
  /** By axis: the index of the ragged dimension, or -1. */
  ragged: readonly number[]
  /** Whether every dimension but the batch's is the same in all requests. */
  isFixed: boolean
}

/** Most rows of a batch where neither model nor caller have a limit. */
const UNLIMITED_BATCH = 32
/** Classes that are kept; beyond them the one that was made first goes. */
const MAX_CLASSES = 4096

export class RequestShapes {
  /** Whether the first axis of inputs and outputs is the batch's. */
  readonly isBatched: boolean
  readonly ragged: readonly Ragged[]
  private readonly rules: readonly InputRules[]
  private readonly classes = new Map<string, ShapeClass>()
  /** Of models whose requests all have one shape: their class. */
  private readonly isUniform: boolean
  private readonly known: ReadonlySet<string>

  /** @throws ERR_INVALID_ARGUMENT when the model cannot be batched as wanted */
  constructor(
    readonly signature: ModelSignature,
    private readonly batching: CheckedBatching | undefined,
    /** Pad batches to sizes that can be captured. */
    private readonly padsRows: boolean,
  ) {
    this.isBatched = batching !== undefined
    this.known = new Set(signature.inputs.map(({ name }) => name))
    if (batching !== undefined) this.requireBatchAxis()
    this.ragged = (batching?.padding ?? []).map((ragged, i) => this.checkRagged(ragged, i))
    this.rules = signature.inputs.map((input) => {
      const ragged = input.shape.map((_, axis) => this.ragged.findIndex(({ inputs }) => inputs.get(input.name)?.axis === axis))
      const isFixed = !input.isShapeTensor && input.shape.every((dim, axis) => dim >= 0 || (axis === 0 && this.isBatched))
      return { signature: input, ragged, isFixed }
    })
    this.isUniform = this.isBatched && this.rules.every(({ isFixed }) => isFixed)
  }

  /** The ragged dimension that an output has at `axis`; -1: none. */
  raggedOutput(name: string, axis: number): number {
    return this.ragged.findIndex(({ outputs }) => outputs.get(name) === axis)
  }

  /**
   * Checks the inputs of a request.
   *
   * @throws ERR_INVALID_TENSOR, naming input, expected and given; ERR_INVALID_ARGUMENT for names that the model does not have
   */
  classify(inputs: TensorMap): ClassifiedRequest {
    if (typeof inputs !== 'object' || inputs === null) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `run() takes an object of tensors by input, not ${describeValue(inputs)}`)
    }
    const { rules, isBatched } = this
    for (const name in inputs) if (!this.known.has(name)) throw this.unknownInput(name)
    const tensors: Tensor[] = []
    let lengths: number[] | null = null
    let rows = 0
    for (const rule of rules) {
      const { signature } = rule
      const tensor = inputs[signature.name]
      this.checkTensor(signature, tensor)
      if (isBatched) {
        const own = tensor.shape[0]!
        if (rows === 0) rows = this.checkRows(signature, own)
        else if (own !== rows) throw this.wrongRows(signature, own, rows)
      }
      if (this.ragged.length > 0) lengths = this.measure(rule, tensor, lengths)
      tensors.push(tensor)
    }
    if (!isBatched) rows = 1
    const shape = this.classOf(tensors)
    if (rows > shape.maxRows) throw this.tooManyRows(rows, shape)
    return { shape, rows, tensors, lengths }
  }

  /** The class of requests whose inputs have these shapes; for warm-up. @throws ERR_INVALID_TENSOR */
  classOfShapes(shapes: readonly (readonly number[])[]): ShapeClass {
    return this.intern(shapes.map((shape, i) => this.dimensions(this.rules[i]!, shape)), shapes.map(() => null))
  }

  /** Classes that are known. */
  get size(): number {
    return this.classes.size
  }

  private checkTensor(signature: InputSignature, tensor: Tensor | undefined): asserts tensor is Tensor {
    const { name, dtype, shape } = signature
    if (tensor === undefined || tensor === null || typeof tensor !== 'object' || !Array.isArray(tensor.shape) || !ArrayBuffer.isView(tensor.data)) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" must be a ${dtype} tensor of shape ${formatDynamic(shape)}, not ${describeValue(tensor)}`, {
        hint: tensor === undefined ? `the model takes ${[...this.known].join(', ')}` : `make one: Tensor.${dtype}(values, shape)`,
      })
    }
    if (tensor.dtype !== dtype) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" must be ${dtype}, not ${tensor.dtype}`, {
        hint: `make it with Tensor.${dtype}(values, shape)`,
      })
    }
    const given = tensor.shape
    let fits = given.length === shape.length
    for (let axis = 0; fits && axis < shape.length; axis++) fits = shape[axis]! < 0 || (axis === 0 && this.isBatched) || shape[axis] === given[axis]
    if (!fits) throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" must have the shape ${formatDynamic(shape)}, not ${formatShape(given)}`)
    // An array whose buffer was transferred is empty now.
    if (tensor.data.length !== arrayLengthOf(dtype, volume(given))) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" of shape ${formatShape(given)} has ${tensor.data.length} values`, {
        hint: 'was its buffer transferred to another thread?',
      })
    }
  }

  private checkRows(signature: InputSignature, rows: number): number {
    if (rows >= 1) return rows
    throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${signature.name}" has no rows: its first dimension, the batch, is 0`)
  }

  private wrongRows(signature: InputSignature, own: number, rows: number): TensorRTError {
    const first = this.signature.inputs[0]!.name
    return new TensorRTError('ERR_INVALID_TENSOR', `Input "${signature.name}" has ${own} rows and "${first}" has ${rows}: the first dimension is the batch`)
  }

  private tooManyRows(rows: number, shape: ShapeClass): TensorRTError {
    const name = this.signature.inputs[0]!.name
    return new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" has ${rows} rows, and a batch of these shapes takes ${shape.maxRows} at most`, {
      hint: 'split the request, or build the engine with a larger maximum',
    })
  }

  private unknownInput(name: string): TensorRTError {
    return new TensorRTError('ERR_INVALID_ARGUMENT', `The model has no input ${describeValue(name)}`, {
      hint: `it takes ${[...this.known].join(', ')}`,
    })
  }

  /** Notes the sizes of ragged dimensions, which must agree between inputs. */
  private measure({ signature, ragged }: InputRules, tensor: Tensor, lengths: number[] | null): number[] | null {
    for (const [axis, index] of ragged.entries()) {
      if (index < 0) continue
      lengths ??= Array.from<number>({ length: this.ragged.length }).fill(-1)
      const own = tensor.shape[axis]!
      const other = lengths[index]!
      if (other >= 0 && other !== own) {
        const [first] = this.ragged[index]!.inputs.keys()
        throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${signature.name}" has ${own} at axis ${axis}, and "${first}" has ${other} there: they must agree`)
      }
      lengths[index] = own
    }
    return lengths
  }

  private classOf(tensors: readonly Tensor[]): ShapeClass {
    if (this.isUniform) {
      const known = this.classes.get('')
      if (known !== undefined) return known
      return this.intern(tensors.map(({ shape }, i) => this.dimensions(this.rules[i]!, shape)), tensors.map(() => null), '')
    }
    const dims = tensors.map(({ shape }, i) => this.dimensions(this.rules[i]!, shape))
    const values = tensors.map(({ data }, i) => (this.signature.inputs[i]!.isShapeTensor ? Array.from(data as ArrayLike<number | bigint>, Number) : null))
    return this.intern(dims, values)
  }

  /** With BATCH for the rows, and ragged dimensions at their bucket. */
  private dimensions({ signature, ragged }: InputRules, shape: readonly number[]): number[] {
    return shape.map((size, axis) => {
      if (axis === 0 && this.isBatched && !signature.isShapeTensor) return BATCH
      const index = ragged[axis]!
      if (index < 0) return size
      const { buckets } = this.ragged[index]!
      const bucket = buckets.find((bucket) => bucket >= size)
      if (bucket !== undefined) return bucket
      throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${signature.name}" has ${size} at axis ${axis}, and the largest bucket is ${buckets.at(-1)!}`)
    })
  }

  private intern(dims: readonly (readonly number[])[], values: readonly (readonly number[] | null)[], uniformKey?: string): ShapeClass {
    const key = uniformKey ?? (this.isUniform ? '' : `${dims.join(';')}|${values.join(';')}`)
    const known = this.classes.get(key)
    if (known !== undefined) return known
    const made = this.make(dims, values)
    if (this.classes.size >= MAX_CLASSES) this.classes.delete(this.classes.keys().next().value!)
    this.classes.set(key, made)
    return made
  }

  private make(dims: readonly (readonly number[])[], values: readonly (readonly number[] | null)[]): ShapeClass {
    const profiles = this.signature.inputs[0]?.ranges.length ?? 1
    let min = Infinity
    let max = 0
    for (let profile = 0; profile < profiles; profile++) {
      if (!dims.every((shape, i) => holds(this.signature.inputs[i]!.ranges[profile]!, shape))) continue
      const batch = this.isBatched ? this.batchRange(profile) : { min: 1, max: 1 }
      min = Math.min(min, batch.min)
      max = Math.max(max, batch.max)
    }
    if (max === 0) throw this.outOfRange(dims)
    if (!this.isBatched) return new ShapeClass(dims, values, 1, [1], [])
    const { maxBatch = Infinity, preferredSizes = [], runSizes } = this.batching!
    const wanted = Math.max(runSizes === undefined || runSizes === 'exact' ? 0 : runSizes.at(-1)!, preferredSizes.at(-1) ?? 0)
    const maxRows = Math.min(max, maxBatch, max === Infinity && maxBatch === Infinity ? wanted || UNLIMITED_BATCH : Infinity)
    const preferred = [...preferredSizes.filter((size) => size < maxRows), maxRows]
    const sizes = runSizes === 'exact' || (runSizes === undefined && !this.padsRows) ? [] : [...(runSizes ?? ladder(maxRows, preferred))]
    if (sizes.length > 0 && sizes.at(-1)! < maxRows) sizes.push(maxRows)
    const possible = sizes.filter((size) => size >= min && size <= maxRows)
    // A profile that begins above one row: fewer are filled up to it.
    if (min > 1 && possible[0] !== min) possible.unshift(...(sizes.length > 0 ? [min] : range(min, maxRows)))
    return new ShapeClass(dims, values, maxRows, preferred, possible)
  }

  /** Rows that a profile takes. */
  private batchRange(profile: number): { min: number; max: number } {
    let min = 1
    let max = Infinity
    for (const { isShapeTensor, ranges } of this.signature.inputs) {
      if (isShapeTensor) continue
      min = Math.max(min, ranges[profile]!.min[0]!)
      max = Math.min(max, ranges[profile]!.max[0]!)
    }
    return { min, max }
  }

  /** No engine, which has profiles: a dimension of any size is taken. */
  private get isOpen(): boolean {
    return this.signature.inputs.some(({ ranges }) => ranges.some(({ max }) => max.includes(Infinity)))
  }

  private outOfRange(dims: readonly (readonly number[])[]): TensorRTError {
    for (const [i, { name, ranges }] of this.signature.inputs.entries()) {
      if (ranges.some((range) => holds(range, dims[i]!))) continue
      const shown = dims[i]!.map((dim) => (dim === BATCH ? 'rows' : dim)).join(', ')
      return new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" has the shape [${shown}], and the ${this.isOpen ? 'model takes' : 'profiles take'} ${ranges.map(formatRange).join(' or ')}`)
    }
    const shapes = dims.map((shape, i) => `"${this.signature.inputs[i]!.name}" ${formatShape(shape)}`).join(', ')
    return new TensorRTError('ERR_INVALID_TENSOR', `No profile takes these shapes together: ${shapes}`)
  }

  private requireBatchAxis(): void {
    const { inputs, outputs } = this.signature
    const fail = (what: string, hint = 'without "batching" each request runs by itself'): never => {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `The model cannot be batched: ${what}`, { hint })
    }
    const batched = inputs.filter(({ isShapeTensor }) => !isShapeTensor)
    if (batched.length < inputs.length) fail(`input "${inputs.find(({ isShapeTensor }) => isShapeTensor)!.name}" is a shape tensor`)
    if (batched.length === 0) fail('it has no inputs')
    const size = batched[0]!.shape[0]
    for (const { kind, name, shape } of [...batched.map((t) => ({ kind: 'input', ...t })), ...outputs.map((t) => ({ kind: 'output', ...t }))]) {
      if (shape.length === 0) fail(`${kind} "${name}" is a scalar`)
      if (shape[0] !== size) {
        fail(`the first dimension of ${kind} "${name}" is ${shape[0]! < 0 ? 'dynamic' : shape[0]}, that of input "${batched[0]!.name}" ${size! < 0 ? 'dynamic' : size}`)
      }
    }
  }

  private checkRagged(ragged: CheckedRagged, i: number): Ragged {
    const where = `"batching.padding[${i}]"`
    const ranges: ShapeRange[] = []
    const buckets = new Set<number>()
    for (const [name, { axis }] of ragged.inputs) {
      const input = this.signature.inputs.find((input) => input.name === name)
      if (input === undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} names the input ${describeValue(name)}, which the model does not have`)
      if (input.shape[axis] === undefined || input.shape[axis] >= 0) {
        throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} names axis ${axis} of input "${name}", whose shape is ${formatDynamic(input.shape)}: it is not dynamic`)
      }
      ranges.push(...input.ranges)
      for (const { opt, max } of input.ranges) for (const size of [opt[axis]!, max[axis]!]) if (size > 0 && size !== Infinity) buckets.add(size)
    }
    for (const [name, axis] of ragged.outputs) {
      const output = this.signature.outputs.find((output) => output.name === name)
      if (output === undefined || output.shape[axis] === undefined || output.shape[axis] >= 0) {
        throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} names axis ${axis} of output "${name}", which is no dynamic dimension of the model`)
      }
    }
    const sizes = ragged.buckets ?? [...buckets].sort((a, b) => a - b)
    if (sizes.length === 0) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} needs "buckets": the model has no largest size there`)
    return { ...ragged, buckets: sizes }
  }
}

function holds({ min, max }: ShapeRange, shape: readonly number[]): boolean {
  return shape.every((dim, axis) => dim === BATCH || (dim >= min[axis]! && dim <= max[axis]!))
}

/** 1, 2, 4, 6, then four sizes in each doubling: padding adds a quarter at most, an eighth on average. With `wanted` among them. */
function ladder(max: number, wanted: readonly number[]): number[] {
  const sizes = new Set([1, 2, 4, 6, ...wanted])
  for (let from = 8; from <= max; from *= 2) for (let size = from; size < 2 * from; size += from / 4) sizes.add(size)
  return [...sizes].filter((size) => size <= max).sort((a, b) => a - b)
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, i) => from + i)
}

/** '[?, 128]' */
function formatDynamic(shape: readonly number[]): string {
  return `[${shape.map((dim) => (dim < 0 ? '?' : dim)).join(', ')}]`
}

function formatRange({ min, max }: ShapeRange): string {
  return `[${min.map((least, axis) => (max[axis] === Infinity ? '?' : max[axis] === least ? least : `${least}..${max[axis]}`)).join(', ')}]`
}
