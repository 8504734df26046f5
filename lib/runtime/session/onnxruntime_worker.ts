/** The worker thread that runs a model with onnxruntime, whose `run` blocks its thread. Started by onnxruntime_session.ts alone. */
import { createRequire } from 'node:module'
import { parentPort, workerData } from 'node:worker_threads'
import type * as Onnx from 'onnxruntime-node'
import type { DataType } from '../../native'
import type { OnnxAnswer, OnnxRun, OnnxTensor, OnnxTensorFacts, OnnxWorkerData } from './onnxruntime_messages'

type OnnxModule = typeof Onnx
type Metadata = Onnx.InferenceSession.ValueMetadata

const port = parentPort!

function answer(message: OnnxAnswer, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer)
}

function describe(metadata: Metadata): OnnxTensorFacts {
  const { name } = metadata
  if (!metadata.isTensor) return { name, type: 'a sequence or map', shape: [] }
  return { name, type: metadata.type, shape: metadata.shape.map((size) => (typeof size === 'number' ? size : -1)) }
}

/** Of a tensor as onnxruntime takes it; float16 and bool by their bits. */
function arrayOf(dtype: DataType, buffer: ArrayBuffer): Onnx.Tensor.DataType {
  switch (dtype) {
    case 'float32':
      return new Float32Array(buffer)
    case 'float16':
      return new Uint16Array(buffer)
    case 'int8':
      return new Int8Array(buffer)
    case 'int32':
      return new Int32Array(buffer)
    case 'int64':
      return new BigInt64Array(buffer)
    default:
      return new Uint8Array(buffer)
  }
}

function packed({ type, dims, data }: Onnx.Tensor): OnnxTensor {
  const { buffer, byteOffset, byteLength } = data as Uint8Array
  // A copy, as the memory is onnxruntime's.
  return { dtype: type as DataType, shape: [...dims], buffer: new Uint8Array(buffer, byteOffset, byteLength).slice().buffer }
}

async function run(onnx: OnnxModule, session: Onnx.InferenceSession, { id, inputs }: OnnxRun): Promise<void> {
  const feeds: Record<string, Onnx.Tensor> = {}
  for (const [i, { dtype, shape, buffer }] of inputs.entries()) {
    feeds[session.inputNames[i]!] = new onnx.Tensor(dtype as Onnx.Tensor.Type, arrayOf(dtype, buffer), shape)
  }
  const results = await session.run(feeds)
  const outputs = session.outputNames.map((name) => packed(results[name]!))
  answer(
    { kind: 'ran', id, outputs },
    outputs.map(({ buffer }) => buffer),
  )
}

async function main({ modulePath, model, threads, closing }: OnnxWorkerData): Promise<void> {
  let onnx: OnnxModule
  try {
    onnx = createRequire(modulePath)(modulePath) as OnnxModule
  } catch (error) {
    answer({ kind: 'failed', missing: true, message: (error as Error).message })
    return
  }
  let session: Onnx.InferenceSession
  try {
    // Warnings of onnxruntime would go to the terminal.
    const options: Onnx.InferenceSession.SessionOptions = { logSeverityLevel: 3, ...(threads > 0 ? { intraOpNumThreads: threads } : {}) }
    session = typeof model === 'string' ? await onnx.InferenceSession.create(model, options) : await onnx.InferenceSession.create(model, options)
  } catch (error) {
    answer({ kind: 'failed', missing: false, message: (error as Error).message })
    return
  }
  // One after the other: a run that is awaited would let the next message in.
  let last = Promise.resolve()
  const flag = new Int32Array(closing)
  port.on('message', (request: OnnxRun | null) => {
    if (request === null) {
      void last.then(() => port.close())
      return
    }
    last = last
      .then(() => (Atomics.load(flag, 0) === 0 ? run(onnx, session, request) : undefined))
      .catch((error: Error) => answer({ kind: 'run-failed', id: request.id, message: error.message }))
  })
  answer({
    kind: 'loaded',
    version: onnx.env.versions.node ?? onnx.env.versions.common,
    inputs: session.inputMetadata.map(describe),
    outputs: session.outputMetadata.map(describe),
  })
}

void main(workerData as OnnxWorkerData)
