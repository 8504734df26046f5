export { encodeChat, encodeChatInput, type EncodeChatOptions, type EncodedChat } from './chat_encoding'
export { ChatTemplate, MAX_CHAT_LENGTH, type RenderGuard, type RenderInput, type RenderOptions, validateChat } from './chat_template'
export { Detokenizer, type DetokenizerOptions } from './detokenizer'
export type { ChatMessage, TextPart } from './messages'
export {
  createReasoningParser,
  detectReasoningFormat,
  promptOpensReasoning,
  REASONING_FORMATS,
  REASONING_MARKERS,
  type ReasoningFormatName,
  type ReasoningOutput,
  type ReasoningParser,
  type ReasoningParserOptions,
} from './reasoning'
export {
  MAX_STOP_LENGTH,
  MAX_STOP_STRINGS,
  StopMatcher,
  type StopMatcherOptions,
  type StopResult,
  StopSet,
} from './stop_strings'
export { Tokenizer, type DecodeOptions, type EncodeOptions, type SpecialTokenName } from './tokenizer'
export {
  createToolCallParser,
  detectToolCallFormat,
  type ForcedToolCalls,
  forcedToolCalls,
  type ForcedToolChoice,
  formatToolCallId,
  needsSpecialTokens,
  TOOL_CALL_FORMATS,
  type ToolCallDelta,
  type ToolCallFormatName,
  toolCallMarkers,
  type ToolCallOutput,
  type ToolCallParser,
  type ToolCallParserOptions,
  type ToolDefinition,
} from './tool_calls'
