/** A native backend as an {@link Executor}, and the CPU's. */
import { isErrorCode, TensorRTError, type ErrorCode } from '../errors'
import type { Graph } from '../models/graph'
import type { Executor, ExecutorInfo, LogprobRow, SlotInit, StepResult, StepTimings } from '../scheduler/executor'
import type { NativeBackend, NativeCpuOptions, NativeStepResult } from './addon'
import { loadAddon } from './load'

export interface CpuBackendOptions extends Omit<NativeCpuOptions, 'graph'> {
  graph: Graph
}

const LOGPROB_ROW_INTS = 5

export class NativeExecutor implements Executor {
  readonly info: ExecutorInfo
  readonly #native: NativeBackend

  /** @internal */
  constructor(native: NativeBackend) {
    this.#native = native
    this.info = native.info
  }

  start(onResult: (result: StepResult) => void): void {
    translateErrors(() => this.#native.start((result) => onResult(fromNativeResult(result))))
  }

  openSlot(init: SlotInit): void {
    translateErrors(() => this.#native.openSlot(init))
  }

  closeSlot(slot: number): void {
    translateErrors(() => this.#native.closeSlot(slot))
  }

  setMask(slot: number, mask: Int32Array | null): void {
    translateErrors(() => this.#native.setMask(slot, mask))
  }

  submit(step: Int32Array): void {
    translateErrors(() => this.#native.submit(step))
  }

  close(): Promise<void> {
    return this.#native.close()
  }
}

export class CpuBackend extends NativeExecutor {
  /**
   * Loads the weights, off the event loop.
   *
   * @throws TensorRTError (as a rejection) the addon's load errors, ERR_INVALID_ARGUMENT, ERR_GRAPH_INVALID, ERR_MODEL_INVALID,
   *   ERR_WEIGHTS_INVALID, ERR_WEIGHTS_MISSING, ERR_IO, ERR_OUT_OF_MEMORY
   */
  static async create(options: CpuBackendOptions): Promise<CpuBackend> {
    const { addon } = loadAddon()
    try {
      return new CpuBackend(await addon.createCpuBackend({ ...options, graph: JSON.stringify(options.graph) }))
    } catch (error) {
      throw fromNativeError(error)
    }
  }
}

function translateErrors(call: () => void): void {
  try {
    call()
  } catch (error) {
    throw fromNativeError(error)
  }
}

/** A native error carries `code` and maybe `hint`; what has none is not the addon's and passes as it is. */
export function fromNativeError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const { code, hint } = error as Error & { code?: unknown; hint?: string }
  if (!isErrorCode(code)) return error
  // The addon's classes are called after those of the library, which users know.
  const message = code === 'ERR_DISPOSED' ? error.message.replace(/^The Native(?=[A-Z])/, 'The ') : error.message
  return new TensorRTError(code, message, { hint, cause: error })
}

/** @internal exported for its tests */
export function fromNativeResult(native: NativeStepResult): StepResult {
  const { stepId, tokens, logits, hidden, queueUs, runUs, deviceUs } = native
  const timings: StepTimings = deviceUs < 0 ? { queueUs, runUs } : { queueUs, runUs, deviceUs }
  const result: StepResult = { stepId, tokens, logprobs: unpackLogprobs(native), logits, hidden, timings }
  if (native.partUs !== undefined && native.partUs.length > 0) result.partUs = native.partUs
  if (native.errorCode !== '') {
    const code: ErrorCode = isErrorCode(native.errorCode) ? native.errorCode : 'ERR_INTERNAL'
    result.error = { code, message: native.errorMessage, retryable: native.retryable }
  }
  return result
}

function unpackLogprobs({ logprobRows, logprobValues, topIds, topLogprobs }: NativeStepResult): LogprobRow[] {
  const rows: LogprobRow[] = []
  let top = 0
  logprobValues.forEach((logprob, i) => {
    const [sequence = 0, position = 0, token = 0, rank = 0, count = 0] = logprobRows.subarray(
      i * LOGPROB_ROW_INTS,
      (i + 1) * LOGPROB_ROW_INTS,
    )
    rows.push({
      sequence,
      position,
      token,
      logprob,
      rank,
      topIds: topIds.subarray(top, top + count),
      topLogprobs: topLogprobs.subarray(top, top + count),
    })
    top += count
  })
  return rows
}
