/**
 * Every code that a {@link TensorRTError} can carry. Codes are stable: a minor release adds codes, it never renames one.
 */
export const ERROR_CODES = [
  'ERR_INVALID_ARGUMENT',
  'ERR_INVALID_TOKEN',
  'ERR_PROMPT_TOO_LONG',
  'ERR_REQUEST_TOO_LARGE',
  'ERR_QUEUE_FULL',
  'ERR_DEADLINE_EXCEEDED',
  'ERR_TIMEOUT',
  'ERR_STREAM_CONSUMED',
  'ERR_DISPOSED',
  'ERR_MODEL_NOT_FOUND',
  'ERR_MODEL_INVALID',
  'ERR_MODEL_UNSUPPORTED',
  'ERR_WEIGHTS_INVALID',
  'ERR_WEIGHTS_MISSING',
  'ERR_GRAPH_INVALID',
  'ERR_TOKENIZER_INVALID',
  'ERR_CHAT_TEMPLATE',
  'ERR_GRAMMAR_INVALID',
  'ERR_IO',
  'ERR_OUT_OF_MEMORY',
  'ERR_OUT_OF_DEVICE_MEMORY',
  'ERR_ADDON_NOT_FOUND',
  'ERR_ADDON_LOAD_FAILED',
  'ERR_TENSORRT_NOT_FOUND',
  'ERR_TENSORRT_MODULE_NOT_FOUND',
  'ERR_TENSORRT_MODULE_LOAD_FAILED',
  'ERR_ENGINE_REQUIRED',
  'ERR_DRIVER_NOT_FOUND',
  'ERR_DRIVER_TOO_OLD',
  'ERR_NO_GPU',
  'ERR_VERSION_MISMATCH',
  'ERR_ENGINE_INCOMPATIBLE',
  'ERR_ENGINE_INVALID',
  'ERR_BUILD_FAILED',
  'ERR_CUDA',
  'ERR_INVALID_TENSOR',
  'ERR_EXECUTION_FAILED',
  'ERR_ONNX_INVALID',
  'ERR_ONNX_UNSUPPORTED',
  'ERR_ONNXRUNTIME_NOT_FOUND',
  'ERR_STEP_FAILED',
  'ERR_BACKEND_DEAD',
  'ERR_INTERNAL',
] as const

export type ErrorCode = (typeof ERROR_CODES)[number]

export interface TensorRTErrorOptions {
  /** What the caller can do about it, one sentence. */
  hint?: string | undefined
  cause?: unknown
}

/** The one error class of the library; `code` tells the kinds apart. Aborts are {@link AbortError} instead. */
export class TensorRTError extends Error {
  override readonly name = 'TensorRTError'
  readonly code: ErrorCode
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: TensorRTErrorOptions = {}) {
    super(
      options.hint === undefined ? message : `${message} (${options.hint})`,
      options.cause === undefined ? undefined : { cause: options.cause },
    )
    this.code = code
    this.hint = options.hint
  }
}

/** Rejection of work that its caller aborted: `name` and `code` are Node's own, `cause` is `signal.reason`. */
export class AbortError extends Error {
  override readonly name = 'AbortError'
  readonly code = 'ABORT_ERR'

  constructor(cause?: unknown, message = 'The operation was aborted') {
    super(message, cause === undefined ? undefined : { cause })
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && (ERROR_CODES as readonly string[]).includes(value)
}
