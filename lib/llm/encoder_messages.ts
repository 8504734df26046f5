/** What an LLM and its encoder thread tell each other. */
import type { ErrorCode } from '../errors'
import type { ChatTemplate, RenderInput } from '../text'

/** What a tokenizer and a chat template are made of. */
export interface EncoderSource {
  /** Parsed tokenizer.json, or better its text: a string crosses threads at the cost of a copy. */
  tokenizerJson: unknown
  /** Parsed tokenizer_config.json. */
  tokenizerConfig: unknown
  chatTemplate: ChatTemplate['definition']
}

/** A text, or a chat that was validated. */
export type EncodeInput =
  | { kind: 'prompt'; prompt: string; addSpecialTokens: boolean; allowSpecial: boolean }
  | { kind: 'chat'; chat: RenderInput; allowSpecial: boolean }

export interface EncodeJob {
  input: EncodeInput
  /** Most tokens to accept. */
  maxTokens: number
}

export type EncoderAnswer =
  | { kind: 'ready' }
  | { kind: 'encoded'; ids: Int32Array }
  | { kind: 'failed'; code: ErrorCode; message: string; hint: string | undefined }
