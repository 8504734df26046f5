/**
 * Typed access to the two Hugging Face libraries of this room. Both publish declarations for ES modules only, which a
 * CommonJS build cannot name, so the part of their public surface that is used here is declared by hand.
 */

/** An added token of tokenizer.json: a string that the tokenizer matches before it splits anything else. */
export interface HfAddedToken {
  readonly content: string
  readonly id: number
  readonly lstrip: boolean
  readonly rstrip: boolean
  /** Matched against normalised text instead of the raw text. */
  readonly normalized: boolean
  readonly special: boolean
}

export interface HfTokenizer {
  readonly normalizer: ((text: string) => string) | null
  readonly pre_tokenizer: ((text: string, options: { section_index: number }) => string[]) | null
  readonly model: (tokens: string[]) => string[]
  readonly post_processor: ((tokens: string[], pair: null, addSpecialTokens: boolean) => { tokens: string[] }) | null
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] }
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string
  token_to_id(token: string): number | undefined
  get_added_tokens_decoder(): Map<number, HfAddedToken>
  get_vocab(withAddedTokens: boolean): Map<string, number>
}

interface HfTokenizersModule {
  Tokenizer: new (tokenizerJson: object, tokenizerConfig: object) => HfTokenizer
}

/** A node of a template's syntax tree. */
export interface JinjaNode {
  readonly type: string
  readonly [field: string]: unknown
}

export interface JinjaTemplate {
  readonly parsed: JinjaNode & { readonly body: JinjaNode[] }
  render(variables: Record<string, unknown>): string
}

interface JinjaModule {
  Template: new (source: string) => JinjaTemplate
}

export const { Tokenizer: HfTokenizerClass } = require('@huggingface/tokenizers') as HfTokenizersModule
export const { Template: JinjaTemplateClass } = require('@huggingface/jinja') as JinjaModule
