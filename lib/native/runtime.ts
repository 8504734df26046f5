/** The generic runtime's native calls, with the module found and errors converted. */
import { AbortError } from '../errors'
import type { NativeAddon } from './addon'
import { fromNativeError } from './backend'
import { loadAddon } from './load'
import type { NativeFaults, NativeLogLine, NativeLogSeverity, NativeRuntime, NativeRuntimeOptions } from './runtime_addon'
import { findModule, fromModuleError, withModule } from './tensorrt'

/**
 * TensorRT's runtime on a device. Its methods, and those of what it makes, throw raw native errors: call them within {@link native} or
 * {@link nativeAsync}.
 *
 * @throws TensorRTError (as a rejection) the addon's load errors, ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED,
 *   ERR_DRIVER_NOT_FOUND, ERR_DRIVER_TOO_OLD, ERR_NO_GPU, ERR_CUDA, ERR_TENSORRT_NOT_FOUND, ERR_VERSION_MISMATCH, ERR_INVALID_ARGUMENT
 *   for a device that is not there
 */
export function createNativeRuntime(options: Omit<NativeRuntimeOptions, 'modulePath'>): Promise<NativeRuntime> {
  return withModule((addon, modulePath) => addon.createRuntime({ ...options, modulePath }))
}

/**
 * Lines of TensorRT's log from `severity` up, in batches; see `setLogListener` of the native surface. Null ends it.
 *
 * @throws TensorRTError what {@link createNativeRuntime} rejects with as long as the module is not open; ERR_INVALID_ARGUMENT
 */
export function setNativeLogListener(
  severity: NativeLogSeverity,
  listener: ((lines: NativeLogLine[], dropped: number) => void) | null,
): void {
  withModuleSync((addon, modulePath) => addon.setLogListener(modulePath, severity, listener))
}

/** Failures on demand, counted from now on over the whole process. Verification only. */
export function injectNativeFaults(faults: Partial<NativeFaults>): void {
  const none: NativeFaults = { failDeviceAllocation: 0, failPinnedAllocation: 0, failEnqueue: 0, failCopy: 0 }
  withModuleSync((addon, modulePath) => addon.injectFaults(modulePath, { ...none, ...faults }))
}

/** Runs a call of a native object; what it throws is converted to TensorRTError or AbortError. */
export function native<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw convert(error)
  }
}

/** Like {@link native} for a call that returns a promise: failures are rejections. */
export async function nativeAsync<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call()
  } catch (error) {
    throw convert(error)
  }
}

function convert(error: unknown): unknown {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: string }
  return code === 'ABORT_ERR' ? new AbortError(undefined, message) : fromNativeError(error)
}

function withModuleSync(call: (addon: NativeAddon, modulePath: string) => void): void {
  const { addon, path } = loadAddon()
  const modulePath = findModule(path)
  try {
    call(addon, modulePath)
  } catch (error) {
    throw fromModuleError(modulePath, error)
  }
}
