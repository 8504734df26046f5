/**
 * An engine folder: engine.json (see manifest.ts), `plan` (TensorRT's engines), graph.json, the tokenizer's files, and a reference to the
 * weights. A plan is code: its bytes are read once, into memory that nobody else writes, checked, and those same bytes run.
 */
import { randomUUID } from 'node:crypto'
import type { Stats } from 'node:fs'
import { mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { type ErrorCode, TensorRTError } from '../errors'
import type { Graph } from '../models'
import { problemError, type TensorRTFacts } from '../native'
import { requireEngineFit } from './engine_fit'
import { sha256Bytes, sha256File } from './file_hash'
import { type EngineManifest, type LLMEngineManifest, parseManifest, type WeightFile } from './manifest'
import type { EngineVerification } from './verification'

export const MANIFEST_FILE = 'engine.json'
const GRAPH_FILE = 'graph.json'
export const PLAN_FILE = 'plan'

export interface EngineFolder {
  /** Absolute. */
  path: string
  manifest: LLMEngineManifest
  graph: Graph
}

export async function isEngineFolder(folder: string): Promise<boolean> {
  return stat(join(folder, MANIFEST_FILE)).then(
    (found) => found.isFile(),
    () => false,
  )
}

function mismatch(path: string, found: string, expected: string): TensorRTError {
  return new TensorRTError('ERR_ENGINE_INVALID', `${path} has ${found}, ${MANIFEST_FILE} says ${expected}`, {
    hint: 'the folder was changed after the build: build the engine again',
  })
}

async function readRequired(folder: string, name: string, code: ErrorCode = 'ERR_ENGINE_INVALID'): Promise<Buffer<ArrayBuffer>> {
  const path = join(folder, name)
  try {
    return (await readFile(path)) as Buffer<ArrayBuffer>
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new TensorRTError(code, `${folder} has no ${name}`, { hint: 'build the engine again', cause })
    }
    throw new TensorRTError('ERR_IO', `Reading ${path} failed: ${(cause as Error).message}`, { cause })
  }
}

/**
 * The manifest of an engine folder of either kind.
 *
 * @throws (as a rejection) ERR_ENGINE_INVALID, ERR_VERSION_MISMATCH, ERR_IO
 */
export async function readEngineManifest(folder: string): Promise<EngineManifest> {
  const path = resolve(folder)
  return parseManifest((await readRequired(path, MANIFEST_FILE)).toString('utf8'), join(path, MANIFEST_FILE))
}

/**
 * Reads manifest and graph of a language model's engine, and checks that they belong together.
 *
 * @throws (as a rejection) ERR_ENGINE_INVALID, ERR_VERSION_MISMATCH, ERR_IO; ERR_INVALID_ARGUMENT for an engine of an ONNX model
 */
