export type * from './addon'
export { CpuBackend, type CpuBackendOptions } from './backend'
export { ADDON_PATH_VARIABLE, loadAddon, type LoadedAddon } from './load'
export { createTensorRTBackend, MODULE_PATH_VARIABLE, type TensorRTBackendOptions } from './tensorrt'
