/** What of an ONNX model TensorRT does not support, by its parser's word. */
import { inspectOnnx, type NativeOnnxProblem } from '../native'
import { ArgumentReader } from './argument_reader'
import { readModelOption } from './build_options'
import { throwIfAborted, untilAborted } from './handle'
import { type OnnxModelInfo, type OnnxNode, readOnnxModel, requireExternalFiles } from './onnx_model'

export interface OnnxSupportOptions {
  /** Number of the GPU, as CUDA counts. Default 0. */
  device?: number | undefined
  /** libnvinfer, or the folder that has it and libnvonnxparser. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  /** Ends the wait; the parser cannot be interrupted. */
  signal?: AbortSignal | undefined
}

export interface OnnxProblem {
  code: 'ERR_ONNX_INVALID' | 'ERR_ONNX_UNSUPPORTED'
  /** TensorRT's words. */
  message: string
  /** Index of the node in the model's graph; undefined where none in particular is meant, or one inside of a branch or a function. */
  index: number | undefined
  /** '' where the model names it not. */
  node: string
  op: string
  /** In TensorRT's parser: function and line of the check that failed. */
  where: string
}

export interface OnnxSupport {
  supported: boolean
  /** 10000 * major + 100 * minor + patch, of the TensorRT that was asked. */
  libraryVersion: number
  model: OnnxModelInfo
  problems: OnnxProblem[]
  /** The nodes of the model's graph that TensorRT's parser has a problem with, ascending. */
  unsupported: (OnnxNode & { index: number })[]
}

/**
 * Asks TensorRT's parser which nodes of a model it does not support. Nothing is built, but a GPU is needed.
 *
 * @param onnx path of a .onnx file, or its bytes
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_MODEL_NOT_FOUND, ERR_ONNX_INVALID, ERR_IO; what keeps the GPU from being used, such as
 * ERR_DRIVER_NOT_FOUND; ERR_TENSORRT_NOT_FOUND also where the parser is missing; AbortError
 */
export async function inspectOnnxModel(onnx: string | Uint8Array, options: OnnxSupportOptions = {}): Promise<OnnxSupport> {
  const reader = new ArgumentReader(options, ['device', 'libraryPath', 'signal'], 'inspectOnnxModel()')
  const device = reader.integer('device', 0, 1023) ?? 0
  const libraryPath = reader.path('libraryPath') ?? ''
  const signal = reader.signal('signal')
  const source = readModelOption(onnx)
  const model = await readOnnxModel(source, signal)
  await requireExternalFiles(model, typeof source === 'string' ? source : 'The ONNX model')
  throwIfAborted(signal)
  const asking = inspectOnnx({
    modelPath: typeof source === 'string' ? source : '',
    modelBytes: typeof source === 'string' ? Buffer.alloc(0) : Buffer.from(source.buffer, source.byteOffset, source.length),
    libraryPath,
    device,
  })
  const report = await untilAborted(asking, signal, () => {})
  // The index of a node inside of a branch or a function is one of that graph: it names no node of the model's own.
  const isOwn = ({ node, nodeName, op }: NativeOnnxProblem): boolean => {
    const own = model.nodes[node]
    return own !== undefined && (op === '' || own.op === op) && (nodeName === '' || own.name === '' || own.name === nodeName)
  }
  const unsupported = report.unsupportedNodes.filter((index) => report.problems.some((problem) => problem.node === index && isOwn(problem)))
  return {
    supported: report.supported,
    libraryVersion: report.libraryVersion,
    model,
    problems: report.problems.map((problem) => {
      const own = isOwn(problem) ? model.nodes[problem.node] : undefined
      return {
        code: problem.code === 'ERR_ONNX_INVALID' ? 'ERR_ONNX_INVALID' : 'ERR_ONNX_UNSUPPORTED',
        message: problem.message,
        index: own === undefined ? undefined : problem.node,
        node: problem.nodeName === '' ? (own?.name ?? '') : problem.nodeName,
        op: problem.op === '' ? (own?.op ?? '') : problem.op,
        where: problem.function === '' ? '' : `${problem.function}, line ${problem.line}`,
      }
    }),
    unsupported: unsupported.map((index) => ({ index, ...model.nodes[index]! })),
  }
}
