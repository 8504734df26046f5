/** What callers hand to the LLM API. The checks are in `validate.ts`. */
import type { Grammar } from '../grammar'
import type { TokenConstraint } from '../scheduler'
import type { ChatMessage } from '../text'
import type { EmbeddingOptions } from './pooling'

/**
 * How tokens are sampled. What is left out comes from the model's generation_config.json, then from the value given
 * here.
 */
export interface SamplingOptions {
  /**
   * 0 is greedy, and so is anything below 1e-4. Default: 0 unless the generation config says `do_sample`, then 1. In
   * [0, 100].
   */
  temperature?: number | undefined
  /** Sample from the k most probable tokens. 0 (default) is off. */
  topK?: number | undefined
  /** Sample from the most probable tokens that hold this share of the probability. In (0, 1], 1 (default) is off. */
  topP?: number | undefined
  /** Drop tokens less probable than this share of the most probable one. In [0, 1], 0 (default) is off. */
  minP?: number | undefined
  /** Divides (or multiplies, below 0) the logits of tokens in prompt and output. In [0.01, 100], 1 (default) is off. */
  repetitionPenalty?: number | undefined
  /** Subtracted from the logits of tokens in the output. In [-100, 100], 0 (default) is off. */
  presencePenalty?: number | undefined
  /**
   * Subtracted from the logits of tokens in the output, times how often they occur. In [-100, 100], 0 (default) is off.
   */
  frequencyPenalty?: number | undefined
  /**
   * The same seed gives the same output, whatever else runs. Integer in [0, 2^53). Default: random. Choice 0 samples
   * with the seed itself, choice `i` of `n` with one derived from the seed and `i`.
   */
  seed?: number | undefined
  /**
   * Added to the logits of these tokens, before penalties; at most 1024 of them, each value in [-1e6, 1e6]. 100 all but
   * forces a token, -100 all but bans it; reported log-probabilities are the model's own. An object's keys are token ids.
   */
  logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number> | undefined
  /**
   * Says token by token what choice `index` may sample, as a grammar does: called once per choice when the request is queued.
   * A constrained choice takes a token every other step where others run beside it.
   */
  constrain?: ((index: number) => TokenConstraint) | undefined
  /**
   * What the output must be: a JSON value of a schema, a match of a regular expression, one of some texts. Special tokens but
   * those that end it are not sampled. It ends with the finish reason `stop` when it is complete; where `maxTokens` or a stop
   * string ends it before, it is the beginning of such an output. See docs/structured-output.md.
   */
  grammar?: Grammar | undefined
}

/** Where an output ends. */
export interface StopOptions {
  /**
   * Most tokens to generate, per choice; 0 only computes the prompt. Default: `max_new_tokens` of the generation
   * config, else as many as context and KV cache allow. What goes beyond the context ends with the finish reason
   * `length`.
   */
  maxTokens?: number | undefined
  /** No stop token and no stop string ends the output before this many tokens. Default 0. */
  minTokens?: number | undefined
  /** Strings that end the output, at most 64 of them. */
  stop?: string | readonly string[] | undefined
  /** Tokens that end the output, at most 1024 of them, beside the model's own end-of-sequence tokens. */
  stopTokenIds?: ArrayLike<number> | undefined
  /** Go on past the model's end-of-sequence tokens. Default false. */
  ignoreEos?: boolean | undefined
  /** Keep the stop string, or the text of the stop token, at the end of the text. Default false. */
  includeStop?: boolean | undefined
}

/** What is reported beside the text. */
export interface ReportOptions {
  /**
   * Log-probabilities of each generated token and of the k most probable ones there (0: of the token alone). At most
   * 256. Default: none.
   */
  logprobs?: number | undefined
  /** The same for the tokens of the prompt, in the result. */
  promptLogprobs?: number | undefined
  /** Leave special tokens out of the text. Default true. They are always in `tokens`. */
  skipSpecialTokens?: boolean | undefined
}

/** When a request runs, and for how long. */
export interface ScheduleOptions {
  /**
   * Lower is more urgent. Integer in [-1000, 1000], default 0. Waiting makes a request more urgent, so none starves.
   */
  priority?: number | undefined
  /**
   * Milliseconds from the call within which the whole output must exist. Among requests of one priority the earliest
   * deadline runs first; one that cannot be met is refused with ERR_DEADLINE_EXCEEDED as soon as that is known.
   */
  deadlineMs?: number | undefined
  /** The same as a moment: a Date, or milliseconds since the epoch. */
  deadline?: Date | number | undefined
  /** Milliseconds from the call after which the request fails with ERR_TIMEOUT. */
  timeoutMs?: number | undefined
  /** Requests share cached prefixes only with those of the same salt. At most 1024 UTF-16 units. */
  cacheSalt?: string | undefined
  /** Aborts the request: it rejects with an AbortError whose `cause` is `signal.reason`. */
  signal?: AbortSignal | undefined
}

