import { TensorRTError } from '../errors'
import { spellFaster } from './byte_level'
import { bytesOfPiece, compileDecoder, type DecodePlan, type Piece, type StripRule } from './decode_plan'
import { Detokenizer, type PieceSource } from './detokenizer'
import { HfTokenizerClass, type HfAddedToken, type HfTokenizer } from './hf_libraries'
import { alternation } from './patterns'
import { longestToken } from './token_bound'

export interface EncodeOptions {
  /** Add what the tokenizer's post-processor adds, usually BOS. Default true. */
  addSpecialTokens?: boolean | undefined
  /**
   * Whether special tokens spelt out in the text (`<|end|>`) become their ids, as in transformers. With false they are
   * ordinary text, and no special id other than the unknown token comes of the text. Default true.
   */
  allowSpecial?: boolean | undefined
  /**
   * Most tokens to accept. A text that is far too long is refused without the cost of encoding it. Default: no limit.
   */
  maxTokens?: number | undefined
}

export interface DecodeOptions {
  /** Leave special tokens out of the text. Default false. */
  skipSpecialTokens?: boolean | undefined
}

/** Names of the special tokens of tokenizer_config.json, with the strings they stand for. */
export type SpecialTokenName =
  'bos_token' | 'eos_token' | 'unk_token' | 'pad_token' | 'sep_token' | 'cls_token' | 'mask_token'

const SPECIAL_TOKEN_NAMES: readonly SpecialTokenName[] = [
  'bos_token',
  'eos_token',
  'unk_token',
  'pad_token',
  'sep_token',
  'cls_token',
  'mask_token',
]

type JsonObject = Readonly<Record<string, unknown>>

/** A stretch of a text that is split at added tokens. */
interface Section {
  text: string
  readonly added: HfAddedToken | undefined
}

function asObject(value: unknown, file: string): JsonObject {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as JsonObject
  throw new TensorRTError('ERR_TOKENIZER_INVALID', `${file} is not a JSON object`)
}

function tokenContent(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  const content = (value as { content?: unknown } | null | undefined)?.content
  return typeof content === 'string' ? content : undefined
}

/**
 * Strings of the special tokens that a tokenizer_config.json names; an entry is a string or an object with `content`.
 */
function namedSpecialTokens(config: JsonObject): ReadonlyMap<SpecialTokenName, string> {
  const named = new Map<SpecialTokenName, string>()
  for (const name of SPECIAL_TOKEN_NAMES) {
    const content = tokenContent(config[name])
    if (content !== undefined && content !== '') named.set(name, content)
  }
  return named
}

/**
 * The tokenizer of a Hugging Face folder. Encoding is `@huggingface/tokenizers`'; decoding is this library's own, token
 * by token, so that a stream and a whole text agree. The clean-up of spaces before punctuation
 * (`clean_up_tokenization_spaces`) is never applied: it changes text that the model wrote.
 */
export class Tokenizer implements PieceSource {
  /** One more than the largest token id. A model's vocabulary may be larger, padded with ids that stand for nothing. */
  readonly vocabSize: number
  readonly specialTokenIds: ReadonlySet<number>
  /** Strings by name, for a chat template. */
  readonly specialTokens: ReadonlyMap<SpecialTokenName, string>
  readonly bosTokenId: number | undefined
  readonly eosTokenId: number | undefined
  readonly unkTokenId: number | undefined
  readonly stripStart: StripRule
  readonly stripStop: StripRule
  /** Strings that the tokenizer turns into special tokens wherever they stand. */
  readonly specialContents: readonly string[]

  /**
   * What it was made of, for another of the same kind.
   * @internal
   */
  readonly definition: { readonly tokenizerJson: unknown; readonly tokenizerConfig: unknown }

  private readonly hf: HfTokenizer
  private readonly plan: DecodePlan
  private readonly longestToken: number
  private readonly tokens: (string | undefined)[] = []
  private readonly addedById = new Map<number, HfAddedToken>()
  private readonly pieces: (Piece | undefined)[]
  private readonly firstPieces: (Piece | undefined)[]
  private readonly addedByContent = new Map<string, HfAddedToken>()
  private readonly addedByNormalized = new Map<string, HfAddedToken>()
  private readonly specialPattern: RegExp | undefined
  private readonly ordinaryAddedPattern: RegExp | undefined
  private readonly normalizedAddedPattern: RegExp | undefined

