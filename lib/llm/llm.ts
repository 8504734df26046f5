import { AbortError, TensorRTError } from '../errors'
import type { Executor, ExecutorInfo } from '../scheduler'
import { type ChatMessage, ChatTemplate, encodeChat, Tokenizer } from '../text'
import { invalidArgument } from './argument_reader'
import { createBackend } from './backend'
import { EngineLoop } from './engine_loop'
import { type Generation, GenerationHandle, GenerationState } from './generation'
import { type GenerationDefaults, GREEDY_DEFAULTS } from './generation_config'
import { readModelFolder } from './model_folder'
import type { ChatInputOptions, CloseOptions, EngineOptions, GenerateOptions, LLMOptions, LLMWarning } from './options'
import { buildRequest, encodePrompt, type RequestContext, requireTokenizer } from './request_builder'
import { type LLMStats, collectStats } from './stats'
import {
  type CheckedEngineOptions,
  checkCloseOptions,
  checkEngineOptions,
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
}

interface Parts {
  executor: Executor
  tokenizer: Tokenizer | undefined
  chatTemplate: ChatTemplate | undefined
  defaults: GenerationDefaults
  engine: CheckedEngineOptions
  model: string | undefined
  family: string | undefined
  warnings: readonly LLMWarning[]
}

/**
 * A language model that serves many requests at once: continuous batching over a paged KV cache, with token streaming.
 *
 * An LLM that has nothing to do does not keep the process alive. {@link close} frees its memory.
 */
export class LLM {
  readonly info: Readonly<LLMInfo>
  /** What was out of the ordinary when the model was loaded, such as the fallback to the CPU. */
  readonly warnings: readonly LLMWarning[]
  readonly #loop: EngineLoop
  readonly #context: RequestContext
  #nextId = 0
  #closing: Promise<void> | undefined
  #endDrain: (() => void) | undefined

  private constructor(parts: Parts) {
    const { executor, tokenizer, chatTemplate, defaults } = parts
    this.#loop = new EngineLoop(executor, parts.engine)
    this.#context = { tokenizer, chatTemplate, defaults, limits: this.#loop.limits }
    this.warnings = parts.warnings
    const { eosTokenIds, ...otherDefaults } = defaults
    this.info = Object.freeze({
      ...executor.info,
      maxSlots: this.#loop.limits.maxSlots,
      maxStepTokens: this.#loop.limits.maxStepTokens,
      model: parts.model,
      family: parts.family,
      hasTokenizer: tokenizer !== undefined,
      hasChatTemplate: chatTemplate?.available ?? false,
      specialTokenIds: [...(tokenizer?.specialTokenIds ?? [])].sort((a, b) => a - b),
      eosTokenIds: [...eosTokenIds],
      defaults: otherDefaults,
    })
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
   * another GPU or TensorRT), ERR_VERSION_MISMATCH and ERR_OUT_OF_DEVICE_MEMORY; AbortError after an abort
   */
  static async load(folder: string, options: LLMOptions = {}): Promise<LLM> {
    const checked = checkLoadOptions(options)
    const { signal } = checked
    const warnings: LLMWarning[] = []
    const warn = (warning: LLMWarning): void => {
      warnings.push(warning)
      if (checked.onWarning === undefined) process.emitWarning(warning.message, 'NodeTensorRTWarning', warning.code)
      else checked.onWarning(warning)
    }
    const loading = (async () => {
      throwIfAborted(signal)
      const model = await readModelFolder(folder, checked)
      throwIfAborted(signal)
      const executor = await createBackend(model, checked, warn)
      try {
        throwIfAborted(signal)
        const { tokenizer, chatTemplate, defaults, path, graph } = model
        return new LLM({
          executor,
          tokenizer,
          chatTemplate,
          defaults,
          engine: checked,
          model: path,
          family: graph.family,
          warnings,
        })
      } catch (error) {
        await executor.close()
        throw error
      }
    })()
    return signal === undefined ? loading : orAbort(loading, signal)
  }

  /**
   * Serves requests with an executor of one's own. {@link close} closes it.
   *
   * @throws ERR_INVALID_ARGUMENT
   */
  static fromExecutor(executor: Executor, options: FromExecutorOptions = {}): LLM {
    const engine = checkEngineOptions(options, ['tokenizer', 'chatTemplate', 'eosTokenIds'], 'LLM.fromExecutor()')
    const { tokenizer, chatTemplate } = options
    if (typeof executor?.submit !== 'function') throw invalidArgument('executor', 'an Executor', executor)
    if (tokenizer !== undefined && !(tokenizer instanceof Tokenizer)) {
      throw invalidArgument('tokenizer', 'a Tokenizer', tokenizer)
    }
    if (chatTemplate !== undefined && !(chatTemplate instanceof ChatTemplate)) {
      throw invalidArgument('chatTemplate', 'a ChatTemplate', chatTemplate)
    }
    const own = tokenizer?.eosTokenId === undefined ? [] : [tokenizer.eosTokenId]
    const eosTokenIds = toTokenArray('eosTokenIds', options.eosTokenIds ?? own, executor.info.vocabSize)
    const defaults = { ...GREEDY_DEFAULTS, eosTokenIds }
    return new LLM({
      executor,
      tokenizer,
      chatTemplate,
      defaults,
      engine,
      model: undefined,
      family: undefined,
      warnings: [],
    })
  }

  /** What runs the model: `cpu`, `tensorrt`, or the name of an executor of one's own. */
  get backend(): string {
    return this.info.name
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
   * @throws ERR_INVALID_ARGUMENT where `text` is no string, or the LLM has no tokenizer
   */
  tokenize(
    text: string,
    options: { addSpecialTokens?: boolean | undefined; allowSpecial?: boolean | undefined } = {},
  ): number[] {
    return requireTokenizer(this.#context.tokenizer).encode(text, options)
  }

  /**
   * Text of token ids.
   * @throws ERR_INVALID_TOKEN, ERR_INVALID_ARGUMENT where the LLM has no tokenizer
   */
  detokenize(tokens: ArrayLike<number>, options: { skipSpecialTokens?: boolean | undefined } = {}): string {
    const tokenizer = requireTokenizer(this.#context.tokenizer)
    if (typeof tokens !== 'object' || tokens === null || typeof tokens.length !== 'number') {
      throw invalidArgument('tokens', 'an array of token ids', tokens)
    }
    return tokenizer.decode(toTokenArray('tokens', tokens, this.info.vocabSize), options)
  }

  /**
   * The prompt that `generate({ messages })` makes of a chat, as text and as tokens.
   * @throws ERR_INVALID_ARGUMENT for bad messages, ERR_CHAT_TEMPLATE where there is no template, or it fails
   */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options: ChatInputOptions & { allowSpecial?: boolean | undefined } = {},
  ): { text: string; tokens: number[] } {
    const { tokenizer, chatTemplate = new ChatTemplate(undefined) } = this.#context
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

function disposed(): TensorRTError {
  return new TensorRTError('ERR_DISPOSED', 'The LLM is closed')
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new AbortError(signal.reason)
}

/** The LLM, or an AbortError as soon as the signal says so; an LLM that arrives later is closed. */
async function orAbort(loading: Promise<LLM>, signal: AbortSignal): Promise<LLM> {
  let abort: (() => void) | undefined
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(new AbortError(signal.reason))
    signal.addEventListener('abort', abort, { once: true })
  })
  try {
    return await Promise.race([loading, aborted])
  } catch (error) {
    loading.then((llm) => llm.close()).catch(() => {})
    throw error
  } finally {
    signal.removeEventListener('abort', abort!)
  }
}
