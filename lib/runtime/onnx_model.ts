/** What an ONNX model says of itself, read without a GPU and without its weights. */
import { type FileHandle, open, stat } from 'node:fs/promises'
import { dirname, isAbsolute, join, normalize } from 'node:path'
import { TensorRTError } from '../errors'
import { throwIfAborted } from './handle'
import { type ByteSource, fileSource, memorySource, type MessageReader, SourceReader, Wire } from './protobuf'

/** ONNX's types of tensors, by their number. */
const ELEMENT_TYPES = [
  'undefined',
  'float32',
  'uint8',
  'int8',
  'uint16',
  'int16',
  'int32',
  'int64',
  'string',
  'bool',
  'float16',
  'float64',
  'uint32',
  'uint64',
  'complex64',
  'complex128',
  'bfloat16',
  'float8',
  'float8e4m3fnuz',
  'float8e5m2',
  'float8e5m2fnuz',
  'uint4',
  'int4',
  'float4e2m1',
] as const

export interface OnnxTensorInfo {
  name: string
  /** 'float32', 'int64', 'float8' (E4M3) ...; 'undefined' for what is no tensor. */
  dtype: string
  /** -1 = dynamic. Null where the model does not even say the rank. */
  shape: number[] | null
  /** The model's names of dynamic dimensions, '' where it has none, by axis. */
  dimensionNames: string[]
}

export interface OnnxNode {
  /** '' where the model gives none. */
  name: string
  op: string
  /** '' = ONNX's own. */
  domain: string
}

export interface OnnxExternalFile {
  /** As the model names it, relative to its folder. */
  name: string
  /** Absolute; '' for a model that has no folder. */
  path: string
  /** What the model needs of it, at least. */
  bytes: number
}

export interface OnnxModelInfo {
  irVersion: number
  producer: string
  /** Version of each operator set, by domain; '' is ONNX's own. */
  opsets: Record<string, number>
  graph: string
  /** Without those that are initializers. */
  inputs: OnnxTensorInfo[]
  outputs: OnnxTensorInfo[]
  /** Of the graph itself, in its order. */
  nodes: OnnxNode[]
  /** How many there are of each operator, in sub-graphs and functions too. Other domains' are 'domain::Op'. */
  operators: Record<string, number>
  initializers: number
  /** Q/DQ nodes by the type that they quantize to. */
  quantization: { int8: number; float8: number; other: number }
  externalFiles: OnnxExternalFile[]
  /** Of the model's file, without external data. */
  bytes: number
}

/** Longer messages of this kind are walked through and not read. */
const LARGE = 1 << 16
const MAX_DEPTH = 32

interface TensorHeader {
  name: string
  dtype: number
  external: { location: string; end: number } | undefined
}

/** A Q/DQ node, until the types of all tensors are known. */
interface QuantizeNode {
  dtype: number | undefined
  zeroPoint: string
  input: string
}

class Collector {
  readonly nodes: OnnxNode[] = []
  readonly operators: Record<string, number> = {}
  readonly quantize: QuantizeNode[] = []
  readonly types = new Map<string, number>()
  readonly external = new Map<string, number>()
  initializers = 0

  addTensor({ name, dtype, external }: TensorHeader): void {
    if (name !== '') this.types.set(name, dtype)
    if (external !== undefined) {
      this.external.set(external.location, Math.max(this.external.get(external.location) ?? 0, external.end))
    }
  }

