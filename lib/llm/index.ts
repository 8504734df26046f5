export { buildLLMEngine, type BuildEngineOptions, type BuildProgress, type BuiltEngine } from './build_engine'
export { dryRunOf } from './dry_run'
export type { EmbeddingResult, EmbedInput, EmbedOptions } from './embedding'
export { abortGeneration, consumeChunks, type Generation, type OnChunk } from './generation'
export type { Grammar } from '../grammar'
export type { GenerationDefaults } from './generation_config'
export { type FromExecutorOptions, LLM, type LLMInfo } from './llm'
export type { LLMHealth, LLMState } from './health'
export { inspectModel, type ModelFacts } from './model_folder'
export { EncodedPrompt } from './options'
export { type EmbeddingDefaults, type EmbeddingOptions, type Pooling } from './pooling'
export type {
  BackendChoice,
  ChatInputOptions,
  CloseOptions,
  EngineOptions,
  GenerateOptions,
  LLMOptions,
  LLMWarning,
  PromptOptions,
  ReportOptions,
  RestartOptions,
  SamplingOptions,
  ScheduleOptions,
  StopOptions,
} from './options'
export type {
  FinishReason,
  GenerationChoice,
  GenerationChunk,
  GenerationResult,
  GenerationTimings,
  TokenLogprob,
  Usage,
} from './result'
export type { LLMLoad, LLMStats } from './stats'
export { type Quantiles, quantiles, seededRandom } from './statistics'
export {
  saveReferences,
  type SaveReferencesOptions,
  type VerificationReport,
  verifyEngine,
  type VerifyOptions,
  type VerifyProgress,
} from './verify_engine'
export type { WorstPosition } from './logit_comparison'
export type { StepObserver } from './observe'
export type { LayerProfile, LayerTimes, PartTimes } from './layer_times'
export type { LLMProfile, ProfileOptions } from './profile'
export type { StepProfile } from './step_recorder'