export async function readEngineFolder(folder: string): Promise<EngineFolder> {
  const path = resolve(folder)
  const manifest = await readEngineManifest(path)
  if (manifest.kind === 'onnx') {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${path} holds the engine of an ONNX model, not of a language model`, {
      hint: 'Engine.load() runs it',
    })
  }
  const graphBytes = await readRequired(path, GRAPH_FILE)
  const sha256 = await sha256Bytes(graphBytes)
  if (sha256 !== manifest.graphSha256) throw mismatch(join(path, GRAPH_FILE), `SHA-256 ${sha256}`, manifest.graphSha256)
  return { path, manifest, graph: JSON.parse(graphBytes.toString('utf8')) as Graph }
}

/**
 * Throws unless the plan is the one that the manifest names. It is read in pieces.
 *
 * @throws (as a rejection) ERR_ENGINE_INVALID, ERR_IO, AbortError
 */
export async function verifyPlan(folder: string, { plan }: EngineManifest, signal?: AbortSignal): Promise<void> {
  const file = join(resolve(folder), PLAN_FILE)
  const found = await stat(file).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code !== 'ENOENT') throw new TensorRTError('ERR_IO', `Reading ${file} failed: ${cause.message}`, { cause })
    throw new TensorRTError('ERR_ENGINE_INVALID', `${folder} has no ${PLAN_FILE}`, { hint: 'build the engine again', cause })
  })
  if (found.size !== plan.bytes) throw mismatch(file, `${found.size} bytes`, `${plan.bytes}`)
  const sha256 = await sha256File(file, signal)
  if (sha256 !== plan.sha256) throw mismatch(file, `SHA-256 ${sha256}`, plan.sha256)
}

/**
 * The plan's bytes, which are those that the manifest names.
 *
 * @throws (as a rejection) ERR_ENGINE_INVALID, ERR_IO
 */
export async function readPlan({ path, manifest }: EngineFolder): Promise<Buffer> {
  const plan = await readRequired(path, PLAN_FILE)
  const file = join(path, PLAN_FILE)
  if (plan.length !== manifest.plan.bytes) throw mismatch(file, `${plan.length} bytes`, `${manifest.plan.bytes}`)
  const sha256 = await sha256Bytes(plan)
  if (sha256 !== manifest.plan.sha256) throw mismatch(file, `SHA-256 ${sha256}`, manifest.plan.sha256)
  return plan
}

export interface WeightsOptions {
  /** Folder of the weights, instead of the one that the manifest refers to. */
  folder?: string | undefined
  /**
   * True hashes every file; false takes any weights whose files have these names. Default: sizes are compared, and files that were
   * touched after the build are hashed.
   */
  verify?: boolean | undefined
  signal?: AbortSignal | undefined
}

/**
 * Absolute paths of the weights that the engine was built with.
 *
 * @throws (as a rejection) ERR_WEIGHTS_MISSING, ERR_WEIGHTS_INVALID for others than those of the build, ERR_IO, AbortError
 */
export async function locateWeights(engine: EngineFolder, options: WeightsOptions = {}): Promise<string[]> {
  const { relative: beside, absolute, files } = engine.manifest.weights
  const places = options.folder === undefined ? [resolve(engine.path, beside), absolute] : [resolve(options.folder)]
  const missing: string[] = []
  for (const place of new Set(places)) {
    const found = await Promise.all(files.map(({ name }) => stat(join(place, name)).catch(() => undefined)))
    const absent = files.filter((_, i) => found[i]?.isFile() !== true)
    if (absent.length > 0) {
      missing.push(`${place} (no ${absent[0]!.name}${absent.length > 1 ? ` and ${absent.length - 1} more` : ''})`)
      continue
    }
    if (options.verify !== false) {
      const check = async (file: WeightFile, i: number): Promise<void> => {
        const path = join(place, file.name)
        const { size, mtimeMs } = found[i]!
        if (size !== file.bytes) throw otherWeights(path, `${size} bytes`, `${file.bytes}`)
        if (mtimeMs === file.mtimeMs && options.verify !== true) return
        const sha256 = await sha256File(path, options.signal)
        if (sha256 !== file.sha256) throw otherWeights(path, `SHA-256 ${sha256}`, file.sha256)
      }
      // One after the other: the disk is the limit, and a model may have hundreds of files.
      for (const [i, file] of files.entries()) await check(file, i)
    }
    return files.map(({ name }) => join(place, name))
  }
  throw new TensorRTError('ERR_WEIGHTS_MISSING', `The engine's weights are not there; looked at ${missing.join(', ')}`, {
    hint: 'give the folder that has them: the option "weights", or --weights',
  })
}

function otherWeights(path: string, found: string, expected: string): TensorRTError {
  return new TensorRTError('ERR_WEIGHTS_INVALID', `${path} has ${found}, the engine was built with ${expected}`, {
    hint: 'restore the file or build the engine again; verifyWeights: false takes other weights of the same shapes',
  })
}

/**
 * Throws what keeps a GPU from being used: the driver's problem, the library's, or that there is no such device.
 *
 * @throws ERR_DRIVER_NOT_FOUND, ERR_DRIVER_TOO_OLD, ERR_NO_GPU, ERR_CUDA, ERR_TENSORRT_NOT_FOUND, ERR_VERSION_MISMATCH, ERR_INVALID_ARGUMENT
 */
export function requireUsable(facts: TensorRTFacts, device: number): void {
  if (facts.driver !== null) throw problemError(facts.driver)
  if (device >= facts.gpus.length) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"device" is ${device}, and the GPUs are numbered 0 to ${facts.gpus.length - 1}`)
  }
  if (facts.library !== null) throw problemError(facts.library)
}

/**
 * Throws unless the engine runs here. TensorRT's plans are bound to its version and to a compute capability.
 *
 * @throws what {@link requireUsable} throws; ERR_ENGINE_INCOMPATIBLE, naming both sides
 */
export function requireFit(manifest: EngineManifest, facts: TensorRTFacts, device: number): void {
  requireUsable(facts, device)
  const { name, computeMajor, computeMinor } = facts.gpus[device]!
  requireEngineFit(manifest, {
    device,
    gpuName: name,
    computeCapability: `${computeMajor}.${computeMinor}`,
    libraryVersion: facts.libraryVersion,
    libraryPath: facts.libraryPath,
  })
}

export interface NewEngineFolder {
  /** Absolute. */
  path: string
  /** Replace what is there. */
  force: boolean
  graph: Graph
  plan: Buffer
  /** Files to copy: name -> bytes. */
  files: ReadonlyMap<string, Buffer>
  /** Absolute folder of the weights, and its files. */
  weightsFolder: string
  weightFiles: WeightFile[]
  manifest: Omit<LLMEngineManifest, 'plan' | 'graphSha256' | 'weights'>
}

/**
 * Throws where `path` may not be written.
 *
 * @throws (as a rejection) ERR_INVALID_ARGUMENT when something is there, and it is no engine folder or `force` is not set; ERR_IO
 */
export async function requireWritable(path: string, force: boolean): Promise<void> {
  const look = (): Promise<Stats | undefined> =>
    stat(path).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === 'ENOENT') return undefined
      throw new TensorRTError('ERR_IO', `${path} cannot be used: ${cause.message}`, { cause })
    })
  let found = await look()
  while (found !== undefined && !(await isEngineFolder(path))) {
    const before = found
    found = await look()
    // Where another process has replaced it meanwhile, it is another folder that is to be looked at.
    if (found === undefined || found.ino !== before.ino) continue
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${path} exists and is no engine folder: it is not overwritten`)
  }
  if (found !== undefined && !force) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `The engine folder ${path} exists`, { hint: 'overwrite it with force, or --force' })
  }
}

