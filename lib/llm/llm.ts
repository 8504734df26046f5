import { AbortError, TensorRTError } from '../errors'
import { ArgumentReader, followSignal, invalidArgument } from '../runtime'
import type { Executor, ExecutorInfo } from '../scheduler'
import { type ChatMessage, ChatTemplate, encodeChat, Tokenizer } from '../text'
import { orAbort, throwIfAborted } from './abort'
import { createBackend } from './backend'
import { closeQuietly } from './death'
import { EngineLoop } from './engine_loop'
import type { FallbackSource } from './fallback'
import { type Generation, GenerationHandle, GenerationState } from './generation'
import { type GenerationDefaults, GREEDY_DEFAULTS } from './generation_config'
import { collectHealth, type LLMHealth } from './health'
import { GrammarConstraints } from './grammar_constraints'
import { modelFingerprint } from './model_fingerprint'
import { readModelFolder } from './model_folder'
import { type ChatInputOptions, type CloseOptions, EncodedPrompt, type EngineOptions, type GenerateOptions, type LLMOptions, type LLMWarning, type PromptOptions, type RestartOptions } from './options'
import { observeLoop, type StepObserver } from './observe'
import { type LLMProfile, profileLoop, type ProfileOptions } from './profile'
import {
  checkEmbedOptions,
  type EmbeddingResult,
  type EmbedInput,
  type EmbedOptions,
  runEmbedding,
} from './embedding'
import type { PendingPrompt } from './encoder_thread'
import { type EmbeddingDefaults, embeddingDefaults, LAST_TOKEN } from './pooling'
import { PromptEncoder, requireTokenizer } from './prompt_encoder'
import { buildRequest, type RequestContext } from './request_builder'
import type { RestartSource } from './restart'
import { collectStats, type LLMLoad, type LLMStats } from './stats'
import {
  type CheckedEngineOptions,
  checkCloseOptions,
  CHAT_OPTIONS,
  checkEngineOptions,
  checkExecutor,
  checkLoadOptions,
  checkPromptOptions,
  checkRequestOptions,
  checkRestartPolicy,
  type CheckedRequest,
  continues,
  toTokenArray,
} from './validate'
import { outageWarning, restartFailureWarning, switchoverWarning, Warnings } from './warnings'

/** What a model is, and what runs it. */
export interface LLMInfo extends ExecutorInfo {
  /** Absolute path of the model's folder; undefined for an LLM made from an executor. */
  model: string | undefined
  /**
   * Tells one model from another, on any machine: a hash of architecture, tokenizer, chat template, defaults, samples of the weights and,
   * of an engine, its plan. Undefined for an LLM made from an executor.
   */
  fingerprint: string | undefined
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
  /** How `embed()` makes embeddings where a call does not say. */
  embedding: EmbeddingDefaults
}

export interface FromExecutorOptions extends EngineOptions {
  /** Without one, requests are made of `tokens`, and results have no text. */
  tokenizer?: Tokenizer | undefined
  chatTemplate?: ChatTemplate | undefined
  /** Tokens that end an output. Default: the tokenizer's own. */
  eosTokenIds?: ArrayLike<number> | undefined
  /**
   * Makes the executor that takes over when this one dies; it is called once for each such death. Requests go on where they
   * are, each with the tokens it has. Its vocabulary must be the same, its sizes may be others. Default: pending and later
   * requests reject with ERR_BACKEND_DEAD.
   */
  failover?: (() => Promise<Executor>) | undefined
  /**
   * Makes this executor again when it has died. It is called in the background, with growing pauses between attempts, until
   * one comes that runs a step; then requests move there. Until then they are with what `failover` has made, or are refused with
   * ERR_BACKEND_DEAD. Default: a dead executor stays dead.
   */
  restart?: (() => Promise<Executor>) | (RestartOptions & { create: () => Promise<Executor> }) | undefined
  /** Called for each warning, in place of `process.emitWarning`. */
  onWarning?: ((warning: LLMWarning) => void) | undefined
}

interface Parts {
  executor: Executor
  fallback: FallbackSource | undefined
  restart: RestartSource | undefined
  tokenizer: Tokenizer | undefined
  /** Text of tokenizer.json, where it is at hand. */
  tokenizerJson: string | undefined
  chatTemplate: ChatTemplate | undefined
  defaults: GenerationDefaults
  embedding: EmbeddingDefaults
  engine: CheckedEngineOptions
  model: string | undefined
  fingerprint: string | undefined
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
  readonly #chatTemplate: ChatTemplate
  readonly #encoder: PromptEncoder
  readonly #grammars: GrammarConstraints
  /** Requests whose prompts are being encoded. */
  readonly #encoding = new Set<Promise<void>>()
  readonly #stuckAfterMs: number | undefined
  #nextId = 0
  #closing: Promise<void> | undefined
  #closed = false
  #endDrain: (() => void) | undefined

