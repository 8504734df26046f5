/** Reads a model folder, in Hugging Face layout or with a built engine. Only files of that folder are opened; nothing is ever fetched. */
import { readdir, readFile, stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { TensorRTError, type ErrorCode } from '../errors'
import { type Graph, graphFromConfig, kvGeometry } from '../models'
import { describeValue, type EngineFolder, isEngineFolder, locateWeights, readEngineFolder } from '../runtime'
import { ChatTemplate, Tokenizer } from '../text'
import { type GenerationDefaults, readGenerationDefaults } from './generation_config'
import { type EmbeddingDefaults, readEmbeddingDefaults } from './pooling'
import { checkWeightHeaders } from './weight_headers'

const MAX_JSON_BYTES = 256 * 2 ** 20
const WEIGHTS = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'
/** What a clone without Git LFS has in a large file's place; the specification bounds its size. */
const LFS_POINTER = 'version https://git-lfs.github.com/spec/'
const MAX_POINTER_BYTES = 1024

export interface ModelFolder {
  /** Absolute. */
  path: string
  /** Set for a folder with a built engine. */
  engine: EngineFolder | undefined
  graph: Graph
  tokenizer: Tokenizer
  /** Text of tokenizer.json. */
  tokenizerJson: string
  chatTemplate: ChatTemplate
  defaults: GenerationDefaults
  embedding: EmbeddingDefaults
  /** Files that say how embeddings are made, as far as there are any; relative. */
  embeddingFiles: string[]
  /** safetensors files, absolute. */
  weightFiles: string[]
  weightBytes: number
}

/** Facts about a model folder, read without loading the weights. */
export interface ModelFacts {
  path: string
  family: string
  layers: number
  vocabSize: number
  /** Longest sequence, prompt and output together, in tokens. */
  maxPositions: number
  hasChatTemplate: boolean
  weightBytes: number
  /** Number of safetensors files. */
  files: number
}

/** For folders with a built engine, whose weights are elsewhere. */
export interface ReadModelOptions {
  weights?: string | undefined
  verifyWeights?: boolean | undefined
  signal?: AbortSignal | undefined
}

/**
 * Reads all of a folder but the weights, of which it notes files and sizes.
 *
 * @param folder relative to the working directory, or absolute
 * @throws ERR_INVALID_ARGUMENT for what is no path, ERR_MODEL_NOT_FOUND, ERR_MODEL_INVALID, ERR_MODEL_UNSUPPORTED,
 * ERR_TOKENIZER_INVALID, ERR_CHAT_TEMPLATE, ERR_WEIGHTS_MISSING, ERR_WEIGHTS_INVALID, ERR_IO; for an engine's folder also
 * ERR_ENGINE_INVALID and ERR_VERSION_MISMATCH
 */
export async function readModelFolder(folder: string, options: ReadModelOptions = {}): Promise<ModelFolder> {
  if (typeof folder !== 'string' || folder === '' || folder.includes('\0')) {
    const message = `A model is named by the path of its folder, a string that is not empty, not by ${describeValue(folder)}`
    throw new TensorRTError('ERR_INVALID_ARGUMENT', message, { hint: (folder as unknown) instanceof URL ? 'fileURLToPath() of node:url makes a path of a URL' : undefined })
  }
  const path = resolve(folder)
  await requireFolder(path)
  const config = await readJson(path, 'config.json', 'ERR_MODEL_INVALID')
  if (config === undefined) {
    // The engine of another kind of model says so itself.
    if (await isEngineFolder(path)) await readEngineFolder(path)
    throw new TensorRTError('ERR_MODEL_INVALID', `${path} has no config.json`, {
      hint: 'a model folder has Hugging Face layout',
    })
  }
  const engine = (await isEngineFolder(path)) ? await readEngineFolder(path) : undefined
  if (engine === undefined && options.weights !== undefined) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"weights" goes with an engine folder, and ${path} is none`)
  }
  const graph = engine?.graph ?? graphFromConfig(config, join(path, 'config.json'))
  const tokenizerJson = await readText(path, 'tokenizer.json')
  if (tokenizerJson === undefined) {
    throw new TensorRTError('ERR_TOKENIZER_INVALID', `${path} has no tokenizer.json`, {
      hint: 'a SentencePiece tokenizer.model must be converted: save it as a fast tokenizer with transformers',
    })
  }
  const tokenizerConfig = (await readJson(path, 'tokenizer_config.json', 'ERR_TOKENIZER_INVALID')) ?? {}
  const tokenizer = new Tokenizer(parseJson(tokenizerJson, join(path, 'tokenizer.json'), 'ERR_TOKENIZER_INVALID'), tokenizerConfig)
  // The file wins over the field, as in transformers.
  const templateFile = await readText(path, 'chat_template.jinja')
  const chatTemplate = new ChatTemplate(
    templateFile ?? (tokenizerConfig as { chat_template?: unknown }).chat_template,
    tokenizer.specialTokens,
  )
  const generationConfig = await readJson(path, 'generation_config.json', 'ERR_MODEL_INVALID')
  const defaults = readGenerationDefaults({ generationConfig, config, tokenizer, vocabSize: graph.vocabSize, path })
  const embeddingFiles: string[] = []
  const embedding = await readEmbeddingDefaults({
    path,
    config: config as Record<string, unknown>,
    read: async (name) => {
      const text = await readText(path, name)
      if (text === undefined) return undefined
      embeddingFiles.push(name)
      return parseAnyJson(text, join(path, name), 'ERR_MODEL_INVALID')
    },
  })
  const { files, bytes } = engine === undefined ? await findWeights(path) : await findEngineWeights(engine, options)
  return {
    path,
    engine,
    graph,
    tokenizer,
    tokenizerJson,
    chatTemplate,
    defaults,
    embedding,
    embeddingFiles,
    weightFiles: files,
    weightBytes: bytes,
  }
}

/**
 * Checks a model folder without loading its weights: of them, only names, shapes and sizes are looked at.
 * @throws (as a rejection) what {@link LLM.load} throws for a model folder
 */
export async function inspectModel(folder: string): Promise<ModelFacts> {
  const { path, graph, chatTemplate, weightFiles, weightBytes } = await readModelFolder(folder)
  await checkWeightHeaders(weightFiles, graph.weights)
  const { family, vocabSize, maxPositions } = graph
  return {
    path,
    family,
    layers: kvGeometry(graph).layers,
    vocabSize,
    maxPositions,
    hasChatTemplate: chatTemplate.available,
    weightBytes,
    files: weightFiles.length,
  }
}

/** Where the package has its demo model: programs of a checkout, tried elsewhere, name it by a path that is not there. */
const BUNDLED_MODELS = resolve(__dirname, '..', '..', 'models')

async function requireFolder(path: string): Promise<void> {
  const hint = 'give the path of a folder in Hugging Face layout; nothing is downloaded'
  const found = await stat(path).catch(async (cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') {
      const bundled = join(BUNDLED_MODELS, basename(path))
      const there = await stat(bundled).then((found) => found.isDirectory(), () => false)
      throw new TensorRTError('ERR_MODEL_NOT_FOUND', `There is no model folder ${path}`, { hint: there ? `the one of this package is ${bundled}` : hint, cause })
    }
    throw ioError(path, cause)
  })
  if (!found.isDirectory()) throw new TensorRTError('ERR_MODEL_NOT_FOUND', `${path} is no folder`, { hint })
}

function ioError(path: string, cause: NodeJS.ErrnoException): TensorRTError {
  return new TensorRTError('ERR_IO', `Reading ${path} failed: ${cause.message}`, { cause })
}

/** Size of a file; undefined where there is none. */
async function sizeOf(path: string): Promise<number | undefined> {
  try {
    const found = await stat(path)
    if (!found.isFile()) throw new TensorRTError('ERR_IO', `${path} is no file`)
    return found.size
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error instanceof TensorRTError ? error : ioError(path, error as NodeJS.ErrnoException)
  }
}

async function readText(folder: string, name: string): Promise<string | undefined> {
  const path = join(folder, name)
  const size = await sizeOf(path)
  if (size === undefined) return undefined
  if (size > MAX_JSON_BYTES) {
    throw new TensorRTError('ERR_MODEL_INVALID', `${path} has ${size} bytes, at most ${MAX_JSON_BYTES} are read`)
  }
  try {
    return (await readFile(path, 'utf8')).replace(/^\uFEFF/, '')
  } catch (error) {
    throw ioError(path, error as NodeJS.ErrnoException)
  }
}

async function readJson(folder: string, name: string, code: ErrorCode): Promise<unknown> {
  const text = await readText(folder, name)
  return text === undefined ? undefined : parseJson(text, join(folder, name), code)
}

function parseAnyJson(text: string, path: string, code: ErrorCode): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    if (text.startsWith(LFS_POINTER)) throw pointerError(code, path)
    throw new TensorRTError(code, `${path} is no valid JSON: ${(cause as Error).message}`, { cause })
  }
}

function pointerError(code: ErrorCode, path: string): TensorRTError {
  return new TensorRTError(code, `${path} is a pointer of Git LFS, not the file`, { hint: 'fetch the file: git lfs pull' })
}

/** @throws ERR_WEIGHTS_INVALID, ERR_IO */
async function assertNoPointer(path: string, size: number): Promise<void> {
  if (size > MAX_POINTER_BYTES) return
  const text = await readFile(path, 'latin1').catch((error: NodeJS.ErrnoException) => {
    throw ioError(path, error)
  })
  if (text.startsWith(LFS_POINTER)) throw pointerError('ERR_WEIGHTS_INVALID', path)
}

function parseJson(text: string, path: string, code: ErrorCode): unknown {
  const value = parseAnyJson(text, path, code)
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  throw new TensorRTError(code, `${path} must hold a JSON object`)
}

async function findEngineWeights(
  engine: EngineFolder,
  { weights, verifyWeights, signal }: ReadModelOptions,
): Promise<{ files: string[]; bytes: number }> {
  const files = await locateWeights(engine, { folder: weights, verify: verifyWeights, signal })
  return { files, bytes: engine.manifest.weights.files.reduce((sum, file) => sum + file.bytes, 0) }
}

async function findWeights(folder: string): Promise<{ files: string[]; bytes: number }> {
  const single = await sizeOf(join(folder, WEIGHTS))
  if (single !== undefined) {
    await assertNoPointer(join(folder, WEIGHTS), single)
    return { files: [join(folder, WEIGHTS)], bytes: single }
  }
  const index = await readJson(folder, INDEX, 'ERR_WEIGHTS_INVALID')
  if (index === undefined) {
    const others = (await readdir(folder)).filter((name) => /\.(bin|gguf|pth|pt|safetensors|onnx)$/.test(name))
    const found = others.length === 0 ? '' : `; there is ${others.slice(0, 5).join(', ')}`
    throw new TensorRTError('ERR_WEIGHTS_MISSING', `${folder} has neither ${WEIGHTS} nor ${INDEX}${found}`, {
      hint: 'weights are read from safetensors files; other formats must be converted',
    })
  }
  const files: string[] = []
  let bytes = 0
  for (const name of shardNames(index as { weight_map?: unknown }, join(folder, INDEX))) {
    const path = join(folder, name)
    const size = await sizeOf(path)
    if (size === undefined) {
      throw new TensorRTError('ERR_WEIGHTS_MISSING', `${INDEX} names ${name}, which is not in ${folder}`)
    }
    await assertNoPointer(path, size)
    files.push(path)
    bytes += size
  }
  return { files, bytes }
}

/** Files that an index names, each once. A name that could lead out of the folder is refused. */
function shardNames(index: { weight_map?: unknown }, where: string): string[] {
  const map = index.weight_map
  if (typeof map !== 'object' || map === null || Array.isArray(map)) {
    throw new TensorRTError('ERR_WEIGHTS_INVALID', `${where}: "weight_map" must be an object`)
  }
  const names = new Set<string>()
  for (const [weight, name] of Object.entries(map)) {
    if (typeof name !== 'string' || !/^[^/\\:\0]+\.safetensors$/.test(name)) {
      const given = JSON.stringify(name)?.slice(0, 80)
      throw new TensorRTError(
        'ERR_WEIGHTS_INVALID',
        `${where}: "${weight}" must be in a .safetensors file of the same folder, not ${given}`,
      )
    }
    names.add(name)
  }
  if (names.size === 0) throw new TensorRTError('ERR_WEIGHTS_INVALID', `${where}: "weight_map" is empty`)
  return [...names].sort()
}