/**
 * Writes the folder of a language model's engine: it is there complete, or not at all.
 *
 * @throws (as a rejection) what {@link replaceFolder} throws
 */
export async function writeEngineFolder(folder: NewEngineFolder): Promise<LLMEngineManifest> {
  const { path, force, plan, weightsFolder, weightFiles } = folder
  const graph = Buffer.from(`${JSON.stringify(folder.graph)}\n`)
  const manifest: LLMEngineManifest = {
    ...folder.manifest,
    graphSha256: await sha256Bytes(graph),
    plan: { bytes: plan.length, sha256: await sha256Bytes(plan as Buffer<ArrayBuffer>) },
    weights: { relative: relative(path, weightsFolder), absolute: weightsFolder, files: weightFiles },
  }
  return replaceFolder(path, force, async (temporary) => {
    for (const [name, bytes] of folder.files) {
      await mkdir(dirname(join(temporary, name)), { recursive: true })
      await writeDurably(join(temporary, name), bytes)
    }
    await writeDurably(join(temporary, GRAPH_FILE), graph)
    await writeDurably(join(temporary, PLAN_FILE), plan)
    await writeManifest(temporary, manifest)
    return manifest
  })
}

function writeDurably(path: string, bytes: Buffer): Promise<void> {
  return writeFile(path, bytes, { flush: true })
}

export function writeManifest(folder: string, manifest: EngineManifest): Promise<void> {
  return writeDurably(join(folder, MANIFEST_FILE), Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`))
}

/**
 * Writes what a verification found into the manifest, which is replaced as a whole or not at all.
 *
 * @throws (as a rejection) ERR_ENGINE_INVALID where another engine is there by now; ERR_IO, and what {@link readEngineManifest} throws
 */
export async function writeVerification({ path, manifest }: EngineFolder, verification: EngineVerification): Promise<LLMEngineManifest> {
  const file = join(path, MANIFEST_FILE)
  // Read again, so that nothing is undone that was written meanwhile; and not by its known fields only.
  const text = (await readRequired(path, MANIFEST_FILE)).toString('utf8')
  const current = parseManifest(text, file)
  if (current.plan.sha256 !== manifest.plan.sha256) throw mismatch(file, `plan ${current.plan.sha256}`, manifest.plan.sha256)
  const raw = { ...(JSON.parse(text) as LLMEngineManifest), verification }
  const temporary = `${file}.${process.pid}-${randomUUID()}`
  try {
    await writeDurably(temporary, Buffer.from(`${JSON.stringify(raw, null, 2)}\n`))
    await rename(temporary, file)
  } catch (cause) {
    await rm(temporary, { force: true })
    throw new TensorRTError('ERR_IO', `Writing ${file} failed: ${(cause as Error).message}`, {
      hint: 'write: false, or --dry-run, verifies without writing',
      cause,
    })
  }
  return raw
}

/**
 * Has `fill` make a folder beside `path`, and renames it to that when it is complete. Where it fails nothing is left of it.
 *
 * @throws (as a rejection) what {@link requireWritable} and `fill` throw; ERR_IO
 */
export async function replaceFolder<T>(path: string, force: boolean, fill: (temporary: string) => Promise<T>): Promise<T> {
  let temporary: string | undefined
  try {
    await mkdir(dirname(path), { recursive: true })
    temporary = await mkdtemp(join(dirname(path), `.${basename(path)}-`))
    const filled = await fill(temporary)
    await requireWritable(path, force)
    // A folder cannot be renamed onto one that is not empty: the old one steps aside first.
    const old = `${temporary}.old`
    const replaced = await rename(path, old).then(
      () => true,
      () => false,
    )
    try {
      await rename(temporary, path)
    } catch (error) {
      if (replaced) await rename(old, path)
      throw error
    }
    temporary = undefined
    await rm(old, { recursive: true, force: true })
    return filled
  } catch (cause) {
    if (typeof (cause as NodeJS.ErrnoException).errno !== 'number') throw cause
    throw new TensorRTError('ERR_IO', `Writing the engine folder ${path} failed: ${(cause as Error).message}`, { cause })
  } finally {
    if (temporary !== undefined) await rm(temporary, { recursive: true, force: true })
  }
}
