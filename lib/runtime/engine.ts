/** A deserialised engine. */
import { AbortError, TensorRTError } from '../errors'
import { nativeAsync, type NativeEngine, type NativeEngineInfo, type NativeRuntime } from '../native'
import { ArgumentReader, invalidArgument } from './argument_reader'
import { requireEngineFit } from './engine_fit'
import { checkProfile, type EngineInfo, type ProfileInfo, type TensorInfo, TensorTable } from './engine_info'
import { type ContextOptions, ExecutionContext, readContextOptions } from './execution_context'
import { discard, NativeHandle, readWaitOptions, throwIfAborted, untilAborted, type WaitOptions } from './handle'
import type { OnnxEngineManifest } from './onnx_manifest'
import { openPlanSource, type PlanSource, readPlan } from './plan_source'
import { checkWeights } from './refit'
import { readDeviceOptions, Runtime } from './runtime'
import { createEngineSession, type Session, type SessionOptions } from './session'
import { shareRuntime, type SharedRuntime } from './shared_runtime'
import type { Tensor } from './tensor'
import { tryEngine } from './try_engine'

export interface EngineLoadOptions {
  /** Default: one that is shared by the engines of a device and library, and closed with the last of them. */
  runtime?: Runtime | undefined
  /** Number of the GPU, where no `runtime` is given. Default 0. */
  device?: number | undefined
  /** libnvinfer or the folder that has it, where no `runtime` is given. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  /** What the plan must hash to, in hex. An engine folder's manifest has a hash of its own. */
  sha256?: string | undefined
  /** Take version-compatible plans that hold a runtime, which is code that runs on the host. Default false. */
  allowHostCode?: boolean | undefined
  /**
   * Load the plan in a process of its own first: one that crashes TensorRT, or never comes back, is an error then and harms nothing. For a
   * path; takes about as long again as the load. Default false.
   */
  trial?: boolean | undefined
  /** Ends the wait. TensorRT cannot be interrupted: what it makes after that is thrown away. */
  signal?: AbortSignal | undefined
}

const LOAD_OPTIONS = ['runtime', 'device', 'libraryPath', 'sha256', 'allowHostCode', 'trial', 'signal'] as const satisfies readonly (keyof EngineLoadOptions)[]

function readLoadOptions(options: unknown) {
  const reader = new ArgumentReader(options, LOAD_OPTIONS, 'Engine.load()')
  const runtime = reader.get('runtime')
  if (runtime !== undefined && !(runtime instanceof Runtime)) throw invalidArgument('runtime', 'a Runtime', runtime)
  const place = readDeviceOptions(reader)
  if (runtime !== undefined) {
    for (const name of ['device', 'libraryPath']) {
      if (reader.get(name) === undefined) continue
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `Give "runtime" or "${name}", not both`, { hint: 'a runtime has a device and a library' })
    }
  }
  const sha256 = reader.string('sha256', 64)?.toLowerCase()
  if (sha256 !== undefined && !/^[0-9a-f]{64}$/.test(sha256)) throw invalidArgument('sha256', 'a SHA-256, 64 hex digits', sha256)
  const allowHostCode = reader.boolean('allowHostCode') ?? false
  return { runtime, ...place, sha256, allowHostCode, trial: reader.boolean('trial') ?? false, signal: reader.signal('signal') }
}

/** What an engine is made of. */
interface Parts {
  engine: NativeEngine
  runtime: Runtime
  shared: SharedRuntime | undefined
  manifest: OnnxEngineManifest | undefined
  path: string | undefined
  lacking: Set<string>
}

/**
 * A model that TensorRT has built for a GPU. Its contexts run it. Closing it closes them.
 *
 * A plan is code: load none from a source that you do not trust.
 */
export class Engine extends NativeHandle {
  readonly info: EngineInfo
  /** The device that it is on. */
  readonly runtime: Runtime
  /** Of the engine folder that it was loaded from. */
  readonly manifest: OnnxEngineManifest | undefined
  /** Absolute, of the plan or the folder; undefined for an engine that came as bytes. */
  readonly path: string | undefined
  readonly #native: NativeEngine
  readonly #table: TensorTable
  readonly #shared: SharedRuntime | undefined
  /** Weights that were stripped and not given yet, as far as the manifest tells: TensorRT runs without them, on whatever is there. */
  readonly #lacking: Set<string>
  /** The end of the last call of {@link refit}, whatever it was. */
  #refits: Promise<void> = Promise.resolve()

  private constructor({ engine, runtime, shared, manifest, path, lacking }: Parts) {
    super('Engine', engine, runtime)
    this.#lacking = lacking
    this.#native = engine
    this.#shared = shared
    this.runtime = runtime
    this.manifest = manifest
    this.path = path
    const described = JSON.parse(engine.info) as NativeEngineInfo
    this.#table = new TensorTable(described)
    const { name, layers, streamableWeights, auxStreams, refittable, hardwareCompatibility, capability, profilingVerbosity } = described
    this.info = Object.freeze({ name, layers, streamableWeights, auxStreams, refittable, hardwareCompatibility, capability, profilingVerbosity })
  }

