/** Embeddings: prompts that are run and not continued, and what becomes of their hidden states. */
import { AbortError, TensorRTError } from '../errors'
import { ArgumentReader, followSignal, invalidArgument } from '../runtime'
import { type GenerationRequest, GREEDY_SAMPLING } from '../scheduler'
import { throwIfAborted } from './abort'
import type { PendingPrompt } from './encoder_thread'
import type { EngineLoop } from './engine_loop'
import type { RequestFacts, RequestState } from './request_state'
import { type EmbeddingDefaults, type Pooling, POOLINGS } from './pooling'
import { allKeys, isTokenList, MAX_SALT_LENGTH, type PromptSource } from './validate'

export const MAX_EMBED_INPUTS = 65_536

/** A text, or token ids. */
export type EmbedInput = string | ArrayLike<number>

export interface EmbedOptions {
  /**
   * What becomes of the rows: `last` takes that of the last token, `cls` that of the first, `mean` the mean of all. Default: what
   * `LLM.load` was told, else what the model folder says, else `last`.
   */
  pooling?: Pooling | undefined
  /** Scale each embedding to length 1. Default: likewise; else true. */
  normalize?: boolean | undefined
  /**
   * Keep so many numbers from the front; the length is made 1 after that. Only of models that were trained to be cut: see
   * `matryoshkaDimensions` of `LLM.load`.
   */
  dimensions?: number | undefined
  /** Of texts: add what the tokenizer adds. Default true. */
  addSpecialTokens?: boolean | undefined
  /** Of texts: whether special tokens spelt out in them become those tokens. Default false: texts are data. */
  allowSpecial?: boolean | undefined
  /** As in `generate()`. */
  priority?: number | undefined
  /** Milliseconds from the call after which the whole of it fails with ERR_TIMEOUT. */
  timeoutMs?: number | undefined
  /** As in `generate()`. */
  cacheSalt?: string | undefined
  /** Aborts the call, with an AbortError whose `cause` is `signal.reason`. */
  signal?: AbortSignal | undefined
}

export interface EmbeddingResult {
  /** One per input, in their order. */
  embeddings: Float32Array[]
  usage: {
    promptTokens: number
    /** Of these, tokens whose keys and values came from the prefix cache. */
    cachedTokens: number
  }
}

const EMBED_OPTIONS = allKeys<EmbedOptions>()([
  'pooling',
  'normalize',
  'dimensions',
  'addSpecialTokens',
  'allowSpecial',
  'priority',
  'timeoutMs',
  'cacheSalt',
  'signal',
] as const)

export interface CheckedEmbedding {
  sources: PromptSource[]
  pooling: Pooling
  normalize: boolean
  dimensions: number
  priority: number
  timeoutMs: number | undefined
  cacheSalt: string | undefined
  signal: AbortSignal | undefined
}

/** @throws ERR_INVALID_ARGUMENT, ERR_MODEL_UNSUPPORTED */
export function checkEmbedOptions(inputs: unknown, options: unknown, model: EmbeddingModel): CheckedEmbedding {
  const { hiddenSize = 0, embedding } = model
  const reader = new ArgumentReader(options, EMBED_OPTIONS, 'embed()')
  if (hiddenSize < 1) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', 'This backend gives no hidden states: it cannot embed')
  }
  if (!Array.isArray(inputs) || inputs.length === 0 || inputs.length > MAX_EMBED_INPUTS) {
    throw invalidArgument('inputs', `an array of 1 to ${MAX_EMBED_INPUTS} texts or arrays of token ids`, inputs)
  }
  const pooling = reader.choice('pooling', POOLINGS) as Pooling | undefined
  const addSpecialTokens = reader.boolean('addSpecialTokens') ?? true
  const allowSpecial = reader.boolean('allowSpecial') ?? false
  const sources = Array.from(inputs as unknown[], (input, i): PromptSource => {
    if (typeof input === 'string') return { kind: 'prompt', prompt: input, addSpecialTokens, allowSpecial }
    if (isTokenList(input)) return { kind: 'tokens', tokens: input }
    throw invalidArgument(`inputs[${i}]`, 'a string or an array of token ids', input)
  })
  if (pooling === undefined && embedding.unsupported !== undefined) {
    throw new TensorRTError('ERR_MODEL_UNSUPPORTED', `The model makes embeddings in another way than this library: ${embedding.unsupported}`, {
      hint: 'say which "pooling" to use instead',
    })
  }
  const dimensions = reader.integer('dimensions', 1, hiddenSize) ?? hiddenSize
  if (dimensions !== hiddenSize && !takesDimensions(embedding, dimensions)) throw wrongDimensions(embedding, dimensions)
  return {
    sources,
    pooling: pooling ?? embedding.pooling,
    normalize: reader.boolean('normalize') ?? embedding.normalize,
    dimensions,
    priority: reader.integer('priority', -1000, 1000) ?? 0,
    timeoutMs: reader.positive('timeoutMs'),
    cacheSalt: reader.string('cacheSalt', MAX_SALT_LENGTH),
    signal: reader.signal('signal'),
  }
}

