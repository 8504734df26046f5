export type * from './addon'
export { CpuBackend, type CpuBackendOptions } from './backend'
export { ADDON_PATH_VARIABLE, loadAddon, type LoadedAddon } from './load'
