/** What runs the batches of a session: a GPU through TensorRT, or onnxruntime. */
import type { RequestShapes, ShapeClass } from './request_shapes'
import type { BatchOutput, SessionBatch } from './session_request'
import type { SessionWarning } from './options'
import type { ModelSignature } from './signature'

export interface BackendEvents {
  /**
   * A batch has ended. Never called within `submit`. `outputs` are in the order of the model's, and valid during the call.
   * @param submitMs host time that it took to hand the batch to the device
   */
  done(batch: SessionBatch, error: unknown, outputs: readonly BatchOutput[], submitMs: number): void
  warn(warning: SessionWarning): void
}

/** Figures of one lane since it was made. */
export interface LaneCounters {
  /** Host time in TensorRT's enqueue and in graph launches, microseconds. */
  enqueueUs: number
  enqueues: number
  graphLaunches: number
  /** Changes of shape or profile that TensorRT had to take in. */
  contextSwitches: number
  /** By the operating system, of the stream's threads. */
  voluntarySwitches: number
  involuntarySwitches: number
}

export interface SessionBackend {
  readonly kind: 'tensorrt' | 'onnxruntime'
  /** What runs, in words, such as the GPU's name. */
  readonly device: string
  readonly signature: ModelSignature
  readonly lanes: number
  /** Batches that a lane takes at a time, the running one included. */
  readonly depth: number
  /** Why the outputs of a batch cannot be told apart by request; null: they can. */
  readonly notBatchable: string | null
  /** Called once, before all that follows. */
  open(shapes: RequestShapes, events: BackendEvents): void
  /** Prepares every lane for batches of this size. @throws (as a rejection) what keeps it from running */
  prepare(shape: ShapeClass, size: number): Promise<void>
  /** Runs a batch on its lane. Never throws. */
  submit(batch: SessionBatch): void
  counters(): LaneCounters[]
  /** Calls of cudaMalloc and its kin so far, by the whole process; 0 where there is no device. */
  deviceAllocations(): number
  /** Idempotent. Batches that run are let go: nobody hears of them any more. */
  close(): Promise<void>
}

/** Errors after which a backend runs nothing any more. */
export function isDeath(error: unknown): boolean {
  const { code } = (error ?? {}) as { code?: unknown }
  return code === 'ERR_BACKEND_DEAD' || code === 'ERR_DISPOSED'
}
