/**
 * The contract between the scheduler and whatever runs the model. A backend is an {@link Executor}; so is a test double or
 * a remote worker. Nothing here does I/O.
 *
 * ## A step
 * A step crosses as one packed `Int32Array`:
 *
 * | part      | int32s                     | content                                                                        |
 * | --------- | -------------------------- | ------------------------------------------------------------------------------ |
 * | header    | {@link STEP_HEADER_INTS}   | version, step id, sequences `S`, tokens `N`, pages `P`, modes ({@link StepMode})                      |
 * | sequences | `S` x {@link STEP_SEQUENCE_INTS} | slot, tokens in this step (>= 1), tokens already cached, pages, flags    |
 * | pages     | `P`                        | page ids, sequence after sequence, in order of position                        |
 * | tokens    | `N`                        | token ids, sequence after sequence; {@link LAST_SAMPLED_TOKEN} = the slot's last sampled token |
 *
 * For each sequence: `pages * pageSize >= cached + tokens`; the step writes the keys and values of positions
 * `cached ... cached + tokens - 1` into those pages and reads positions `0 ... cached + tokens - 1`. A slot appears at most
 * once in a step. Pages that a step writes are listed by no other sequence of that step. `LAST_SAMPLED_TOKEN` may stand
 * only first (and then alone) in a sequence's tokens.
 *
 * Order is the whole of the synchronisation: `openSlot`, `setMask`, `closeSlot` and `submit` take effect in the order of the
 * calls, so a step may be submitted while earlier ones still run, and sees what they wrote. Results arrive in the order of
 * submission, exactly one per submitted step, never synchronously from within `submit`.
 *
 * ## Sampling
 * A row's logits become a token in this order, which is vLLM's: token mask, logit bias, penalties, banned tokens; then the
 * largest of them where the temperature is 0, else temperature, minP, topK, topP and a draw. Where the mask allows nothing but
 * banned tokens, the mask wins: an output that a grammar has completed ends, whatever `minTokens` says.
 *
 * ## What an executor may lack
 * `setMask` (then requests that need masks are refused) and hidden states (`info.hiddenSize` is 0 or absent; then steps have
 * no HIDDEN flag, and requests for embeddings are refused). Without `info.hiddenRows` what needs the hidden states of all rows
 * comes one row a step. Everything else is owed.
 */
import type { ErrorCode } from '../errors'

export const STEP_VERSION = 1
export const STEP_HEADER_INTS = 6
export const STEP_SEQUENCE_INTS = 5
/** In place of a token id: the token that this slot sampled in the step before. */
export const LAST_SAMPLED_TOKEN = -1
/** In place of a sampled token: the slot's mask left none with a finite logit. */
export const NOTHING_ALLOWED = -1
/** Most tokens of a {@link LogitBias}. */
export const MAX_LOGIT_BIAS = 1024
/** Largest bias, up or down: beyond the logits of any model, and far from the ends of float32. */
export const MAX_LOGIT_BIAS_VALUE = 1e6

/** What is asked of a step as a whole: the last int32 of its header. */
export const StepMode = {
  /** Report how long each part of the step took, in {@link StepResult.partUs}, where the executor can tell. */
  TIME_PARTS: 1,
} as const

/** Per-sequence flags of a step. */
export const StepFlag = {
  /** Sample one token from the sequence's last row. Without it the rows only fill the cache (a chunk of a prompt). */
  SAMPLE: 1,
  /** Report the log-probability of the next prompt token for each row that has one. */
  PROMPT_LOGPROBS: 2,
  /** Return the raw float32 logits of the sequence's last row, before penalties and temperature (verification). */
  LOGITS: 4,
  /** Return the hidden state of the sequence's last row: what the final norm makes of it, before the vocabulary's matrix. */
  HIDDEN: 8,
  /** The same of each of the sequence's rows in this step, in order. For executors with `info.hiddenRows`. */
  HIDDEN_ROWS: 16,
} as const

/** Added to the logits of single tokens. */
export interface LogitBias {
  /** At most {@link MAX_LOGIT_BIAS}, none twice. */
  ids: Int32Array
  /** One per id, at most {@link MAX_LOGIT_BIAS_VALUE} in size. */
  values: Float32Array
}

/** Sampling state of a slot. Every field is final: validated and defaulted by the caller. */
export interface SlotSampling {
  /** 0 = greedy. */
  temperature: number
  /** 0 = off. */
  topK: number
  /** In (0, 1]; 1 = off. */
  topP: number
  /** In [0, 1]; 0 = off. */
  minP: number
  /** > 0; 1 = off. Applies to tokens of prompt and output. */
  repetitionPenalty: number
  /** 0 = off. Applies to tokens of the output. */
  presencePenalty: number
  /** 0 = off. Applies to tokens of the output, times their count. */
  frequencyPenalty: number
  /** Key of the counter-based generator; the counter is the index of the output token. In [0, 2^53). */
  seed: number
  /** Log-probabilities to report with each sampled token: -1 = none, 0 = of the sampled token only, k = and of the top k. */
  logprobs: number
  /** The same for the prompt's tokens (rows of steps flagged PROMPT_LOGPROBS). */
  promptLogprobs: number
  /** `bannedTokens` cannot be sampled before this many output tokens exist. */
  minTokens: number
  /** The tokens that would end the sequence. */
  bannedTokens: Int32Array
  /** Before penalties. */
  logitBias?: LogitBias | undefined
}

