/** Makes sessions: over an engine, or of a file by whatever can run it. */
import { type ErrorCode, TensorRTError } from '../../errors'
import { ArgumentReader, describeValue, invalidArgument } from '../argument_reader'
import { Engine, type EngineLoadOptions } from '../engine'
import { discard, NativeHandle, throwIfAborted, untilAborted } from '../handle'
import type { BackendSource } from './failover'
import { OnnxRuntimeBackend, signatureMismatch } from './onnxruntime_session'
import { type CheckedSessionOptions, checkSessionOptions, type SessionOptions, SESSION_OPTION_NAMES, warnOf } from './options'
import { Session } from './session'
import { engineSignature } from './signature'
import { TensorRTBackend } from './tensorrt_session'

/** Options of {@link Session.load}. */
export interface SessionLoadOptions extends SessionOptions, Omit<EngineLoadOptions, 'signal'> {
  /**
   * `tensorrt`: a GPU, or an error. `onnxruntime`: the CPU. `auto` (default): a GPU where one is usable, else onnxruntime with the file that
   * `onnx` names, and one warning.
   */
  backend?: 'auto' | 'tensorrt' | 'onnxruntime' | undefined
  /** The ONNX file that the engine was built from, or its bytes: what onnxruntime runs. Needs the package onnxruntime-node. */
  onnx?: string | Uint8Array | undefined
  /**
   * When the GPU fails for good, onnxruntime takes over: requests that are not answered yet run again, and `onWarning` hears of it. Default: true
   * with `backend: 'auto'` and `onnx`, else false.
   */
  failover?: boolean | undefined
  /** onnxruntime: threads that compute. Default: its own choice. */
  threads?: number | undefined
}

type EngineOptionName = Exclude<keyof EngineLoadOptions, 'signal'>

/** All of them: each is handed on. */
const ENGINE_OPTIONS: Readonly<Record<EngineOptionName, true>> = {
  runtime: true,
  device: true,
  libraryPath: true,
  sha256: true,
  allowHostCode: true,
  trial: true,
}
const ENGINE_OPTION_NAMES = Object.keys(ENGINE_OPTIONS) as EngineOptionName[]
const LOAD_OPTIONS = ['backend', 'onnx', 'failover', 'threads', ...ENGINE_OPTION_NAMES] as const

/** Reasons why a GPU cannot be used at all, as against failures of a GPU that can. */
const UNUSABLE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_ADDON_NOT_FOUND',
  'ERR_ADDON_LOAD_FAILED',
  'ERR_TENSORRT_NOT_FOUND',
  'ERR_TENSORRT_MODULE_NOT_FOUND',
  'ERR_TENSORRT_MODULE_LOAD_FAILED',
  'ERR_DRIVER_NOT_FOUND',
  'ERR_DRIVER_TOO_OLD',
  'ERR_NO_GPU',
  'ERR_VERSION_MISMATCH',
  'ERR_ENGINE_REQUIRED',
])

/** Closes a session together with its engine. */
class SessionHandle extends NativeHandle {
  constructor(session: Session, engine: Engine) {
    super('Session', { close: () => session.close() }, engine)
  }
}

/**
 * A session over an engine, which stays the caller's: closing it closes the session too.
 *
 * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY, ERR_EXECUTION_FAILED, ERR_CUDA, ERR_BACKEND_DEAD, ERR_DISPOSED,
 * AbortError
 */
export async function createEngineSession(engine: Engine, options: SessionOptions = {}): Promise<Session> {
  const checked = checkSessionOptions(options, 'createSession()')
  throwIfAborted(checked.signal)
  engine.requireWeights()
  return untilAborted(openOver(engine, checked), checked.signal, discard)
}

async function openOver(engine: Engine, options: CheckedSessionOptions, fallback?: BackendSource): Promise<Session> {
  const session = await Session.open(await TensorRTBackend.create(engine, options), options, fallback)
  return follow(session, engine)
}

/** Ties a session to its engine: what is closed first closes the other's part in it, and neither waits for itself. */
function follow(session: Session, engine: Engine): Session {
  const handle = new SessionHandle(session, engine)
  session.onClosed(() => void handle.close())
  return session
}

