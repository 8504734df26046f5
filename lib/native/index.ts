export type * from './addon'
export type * from './onnx_addon'
export type * from './runtime_addon'
export { CpuBackend, type CpuBackendOptions, fromNativeError, NativeExecutor } from './backend'
export { type PlanTrial, tryPlan } from './plan_trial'
export { createNativeRuntime, injectNativeFaults, native, nativeAsync, setNativeLogListener } from './runtime'
export { ADDON_PATH_VARIABLE, loadAddon, type LoadedAddon } from './load'
export { type GpuUsage, gpuUsage } from './nvml'
export { buildOnnxPlan, inspectOnnx, type OnnxPlanOptions } from './onnx'
export {
  buildPlan,
  createTensorRTBackend,
  MODULE_PATH_VARIABLE,
  type PlanBuildOptions,
  probeTensorRT,
  problemError,
  type TensorRTBackendOptions,
  type TensorRTProbe,
} from './tensorrt'
