import type { Tensor } from '../tensor'
import type { TensorData } from '../dtype'
import { BatchRequest } from './request_queue'
import type { ClassifiedRequest, ShapeClass } from './request_shapes'
import type { Batch } from './dynamic_batcher'
import type { OutputMap } from './options'

/** A call of `run`. All times are milliseconds of `performance.now()`. */
export class SessionRequest extends BatchRequest {
  declare shape: ShapeClass
  tensors: readonly Tensor[]
  /** By ragged dimension its own size; null: there is none. */
  lengths: readonly number[] | null
  /** What becomes of it although its batch succeeds. */
  failure: Error | null = null
  /** The batch that it runs in. */
  batch: Batch<SessionRequest> | null = null
  settled = false
  /** When it left the queue. */
  takenAt = 0
  /** Ends the following of its signal. */
  unfollow: (() => void) | null = null

  constructor(
    classified: ClassifiedRequest,
    arrival: number,
    priority: number,
    deadline: number,
    /** When it fails with ERR_TIMEOUT; Infinity: never. */
    readonly timeoutAt: number,
    /** Indices of the outputs that are wanted; null: all. */
    public wanted: readonly number[] | null,
    readonly resolve: (outputs: OutputMap) => void,
    readonly reject: (error: Error) => void,
  ) {
    super(classified.rows, classified.shape, arrival, priority, deadline)
    this.tensors = classified.tensors
    this.lengths = classified.lengths
  }
}

export type SessionBatch = Batch<SessionRequest>

/** An output of a whole batch, in memory that the next batch overwrites. */
export interface BatchOutput {
  data: TensorData
  shape: readonly number[]
}
