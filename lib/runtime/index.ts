export { followSignal } from './abort_signals'
export { ArgumentReader, closest, describeValue, invalidArgument } from './argument_reader'
export {
  type EngineFolder,
  isEngineFolder,
  locateWeights,
  readEngineFolder,
  readPlan,
  requireFit,
  requireUsable,
  requireWritable,
  writeEngineFolder,
  type WeightsOptions,
} from './engine_folder'
export { sha256File } from './file_hash'
export {
  ENGINE_FORMAT,
  type EngineManifest,
  formatCudaVersion,
  formatLibraryVersion,
  parseManifest,
  type WeightFile,
} from './manifest'
export { checkProfiles, DEFAULT_MAX_STEP_TOKENS, defaultHeadProfiles, defaultProfiles, packProfiles, type RowProfile } from './profiles'
