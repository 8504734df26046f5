export { createEngineSession, type SessionLoadOptions } from './load_session'
export type {
  BatchingOptions,
  OutputMap,
  RaggedDimension,
  RunOptions,
  SessionCloseOptions,
  SessionOptions,
  SessionWarning,
  TensorMap,
} from './options'
export { Session, type SessionInfo, type TensorSignature } from './session'
export type { DurationStats, LaneStats, SessionStats } from './session_stats'