/** What goes to the chat template beside `messages`. */
export interface ChatInputOptions {
  /** Tool definitions, as JSON schemas, for templates that take them. */
  tools?: readonly unknown[] | undefined
  documents?: readonly unknown[] | undefined
  /** Further variables of the template, such as `enable_thinking`. */
  templateArgs?: Readonly<Record<string, unknown>> | undefined
  /** End with the opening of the assistant's turn. Default true. */
  addGenerationPrompt?: boolean | undefined
}

/** A prompt that `LLM.encodePrompt` has made tokens of. */
export class EncodedPrompt {
  /** @internal */
  constructor(
    readonly tokens: Int32Array,
    /**
     * The output goes on with the text of the prompt, instead of beginning a text of its own.
     * @internal
     */
    readonly continuation: boolean,
  ) {}
}

/** Exactly one of `prompt`, `messages` and `tokens` is given. */
export interface PromptOptions extends ChatInputOptions {
  /** Text to continue. */
  prompt?: string | undefined
  /** A chat, rendered with the model's chat template. */
  messages?: readonly ChatMessage[] | undefined
  /** Token ids to continue, as they are: nothing is added. */
  tokens?: ArrayLike<number> | undefined
  /** With `prompt`: add what the tokenizer adds, usually BOS. Default true. */
  addSpecialTokens?: boolean | undefined
  /**
   * Whether special tokens spelt out in the text (`<|end|>`) become those tokens. Default: true for `prompt`, which its
   * author wrote for the model; false for `messages`, where they are ordinary text, as no user can forge a turn that
   * way.
   */
  allowSpecial?: boolean | undefined
  /** Ends the work on the prompt. */
  signal?: AbortSignal | undefined
}

/** A request. Exactly one of `prompt`, `messages`, `tokens` and `encoded` is given. */
export interface GenerateOptions
  extends SamplingOptions, StopOptions, ReportOptions, ScheduleOptions, Omit<PromptOptions, 'signal'> {
  /** What `LLM.encodePrompt` made of a prompt. */
  encoded?: EncodedPrompt | undefined
  /** Choices to sample from the one prompt, whose pages they share. In [1, 1024], default 1. */
  n?: number | undefined
}

/** Which backend runs the model. `auto`: TensorRT where a GPU is usable, else the CPU, with one warning. */
export type BackendChoice = 'auto' | 'cpu' | 'tensorrt'

/** Something a caller should know although no request failed of it. */
export interface LLMWarning {
  /**
   * `CPU_FALLBACK`: no GPU is usable, the CPU runs the model. `BACKEND_FAILED_OVER`: the backend died while it served, and
   * another has taken over. `BACKEND_DOWN`: it died, no other has taken over, and requests are refused until it is back.
   * `BACKEND_RESTARTED`: it is back, and serves. `BACKEND_RESTART_FAILED`: the first attempt to bring it back has failed, or
   * the last; more may follow the first.
   */
  code: 'CPU_FALLBACK' | 'BACKEND_FAILED_OVER' | 'BACKEND_DOWN' | 'BACKEND_RESTARTED' | 'BACKEND_RESTART_FAILED'
  message: string
  /** The error behind it; of a dead backend an ERR_BACKEND_DEAD whose own cause is the device's error. */
  cause?: unknown
  /** `BACKEND_FAILED_OVER`, `BACKEND_RESTARTED`: sequences that were live and go on. A sequence is one choice of a request. */
  sequences?: number
  /** `BACKEND_FAILED_OVER`, `BACKEND_RESTARTED`: milliseconds in which nothing ran. */
  durationMs?: number
}

/** When a dead backend is made again. */
export interface RestartOptions {
  /**
   * Milliseconds before the first attempt; doubles with each that fails. Up to half of a delay is left out at random. Default
   * 1000, or `maxDelayMs` if that is less.
   */
  initialDelayMs?: number | undefined
  /** Longest delay in ms. A backend that dies so soon after its return counts as one more failed attempt. Default 60,000. */
  maxDelayMs?: number | undefined
  /** Attempts in a row, at least 1; then the backend stays dead. Default: no limit. */
  maxAttempts?: number | undefined
}

