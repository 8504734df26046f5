export { detectToolCallFormat } from './detect'
export { forcedToolCalls, type ForcedToolCalls, type ForcedToolChoice } from './forced'
export {
  createToolCallParser,
  formatToolCallId,
  needsSpecialTokens,
  TOOL_CALL_FORMATS,
  type ToolCallFormatName,
  toolCallMarkers,
} from './parser'
export type { ToolCallDelta, ToolCallOutput, ToolCallParser, ToolCallParserOptions, ToolDefinition } from './types'
