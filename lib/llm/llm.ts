import { AbortError, TensorRTError } from '../errors'
import { ArgumentReader, invalidArgument } from '../runtime'
import type { Executor, ExecutorInfo } from '../scheduler'
import { type ChatMessage, ChatTemplate, encodeChat, Tokenizer } from '../text'
import { orAbort, throwIfAborted } from './abort'
import { createBackend } from './backend'
import { EngineLoop, type Failover } from './engine_loop'
import { closeQuietly, type FallbackSource } from './fallback'
import { type Generation, GenerationHandle, GenerationState } from './generation'
import { type GenerationDefaults, GREEDY_DEFAULTS } from './generation_config'
import { readModelFolder } from './model_folder'
import type { ChatInputOptions, CloseOptions, EngineOptions, GenerateOptions, LLMOptions, LLMWarning } from './options'
import { type EndObserver, observeLoop, type StepObserver } from './observe'
import { type LLMProfile, profileLoop, type ProfileOptions } from './profile'
import { buildRequest, encodePrompt, type RequestContext, requireTokenizer } from './request_builder'
import { type LLMStats, collectStats } from './stats'
import {
  type CheckedEngineOptions,
  checkCloseOptions,
  CHAT_OPTIONS,
  checkEngineOptions,
  checkExecutor,
  checkLoadOptions,
  checkRequestOptions,
  toTokenArray,
} from './validate'

/** What a model is, and what runs it. */
export interface LLMInfo extends ExecutorInfo {
  /** Absolute path of the model's folder; undefined for an LLM made from an executor. */
  model: string | undefined
  /** Architecture's family, such as 'llama'; undefined for an LLM made from an executor. */
  family: string | undefined
  hasTokenizer: boolean
  hasChatTemplate: boolean
  /** Tokens that stand for no text, ascending. */
  specialTokenIds: number[]
  /** Tokens that end an output. */
  eosTokenIds: number[]
  /** What a request gets where it does not say otherwise; `maxTokens` undefined = as many as fit. */
  defaults: Omit<GenerationDefaults, 'eosTokenIds'>
}

export interface FromExecutorOptions extends EngineOptions {
  /** Without one, requests are made of `tokens`, and results have no text. */
  tokenizer?: Tokenizer | undefined
  chatTemplate?: ChatTemplate | undefined
  /** Tokens that end an output. Default: the tokenizer's own. */
  eosTokenIds?: ArrayLike<number> | undefined
  /**
   * Makes the executor that takes over when this one dies; it is called at most once. Requests go on where they are, each
   * with the tokens it has. Its vocabulary must be the same, its sizes may be others. Default: pending and later requests
   * reject with ERR_BACKEND_DEAD.
   */
  failover?: (() => Promise<Executor>) | undefined
  /** Called for each warning, in place of `process.emitWarning`. */
  onWarning?: ((warning: LLMWarning) => void) | undefined
}

interface Parts {
  executor: Executor
  fallback: FallbackSource | undefined
  tokenizer: Tokenizer | undefined
  chatTemplate: ChatTemplate | undefined
  defaults: GenerationDefaults
  engine: CheckedEngineOptions
  model: string | undefined
  family: string | undefined
  warnings: Warnings
}

/**
 * A language model that serves many requests at once: continuous batching over a paged KV cache, with token streaming.
 *
 * An LLM that has nothing to do does not keep the process alive. {@link close} frees its memory.
 */
export class LLM {
  #info: Readonly<LLMInfo>
  readonly #warnings: Warnings
  readonly #loop: EngineLoop
  readonly #context: RequestContext
  #nextId = 0
  #closing: Promise<void> | undefined
  #endDrain: (() => void) | undefined

