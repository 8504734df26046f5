/** What the main thread and the worker that holds onnxruntime tell each other. */
import type { DataType } from '../../native'

export interface OnnxTensorFacts {
  name: string
  /** onnxruntime's word for the type. */
  type: string
  /** -1 = dynamic */
  shape: number[]
}

export interface OnnxTensor {
  dtype: DataType
  shape: number[]
  /** Exactly its bytes; transferred, not copied. */
  buffer: ArrayBuffer
}

export interface OnnxWorkerData {
  /** Path of onnxruntime-node's main file. */
  modulePath: string
  model: string | Uint8Array
  /** 0 = onnxruntime's own choice */
  threads: number
  /** One Int32, which becomes 1 when runs that have not begun are not wanted any more. The message `null` ends the thread. */
  closing: SharedArrayBuffer
}

/** A batch, its inputs in the model's order. */
export interface OnnxRun {
  id: number
  inputs: OnnxTensor[]
}

export type OnnxAnswer =
  | { kind: 'loaded'; version: string; inputs: OnnxTensorFacts[]; outputs: OnnxTensorFacts[] }
  /** `missing`: onnxruntime itself cannot be loaded. */
  | { kind: 'failed'; missing: boolean; message: string }
  | { kind: 'ran'; id: number; outputs: OnnxTensor[] }
  | { kind: 'run-failed'; id: number; message: string }