  /**
   * Loads an engine, off the event loop. The plan is read once into memory of its own, checked there, and those same bytes run; they are
   * freed when TensorRT has read them.
   *
   * @param source path of a plan; path of an engine folder, whose manifest is checked first; or a plan's bytes, which are copied
   * @throws (as a rejection) ERR_INVALID_ARGUMENT; what Runtime.create() throws; ERR_ENGINE_INVALID for a plan that is missing, damaged or
   * not the one of manifest or hash; ERR_ENGINE_INCOMPATIBLE for one of another TensorRT or GPU; ERR_VERSION_MISMATCH for a folder of
   * another version of this package; ERR_IO, ERR_OUT_OF_MEMORY, ERR_OUT_OF_DEVICE_MEMORY, ERR_CUDA, ERR_BACKEND_DEAD; ERR_TIMEOUT
   * for a trial that hangs; ERR_DISPOSED where the runtime is closed; AbortError
   */
  static async load(source: string | Uint8Array | ArrayBuffer, options: EngineLoadOptions = {}): Promise<Engine> {
    const checked = readLoadOptions(options)
    const { signal, sha256, allowHostCode } = checked
    checked.runtime?.checkOpen()
    throwIfAborted(signal)
    const opened = await openPlanSource(source)
    if (checked.trial) await requireTrial(opened, checked)
    // The driver may take a second to wake up, a large plan as long to be read.
    const sharing = checked.runtime === undefined ? shareRuntime(checked.device, checked.libraryPath) : undefined
    sharing?.catch(() => {})
    try {
      const plan = await readPlan(opened, sha256, signal)
      // After an abort the share goes back below.
      const shared = sharing === undefined ? undefined : await untilAborted(sharing, signal, () => {})
      const runtime = checked.runtime ?? shared!.runtime
      const manifest = opened.kind === 'folder' ? opened.manifest : undefined
      if (manifest !== undefined) requireEngineFit(manifest, { ...runtime.info, gpuName: runtime.info.name })
      const engine = await runtime.track(nativeAsync(() => runtime.native.deserialize(plan, allowHostCode)), signal, discard)
      const lacking = await lackingWeights(engine, manifest, signal)
      return new Engine({ engine, runtime, shared, manifest, path: opened.kind === 'bytes' ? undefined : opened.path, lacking })
    } catch (error) {
      const released = sharing?.then(
        ({ release }) => release(),
        () => {},
      )
      if (!(error instanceof AbortError)) await released
      throw error
    }
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeEngine {
    this.checkOpen()
    return this.#native
  }

  /** @throws ERR_DISPOSED @internal */
  get nativeRuntime(): NativeRuntime {
    return this.runtime.native
  }

  get inputs(): readonly TensorInfo[] {
    return this.#table.inputs
  }

  get outputs(): readonly TensorInfo[] {
    return this.#table.outputs
  }

  /** Ranges of shapes that the engine was built for, by their number. */
  get profiles(): readonly ProfileInfo[] {
    return this.#table.profiles
  }

  /** @throws ERR_INVALID_TENSOR for an unknown name, with the closest one */
  tensor(name: string): TensorInfo {
    return this.#table.tensors[this.#table.index(name)]!
  }

  /**
   * TensorRT's description of the layers, as far as the build kept it (`info.profilingVerbosity`): strings, or objects with what was
   * fused, formats and tactics.
   *
   * @param profile with the shapes of an optimization profile. Default: without
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_DISPOSED, AbortError
   */
  async layers(profile?: number, options: WaitOptions = {}): Promise<EngineLayers> {
    const engine = this.native
    const number = profile === undefined ? -1 : checkProfile(profile, this.profiles.length)
    const signal = readWaitOptions(options, 'layers()')
    const parsed = JSON.parse(await this.track(nativeAsync(() => engine.layers(number)), signal)) as { Layers?: (string | Record<string, unknown>)[]; Bindings?: string[] }
    return { layers: parsed.Layers ?? [], bindings: parsed.Bindings ?? [] }
  }

  /**
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY, ERR_EXECUTION_FAILED, ERR_CUDA, ERR_BACKEND_DEAD,
   * ERR_WEIGHTS_MISSING for a stripped engine that was not refitted, ERR_DISPOSED, AbortError
   */
  async createContext(options: ContextOptions = {}): Promise<ExecutionContext> {
    const engine = this.native
    const { signal, profile, memory } = readContextOptions(options, this.profiles.length)
    throwIfAborted(signal)
    this.requireWeights()
    const context = await this.track(nativeAsync(() => engine.createContext({ profile, memory })), signal, discard)
    return ExecutionContext.wrap(context, { engine: this, runtime: this.runtime, table: this.#table, profile, memory })
  }

  /**
   * A session over this engine: requests of many callers, put into batches and run on contexts of its own. Closing the engine closes it.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_INVALID_TENSOR for declared shapes that no profile takes, ERR_OUT_OF_DEVICE_MEMORY,
   * ERR_EXECUTION_FAILED, ERR_CUDA, ERR_BACKEND_DEAD, ERR_WEIGHTS_MISSING for a stripped engine that was not refitted, ERR_DISPOSED, AbortError
   */
  createSession(options: SessionOptions = {}): Promise<Session> {
    return createEngineSession(this, options)
  }

  /**
   * Names of the weights that {@link refit} can set; none where the engine was built without.
   * @throws (as a rejection) ERR_DISPOSED, AbortError
   */
  async refittableWeights(options: WaitOptions = {}): Promise<string[]> {
    const engine = this.native
    const signal = readWaitOptions(options, 'refittableWeights()')
    return this.track(nativeAsync(() => engine.refittableWeights()), signal)
  }

  /**
   * Throws where weights were stripped and not given yet.
   * @throws ERR_WEIGHTS_MISSING, naming them
   * @internal
   */
  requireWeights(): void {
    if (this.#lacking.size === 0) return
    const names = [...this.#lacking]
    const some = names.length > 5 ? `${names.slice(0, 5).join(', ')} and ${names.length - 5} more` : names.join(', ')
    throw new TensorRTError('ERR_WEIGHTS_MISSING', `The engine was built without its weights, and lacks ${some}`, {
      hint: 'give them to refit(): constants of the model are among them',
    })
  }

  /**
   * Sets weights by name. All are set or none, where a name, type or count is wrong. No context of the engine may be running, and the
   * tensors must stay as they are until this resolves. Calls take effect one after the other.
   *
   * An abort ends the wait at once. A call that waits for another one sets nothing then; one that is at work sets its weights all the same,
   * and reads its tensors until the next call has ended.
   *
   * @throws (as a rejection) ERR_INVALID_TENSOR for a name that the engine has not, with the closest one; ERR_WEIGHTS_INVALID for another type
   * or number of elements; ERR_INVALID_ARGUMENT for an engine that cannot be refitted; ERR_WEIGHTS_MISSING for a stripped engine that still lacks
   * some, which are named; ERR_DISPOSED, AbortError
   */
  async refit(weights: Readonly<Record<string, Tensor>>, options: WaitOptions = {}): Promise<void> {
    this.checkOpen()
    const signal = readWaitOptions(options, 'refit()')
    const refitting = this.#refits.then(() => this.#refit(weights, signal))
    this.#refits = refitting.catch(() => {})
    await this.track(refitting, signal)
    this.requireWeights()
  }

  async #refit(weights: Readonly<Record<string, Tensor>>, signal: AbortSignal | undefined): Promise<void> {
    throwIfAborted(signal)
    const names = await this.refittableWeights({ signal })
    const checked = checkWeights(weights, names)
    const engine = this.native
    // Nobody may stop waiting for it here: the next one must not begin before its end.
    await nativeAsync(() => engine.refit(checked))
    for (const { name } of checked) this.#lacking.delete(name)
  }

  /**
   * The plan of the engine as it is, with its weights.
   * @throws (as a rejection) ERR_OUT_OF_MEMORY, ERR_EXECUTION_FAILED, ERR_DISPOSED, AbortError
   */
  async serialize(options: WaitOptions = {}): Promise<Buffer> {
    const engine = this.native
    const signal = readWaitOptions(options, 'serialize()')
    return this.track(nativeAsync(() => engine.serialize()), signal)
  }

  /** @internal */
  protected override afterClose(): Promise<void> {
    return this.#shared?.release() ?? Promise.resolve()
  }
}

/** Names of the weights that a new engine was built without. A wait that ends early closes the engine. */
async function lackingWeights(engine: NativeEngine, manifest: OnnxEngineManifest | undefined, signal: AbortSignal | undefined): Promise<Set<string>> {
  if (manifest?.build.strip !== true) return new Set()
  try {
    return new Set(await untilAborted(nativeAsync(() => engine.refittableWeights()), signal, () => {}))
  } catch (error) {
    discard(engine)
    throw error
  }
}

/** @throws (as a rejection) what keeps the plan from loading in a process of its own */
async function requireTrial(source: PlanSource, { runtime, device, libraryPath, allowHostCode, signal }: ReturnType<typeof readLoadOptions>): Promise<void> {
  if (source.kind === 'bytes') {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', '"trial" goes with a path, bytes were given', { hint: 'write them to a file' })
  }
  const place = runtime?.info ?? { device, libraryPath: libraryPath === '' ? undefined : libraryPath }
  const { error } = await tryEngine(source.path, { device: place.device, libraryPath: place.libraryPath, allowHostCode, signal })
  if (error !== undefined) throw error
}

/** TensorRT's own words on an engine's layers. */
export interface EngineLayers {
  /** In order of execution. Names, or objects where the engine was built with detailed profiling. */
  layers: (string | Record<string, unknown>)[]
  /** Names of inputs and outputs. */
  bindings: string[]
}