/** The most probable token each time; nothing is penalised, banned or reported. */
export const GREEDY_SAMPLING: SlotSampling = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
  logprobs: -1,
  promptLogprobs: -1,
  minTokens: 0,
  bannedTokens: new Int32Array(0),
}

export interface SlotInit {
  slot: number
  sampling: SlotSampling
  /** The whole prompt, also what the cache already holds: penalties count it and prompt log-probabilities look ahead in it. */
  prompt: Int32Array
  /** Tokens generated before (a sequence that was preempted and comes back); the random counter goes on from its length. */
  output: Int32Array
}

/** One row whose log-probabilities were asked for. */
export interface LogprobRow {
  /** Index of the sequence in the step. */
  sequence: number
  /** Position of `token` in prompt + output. */
  position: number
  token: number
  /**
   * Natural log, of the model's own distribution: before mask, bias, penalties, temperature and truncation. (vLLM masks
   * first, so its log-probabilities under a grammar are those among the allowed tokens.)
   */
  logprob: number
  /** 1 = the most probable. */
  rank: number
  topIds: Int32Array
  topLogprobs: Float32Array
}

export interface StepTimings {
  /** Microseconds between `submit` and the start of the work. */
  queueUs: number
  /** Microseconds the backend worked on the step. */
  runUs: number
  /**
   * Microseconds between the device's own time stamps of the step's first and last command (CUDA events). Undefined where the
   * executor has no such clock.
   */
  deviceUs?: number
}

/** What came of one step. */
export interface StepResult {
  stepId: number
  /**
   * Set when the step failed: nothing was sampled, and what it wrote to the cache is undefined. ERR_BACKEND_DEAD,
   * ERR_DISPOSED and an ERR_CUDA that is not retryable mean that the executor runs no more steps at all.
   */
  error?: { code: ErrorCode; message: string; retryable: boolean }
  /**
   * One token per sequence flagged SAMPLE, in the step's order. {@link NOTHING_ALLOWED} where the slot's mask left none:
   * what the slot has sampled last is undefined then, the rest of the step is as it should be.
   */
  tokens: Int32Array
  /** Rows in the step's order: of a sequence first its prompt rows, then its sampled token. */
  logprobs: LogprobRow[]
  /** `[sequences flagged LOGITS, vocabSize]`, row-major. Empty if none was flagged. */
  logits: Float32Array
  /**
   * `[rows, hiddenSize]`, row-major: one row per sequence flagged HIDDEN, all rows of one flagged HIDDEN_ROWS, in the step's
   * order. Empty or absent if none was flagged.
   */
  hidden?: Float32Array | undefined
  timings: StepTimings
  /**
   * Microseconds of the parts of a step in the mode TIME_PARTS: the embedding; of each layer its attention, then the rest of it; the
   * head; sampling. `[3 + 2 * layers]`. Absent where the executor cannot tell. Such a step is slower, as its parts do not overlap.
   */
  partUs?: Float32Array
}

export interface ExecutorInfo {
  /** 'cpu', 'tensorrt', or a name of the implementer's own. */
  name: string
  /** A line for humans: processor or GPU, instruction set, threads. */
  device: string
  /** True when a row's result does not depend, bit for bit, on the batch that it sits in. */
  batchInvariant: boolean
  vocabSize: number
  /** Width of a hidden state; 0 or absent: the executor gives none. */
  hiddenSize?: number | undefined
  /** Whether steps may have the flag HIDDEN_ROWS; absent: no. */
  hiddenRows?: boolean | undefined
  /** Longest sequence, prompt and output together, in tokens. */
  maxPositions: number
  pageSize: number
  /** Pages of the KV pool. Page ids are `0 ... numPages - 1`. */
  numPages: number
  /** Slots that can be open at once; slots are `0 ... maxSlots - 1`. */
  maxSlots: number
  /** Most tokens in one step. */
  maxStepTokens: number
  /** Bytes of the KV pool and of the weights. */
  kvCacheBytes: number
  weightBytes: number
  /** Bytes of activations, tables and buffers of a step; 0 or absent: it is not told. */
  workspaceBytes?: number | undefined
  /** The library that runs linear layers beside the engine ("cuBLASLt 13.1.0"); '' or absent: none. */
  linearLibrary?: string | undefined
}

/**
 * Runs steps. Calls throw a {@link TensorRTError} for malformed input (and change nothing then), or ERR_BACKEND_DEAD once the
 * executor is lost; failures while a step runs arrive in its result.
 */
export interface Executor {
  readonly info: ExecutorInfo
  /** Called once, before the first submit. The listener is called with one result per step and must not throw. */
  start(onResult: (result: StepResult) => void): void
  /** Takes effect in order with the steps. A slot must be closed before it is opened again. */
  openSlot(init: SlotInit): void
  closeSlot(slot: number): void
  /**
   * Which tokens the slot may sample from the next step on, until this is called again or the slot closes. Bit `i % 32` of
   * word `i / 32` stands for token `i`, set = allowed (xgrammar's bitmask); words that are missing at the end forbid, bits beyond
   * the vocabulary mean nothing. null = every token. Copies the array, which is the caller's again at once.
   *
   * @throws ERR_INVALID_ARGUMENT where the slot is not open, the mask is longer than the vocabulary, or it allows nothing
   */
  setMask?(slot: number, mask: Int32Array | null): void
  /** Takes the array over: the caller must not write to it afterwards. Returns at once. */
  submit(step: Int32Array): void
  /** Ends after the step that runs now; steps still queued come back with ERR_DISPOSED before the promise settles. */
  close(): Promise<void>
}
