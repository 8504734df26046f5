export { ERROR_CODES, AbortError, TensorRTError, isErrorCode, type ErrorCode, type TensorRTErrorOptions } from './errors'
export { CpuBackend, loadAddon, type CpuBackendOptions, type LoadedAddon } from './native'
export type { Executor, ExecutorInfo, SlotInit, SlotSampling, StepResult } from './scheduler/executor'
export { version } from './version'
