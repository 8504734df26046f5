/** Whether a built engine computes what its model does: its logits and log-probabilities beside the CPU backend's. */
import { TensorRTError } from '../errors'
import {
  ArgumentReader,
  type EngineFolder,
  type EngineVerification,
  excesses,
  guardListener,
  invalidArgument,
  type VerificationLimits,
  writeVerification,
} from '../runtime'
import type { Executor } from '../scheduler'
import { version } from '../version'
import { orAbort } from './abort'
import { createCpu } from './backend'
import { closeQuietly } from './death'
import { DEFAULT_LIMITS, LogitComparison, type PromptReference, type WorstPosition } from './logit_comparison'
import { type LogitReferences, readReferences, writeReferences } from './logit_references'
import { type ModelFolder, readModelFolder } from './model_folder'
import { ForcedRunner } from './teacher_forcing'
import { createTensorRT } from './tensorrt_backend'
import { type CheckedLoadOptions, checkLoadOptions } from './validate'
import { batchesOf, compareWith, computeReferences, sizesFor, toPrompts } from './verify_prompts'

const DEFAULT_OUTPUTS = 16
/** Prompts that run at once: enough to be a batch, few enough for their logits to fit into memory. */
const TOGETHER = 8

export interface VerifyProgress {
  /** What runs now. */
  phase: 'loading' | 'reference' | 'engine'
  /** Prompts compared so far, and in all. */
  done: number
  prompts: number
}

/** Options of {@link saveReferences}. */
export interface SaveReferencesOptions {
  /** Texts, or token ids as they are. Default: eight prompts of 2 to 96 random tokens of the vocabulary. */
  prompts?: readonly (string | ArrayLike<number>)[] | undefined
  /** Tokens that the reference generates after each prompt, greedily, and that are compared too. Default 16. */
  maxTokens?: number | undefined
  /** Of the built-in prompts. Default 1. */
  seed?: number | undefined
  /** The folder that has the weights, instead of the one that engine.json refers to. */
  weights?: string | undefined
  /** See {@link LLMOptions.verifyWeights}. */
  verifyWeights?: boolean | undefined
  /** Threads of the CPU backend. Default: as many as the process may use. */
  threads?: number | undefined
  signal?: AbortSignal | undefined
  onProgress?: ((progress: VerifyProgress) => void) | undefined
}

/** Options of {@link verifyEngine}. */
export interface VerifyOptions extends SaveReferencesOptions {
  /** A file that {@link saveReferences} made, in place of prompts and of the CPU backend. */
  references?: string | undefined
  /** Each in place of the precision's own. */
  limits?: VerificationLimits | undefined
  /** Keep the result in engine.json. Default true. */
  write?: boolean | undefined
  /** Number of the GPU. Default 0. */
  device?: number | undefined
  /** libnvinfer, or the folder that has it. */
  libraryPath?: string | undefined
}

/** What {@link verifyEngine} found. */
export interface VerificationReport {
  /** Absolute path of the engine folder. */
  path: string
  verification: EngineVerification
  /** What exceeds its limit, a line each; empty for an engine that is fit. */
  excesses: string[]
  /** What computed the reference, and what ran the engine. */
  reference: string
  device: string
  /** Where log-probabilities differ most; undefined where none could be compared. */
  worst: WorstPosition | undefined
  /** Why a step of the engine failed; undefined when none did. */
  failure: string | undefined
  seconds: number
  /** Whether engine.json holds the result now. */
  written: boolean
}

const PROMPT_OPTIONS = ['prompts', 'maxTokens', 'seed', 'weights', 'verifyWeights', 'threads', 'signal', 'onProgress']
const VERIFY_OPTIONS = [...PROMPT_OPTIONS, 'references', 'limits', 'write', 'device', 'libraryPath']

interface CheckedPromptOptions {
  prompts: readonly (string | ArrayLike<number>)[] | undefined
  outputs: number
  seed: number
  weights: string | undefined
  verifyWeights: boolean | undefined
  threads: number | undefined
  signal: AbortSignal | undefined
  onProgress: (progress: VerifyProgress) => void
}

