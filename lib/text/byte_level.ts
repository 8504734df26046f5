/** Byte-level pre-tokenizers of @huggingface/tokenizers, which encode each word to bytes and map these one by one: a third of what encoding a text takes. */

/** The part of `ByteLevel` that is used here. */
interface ByteLevel {
  readonly add_prefix_space: boolean
  readonly use_regex: boolean
  readonly pattern: RegExp
  /** The letter that stands for a byte. */
  readonly byte_encoder: Readonly<Record<number, string>>
  pre_tokenize_text(text: string): string[]
}

function isByteLevel(node: object): node is ByteLevel {
  const { byte_encoder: letters, use_regex: splits, pattern, pre_tokenize_text: method } = node as Partial<ByteLevel>
  return typeof letters === 'object' && typeof splits === 'boolean' && pattern instanceof RegExp && typeof method === 'function'
}

/** Has the byte-level parts of a pre-tokenizer spell their words faster, and the same. Others are left as they are. */
export function spellFaster(preTokenizer: unknown): void {
  if ((typeof preTokenizer !== 'object' && typeof preTokenizer !== 'function') || preTokenizer === null) return
  const { tokenizers } = preTokenizer as { tokenizers?: unknown }
  if (Array.isArray(tokenizers)) for (const part of tokenizers) spellFaster(part)
  if (!isByteLevel(preTokenizer)) return
  const { add_prefix_space: prefixed, use_regex: splits, pattern, byte_encoder: encoder } = preTokenizer
  const letters = Array.from({ length: 256 }, (_, byte) => encoder[byte]!)
  const spell = (word: string): string => {
    let spelt = ''
    for (let i = 0; i < word.length; i++) {
      const code = word.charCodeAt(i)
      if (code >= 0x80) return spellBytes(word, letters)
      spelt += letters[code]!
    }
    return spelt
  }
  preTokenizer.pre_tokenize_text = (given) => {
    const text = prefixed && !given.startsWith(' ') ? ` ${given}` : given
    return splits ? (text.match(pattern) ?? []).map(spell) : [spell(text)]
  }
}

function spellBytes(word: string, letters: readonly string[]): string {
  let spelt = ''
  for (const byte of Buffer.from(word)) spelt += letters[byte]!
  return spelt
}