function takesDimensions({ matryoshkaDimensions: all }: EmbeddingDefaults, dimensions: number): boolean {
  return all === 'any' || all.includes(dimensions)
}

function wrongDimensions({ matryoshkaDimensions: all }: EmbeddingDefaults, dimensions: number): TensorRTError {
  if (all.length > 0) return invalidArgument('dimensions', `one of ${(all as readonly number[]).join(', ')}`, dimensions)
  return new TensorRTError('ERR_INVALID_ARGUMENT', '"dimensions": the model was not trained for embeddings that are cut', {
    hint: 'where it was, say so with "matryoshkaDimensions"',
  })
}

/** The first `dimensions` numbers, of length 1 if that is wanted and they are not all 0. */
export function finishEmbedding(hidden: Float32Array, dimensions: number, normalize: boolean): Float32Array {
  const embedding = hidden.slice(0, dimensions)
  if (!normalize) return embedding
  let squares = 0
  for (const x of embedding) squares += x * x
  const scale = squares > 0 ? 1 / Math.sqrt(squares) : 1
  for (let i = 0; i < embedding.length; i++) embedding[i]! *= scale
  return embedding
}

/** What `LLM.info` says of it. */
export interface EmbeddingModel {
  hiddenSize?: number | undefined
  embedding: EmbeddingDefaults
}

/** One input under way. */
class HiddenState implements RequestState {
  ended = false
  /** Sums over the rows, in their order and in double precision: how a prompt was cut into steps does not show. */
  private sums: Float64Array | undefined
  private rows = 0

  constructor(
    private readonly hiddenSize: number,
    private readonly resolve: (result: { hidden: Float32Array; cachedTokens: number }) => void,
    private readonly reject: (error: unknown) => void,
  ) {}

  addHidden(hidden: Float32Array): void {
    const size = this.hiddenSize
    this.sums ??= new Float64Array(size)
    const { sums } = this
    for (let at = 0; at < hidden.length; at += size) {
      for (let i = 0; i < size; i++) sums[i]! += hidden[at + i]!
      this.rows++
    }
  }

  addEnd(): void {
    this.ended = true
  }

  finish({ cachedTokens }: RequestFacts): void {
    if (this.sums !== undefined) this.resolve({ hidden: Float32Array.from(this.sums, (sum) => sum / this.rows), cachedTokens })
    else this.reject(new TensorRTError('ERR_INTERNAL', 'A prompt has run, and its hidden state is missing'))
  }

  fail(error: unknown): void {
    this.reject(error)
  }

  addToken(): boolean {
    return true
  }
  addPromptLogprobs(): void {}
  deliver(): void {}
}

export interface EmbeddingParts {
  loop: EngineLoop
  nextId(): number
  encode(source: PromptSource): Int32Array | PendingPrompt
}

/**
 * Runs the inputs, as many at once as keep the executor busy, and leaves the rest of the queue to others. The first failure
 * ends all.
 * @throws (as a rejection) what `LLM.embed` says
 */
