/** The ONNX part of the TensorRT module, with the module found and errors converted. */
import { abortableBuild } from './abortable_build'
import type { NativeBuildProgress } from './addon'
import type { NativeOnnxBuildOptions, NativeOnnxBuildResult, NativeOnnxReport, NativeOnnxSource } from './onnx_addon'
import { withModule } from './tensorrt'

export interface OnnxPlanOptions extends Omit<NativeOnnxBuildOptions, 'modulePath'> {
  signal?: AbortSignal | undefined
  onProgress?: ((progress: NativeBuildProgress) => void) | undefined
}

/**
 * Builds the plan of an ONNX model into a file, off the event loop. Takes seconds to minutes, and the whole GPU.
 *
 * @throws (as a rejection) what keeps module, driver or library from being used; ERR_ONNX_INVALID, ERR_ONNX_UNSUPPORTED,
 *   ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ERR_OUT_OF_DEVICE_MEMORY, ERR_BUILD_FAILED, ERR_IO; AbortError after an abort, once TensorRT
 *   has let go
 */
export function buildOnnxPlan(options: OnnxPlanOptions): Promise<NativeOnnxBuildResult> {
  const { signal, onProgress, ...native } = options
  return withModule((addon, modulePath) =>
    abortableBuild(signal, () => addon.buildOnnxEngine({ ...native, modulePath }, onProgress)),
  )
}

/**
 * What of an ONNX model TensorRT does not support. Needs a GPU.
 *
 * @throws (as a rejection) what keeps module, driver or library from being used; ERR_ONNX_INVALID, ERR_IO
 */
export function inspectOnnx(source: Omit<NativeOnnxSource, 'modulePath'>): Promise<NativeOnnxReport> {
  return withModule((addon, modulePath) => addon.inspectOnnx({ ...source, modulePath }))
}