  /** @param depth of the graph that the node is in; 0 = the model's own */
  addNode(reader: MessageReader, depth: number): void {
    if (depth > MAX_DEPTH) throw new TensorRTError('ERR_ONNX_INVALID', `The ONNX model's graphs are nested more than ${MAX_DEPTH} deep`)
    const inputs: string[] = []
    let output = ''
    let outputType: number | undefined
    let constant: number | undefined
    const node: OnnxNode = { name: '', op: '', domain: '' }
    for (let field; (field = reader.next()) !== undefined; ) {
      if (field.wire !== Wire.bytes) reader.skip(field)
      else if (field.number === 1) inputs.push(reader.string())
      else if (field.number === 2 && output === '') output = reader.string()
      else if (field.number === 3) node.name = reader.string()
      else if (field.number === 4) node.op = reader.string()
      else if (field.number === 7) node.domain = reader.string()
      else if (field.number === 5) {
        const attribute = this.#readAttribute(reader.message(), depth)
        if (attribute.name === 'output_dtype') outputType = attribute.integer
        if (attribute.name === 'value') constant = attribute.tensorType
      } else reader.skip(field)
    }
    if (node.domain === 'ai.onnx') node.domain = ''
    if (depth === 0) this.nodes.push(node)
    const key = node.domain === '' ? node.op : `${node.domain}::${node.op}`
    this.operators[key] = (this.operators[key] ?? 0) + 1
    if (node.op === 'Constant' && constant !== undefined) this.types.set(output, constant)
    if (node.op === 'QuantizeLinear' || node.op === 'DequantizeLinear') {
      this.quantize.push({
        dtype: outputType === 0 ? undefined : outputType,
        zeroPoint: inputs[2] ?? '',
        input: node.op === 'DequantizeLinear' ? (inputs[0] ?? '') : '',
      })
    } else if (/^TRT_FP8(De)?[Qq]uantizeLinear$/.test(node.op)) {
      this.quantize.push({ dtype: FLOAT8, zeroPoint: '', input: '' })
    }
  }

  #readAttribute(reader: MessageReader, depth: number): { name: string; integer?: number; tensorType?: number } {
    const attribute: { name: string; integer?: number; tensorType?: number } = { name: '' }
    for (let field; (field = reader.next()) !== undefined; ) {
      if (field.number === 1 && field.wire === Wire.bytes) attribute.name = reader.string()
      else if (field.number === 3 && field.wire === Wire.varint) attribute.integer = reader.varint()
      else if ((field.number === 5 || field.number === 10) && field.wire === Wire.bytes) {
        const tensor = readTensor(reader.message())
        attribute.tensorType = tensor.dtype
        this.addTensor({ ...tensor, name: '' })
      } else if ((field.number === 6 || field.number === 11) && field.wire === Wire.bytes) {
        this.addGraph(reader.message(), depth + 1)
      } else reader.skip(field)
    }
    return attribute
  }

  addGraph(reader: MessageReader, depth: number): void {
    for (let field; (field = reader.next()) !== undefined; ) {
      if (field.number === 1 && field.wire === Wire.bytes) this.addNode(reader.message(), depth)
      else if (field.number === 5 && field.wire === Wire.bytes) this.addTensor(readTensor(reader.message()))
      else reader.skip(field)
    }
  }
}

const FLOAT8 = ELEMENT_TYPES.indexOf('float8')
const INT8_TYPES = [ELEMENT_TYPES.indexOf('int8'), ELEMENT_TYPES.indexOf('uint8')]

function readTensor(reader: MessageReader): TensorHeader {
  const tensor: TensorHeader = { name: '', dtype: 0, external: undefined }
  const entries = new Map<string, string>()
  for (let field; (field = reader.next()) !== undefined; ) {
    if (field.number === 2 && field.wire === Wire.varint) tensor.dtype = reader.varint()
    else if (field.number === 8 && field.wire === Wire.bytes) tensor.name = reader.string()
    else if (field.number === 13 && field.wire === Wire.bytes) addEntry(reader.message(), entries)
    else reader.skip(field)
  }
  tensor.external = externalOf(entries)
  return tensor
}

function addEntry(reader: MessageReader, entries: Map<string, string>): void {
  let key = ''
  let value = ''
  for (let field; (field = reader.next()) !== undefined; ) {
    if (field.number === 1 && field.wire === Wire.bytes) key = reader.string()
    else if (field.number === 2 && field.wire === Wire.bytes) value = reader.string()
    else reader.skip(field)
  }
  entries.set(key, value)
}

function externalOf(entries: Map<string, string>): TensorHeader['external'] {
  const location = entries.get('location')
  if (location === undefined) return undefined
  return { location, end: Number(entries.get('offset') ?? 0) + Number(entries.get('length') ?? 0) }
}

/** A tensor too large to be read whole: its name, type and where its data is. */
async function walkTensor(reader: SourceReader): Promise<TensorHeader> {
  const tensor: TensorHeader = { name: '', dtype: 0, external: undefined }
  const entries = new Map<string, string>()
  for (let field; (field = await reader.next()) !== undefined; ) {
    if (field.number === 2 && field.wire === Wire.varint) tensor.dtype = await reader.varint()
    else if ((field.number === 8 || field.number === 13) && field.wire === Wire.bytes) {
      const range = await reader.range()
      if (field.number === 8) tensor.name = await textOf(reader, range)
      else addEntry(await reader.load(range), entries)
    } else await reader.skip(field)
  }
  tensor.external = externalOf(entries)
  return tensor
}

