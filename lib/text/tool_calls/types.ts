/** A part of a tool call, as OpenAI's streams have it: the first of a call has `id` and `name`, later ones extend `arguments`. */
export interface ToolCallDelta {
  /** Number of the call in the message, from 0. */
  index: number
  id?: string
  name?: string
  /** What follows in the JSON text of the arguments. */
  arguments?: string
}

export interface ToolCallOutput {
  /** Text that is no tool call. */
  content: string
  /** At most one delta a call. */
  calls: ToolCallDelta[]
}

/**
 * Tells tool calls from text while it arrives. What comes out does not depend on how the text was cut; text that turns out
 * to be no call comes out as content, in its order.
 */
export interface ToolCallParser {
  push(text: string): ToolCallOutput
  /** Ends the text: what was held back. Call it once. */
  end(): ToolCallOutput & { anyCalls: boolean }
}

/** A function that the model may call. */
export interface ToolDefinition {
  readonly name: string
  /** JSON schema of the arguments, an object; undefined: no schema. */
  readonly parameters?: Readonly<Record<string, unknown>> | undefined
}

export interface ToolCallParserOptions {
  /**
   * Functions of the request. Formats without a marker (`llama3_json`, `pythonic`) take for a call only what names one of
   * them; after a marker any name is a call.
   */
  tools: readonly ToolDefinition[]
  /** A new id for a call. See {@link formatToolCallId}. */
  newId: () => string
}
