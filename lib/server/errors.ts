/** Every answer that is an error: what it says, and the one table from the library's codes to statuses. */
import { AbortError, type ErrorCode, TensorRTError } from '../errors'
import type { Refusal } from './seams'

export type ErrorType =
  | 'invalid_request_error'
  | 'authentication_error'
  | 'permission_error'
  | 'rate_limit_error'
  | 'timeout_error'
  | 'service_unavailable_error'
  | 'server_error'

export interface ErrorBody {
  error: { message: string; type: ErrorType; param: string | null; code: string | null }
}

/** An error as the client gets it. */
export class ApiError extends Error {
  override readonly name = 'ApiError'

  constructor(
    readonly status: number,
    readonly type: ErrorType,
    readonly code: string | null,
    message: string,
    readonly param: string | null = null,
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(message)
  }

  /** 400: the request itself is wrong. */
  static invalid(param: string | null, message: string, code = 'invalid_value'): ApiError {
    return new ApiError(400, 'invalid_request_error', code, message, param)
  }

  /** 400: the request is right, and this server does not do it. */
  static unsupported(param: string, message: string): ApiError {
    return ApiError.invalid(param, message, 'unsupported_parameter')
  }

  get body(): ErrorBody {
    return { error: { message: this.message, type: this.type, param: this.param, code: this.code } }
  }
}

interface Answer {
  status: number
  type: ErrorType
  code: string
  /** In place of the error's own words, which are for the server's operator. */
  message?: string
  /** Whether clients should try again, where the status alone would mislead them; OpenAI's clients heed it. */
  retry?: boolean
}

const OVERLOADED = 'The server is not available at the moment; try again later'

/** The server's own failure: without its words, which may tell of its inside. */
const INTERNAL: Answer = {
  status: 500,
  type: 'server_error',
  code: 'internal_error',
  message: 'The server failed to process this request',
}

/** Of every code, so that nobody adds one without a thought of what clients are told. */
export const ANSWERS: Readonly<Record<ErrorCode, Answer>> = {
  ERR_INVALID_ARGUMENT: { status: 400, type: 'invalid_request_error', code: 'invalid_value' },
  ERR_INVALID_TOKEN: { status: 400, type: 'invalid_request_error', code: 'invalid_token' },
  ERR_PROMPT_TOO_LONG: { status: 400, type: 'invalid_request_error', code: 'context_length_exceeded' },
  ERR_REQUEST_TOO_LARGE: { status: 400, type: 'invalid_request_error', code: 'context_length_exceeded' },
  ERR_GRAMMAR_INVALID: { status: 400, type: 'invalid_request_error', code: 'invalid_grammar' },
  // The template is the model's, but what it stumbles over are the request's messages.
  ERR_CHAT_TEMPLATE: { status: 400, type: 'invalid_request_error', code: 'chat_template_error' },
  ERR_QUEUE_FULL: { status: 429, type: 'rate_limit_error', code: 'queue_full', message: 'The queue is full; try again later' },
  ERR_DEADLINE_EXCEEDED: {
    status: 504,
    type: 'timeout_error',
    code: 'deadline_exceeded',
    message: 'The deadline of the request cannot be met',
    retry: false,
  },
  ERR_TIMEOUT: { status: 504, type: 'timeout_error', code: 'timeout', message: 'The request took too long', retry: false },
  ERR_DISPOSED: { status: 503, type: 'service_unavailable_error', code: 'shutting_down', message: OVERLOADED },
  ERR_BACKEND_DEAD: { status: 503, type: 'service_unavailable_error', code: 'backend_unavailable', message: OVERLOADED },
  ERR_STEP_FAILED: {
    status: 500,
    type: 'server_error',
    code: 'step_failed',
    message: 'The model failed to compute this request',
  },
  // Of loading, building and of the APIs that the server does not call: no request is to blame.
  ERR_STREAM_CONSUMED: INTERNAL,
  ERR_MODEL_NOT_FOUND: INTERNAL,
  ERR_MODEL_INVALID: INTERNAL,
  ERR_MODEL_UNSUPPORTED: INTERNAL,
  ERR_WEIGHTS_INVALID: INTERNAL,
  ERR_WEIGHTS_MISSING: INTERNAL,
  ERR_GRAPH_INVALID: INTERNAL,
  ERR_TOKENIZER_INVALID: INTERNAL,
  ERR_IO: INTERNAL,
  ERR_OUT_OF_MEMORY: INTERNAL,
  ERR_OUT_OF_DEVICE_MEMORY: INTERNAL,
  ERR_ADDON_NOT_FOUND: INTERNAL,
  ERR_ADDON_LOAD_FAILED: INTERNAL,
  ERR_TENSORRT_NOT_FOUND: INTERNAL,
  ERR_TENSORRT_MODULE_NOT_FOUND: INTERNAL,
  ERR_TENSORRT_MODULE_LOAD_FAILED: INTERNAL,
  ERR_ENGINE_REQUIRED: INTERNAL,
  ERR_DRIVER_NOT_FOUND: INTERNAL,
  ERR_DRIVER_TOO_OLD: INTERNAL,
  ERR_NO_GPU: INTERNAL,
  ERR_VERSION_MISMATCH: INTERNAL,
  ERR_ENGINE_INCOMPATIBLE: INTERNAL,
  ERR_ENGINE_INVALID: INTERNAL,
  ERR_BUILD_FAILED: INTERNAL,
  ERR_CUDA: INTERNAL,
  ERR_INVALID_TENSOR: INTERNAL,
  ERR_EXECUTION_FAILED: INTERNAL,
  ERR_ONNX_INVALID: INTERNAL,
  ERR_ONNX_UNSUPPORTED: INTERNAL,
  ERR_ONNXRUNTIME_NOT_FOUND: INTERNAL,
  ERR_INTERNAL: INTERNAL,
}

