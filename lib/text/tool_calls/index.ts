export { detectToolCallFormat } from './detect'
export { type ForcedGrammar, forcedToolCalls, type ForcedToolCallOptions, type ForcedToolCalls, type ForcedToolChoice } from './forced'
export {
  createToolCallParser,
  formatToolCallId,
  needsSpecialTokens,
  TOOL_CALL_FORMATS,
  type ToolCallFormatName,
  toolCallMarkers,
} from './parser'
export type { ToolCallDelta, ToolCallOutput, ToolCallParser, ToolCallParserOptions, ToolDefinition } from './types'