export async function runEmbedding(checked: CheckedEmbedding, parts: EmbeddingParts): Promise<EmbeddingResult> {
  const { timeoutMs, signal } = checked
  throwIfAborted(signal)
  parts.loop.assertTakes(1)
  const call = new EmbeddingCall(checked, parts)
  const overdue = (): void => call.fail(new TensorRTError('ERR_TIMEOUT', `The call did not end within ${timeoutMs} ms`))
  const timer = timeoutMs === undefined ? undefined : setTimeout(overdue, Math.min(timeoutMs, 2 ** 31 - 1))
  const unfollow = signal === undefined ? undefined : followSignal(signal, () => call.fail(new AbortError(signal.reason)))
  try {
    return await call.run()
  } finally {
    clearTimeout(timer)
    unfollow?.()
  }
}

class EmbeddingCall {
  private readonly embeddings: Float32Array[] = []
  private readonly usage = { promptTokens: 0, cachedTokens: 0 }
  /** Ends what is under way, by input. */
  private readonly cancels = new Map<number, (error: unknown) => void>()
  private next = 0
  private failed = false
  private readonly failure: Promise<never>
  private reject: ((error: unknown) => void) | undefined

  constructor(
    private readonly checked: CheckedEmbedding,
    private readonly parts: EmbeddingParts,
  ) {
    this.failure = new Promise((_, reject) => (this.reject = reject))
  }

  async run(): Promise<EmbeddingResult> {
    const { loop } = this.parts
    const { maxQueue, waiting } = loop.load()
    // Those that run, and as many that wait to take their places.
    const most = Math.min(2 * loop.limits.maxSlots, Math.max(1, maxQueue - waiting))
    const lanes = Array.from({ length: Math.min(this.checked.sources.length, most) }, () => this.runLane())
    await Promise.race([Promise.all(lanes), this.failure])
    return { embeddings: this.embeddings, usage: this.usage }
  }

  fail(error: unknown): void {
    if (this.failed) return
    this.failed = true
    this.reject!(error)
    for (const cancel of this.cancels.values()) cancel(error)
  }

  private async runLane(): Promise<void> {
    while (this.next < this.checked.sources.length && !this.failed) {
      const index = this.next++
      try {
        await this.runInput(index)
      } catch (error) {
        this.fail(ofInput(index, error))
      } finally {
        this.cancels.delete(index)
      }
    }
  }

  private async runInput(index: number): Promise<void> {
    const { dimensions, normalize, pooling, sources } = this.checked
    const encoded = this.parts.encode(sources[index]!)
    if (!(encoded instanceof Int32Array)) this.cancels.set(index, () => encoded.cancel())
    const prompt = encoded instanceof Int32Array ? encoded : await encoded.ids
    if (this.failed) return
    // With causal attention the first row needs no other.
    const { hidden, cachedTokens } = await this.runPrompt(index, pooling === 'cls' ? prompt.subarray(0, 1) : prompt)
    this.embeddings[index] = finishEmbedding(hidden, dimensions, normalize)
    this.usage.promptTokens += prompt.length
    this.usage.cachedTokens += cachedTokens
  }

  private runPrompt(index: number, prompt: Int32Array): Promise<{ hidden: Float32Array; cachedTokens: number }> {
    const { loop } = this.parts
    return new Promise((resolve, reject) => {
      const id = this.parts.nextId()
      loop.add(toRequest(id, prompt, this.checked), new HiddenState(loop.limits.hiddenSize!, resolve, reject))
      this.cancels.set(index, (error) => {
        loop.abort(id)
        reject(error as Error)
      })
    })
  }
}

function toRequest(id: number, prompt: Int32Array, { pooling, priority, cacheSalt }: CheckedEmbedding): GenerationRequest {
  const { bannedTokens: _, ...sampling } = GREEDY_SAMPLING
  return { id, prompt, sampling, maxTokens: 0, embed: pooling === 'mean' ? 'all' : 'last', priority, cacheSalt }
}

const INPUT_CODES = new Set(['ERR_INVALID_ARGUMENT', 'ERR_INVALID_TOKEN', 'ERR_PROMPT_TOO_LONG', 'ERR_REQUEST_TOO_LARGE'])

/** An error of one input says of which. */
function ofInput(index: number, error: unknown): unknown {
  if (!(error instanceof TensorRTError) || !INPUT_CODES.has(error.code)) return error
  return new TensorRTError(error.code, `inputs[${index}]: ${error.message}`, { cause: error })
}