  /**
   * @param tokenizerJson parsed tokenizer.json
   * @param tokenizerConfig parsed tokenizer_config.json; an empty object where a folder has none
   * @throws ERR_TOKENIZER_INVALID for JSON that is no tokenizer, ERR_MODEL_UNSUPPORTED for a kind that cannot be used
   */
  constructor(tokenizerJson: unknown, tokenizerConfig: unknown = {}) {
    const json = asObject(tokenizerJson, 'tokenizer.json')
    const config = asObject(tokenizerConfig, 'tokenizer_config.json')
    this.definition = { tokenizerJson, tokenizerConfig }
    const model = asObject(json['model'], 'The "model" of tokenizer.json')
    if (typeof model['end_of_word_suffix'] === 'string' && model['end_of_word_suffix'] !== '') {
      throw new TensorRTError('ERR_MODEL_UNSUPPORTED', 'Tokenizers with an end_of_word_suffix are not supported')
    }
    this.plan = compileDecoder(json['decoder'])
    this.stripStart = this.plan.stripStart
    this.stripStop = this.plan.stripStop
    try {
      const complete = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...json }
      this.hf = new HfTokenizerClass({ ...complete, added_tokens: json['added_tokens'] ?? [] }, config)
      spellFaster(this.hf.pre_tokenizer)
      for (const [token, id] of this.hf.get_vocab(true)) if (typeof token === 'string') this.tokens[id] = token
      for (const [id, token] of this.hf.get_added_tokens_decoder()) this.addedById.set(id, token)
    } catch (cause) {
      throw new TensorRTError('ERR_TOKENIZER_INVALID', `tokenizer.json cannot be used: ${(cause as Error).message}`, {
        cause,
      })
    }
    this.vocabSize = this.tokens.length
    if (this.vocabSize === 0) throw new TensorRTError('ERR_TOKENIZER_INVALID', 'tokenizer.json has an empty vocabulary')
    // Allocated whole: an array that is filled here and there turns into a slow hash table.
    this.pieces = Array.from({ length: this.vocabSize })
    this.firstPieces = this.plan.firstDiffers ? [] : this.pieces

    this.longestToken = longestToken(json, this.tokens)

    this.specialTokens = namedSpecialTokens(config)
    this.bosTokenId = this.idOfName('bos_token')
    this.eosTokenId = this.idOfName('eos_token')
    const unknown = model['unk_token'] ?? this.tokens[model['unk_id'] as number]
    this.unkTokenId = this.idOfName('unk_token') ?? (typeof unknown === 'string' ? this.tokenToId(unknown) : undefined)
    this.specialTokenIds = this.collectSpecialIds(config)