/** How requests are scheduled, for any executor, how embeddings are made, and when an executor is taken for stuck. */
export interface EngineOptions {
  /** Share pages between requests with equal prefixes. Default true. */
  prefixCache?: boolean | undefined
  /** Requests (choices, to be exact) that may wait; more are refused with ERR_QUEUE_FULL. Default 1024. */
  maxQueue?: number | undefined
  /**
   * How often a request is run again after a step failed in a way that may pass. What it has generated is kept. Default
   * 1.
   */
  retries?: number | undefined
  /** Milliseconds that compiling the `grammar` of a request may take. Default 10,000. */
  grammarTimeoutMs?: number | undefined
  /** A waiting request becomes one priority level more urgent each so many milliseconds. Default 5000. */
  agingMs?: number | undefined
  /** Sequences that run at once. Default: 64 on the CPU, 256 on a GPU; with an executor of one's own its limit. */
  maxSequences?: number | undefined
  /**
   * Most tokens in one step. Smaller steps give shorter pauses between tokens, larger ones more throughput on a GPU.
   * Default: 256 on the CPU, but at least `maxSequences`; else the limit of the engine, or of an executor of one's own.
   */
  maxStepTokens?: number | undefined
  /**
   * Longest time in ms that a step should take while outputs wait for it: bounds the inter-token latency, as about one step in
   * a hundred takes longer. Prompts are prefilled in smaller chunks then, and fewer sequences run at once, by the times of the
   * steps before. Default: no bound.
   */
  maxStepMs?: number | undefined
  /**
   * A request takes slot and KV cache of running ones that have less priority; these wait, and go on where they were. For
   * batch work beside interactive requests. Default false: priority orders the queue only.
   */
  preemptForPriority?: boolean | undefined
  /**
   * A step that takes longer than so many milliseconds is the death of its backend, as of a device that hangs: failover and
   * restart follow. Must be far more than the longest step of the model. Default: none is.
   */
  stepTimeoutMs?: number | undefined
  /**
   * A step that takes longer than so many milliseconds makes `health()` report `stuck`; nothing else follows. Default: 30 s, or
   * 50 times what such a step has taken until now if that is more.
   */
  stuckAfterMs?: number | undefined
  /** How `embed()` makes embeddings where a call does not say. Default: as the model folder says. */
  embedding?: EmbeddingOptions | undefined
}

export interface LLMOptions extends EngineOptions {
  /** Default `auto`. */
  backend?: BackendChoice | undefined
  /**
   * Bytes for the KV cache. Default on the CPU: what `maxSequences` full contexts take, but at most 1 GiB or a quarter of
   * the free memory, and at least what one full context takes: give it where a model's context is longer than you need. On a GPU see `kvCacheFraction`.
   */
  kvCacheMemory?: number | undefined
  /** Pages of the KV cache, instead of `kvCacheMemory`. */
  numPages?: number | undefined
  /**
   * GPU: share of the memory left free by weights and activations that the KV cache takes, instead of `kvCacheMemory`.
   * In (0, 1], default 0.9.
   */
  kvCacheFraction?: number | undefined
  /**
   * When the GPU fails for good, the CPU takes over: requests go on where they are, each with the tokens it has, and
   * `onWarning` hears of it. Its weights are loaded then, while requests wait; `standby` loads them beforehand and keeps
   * them in memory. false: requests reject with ERR_BACKEND_DEAD, until `restart` has brought the GPU back. Default: true, but
   * false with `backend: 'tensorrt'`. Without effect where the CPU runs the model anyway.
   */
  failover?: boolean | 'standby' | undefined
  /**
   * Make a backend that died again in the background, check it with a step, and move requests back to it; without failover
   * requests are refused with ERR_BACKEND_DEAD until then. An error that CUDA keeps until the process ends (such as an illegal
   * memory access) cannot be put right in the process: attempts go on and fail, and `health().restartable` is false. Default:
   * true.
   */
  restart?: boolean | RestartOptions | undefined
  /** Tokens in a page. Default 16. */
  pageSize?: number | undefined
  /** Threads of the CPU backend. Default: as many as the process may use. */
  threads?: number | undefined
  /** Instruction set of the CPU backend. Default: the best that the processor has. */
  simd?: 'avx512' | 'avx2' | 'portable' | undefined
  /** GPU: number of the device, as CUDA counts. Default 0. */
  device?: number | undefined
  /** GPU: libnvinfer, or the folder that has it. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  /** GPU: replay decode steps as CUDA graphs. Default true. */
  cudaGraphs?: boolean | undefined
  /** Engine folders: the folder that has the weights, instead of the one that engine.json refers to. */
  weights?: string | undefined
  /**
   * Engine folders: true hashes all weights, false takes any of the same file names and shapes. Default: sizes are
   * compared, and files that were touched after the build are hashed.
   */
  verifyWeights?: boolean | undefined
  /** GPU: run an engine that `verifyEngine` found unfit. Default false. */
  allowUnfit?: boolean | undefined
  /** Aborts loading. */
  signal?: AbortSignal | undefined
  /** Called for each warning, in place of `process.emitWarning`. */
  onWarning?: ((warning: LLMWarning) => void) | undefined
}

export interface CloseOptions {
  /** Milliseconds to let pending requests end before they are rejected. New ones are refused at once. Default 0. */
  drain?: number | undefined
}