function readPromptOptions(reader: ArgumentReader): CheckedPromptOptions {
  const prompts = reader.get('prompts')
  if (prompts !== undefined && (!Array.isArray(prompts) || prompts.length === 0)) {
    throw invalidArgument('prompts', 'an array of texts and lists of token ids that is not empty', prompts)
  }
  const onProgress = guardListener('onProgress', reader.callback('onProgress') as VerifyOptions['onProgress'])
  return {
    prompts: prompts as CheckedPromptOptions['prompts'],
    outputs: reader.integer('maxTokens', 1, 4096) ?? DEFAULT_OUTPUTS,
    seed: reader.integer('seed', 0, Number.MAX_SAFE_INTEGER) ?? 1,
    weights: reader.path('weights'),
    verifyWeights: reader.boolean('verifyWeights'),
    threads: reader.integer('threads', 1, 1024),
    signal: reader.signal('signal'),
    onProgress: onProgress ?? (() => {}),
  }
}

function readLimits(value: unknown): VerificationLimits {
  const names = ['meanDifference', 'maxDifference', 'maxLogitDifference', 'top1Agreement'] as const
  const reader = new ArgumentReader(value ?? {}, names, '"limits"')
  const limits: VerificationLimits = {}
  for (const name of names) {
    const limit = reader.number(name, 0, name === 'top1Agreement' ? 1 : Number.MAX_VALUE)
    if (limit !== undefined) limits[name] = limit
  }
  return limits
}

/** Makes the executor that is to be verified. Its sizes are given; it may be marked unfit. */
export type TargetFactory = (model: ModelFolder, options: CheckedLoadOptions) => Promise<Executor>

/**
 * Runs prompts through a language model's engine on the GPU and through the CPU backend (or takes stored references), with
 * the same tokens throughout, and compares logits and log-probabilities. The result is kept in engine.json; an engine
 * that exceeds a limit is marked unfit there, and {@link LLM.load} refuses it on a GPU.
 *
 * Default limits, on the absolute difference of natural log-probabilities: fp16 0.005 in the mean and 0.1 at most, bf16
 * 0.02 and 0.5; fp32 1e-3 on logits.
 *
 * @param folder an engine folder, relative to the working directory, or absolute
 * @throws (as a rejection) ERR_ENGINE_REQUIRED for a folder without an engine; what keeps the GPU from being used, such as
 * ERR_NO_GPU, and nothing is changed then; ERR_INVALID_ARGUMENT, also for references of other weights, ERR_INVALID_TOKEN,
 * ERR_PROMPT_TOO_LONG; what {@link LLM.load} throws for the folder; ERR_STEP_FAILED where the reference's own numbers
 * are not finite; ERR_IO; AbortError
 */
export function verifyEngine(folder: string, options: VerifyOptions = {}): Promise<VerificationReport> {
  return verifyTarget(folder, options, createTensorRT)
}

/** {@link verifyEngine} with any executor in the engine's place. */
export async function verifyTarget(folder: string, options: VerifyOptions, createTarget: TargetFactory): Promise<VerificationReport> {
  const started = performance.now()
  const reader = new ArgumentReader(options, VERIFY_OPTIONS, 'verifyEngine()')
  const checked = readPromptOptions(reader)
  const { weights, verifyWeights, threads, signal, onProgress } = checked
  const file = reader.path('references')
  const limits = readLimits(reader.get('limits'))
  const write = reader.boolean('write') ?? true
  const load = checkLoadOptions({
    device: reader.integer('device', 0, 1023),
    libraryPath: reader.path('libraryPath'),
    threads,
    allowUnfit: true,
  })
  if (file !== undefined && (checked.prompts !== undefined || reader.get('maxTokens') !== undefined || reader.get('seed') !== undefined)) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', '"references" brings its own prompts: "prompts", "maxTokens" and "seed" do not go with it')
  }

  const model = await orAbort(readModelFolder(folder, { weights, verifyWeights, signal }), signal, () => {})
  const { engine, graph, path } = model
  if (engine === undefined) {
    throw new TensorRTError('ERR_ENGINE_REQUIRED', `${path} has no engine to verify`, { hint: 'node-tensorrt build makes one' })
  }
  const stored = file === undefined ? undefined : await readReferences(file, graph.vocabSize)
  if (stored !== undefined) requireSameWeights(file!, stored, engine)
  const prompts = stored?.prompts.map(({ prompt }) => prompt) ?? toPrompts(model, checked.prompts, checked.outputs, checked.seed)
  const outputs = stored?.prompts[0]!.rows.length ?? checked.outputs
  const sized: CheckedLoadOptions = { ...load, ...sizesFor(prompts, outputs, load.pageSize, TOGETHER), kvCacheFraction: undefined }

  onProgress({ phase: 'loading', done: 0, prompts: prompts.length })
  const runners: ForcedRunner[] = []
  const start = async (creating: Promise<Executor>): Promise<ForcedRunner> => {
    const runner = new ForcedRunner(await orAbort(creating, signal, closeQuietly))
    runners.push(runner)
    return runner
  }
  try {
    // The GPU first: where there is none, nothing large has been read.
    const target = await start(createTarget(model, sized))
    const reference = stored === undefined ? await start(createCpu(model, sized)) : undefined
    const references: PromptReference[] = stored?.prompts ?? []
    const comparison = new LogitComparison(references)
    let failure: string | undefined
    for (const { from, to } of batchesOf(prompts, outputs, runners)) {
      if (reference !== undefined) {
        onProgress({ phase: 'reference', done: from, prompts: prompts.length })
        references.push(...(await computeReferences(reference, prompts.slice(from, to), outputs, signal)))
      }
      onProgress({ phase: 'engine', done: from, prompts: prompts.length })
      failure ??= await compareWith(target, references.slice(from, to), from, comparison, signal)
      // Their logits are large.
      if (reference !== undefined) for (const { rows } of references.slice(from, to)) rows.length = 0
    }
    const verification = comparison.judge({ ...DEFAULT_LIMITS[engine.manifest.precision], ...limits }, {
      at: new Date().toISOString(),
      packageVersion: version,
      against: stored === undefined ? 'cpu' : 'references',
    })
    if (write) await writeVerification(engine, verification)
    return {
      path,
      verification,
      excesses: excesses(verification),
      reference: stored === undefined ? describe(reference!.executor) : `${file} of ${stored.device}`,
      device: describe(target.executor),
      worst: comparison.worst,
      failure,
      seconds: (performance.now() - started) / 1000,
      written: write,
    }
  } finally {
    await Promise.all(runners.map(({ executor }) => closeQuietly(executor)))
  }
}