/** Options of the library by the names that requests have for them. */
const PARAMS: Readonly<Record<string, string>> = {
  maxTokens: 'max_tokens',
  minTokens: 'min_tokens',
  topK: 'top_k',
  topP: 'top_p',
  minP: 'min_p',
  repetitionPenalty: 'repetition_penalty',
  presencePenalty: 'presence_penalty',
  frequencyPenalty: 'frequency_penalty',
  stopTokenIds: 'stop_token_ids',
  ignoreEos: 'ignore_eos',
  includeStop: 'include_stop_str_in_output',
  promptLogprobs: 'prompt_logprobs',
  skipSpecialTokens: 'skip_special_tokens',
  deadlineMs: 'x-request-deadline-ms',
  cacheSalt: 'cache_salt',
  templateArgs: 'chat_template_kwargs',
  addGenerationPrompt: 'add_generation_prompt',
  addSpecialTokens: 'add_special_tokens',
  logitBias: 'logit_bias',
  tokens: 'prompt',
}

/** The library's words with the request's names. `"messages[0].role" must be ...` tells the parameter, too. */
function translate(message: string): { message: string; param: string | null } {
  const translated = message.replace(/"([A-Za-z]+)((?:\[\d+\]|\.\w+)*)"/g, (whole, name: string, path: string) => {
    const param = PARAMS[name]
    return param === undefined ? whole : `"${param}${path}"`
  })
  return { message: translated, param: /^"([\w-]+(?:\[\d+\]|\.\w+)*)"/.exec(translated)?.[1] ?? null }
}

/**
 * What the client gets to see of an error. Nothing of the server's inside: no paths, no stack, no words of a device.
 *
 * @param retryAfterSeconds for answers that ask the client to come again
 */
export function toApiError(error: unknown, retryAfterSeconds = 1): ApiError {
  if (error instanceof ApiError) return error
  if (error instanceof AbortError) return new ApiError(503, 'service_unavailable_error', 'aborted', 'The request was aborted')
  const answer = error instanceof TensorRTError ? ANSWERS[error.code] : INTERNAL
  const { status, type, code } = answer
  const headers: Record<string, string> = {}
  if (status === 429 || status === 503) headers['retry-after'] = String(Math.max(1, Math.ceil(retryAfterSeconds)))
  if (answer.retry === false) headers['x-should-retry'] = 'false'
  const { message, param } =
    answer.message === undefined ? translate((error as Error).message) : { message: answer.message, param: null }
  return new ApiError(status, type, code, message, param, headers)
}

const REFUSAL_TYPES: Readonly<Record<Refusal['status'], ErrorType>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  403: 'permission_error',
  404: 'invalid_request_error',
  429: 'rate_limit_error',
  503: 'service_unavailable_error',
}

export function refusalError({ status, code, message, retryAfterSeconds }: Refusal): ApiError {
  const headers: Record<string, string> = {}
  if (retryAfterSeconds !== undefined) headers['retry-after'] = String(Math.max(1, Math.ceil(retryAfterSeconds)))
  if (status === 401) headers['www-authenticate'] = 'Bearer'
  return new ApiError(status, REFUSAL_TYPES[status], code, message, null, headers)
}
