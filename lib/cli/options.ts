/** Options that several commands take, parsed strictly: a value that is no number is a usage error, never a NaN. */
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { LLM, type LLMOptions } from '../llm'
import { printWarning, Progress } from './output'

export interface ModelOptions {
  model: string
  backend: 'auto' | 'cpu' | 'tensorrt'
  threads?: number
  device?: number
  libraryPath?: string
  weights?: string
  allowUnfit?: boolean
  kvCacheMemory?: number
  maxSequences?: number
  prefixCache: boolean
  json?: boolean
}

export interface SamplingOptions {
  maxTokens?: number
  temperature?: number
  topK?: number
  topP?: number
  minP?: number
  repetitionPenalty?: number
  seed?: number
  stop?: string[]
}

/** The demo model that travels in the package. */
export const bundledModel = resolve(__dirname, '..', '..', 'models', 'tiny-storyteller')

export function parseInteger(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!/^[+-]?\d+$/.test(text.trim()) || value < min || value > max) {
      throw new InvalidArgumentError(`expected an integer from ${min}${max === Number.MAX_SAFE_INTEGER ? '' : ` to ${max}`}.`)
    }
    return value
  }
}

export function parseNumber(min: number, max = Infinity): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isFinite(value) || value < min || value > max) {
      throw new InvalidArgumentError(`expected a number from ${min}${max === Infinity ? '' : ` to ${max}`}.`)
    }
    return value
  }
}

function parseStop(text: string, before: string[] = []): string[] {
  if (text === '') throw new InvalidArgumentError('expected a text that is not empty.')
  return [...before, text]
}

/** A number above 0 and up to 1. */
export function parseShare(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !(value > 0 && value <= 1)) throw new InvalidArgumentError('expected a number above 0 and up to 1.')
  return value
}

/** '512M', '4GiB', '1e9': bytes. Suffixes are powers of 1024. undefined for what is none. */
export function bytesOf(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt])i?b?|b)?$/i.exec(text.trim())
  const power = match === null ? -1 : 'kmgt'.indexOf((match[2] ?? '').toLowerCase() || '?') + 1
  const value = match === null ? NaN : Math.floor(Number(match[1]) * 1024 ** power)
  return Number.isSafeInteger(value) && value > 0 ? value : undefined
}

export function parseBytes(text: string): number {
  const value = bytesOf(text)
  if (value === undefined) throw new InvalidArgumentError('expected bytes, such as 512M or 4GiB.')
  return value
}

/** '128' or '16-512': an inclusive range. */
export function parseRange(text: string): { min: number; max: number } {
  const match = /^(\d+)(?:-(\d+))?$/.exec(text.trim())
  const min = Number(match?.[1])
  const max = Number(match?.[2] ?? match?.[1])
  if (match === null || min < 1 || max < min) throw new InvalidArgumentError('expected a count such as 128, or a range such as 16-512.')
  return { min, max }
}

export function addModelOptions(command: Command): Command {
  return command
    .addOption(
      new Option('-m, --model <folder>', 'model folder in Hugging Face layout, or engine folder').default(bundledModel, 'the bundled demo model'),
    )
    .addOption(
      new Option('-b, --backend <name>', 'what runs the model').choices(['auto', 'cpu', 'tensorrt']).default('auto'),
    )
    .option('--threads <n>', 'CPU backend: threads (default: all that the process may use)', parseInteger(1, 1024))
    .option('--device <n>', 'GPU: its number, as CUDA counts (default: 0)', parseInteger(0, 1023))
    .option('--library-path <path>', 'GPU: libnvinfer, or the folder that has it')
    .option('--weights <folder>', 'engine folders: where the weights are (default: where the build found them)')
    .option('--allow-unfit', 'GPU: run an engine that verify found unfit')
    .option('--kv-cache-memory <bytes>', 'size of the KV cache, such as 512M (default: by free memory)', parseBytes)
    .option('--max-sequences <n>', 'sequences that run at once (default: 64 on the CPU, 256 on a GPU)', parseInteger(1, 65536))
    .option('--no-prefix-cache', 'do not share pages between equal prompt prefixes')
}

export function addSamplingOptions(command: Command): Command {
  return command
    .option('-n, --max-tokens <n>', "most tokens to generate (default: the model's generation_config, else what fits)", parseInteger(1))
    .option('-t, --temperature <t>', '0 = greedy (default: the model\'s generation_config)', parseNumber(0, 100))
    .option('--top-k <k>', 'sample from the k most probable tokens', parseInteger(0))
    .option('--top-p <p>', 'sample from the most probable tokens that hold this share', parseShare)
    .option('--min-p <p>', 'drop tokens below this share of the best one\'s probability', parseNumber(0, 1))
    .option('--repetition-penalty <r>', '1 = off', parseNumber(0.01, 100))
    .option('-s, --seed <n>', 'the same seed gives the same text (default: random)', parseInteger(0))
    .option('--stop <text>', 'end before this text; may be given again', parseStop)
}

/** Only the sampling fields that were given, so that the model's own defaults stay in force for the others. */
export function samplingOf(options: SamplingOptions): SamplingOptions {
  const keys = ['maxTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'seed', 'stop'] as const
  return Object.fromEntries(keys.filter((key) => options[key] !== undefined).map((key) => [key, options[key]]))
}

/** The folder that a name stands for: a bundled model's, or `models/` and its name, works from any directory. */
export function resolveModel(model: string): string {
  const name = model.replace(/^models\//, '')
  const bundled = join(bundledModel, '..', name)
  return name !== '' && !existsSync(model) && !name.includes('/') && existsSync(bundled) ? bundled : model
}

export async function loadModel(options: ModelOptions, signal: AbortSignal): Promise<LLM> {
  const folder = resolveModel(options.model)
  const progress = new Progress()
  const started = Date.now()
  const timer = setInterval(() => {
    progress.update(`loading ${options.model} ... ${((Date.now() - started) / 1000).toFixed(0)} s`)
  }, 250)
  try {
    const load: LLMOptions = {
      backend: options.backend,
      prefixCache: options.prefixCache,
      signal,
      onWarning: (warning) => {
        progress.clear()
        printWarning(warning)
      },
    }
    if (options.threads !== undefined) load.threads = options.threads
    if (options.device !== undefined) load.device = options.device
    if (options.libraryPath !== undefined) load.libraryPath = options.libraryPath
    if (options.weights !== undefined) load.weights = options.weights
    if (options.allowUnfit !== undefined) load.allowUnfit = options.allowUnfit
    if (options.kvCacheMemory !== undefined) load.kvCacheMemory = options.kvCacheMemory
    if (options.maxSequences !== undefined) load.maxSequences = options.maxSequences
    return await LLM.load(folder, load)
  } finally {
    clearInterval(timer)
    progress.clear()
  }
}