/**
 * Computes the references that {@link verifyEngine} compares with on the CPU, and keeps them in a file. It needs no GPU.
 *
 * @param folder an engine folder, or the model folder that an engine is built of
 * @param file to write, replaced if it is there
 * @returns a promise of the number of prompts
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN, ERR_PROMPT_TOO_LONG; what {@link LLM.load} throws for the
 * folder; ERR_STEP_FAILED where its numbers are not finite; ERR_IO; AbortError
 */
export async function saveReferences(folder: string, file: string, options: SaveReferencesOptions = {}): Promise<number> {
  const checked = readPromptOptions(new ArgumentReader(options, PROMPT_OPTIONS, 'saveReferences()'))
  const { outputs, seed, weights, verifyWeights, threads, signal, onProgress } = checked
  if (typeof file !== 'string' || file === '' || file.includes('\0')) throw invalidArgument('file', 'a path, a string that is not empty', file)
  const load = checkLoadOptions({ threads })
  const model = await orAbort(readModelFolder(folder, { weights, verifyWeights, signal }), signal, () => {})
  const prompts = toPrompts(model, checked.prompts, outputs, seed)
  onProgress({ phase: 'loading', done: 0, prompts: prompts.length })
  const creating = createCpu(model, { ...load, ...sizesFor(prompts, outputs, load.pageSize, TOGETHER) })
  const runner = new ForcedRunner(await orAbort(creating, signal, closeQuietly))
  try {
    const references: PromptReference[] = []
    for (const { from, to } of batchesOf(prompts, outputs, [runner])) {
      onProgress({ phase: 'reference', done: from, prompts: prompts.length })
      references.push(...(await computeReferences(runner, prompts.slice(from, to), outputs, signal)))
    }
    await writeReferences(file, { device: describe(runner.executor), vocabSize: model.graph.vocabSize, weights: weightsOf(model.engine), prompts: references }, version)
    return references.length
  } finally {
    await closeQuietly(runner.executor)
  }
}

function describe({ info: { name, device } }: Executor): string {
  return `${name} (${device})`
}

function weightsOf(engine: EngineFolder | undefined): Record<string, string> {
  return Object.fromEntries(engine?.manifest.weights.files.map(({ name, sha256 }) => [name, sha256]) ?? [])
}

function requireSameWeights(file: string, { weights }: LogitReferences, engine: EngineFolder): void {
  if (Object.keys(weights).length === 0) return
  const own = weightsOf(engine)
  for (const name of new Set([...Object.keys(own), ...Object.keys(weights)])) {
    if (own[name] === weights[name]) continue
    throw new TensorRTError(
      'ERR_INVALID_ARGUMENT',
      `${file} is of other weights: ${name} has SHA-256 ${weights[name] ?? 'none'}, and the engine was built with ${own[name] ?? 'none'}`,
      { hint: 'save references of this engine' },
    )
  }
}