async function textOf(reader: SourceReader, range: { at: number; length: number }): Promise<string> {
  return (await reader.load(range)).rest()
}

function readValueInfo(reader: MessageReader): OnnxTensorInfo {
  const info: OnnxTensorInfo = { name: '', dtype: 'undefined', shape: null, dimensionNames: [] }
  for (let field; (field = reader.next()) !== undefined; ) {
    if (field.number === 1 && field.wire === Wire.bytes) info.name = reader.string()
    else if (field.number === 2 && field.wire === Wire.bytes) {
      const type = reader.message()
      for (let part; (part = type.next()) !== undefined; ) {
        if (part.number === 1 && part.wire === Wire.bytes) readTensorType(type.message(), info)
        else type.skip(part)
      }
    } else reader.skip(field)
  }
  return info
}

function readTensorType(reader: MessageReader, info: OnnxTensorInfo): void {
  for (let field; (field = reader.next()) !== undefined; ) {
    if (field.number === 1 && field.wire === Wire.varint) info.dtype = ELEMENT_TYPES[reader.varint()] ?? 'undefined'
    else if (field.number === 2 && field.wire === Wire.bytes) {
      info.shape = []
      const shape = reader.message()
      for (let part; (part = shape.next()) !== undefined; ) {
        if (part.number !== 1 || part.wire !== Wire.bytes) {
          shape.skip(part)
          continue
        }
        const dimension = shape.message()
        let extent = -1
        let name = ''
        for (let item; (item = dimension.next()) !== undefined; ) {
          if (item.number === 1 && item.wire === Wire.varint) extent = dimension.varint()
          else if (item.number === 2 && item.wire === Wire.bytes) name = dimension.string()
          else dimension.skip(item)
        }
        info.shape.push(extent)
        info.dimensionNames.push(name)
      }
    } else reader.skip(field)
  }
}

async function readModel(source: ByteSource, folder: string | undefined, signal: AbortSignal | undefined): Promise<OnnxModelInfo> {
  const found = new Collector()
  const model: OnnxModelInfo = {
    irVersion: 0,
    producer: '',
    opsets: {},
    graph: '',
    inputs: [],
    outputs: [],
    nodes: found.nodes,
    operators: found.operators,
    initializers: 0,
    quantization: { int8: 0, float8: 0, other: 0 },
    externalFiles: [],
    bytes: source.size,
  }
  const initializers = new Set<string>()
  let graphs = 0

  const readGraph = async (reader: SourceReader): Promise<void> => {
    for (let field; (field = await reader.next()) !== undefined; ) {
      throwIfAborted(signal)
      if (field.wire !== Wire.bytes) {
        await reader.skip(field)
        continue
      }
      const range = await reader.range()
      if (field.number === 1) found.addNode(await reader.load(range), 0)
      else if (field.number === 2) model.graph = await textOf(reader, range)
      else if (field.number === 5) {
        const tensor = range.length > LARGE ? await walkTensor(reader.enter(range)) : readTensor(await reader.load(range))
        found.addTensor(tensor)
        initializers.add(tensor.name)
        model.initializers++
      } else if (field.number === 11) model.inputs.push(readValueInfo(await reader.load(range)))
      else if (field.number === 12) model.outputs.push(readValueInfo(await reader.load(range)))
      else if (field.number === 15) model.initializers++
    }
  }

  const reader = new SourceReader(source)
  for (let field; (field = await reader.next()) !== undefined; ) {
    if (field.number === 1 && field.wire === Wire.varint) model.irVersion = await reader.varint()
    else if (field.wire !== Wire.bytes) await reader.skip(field)
    else {
      const range = await reader.range()
      if (field.number === 2) model.producer = await textOf(reader, range)
      else if (field.number === 7) {
        graphs++
        await readGraph(reader.enter(range))
      } else if (field.number === 8) readOpset(await reader.load(range), model.opsets)
      else if (field.number === 25) readFunction(await reader.load(range), found)
    }
  }
  if (graphs !== 1 || model.irVersion < 1) {
    throw new TensorRTError('ERR_ONNX_INVALID', 'This is no ONNX model: it has no graph')
  }
  model.inputs = model.inputs.filter(({ name }) => !initializers.has(name))
  for (const { dtype, zeroPoint, input } of found.quantize) {
    const type = dtype ?? found.types.get(zeroPoint) ?? found.types.get(input)
    if (type === FLOAT8) model.quantization.float8++
    else if (type === undefined || INT8_TYPES.includes(type)) model.quantization.int8++
    else model.quantization.other++
  }
  for (const [name, bytes] of found.external) {
    const plain = normalize(name)
    if (name === '' || isAbsolute(name) || plain === '..' || plain.startsWith('../') || !Number.isSafeInteger(bytes) || bytes < 0) {
      throw new TensorRTError('ERR_ONNX_INVALID', `The ONNX model keeps weights in ${JSON.stringify(name)}, which is no file in its folder`)
    }
    model.externalFiles.push({ name, path: folder === undefined ? '' : join(folder, plain), bytes })
  }
  return model
}