  private constructor(parts: Parts) {
    // For JavaScript, which knows no private constructors.
    if (!((parts as Partial<Parts> | undefined)?.warnings instanceof Warnings)) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', 'An LLM is not made with new', { hint: 'await LLM.load(folder), or LLM.fromExecutor(executor)' })
    }
    const { executor, fallback, tokenizer, defaults } = parts
    const grammars = new GrammarConstraints(tokenizer, executor.info.vocabSize, {
      timeoutMs: parts.engine.grammarTimeoutMs,
    })
    const loop = new EngineLoop(executor, {
      ...parts.engine,
      afterTokens: () => grammars.flush(),
      fallback,
      restart: parts.restart,
      events: {
        onSwitchover: (switchover) => {
          this.#info = describe(parts, loop)
          this.#warnings.add(switchoverWarning(switchover))
        },
        onOutage: (cause, from) => this.#warnings.add(outageWarning(cause, from)),
        onRestartFailure: (failure) => {
          if (failure.attempt === 1 || failure.nextDelayMs === undefined) {
            this.#warnings.add(restartFailureWarning(failure))
          }
        },
      },
    })
    this.#stuckAfterMs = parts.engine.stuckAfterMs
    this.#loop = loop
    this.#context = {
      tokenizer,
      defaults,
      get limits() {
        return loop.limits
      },
    }
    this.#chatTemplate = parts.chatTemplate ?? new ChatTemplate(undefined)
    this.#grammars = grammars
    this.#encoder = new PromptEncoder(tokenizer, parts.chatTemplate, parts.tokenizerJson, parts.engine.maxQueue)
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
      const fingerprint = await modelFingerprint(model)
      throwIfAborted(signal)
      const { executor, fallback, recreate } = await createBackend(model, checked, (warning) => warnings.add(warning))
      try {
        throwIfAborted(signal)
        const { tokenizer, tokenizerJson, chatTemplate, defaults, path, graph } = model
        return new LLM({
          executor,
          fallback,
          restart: checked.restart === undefined ? undefined : { create: recreate, policy: checked.restart },
          tokenizer,
          tokenizerJson,
          chatTemplate,
          defaults,
          embedding: embeddingDefaults(model.embedding, checked.embedding),
          engine: checked,
          model: path,
          fingerprint,
          family: graph.family,
          warnings,
        })
      } catch (error) {
        await closeQuietly(executor)
        if (fallback?.standby !== undefined) await closeQuietly(fallback.standby)
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
    const own = ['tokenizer', 'chatTemplate', 'eosTokenIds', 'failover', 'restart', 'onWarning']
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
      fallback: failover === undefined ? undefined : { create: failover },
      restart: restartSource(options.restart),
      tokenizer,
      tokenizerJson: undefined,
      chatTemplate,
      defaults,
      embedding: embeddingDefaults(LAST_TOKEN, engine.embedding),
      engine,
      model: undefined,
      fingerprint: undefined,
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

  /** The model's chat template; undefined for an LLM made without one. */
  get chatTemplate(): ChatTemplate | undefined {
    return this.#chatTemplate.available ? this.#chatTemplate : undefined
  }

  /**
   * Makes tokens of a prompt as {@link generate} does, off the event loop where that takes long, for requests that are
   * weighed before they are started: `generate({ encoded })`.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN, ERR_PROMPT_TOO_LONG, ERR_CHAT_TEMPLATE,
   * ERR_QUEUE_FULL, ERR_DISPOSED; AbortError
   */
  async encodePrompt(options: PromptOptions): Promise<EncodedPrompt> {
    return this.encodeAtOnce(options, undefined)
  }

  /**
   * The same, at once where it needs no thread.
   * @internal
   * @param late makes the signal, in place of that of the options, where it does
   */
  encodeAtOnce(options: PromptOptions, late: (() => AbortSignal) | undefined): EncodedPrompt | Promise<EncodedPrompt> {
    if (this.#closing !== undefined) throw disposed()
    const { source, signal } = checkPromptOptions(options)
    throwIfAborted(signal)
    const prompt = this.#encoder.encode(source, this.#limits)
    const continuation = continues(source)
    if (prompt instanceof Int32Array) return new EncodedPrompt(prompt, continuation)
    return this.#encoded(prompt, continuation, late === undefined ? signal : late())
  }

  async #encoded(prompt: PendingPrompt, continuation: boolean, signal: AbortSignal | undefined): Promise<EncodedPrompt> {
    // First, so that the abort rejects with its reason; what is cancelled has none.
    const ids = orAbort(prompt.ids, signal, () => {})
    const unfollow = signal === undefined ? undefined : followSignal(signal, prompt.cancel)
    try {
      return new EncodedPrompt(await ids, continuation)
    } finally {
      unfollow?.()
    }
  }

  /**
   * For servers: requests that come one by one, in turns of the event loop on end, start together where nothing runs.
   * @internal
   */
  gatherBursts(): void {
    this.#loop.gatherBursts()
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
      if (checked.stops.patterns.length > 0 && this.#context.tokenizer === undefined) {
        throw new TensorRTError('ERR_INVALID_ARGUMENT', 'This LLM has no tokenizer, without which there is no text to find "stop" in', { hint: 'give "stopTokenIds"' })
      }
      // A service that is overloaded must not spend its time on text that it refuses.
      loop.assertTakes(checked.n)
      const prompt = this.#encoder.encode(checked.source, this.#limits)
      if (prompt instanceof Int32Array) this.#begin(state, checked, prompt)
      else this.#beginLater(state, checked, prompt)
      if (checked.signal !== undefined) state.follow(checked.signal)
    } catch (error) {
      state.fail(error)
    }
    return new GenerationHandle(state)
  }

  /**
   * Embeddings: of each input the hidden state of its last token or of its first, after the final norm, or the mean of those of
   * all tokens; as the model was trained (`info.embedding`), or as the call says. Inputs are batched with each other and
   * with whatever else runs; nothing is generated. All or none: what is wrong with one input rejects the call.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, also where the backend gives no hidden states; ERR_INVALID_TOKEN,
   * ERR_PROMPT_TOO_LONG, ERR_REQUEST_TOO_LARGE, ERR_QUEUE_FULL, ERR_TIMEOUT, ERR_STEP_FAILED, ERR_BACKEND_DEAD, ERR_DISPOSED;
   * AbortError
   */
  async embed(inputs: readonly EmbedInput[], options: EmbedOptions = {}): Promise<EmbeddingResult> {
    if (this.#closing !== undefined) throw disposed()
    const running = runEmbedding(checkEmbedOptions(inputs, options, this.info), {
      loop: this.#loop,
      nextId: () => this.#nextId++,
      encode: (source) => this.#encoder.encode(source, this.#limits),
    })
    // A drain waits for the inputs that have not been queued yet.
    const pending = running.then(noValue, noValue)
    this.#encoding.add(pending)
    void pending.then(() => this.#encoding.delete(pending))
    return running
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
    const reader = new ArgumentReader(options, CHAT_OPTIONS, 'applyChatTemplate()')
    reader.boolean('addGenerationPrompt')
    reader.boolean('allowSpecial')
    const { text, ids } = encodeChat(requireTokenizer(this.#context.tokenizer), this.#chatTemplate, messages, options)
    return { text, tokens: ids }
  }

  /**
   * A snapshot of queue, KV cache and counters. Cheap: nothing is computed that grows with the number of requests
   * served.
   */
  stats(): LLMStats {
    return collectStats(this.#loop)
  }

  /** Whether requests are served, by what, and whether they make progress. Cheap: for a probe that asks each second. */
  health(): LLMHealth {
    const closing = this.#closing === undefined ? undefined : this.#closed ? 'closed' : 'closing'
    return collectHealth(this.#loop, this.#stuckAfterMs, closing)
  }

  /** What a forecast of waiting times is made from. Cheap: for a look before each request. */
  load(): LLMLoad {
    return { ...this.#loop.load(), oldestStepMs: this.#loop.oldestStep.ms }
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
   * Calls `onStep` with the figures of each step from now on, also after a failover or restart, until the LLM is closed.
   * Costs about two microseconds a step while somebody observes or profiles, and nothing otherwise. Steps that fail are not
   * told. An observer that throws is not called again, and its error becomes a warning of the process.
   *
   * @returns ends it; may be called again
   * @throws ERR_INVALID_ARGUMENT
   */
  observe(onStep: StepObserver): () => void {
    return observeLoop(this.#loop, onStep)
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
    if (this.#closing === undefined) this.#closing = this.#close(drainMs).finally(() => (this.#closed = true))
    else if (drainMs === 0) this.#endDrain?.()
    return this.#closing
  }

  /** The same as {@link close} without options. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  get #limits(): { maxPositions: number; vocabSize: number } {
    return { maxPositions: this.#loop.limits.maxPositions, vocabSize: this.info.vocabSize }
  }

  /** @throws what {@link EngineLoop.add} throws */
  #begin(state: GenerationState, checked: CheckedRequest, prompt: Int32Array): void {
    const id = this.#nextId++
    const { request, plan } = buildRequest(id, checked, prompt, this.#context, state.startedAt)
    if (checked.grammar !== undefined) {
      const endTokens = [request.stopTokenIds ?? [], checked.ignoreEos ? [] : this.#context.defaults.eosTokenIds]
      request.constrain = this.#grammars.forRequest(checked.grammar, id, endTokens, this.#loop)
    }
    state.begin(plan, () => this.#loop.abort(id))
    this.#loop.add(request, state)
  }

  /** Time that encoding takes counts: `timeoutMs` and the deadline run from the call. */
  #beginLater(state: GenerationState, checked: CheckedRequest, prompt: PendingPrompt): void {
    const encoding = this.#beginWhenEncoded(state, checked, prompt).catch((error: unknown) => state.fail(error))
    this.#encoding.add(encoding)
    void encoding.finally(() => this.#encoding.delete(encoding))
    state.prepare(prompt.cancel)
  }

  async #beginWhenEncoded(state: GenerationState, checked: CheckedRequest, { ids, cancel }: PendingPrompt): Promise<void> {
    const { timeoutMs } = checked
    if (timeoutMs === undefined) {
      const prompt = await ids
      if (!state.settled) this.#begin(state, checked, prompt)
      return
    }
    const overdue = (): void => {
      state.fail(new TensorRTError('ERR_TIMEOUT', `The request did not end within ${timeoutMs} ms`))
      cancel()
    }
    const timer = setTimeout(overdue, Math.min(timeoutMs, 2 ** 31 - 1))
    try {
      const prompt = await ids
      const left = timeoutMs - (this.#loop.now() - state.startedAt)
      if (left <= 0) overdue()
      else if (!state.settled) this.#begin(state, { ...checked, timeoutMs: left }, prompt)
    } finally {
      clearTimeout(timer)
    }
  }

  async #close(drainMs: number): Promise<void> {
    if (drainMs > 0) {
      let timer: NodeJS.Timeout | undefined
      const cutShort = new Promise<void>((resolve) => {
        this.#endDrain = resolve
        timer = setTimeout(resolve, Math.min(drainMs, 2 ** 31 - 1))
      })
      await Promise.race([Promise.all(this.#encoding).then(() => this.#loop.drain()), cutShort])
      clearTimeout(timer)
    }
    await Promise.all([this.#encoder.close(disposed()), this.#loop.close(disposed()), this.#grammars.close()])
  }
}

function describe({ tokenizer, chatTemplate, defaults, embedding, model, fingerprint, family }: Parts, loop: EngineLoop): Readonly<LLMInfo> {
  const { eosTokenIds, ...otherDefaults } = defaults
  return Object.freeze({
    ...loop.info,
    maxSlots: loop.limits.maxSlots,
    maxStepTokens: loop.limits.maxStepTokens,
    model,
    fingerprint,
    family,
    hasTokenizer: tokenizer !== undefined,
    hasChatTemplate: chatTemplate?.available ?? false,
    specialTokenIds: [...(tokenizer?.specialTokenIds ?? [])].sort((a, b) => a - b),
    eosTokenIds: [...eosTokenIds],
    defaults: otherDefaults,
    embedding,
  })
}

/** @throws ERR_INVALID_ARGUMENT */
function restartSource(restart: FromExecutorOptions['restart']): RestartSource | undefined {
  if (restart === undefined) return undefined
  const of = typeof restart === 'function' ? { create: restart } : restart
  const policy = checkRestartPolicy(of, ['create'], '"restart"')
  if (typeof of.create !== 'function') throw invalidArgument('restart.create', 'a function', of.create)
  return { create: of.create, policy }
}

function noValue(): undefined {
  return undefined
}

function disposed(): TensorRTError {
  return new TensorRTError('ERR_DISPOSED', 'The LLM is closed')
}
