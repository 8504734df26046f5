export { encodeChat, type EncodeChatOptions, type EncodedChat } from './chat_encoding'
export { ChatTemplate, MAX_CHAT_LENGTH, type RenderOptions } from './chat_template'
export { Detokenizer, type DetokenizerOptions } from './detokenizer'
export type { ChatMessage, TextPart } from './messages'
export {
  MAX_STOP_LENGTH,
  MAX_STOP_STRINGS,
  StopMatcher,
  type StopMatcherOptions,
  type StopResult,
  StopSet,
} from './stop_strings'
export { Tokenizer, type DecodeOptions, type EncodeOptions, type SpecialTokenName } from './tokenizer'