function readOpset(reader: MessageReader, opsets: Record<string, number>): void {
  let domain = ''
  let version = 0
  for (let field; (field = reader.next()) !== undefined; ) {
    if (field.number === 1 && field.wire === Wire.bytes) domain = reader.string()
    else if (field.number === 2 && field.wire === Wire.varint) version = reader.varint()
    else reader.skip(field)
  }
  opsets[domain === 'ai.onnx' ? '' : domain] = version
}

function readFunction(reader: MessageReader, found: Collector): void {
  for (let field; (field = reader.next()) !== undefined; ) {
    if (field.number === 7 && field.wire === Wire.bytes) found.addNode(reader.message(), 1)
    else reader.skip(field)
  }
}

/**
 * Reads what an ONNX model says of itself: no weights are loaded, so this takes milliseconds for models of any size. Needs no GPU.
 *
 * @param model path of a .onnx file, or its bytes
 * @throws (as a rejection) ERR_MODEL_NOT_FOUND, ERR_ONNX_INVALID for what is no ONNX model or a damaged one, ERR_IO, AbortError
 */
export async function readOnnxModel(model: string | Uint8Array, signal?: AbortSignal): Promise<OnnxModelInfo> {
  throwIfAborted(signal)
  if (typeof model !== 'string') return readModel(memorySource(model), undefined, signal)
  let file: FileHandle | undefined
  try {
    file = await open(model, 'r')
    const found = await file.stat()
    if (!found.isFile()) throw new TensorRTError('ERR_ONNX_INVALID', 'This is no file')
    return await readModel(fileSource(file, found.size), dirname(model), signal)
  } catch (cause) {
    if (cause instanceof TensorRTError) throw new TensorRTError(cause.code, `${model}: ${cause.message}`, { cause })
    const { code, message, errno } = cause as NodeJS.ErrnoException
    if (typeof errno !== 'number') throw cause
    if (code === 'ENOENT') throw new TensorRTError('ERR_MODEL_NOT_FOUND', `There is no ONNX model at ${model}`, { cause })
    throw new TensorRTError('ERR_IO', `Reading ${model} failed: ${message}`, { cause })
  } finally {
    await file?.close()
  }
}

/**
 * Throws unless the files that a model keeps its weights in are there, and as long as the model needs them.
 *
 * @param name of the model, for messages
 * @throws (as a rejection) ERR_ONNX_INVALID
 */
export async function requireExternalFiles(model: OnnxModelInfo, name: string): Promise<void> {
  for (const file of model.externalFiles) {
    if (file.path === '') {
      throw new TensorRTError('ERR_ONNX_INVALID', `${name} keeps weights in ${file.name}, and came as bytes`, {
        hint: "give the model's path, so that the files beside it are found",
      })
    }
    const found = await stat(file.path).catch(() => undefined)
    if (found?.isFile() === true && found.size >= file.bytes) continue
    const state = found === undefined ? 'is not there' : `has ${found.size} bytes, ${file.bytes} are needed`
    throw new TensorRTError('ERR_ONNX_INVALID', `${name} keeps weights in ${file.path}, which ${state}`, {
      hint: 'copy the files of external data along with the model',
    })
  }
}