  private constructor(parts: Parts) {
    const { executor, fallback, tokenizer, chatTemplate, defaults } = parts
    const loop = new EngineLoop(executor, {
      ...parts.engine,
      fallback,
      onFailover: (failover) => {
        this.#info = describe(parts, loop)
        this.#warnings.add(failoverWarning(failover))
      },
    })
    this.#loop = loop
    this.#context = {
      tokenizer,
      chatTemplate,
      defaults,
      get limits() {
        return loop.limits
      },
    }
    this.#warnings = parts.warnings
    this.#info = describe(parts, loop)
  }

  /**
   * Loads a model from a folder in Hugging Face layout (config.json, tokenizer.json and safetensors weights), or from an
   * engine folder that `buildLLMEngine` made of one. Nothing is downloaded. A GPU runs built engines; the CPU runs both.
   *
   * @param folder relative to the working directory, or absolute
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_MODEL_NOT_FOUND, ERR_MODEL_INVALID, ERR_MODEL_UNSUPPORTED,
   * ERR_TOKENIZER_INVALID, ERR_CHAT_TEMPLATE, ERR_WEIGHTS_MISSING, ERR_WEIGHTS_INVALID, ERR_IO, ERR_OUT_OF_MEMORY;
   * ERR_ADDON_NOT_FOUND and ERR_ADDON_LOAD_FAILED when the native addon is missing or broken; with `backend:
   * 'tensorrt'` what keeps the GPU from being used, such as ERR_DRIVER_NOT_FOUND, or ERR_ENGINE_REQUIRED for a folder
   * without a built engine; for an engine ERR_ENGINE_INVALID (changed or damaged), ERR_ENGINE_INCOMPATIBLE (built for
   * another GPU or TensorRT, or found unfit by `verifyEngine`), ERR_VERSION_MISMATCH and ERR_OUT_OF_DEVICE_MEMORY; AbortError after an abort
   */
  static async load(folder: string, options: LLMOptions = {}): Promise<LLM> {
    const checked = checkLoadOptions(options)
    const { signal } = checked
    const warnings = new Warnings(checked.onWarning)
    const loading = (async () => {
      throwIfAborted(signal)
      const model = await readModelFolder(folder, checked)
      throwIfAborted(signal)
      const { executor, fallback } = await createBackend(model, checked, (warning) => warnings.add(warning))
      try {
        throwIfAborted(signal)
        const { tokenizer, chatTemplate, defaults, path, graph } = model
        return new LLM({
          executor,
          fallback,
          tokenizer,
          chatTemplate,
          defaults,
          engine: checked,
          model: path,
          family: graph.family,
          warnings,
        })
      } catch (error) {
        await closeQuietly(executor)
        if (typeof fallback === 'object') await closeQuietly(fallback)
        throw error
      }
    })()
    return orAbort(loading, signal, (llm) => llm.close())
  }

  /**
   * Serves requests with an executor of one's own. {@link close} closes it, and one that took over from it.
   *
   * @throws ERR_INVALID_ARGUMENT
   */
  static fromExecutor(executor: Executor, options: FromExecutorOptions = {}): LLM {
    const own = ['tokenizer', 'chatTemplate', 'eosTokenIds', 'failover', 'onWarning']
    const engine = checkEngineOptions(options, own, 'LLM.fromExecutor()')
    const { tokenizer, chatTemplate, failover, onWarning } = options
    checkExecutor('executor', executor)
    if (tokenizer !== undefined && !(tokenizer instanceof Tokenizer)) {
      throw invalidArgument('tokenizer', 'a Tokenizer', tokenizer)
    }
    if (chatTemplate !== undefined && !(chatTemplate instanceof ChatTemplate)) {
      throw invalidArgument('chatTemplate', 'a ChatTemplate', chatTemplate)
    }
    for (const [name, value] of Object.entries({ failover, onWarning })) {
      if (value !== undefined && typeof value !== 'function') throw invalidArgument(name, 'a function', value)
    }
    const eos = tokenizer?.eosTokenId === undefined ? [] : [tokenizer.eosTokenId]
    const eosTokenIds = toTokenArray('eosTokenIds', options.eosTokenIds ?? eos, executor.info.vocabSize)
    const defaults = { ...GREEDY_DEFAULTS, eosTokenIds }
    return new LLM({
      executor,
      fallback: failover,
      tokenizer,
      chatTemplate,
      defaults,
      engine,
      model: undefined,
      family: undefined,
      warnings: new Warnings(onWarning),
    })
  }

  /** What the model is, and what runs it; a new object after a failover. */
  get info(): Readonly<LLMInfo> {
    return this.#info
  }

  /** What was out of the ordinary since the model was loaded, such as the fallback to the CPU. */
  get warnings(): readonly LLMWarning[] {
    return this.#warnings.all
  }

  /** What runs the model: `cpu`, `tensorrt`, or the name of an executor of one's own. */
  get backend(): string {
    return this.#info.name
  }

  /** The model's tokenizer; undefined for an LLM made without one. */
  get tokenizer(): Tokenizer | undefined {
    return this.#context.tokenizer
  }

  /**
   * Starts a request at once. Never throws: what is wrong with the options rejects the iteration and `result()`, whose
   * documentation lists the errors.
   */
  generate(options: GenerateOptions): Generation {
    const loop = this.#loop
    const state = new GenerationState(loop.now)
    try {
      if (this.#closing !== undefined) throw disposed()
      const checked = checkRequestOptions(options, this.info.vocabSize)
      if (checked.signal?.aborted === true) throw new AbortError(checked.signal.reason)
      // A service that is overloaded must not spend its time on text that it refuses.
      loop.assertTakes(checked.n)
      const prompt = encodePrompt(checked.source, this.#context)
      const id = this.#nextId++
      const { request, plan } = buildRequest(id, checked, prompt, this.#context, state.startedAt)
      state.begin(plan, () => loop.abort(id))
      loop.add(request, state)
      if (checked.signal !== undefined) state.follow(checked.signal)
    } catch (error) {
      state.fail(error)
    }
    return new GenerationHandle(state)
  }

  /**
   * Token ids of a text.
   * @throws ERR_INVALID_ARGUMENT where `text` is no string, an option is wrong, or the LLM has no tokenizer
   */
  tokenize(
    text: string,
    options: { addSpecialTokens?: boolean | undefined; allowSpecial?: boolean | undefined } = {},
  ): number[] {
    const reader = new ArgumentReader(options, ['addSpecialTokens', 'allowSpecial'], 'tokenize()')
    return requireTokenizer(this.#context.tokenizer).encode(text, {
      addSpecialTokens: reader.boolean('addSpecialTokens'),
      allowSpecial: reader.boolean('allowSpecial'),
    })
  }

  /**
   * Text of token ids.
   * @throws ERR_INVALID_TOKEN; ERR_INVALID_ARGUMENT where `tokens` is no array, an option is wrong, or the LLM has no
   * tokenizer
   */
  detokenize(tokens: ArrayLike<number>, options: { skipSpecialTokens?: boolean | undefined } = {}): string {
    const tokenizer = requireTokenizer(this.#context.tokenizer)
    const reader = new ArgumentReader(options, ['skipSpecialTokens'], 'detokenize()')
    const skipSpecialTokens = reader.boolean('skipSpecialTokens')
    return tokenizer.decode(toTokenArray('tokens', tokens, this.info.vocabSize), { skipSpecialTokens })
  }

  /**
   * The prompt that `generate({ messages })` makes of a chat, as text and as tokens.
   * @throws ERR_INVALID_ARGUMENT for bad messages and options, ERR_CHAT_TEMPLATE where there is no template, or it fails
   */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options: ChatInputOptions & { allowSpecial?: boolean | undefined } = {},
  ): { text: string; tokens: number[] } {
    const { tokenizer, chatTemplate = new ChatTemplate(undefined) } = this.#context
    const reader = new ArgumentReader(options, CHAT_OPTIONS, 'applyChatTemplate()')
    reader.boolean('addGenerationPrompt')
    reader.boolean('allowSpecial')
    const { text, ids } = encodeChat(requireTokenizer(tokenizer), chatTemplate, messages, options)
    return { text, tokens: ids }
  }

  /**
   * A snapshot of queue, KV cache and counters. Cheap: nothing is computed that grows with the number of requests
   * served.
   */
  stats(): LLMStats {
    return collectStats(this.#loop)
  }

  /**
   * Profiles what runs from now on: times of the host and of the executor per step, the executor's idle gaps, rows, KV
   * cache and event loop. Costs some microseconds a step while it lasts, and nothing otherwise. The first of `steps`,
   * `durationMs` and `until` ends it, and 100,000 steps do.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT; AbortError; ERR_DISPOSED when the LLM is closed meanwhile, and
   * ERR_BACKEND_DEAD when its backend died and no other took over
   */
  profile(options: ProfileOptions = {}): Promise<LLMProfile> {
    return profileLoop(this.#loop, options)
  }

  /**
   * Calls `onStep` with the figures of each step from now on, and `onEnd` once when no more will come. Costs about two
   * microseconds a step while somebody observes or profiles, and nothing otherwise. Steps that fail are not told. A listener that throws is not
   * called again, and its error becomes a warning of the process.
   *
   * @returns ends it; may be called again
   * @throws ERR_INVALID_ARGUMENT
   */
  observe(onStep: StepObserver, onEnd?: EndObserver): () => void {
    return observeLoop(this.#loop, onStep, onEnd)
  }

  /**
   * Verifies that every page of the KV cache is accounted for; takes time in proportion to its size.
   * @throws ERR_INTERNAL
   */
  check(): void {
    this.#loop.check()
  }

  /**
   * Refuses new requests, lets pending ones run for `drain` milliseconds, rejects what is left with ERR_DISPOSED and
   * frees the model. May be called again: all calls end together, and one without `drain` cuts an earlier one's short.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, and what the executor's `close` throws
   */
  close(options: CloseOptions = {}): Promise<void> {
    let drainMs: number
    try {
      drainMs = checkCloseOptions(options).drainMs
    } catch (error) {
      return Promise.reject(error as Error)
    }
    if (this.#closing === undefined) this.#closing = this.#close(drainMs)
    else if (drainMs === 0) this.#endDrain?.()
    return this.#closing
  }

  /** The same as {@link close} without options. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(drainMs: number): Promise<void> {
    if (drainMs > 0) {
      let timer: NodeJS.Timeout | undefined
      const cutShort = new Promise<void>((resolve) => {
        this.#endDrain = resolve
        timer = setTimeout(resolve, Math.min(drainMs, 2 ** 31 - 1))
      })
      await Promise.race([this.#loop.drain(), cutShort])
      clearTimeout(timer)
    }
    await this.#loop.close(disposed())
  }
}

/** Keeps warnings, and tells the one who asked for them, or the process. */
class Warnings {
  readonly all: LLMWarning[] = []

  constructor(private readonly listener: ((warning: LLMWarning) => void) | undefined) {}

  /** What the listener throws must not come in the way of requests: it is a warning of the process. */
  add(warning: LLMWarning): void {
    this.all.push(warning)
    try {
      if (this.listener === undefined) process.emitWarning(warning.message, 'NodeTensorRTWarning', warning.code)
      else this.listener(warning)
    } catch (error) {
      process.emitWarning(error instanceof Error ? error : String(error))
    }
  }
}

function describe({ tokenizer, chatTemplate, defaults, model, family }: Parts, loop: EngineLoop): Readonly<LLMInfo> {
  const { eosTokenIds, ...otherDefaults } = defaults
  return Object.freeze({
    ...loop.info,
    maxSlots: loop.limits.maxSlots,
    maxStepTokens: loop.limits.maxStepTokens,
    model,
    family,
    hasTokenizer: tokenizer !== undefined,
    hasChatTemplate: chatTemplate?.available ?? false,
    specialTokenIds: [...(tokenizer?.specialTokenIds ?? [])].sort((a, b) => a - b),
    eosTokenIds: [...eosTokenIds],
    defaults: otherDefaults,
  })
}

function failoverWarning({ from, to, cause, sequences, durationMs }: Failover): LLMWarning {
  return {
    code: 'BACKEND_FAILED_OVER',
    message:
      `The backend ${from.name} (${from.device}) died, and ${to.name} (${to.device}) has taken over ` +
      `${sequences} live sequences after ${Math.round(durationMs)} ms. ${cause.message}`,
    cause,
    sequences,
    durationMs,
  }
}

function disposed(): TensorRTError {
  return new TensorRTError('ERR_DISPOSED', 'The LLM is closed')
}
