import type { ToolCallFormatName } from './parser'

/** What only templates of one format contain; the first that matches counts. */
const SIGNS: readonly (readonly [RegExp, ToolCallFormatName])[] = [
  [/\[TOOL_CALLS\]/, 'mistral'],
  [/<｜tool▁calls?▁begin｜>/, 'deepseek_v3'],
  [/<tool_call>/, 'hermes'],
  // The instruction "[func_name1(params_name1=params_value1, ...)]", or a loop that writes such calls.
  [/\[\s*\w+\(\s*\w+\s*=/, 'pythonic'],
  [/<\|python_tag\|>|\{\\?"name\\?":[^]*\\?"parameters\\?":/, 'llama3_json'],
]

/**
 * The format that a chat template teaches its model; undefined where it says nothing of tools. Formats that mark calls by
 * tags of XML within `<tool_call>` (GLM, Qwen3-Coder) are not known, and undefined too.
 */
export function detectToolCallFormat(chatTemplate: string): ToolCallFormatName | undefined {
  if (!/\btools?\b|tool_calls/.test(chatTemplate)) return undefined
  if (/<tool_call>/.test(chatTemplate) && /<function=|<arg_key>/.test(chatTemplate)) return undefined
  return SIGNS.find(([sign]) => sign.test(chatTemplate))?.[1]
}