    for (const [id, added] of this.addedById) {
      const byNormalized = added.normalized && this.hf.normalizer !== null && !this.specialTokenIds.has(id)
      if (byNormalized) this.addedByNormalized.set(this.hf.normalizer!(added.content), added)
      else this.addedByContent.set(added.content, added)
    }
    const special = [...this.addedById.values()].filter((added) => this.specialTokenIds.has(added.id))
    this.specialContents = special.map((added) => added.content).filter((content) => content !== '')
    this.specialPattern = alternation(this.specialContents, 'g')
    this.ordinaryAddedPattern = alternation(
      [...this.addedByContent].flatMap(([content, added]) => (this.specialTokenIds.has(added.id) ? [] : [content])),
      'g',
    )
    this.normalizedAddedPattern = alternation([...this.addedByNormalized.keys()], 'g')
  }

  /**
   * Token ids of a text.
   * @throws ERR_INVALID_ARGUMENT where `text` is no string
   * @throws ERR_PROMPT_TOO_LONG where it has more than `maxTokens` tokens
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    if (typeof text !== 'string') throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The text to encode must be a string')
    this.assertMayFit(text, options.maxTokens)
    const ids = this.encodeWhole(text, options)
    this.assertAtMost(options.maxTokens, ids.length, false)
    return ids
  }

  /** A number of tokens that the text has at least, found without encoding it; may be 0. */
  minTokens(text: string): number {
    return Math.ceil(text.length / this.longestToken)
  }

  /**
   * Refuses a text that is far too long, without encoding it.
   * @internal
   * @throws ERR_PROMPT_TOO_LONG where it has more than `maxTokens` tokens for certain
   */
  assertMayFit(text: string, maxTokens: number | undefined): void {
    this.assertAtMost(maxTokens, this.minTokens(text), true)
  }

  /**
   * Token ids of a text in which some special tokens are disguised: those that stand undisguised become their ids, and
   * what `reveal` makes of the text between them is ordinary text, as with `allowSpecial: false`. Nothing is added at
   * the ends.
   * @internal
   * @throws ERR_PROMPT_TOO_LONG where it has more than `maxTokens` tokens
   */
  encodeDisguised(text: string, reveal: (text: string) => string, maxTokens?: number): number[] {
    this.assertMayFit(text, maxTokens)
    const sections = this.splitAtAdded(text, this.specialPattern).flatMap((section) =>
      section.added ? [section] : this.splitAtAdded(reveal(section.text), this.ordinaryAddedPattern),
    )
    const ids = this.idsOf(this.encodeSections(sections))
    this.assertAtMost(maxTokens, ids.length, false)
    return ids
  }

  /**
   * Text of token ids. Bytes that are no UTF-8 become U+FFFD; ids above the vocabulary stand for nothing.
   * @throws ERR_INVALID_TOKEN for a value that is no non-negative integer
   */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const detokenizer = new Detokenizer(this, options)
    return detokenizer.push(ids) + detokenizer.flush()
  }

  tokenToId(token: string): number | undefined {
    return this.hf.token_to_id(token)
  }

  /** The token as the vocabulary spells it, which is not its text: see {@link tokenBytes}. */
  idToToken(id: number): string | undefined {
    return this.tokens[id]
  }

  isSpecial(id: number): boolean {
    return this.specialTokenIds.has(id)
  }

  /**
   * Bytes that a token adds in the middle of a text.
   * @returns `'special'` for a special token, which is no text, and undefined for an id without a token
   * @throws ERR_INVALID_TOKEN for a value that is no non-negative integer
   */
  tokenBytes(id: number): Uint8Array | 'special' | undefined {
    const piece = this.piece(id, false)
    if (this.specialTokenIds.has(id)) return 'special'
    return this.tokens[id] === undefined ? undefined : bytesOfPiece(piece).slice()
  }

  piece(id: number, first: boolean): Piece {
    const cache = first ? this.firstPieces : this.pieces
    const cached = cache[id]
    if (cached !== undefined) return cached
    if (!Number.isInteger(id) || id < 0) {
      throw new TensorRTError('ERR_INVALID_TOKEN', `Not a token id: ${String(id)}`)
    }
    const token = this.tokens[id]
    if (token === undefined) return ''
    return (cache[id] = this.plan.piece(token, this.addedById.has(id), first))
  }

  /**
   * Where undisguised special tokens stand in a text: offset and token of each, leftmost and longest first.
   * @internal
   */
  findSpecial(text: string): { index: number; content: string }[] {
    if (!this.specialPattern) return []
    return Array.from(text.matchAll(this.specialPattern), (match) => ({ index: match.index, content: match[0] }))
  }

  private encodeWhole(text: string, options: EncodeOptions): number[] {
    const addSpecial = options.addSpecialTokens ?? true
    if (options.allowSpecial ?? true) return this.checked(this.hf.encode(text, { add_special_tokens: addSpecial }).ids)
    const plain = this.checked(this.hf.encode(text, { add_special_tokens: false }).ids)
    if (!addSpecial && !plain.some((id) => this.isForbidden(id))) return plain
    const tokens = this.encodeSections(this.splitAtAdded(text, this.ordinaryAddedPattern))
    return this.idsOf(this.hf.post_processor?.(tokens, null, addSpecial).tokens ?? tokens)
  }

  private assertAtMost(maxTokens: number | undefined, tokens: number, estimate: boolean): void {
    if (maxTokens === undefined || tokens <= maxTokens) return
    const counted = `${estimate ? 'at least ' : ''}${tokens} tokens`
    throw new TensorRTError('ERR_PROMPT_TOO_LONG', `The text has ${counted}, the limit is ${maxTokens}`, { hint: 'shorten it' })
  }

  private idOfName(name: SpecialTokenName): number | undefined {
    const content = this.specialTokens.get(name)
    return content === undefined ? undefined : this.tokenToId(content)
  }

  private collectSpecialIds(config: JsonObject): Set<number> {
    const ids = new Set<number>()
    for (const [id, added] of this.addedById) if (added.special) ids.add(id)
    const additional = config['additional_special_tokens'] ?? config['extra_special_tokens']
    const more = Array.isArray(additional) ? additional : []
    for (const token of [...this.specialTokens.values(), ...more]) {
      const content = tokenContent(token)
      const id = content === undefined ? undefined : this.tokenToId(content)
      if (id !== undefined) ids.add(id)
    }
    return ids
  }

  /** The unknown token may come of any text that the vocabulary does not cover, so it alone is allowed. */
  private isForbidden(id: number): boolean {
    return id !== this.unkTokenId && this.specialTokenIds.has(id)
  }

  private checked(ids: (number | undefined)[]): number[] {
    if (ids.includes(undefined)) {
      throw new TensorRTError('ERR_TOKENIZER_INVALID', 'The tokenizer made a token that its vocabulary does not hold')
    }
    return ids as number[]
  }

  private idsOf(tokens: string[]): number[] {
    return this.checked(tokens.map((token) => this.tokenToId(token) ?? this.unkTokenId))
  }

  private splitAtAdded(text: string, pattern: RegExp | undefined): Section[] {
    const sections: Section[] = []
    let from = 0
    for (const match of pattern ? text.matchAll(pattern) : []) {
      if (match.index > from) sections.push({ text: text.slice(from, match.index), added: undefined })
      sections.push({
        text: match[0],
        added: this.addedByContent.get(match[0]) ?? this.addedByNormalized.get(match[0]),
      })
      from = match.index + match[0].length
    }
    if (from < text.length) sections.push({ text: text.slice(from), added: undefined })
    return sections
  }

  private encodeSections(sections: Section[]): string[] {
    stripAroundAdded(sections)
    return sections.flatMap((section, index) => {
      if (section.added) return [section.added.content]
      const normalized = this.hf.normalizer ? this.hf.normalizer(section.text) : section.text
      const parts = this.splitAtAdded(normalized, this.normalizedAddedPattern)
      stripAroundAdded(parts)
      return parts.flatMap((part) => (part.added ? [part.added.content] : this.encodeOrdinary(part.text, index)))
    })
  }

  private encodeOrdinary(text: string, sectionIndex: number): string[] {
    if (text === '') return []
    const words = this.hf.pre_tokenizer ? this.hf.pre_tokenizer(text, { section_index: sectionIndex }) : [text]
    const tokens = this.hf.model(words)
    const forbidden = (token: string) => {
      const id = this.tokenToId(token)
      return id !== undefined && this.isForbidden(id)
    }
    if (!tokens.some(forbidden)) return tokens
    // A model that finds a special token's spelling in its vocabulary (Unigram, ignore_merges) gets it by characters.
    return tokens.flatMap((token) =>
      forbidden(token) ? Array.from(token).flatMap((char) => this.hf.model([char])) : [token],
    )
  }
}

/** Added tokens may swallow the white space beside them (`lstrip`, `rstrip`). */
function stripAroundAdded(sections: Section[]): void {
  sections.forEach((section, index) => {
    const before = sections[index - 1]
    const after = sections[index + 1]
    if (section.added?.lstrip && before && !before.added) before.text = before.text.trimEnd()
    if (section.added?.rstrip && after && !after.added) after.text = after.text.trimStart()
  })
}