/** See {@link Session.load}. */
export async function loadSession(source: unknown, options: SessionLoadOptions): Promise<Session> {
  const checked = checkSessionOptions(options, 'Session.load()', LOAD_OPTIONS)
  const reader = new ArgumentReader(options, [...SESSION_OPTION_NAMES, ...LOAD_OPTIONS], 'Session.load()')
  const backend = reader.choice('backend', ['auto', 'tensorrt', 'onnxruntime']) ?? 'auto'
  const given = reader.get('onnx')
  if (given !== undefined && !(given instanceof Uint8Array)) reader.path('onnx')
  const isOnnx = typeof source === 'string' && /\.onnx$/i.test(source)
  const onnx = (given ?? (isOnnx ? source : undefined)) as string | Uint8Array | undefined
  const failover = reader.boolean('failover') ?? (backend === 'auto' && onnx !== undefined)
  const threads = reader.integer('threads', 1, 1024) ?? 0
  if (onnx === undefined && (backend === 'onnxruntime' || failover)) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"${failover ? 'failover' : 'backend'}" needs "onnx", the file that onnxruntime is to run`)
  }
  throwIfAborted(checked.signal)
  const fallback: OnnxRuntimeSource | undefined = onnx === undefined ? undefined : (signal) => OnnxRuntimeBackend.create({ onnx, threads, signal })
  const loading = openAny({ backend, fallback, failover, checked, load: () => loadEngine(source, isOnnx, options, checked) })
  return untilAborted(loading, checked.signal, discard)
}

interface Sources {
  backend: 'auto' | 'tensorrt' | 'onnxruntime'
  load: () => Promise<Engine>
  fallback: OnnxRuntimeSource | undefined
  failover: boolean
  checked: CheckedSessionOptions
}

async function openAny({ backend, load, fallback, failover, checked }: Sources): Promise<Session> {
  if (backend === 'onnxruntime') return Session.open(await fallback!(checked.signal), checked)
  let engine: Engine
  try {
    engine = await load()
  } catch (cause) {
    const isUnusable = cause instanceof TensorRTError && UNUSABLE.has(cause.code)
    if (backend === 'tensorrt' || !isUnusable || fallback === undefined) throw cause
    const runs = await withoutGpu(() => fallback(checked.signal), cause)
    warnOf(checked, { code: 'ONNXRUNTIME_FALLBACK', message: `onnxruntime runs the model on the CPU, as no GPU can. ${cause.message}`, cause })
    return Session.open(runs, checked)
  }
  try {
    engine.requireWeights()
    const session = await openOver(engine, checked, failover ? standIn(engine, fallback!) : undefined)
    session.onClosed(() => (engine.closed ? undefined : engine.close()))
    return session
  } catch (error) {
    await engine.close()
    throw error
  }
}

function loadEngine(source: unknown, isOnnx: boolean, options: SessionLoadOptions, { signal }: CheckedSessionOptions): Promise<Engine> {
  if (source instanceof Engine) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', 'Session.load() takes a path or bytes, not an Engine', { hint: 'call engine.createSession()' })
  }
  if (isOnnx) {
    const path = String(source)
    const error = new TensorRTError('ERR_ENGINE_REQUIRED', `A GPU runs a built engine, and ${path} is an ONNX file`, {
      hint: `build one: npx node-tensorrt build ${path}`,
    })
    return Promise.reject(error)
  }
  if (typeof source !== 'string' && !(source instanceof Uint8Array) && !(source instanceof ArrayBuffer)) {
    return Promise.reject(invalidArgument('source', 'the path of a plan, an engine folder or an ONNX file, or the bytes of a plan', describeValue(source)))
  }
  const given: Partial<Record<EngineOptionName, unknown>> = {}
  for (const name of ENGINE_OPTION_NAMES) given[name] = options[name]
  return Engine.load(source, { ...(given as EngineLoadOptions), signal })
}

/** What keeps the fallback from running says also why it was needed. */
async function withoutGpu(fallback: () => Promise<OnnxRuntimeBackend>, reason: TensorRTError): Promise<OnnxRuntimeBackend> {
  try {
    return await fallback()
  } catch (error) {
    if (!(error instanceof TensorRTError)) throw error
    throw new TensorRTError(error.code, `${error.message}; and no GPU is usable: ${reason.message}`, {
      hint: error.hint,
      cause: new AggregateError([reason, error], 'neither a GPU nor onnxruntime runs the model'),
    })
  }
}

type OnnxRuntimeSource = (signal: AbortSignal | undefined) => Promise<OnnxRuntimeBackend>

/** onnxruntime in place of the engine, if its file has the same inputs and outputs. */
function standIn(engine: Engine, fallback: OnnxRuntimeSource): BackendSource {
  const expected = engineSignature(JSON.parse(engine.native.info), undefined)
  return async () => {
    // Long after the creation, whose signal may have aborted since.
    const backend = await fallback(undefined)
    const mismatch = signatureMismatch(expected, backend.signature)
    if (mismatch === undefined) return backend
    await backend.close()
    throw new TensorRTError('ERR_ONNX_UNSUPPORTED', `The ONNX file cannot stand in for the engine: ${mismatch}`)
  }
}
