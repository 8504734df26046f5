import type { Piece, StripRule } from './decode_plan'
import { Utf8Stream } from './utf8_stream'

export interface DetokenizerOptions {
  /** Leave special tokens out of the text. Default false. */
  skipSpecialTokens?: boolean | undefined
  /**
   * The tokens continue a text instead of starting one: the rules for a text's beginning (the leading space that
   * SentencePiece-type tokenizers add and their decoders cut) do not apply. Default false, as in `Tokenizer.decode`.
   */
  continuation?: boolean | undefined
}

/** What a detokenizer needs of a tokenizer; `Tokenizer` is one. */
export interface PieceSource {
  /** Piece of token `id`, `''` for an id without a token. Throws ERR_INVALID_TOKEN for what is no token id at all. */
  piece(id: number, first: boolean): Piece
  isSpecial(id: number): boolean
  readonly stripStart: StripRule
  readonly stripStop: StripRule
}

/**
 * Turns tokens into text as they arrive. Never emits half a character: the first bytes of a character wait for the
 * rest, and bytes that can no longer become one are U+FFFD. All that is emitted, flush included, equals
 * `Tokenizer.decode` of all ids, at constant cost a token.
 */
export class Detokenizer {
  private readonly skipSpecial: boolean
  private readonly utf8 = new Utf8Stream()
  private first: boolean
  private startLeft: number
  /** Characters at the end of the text that the decoder cuts if nothing follows; at most `stripStop.count`. */
  private tail = ''

  constructor(
    private readonly source: PieceSource,
    options: DetokenizerOptions = {},
  ) {
    this.skipSpecial = options.skipSpecialTokens ?? false
    this.first = !(options.continuation ?? false)
    this.startLeft = this.first ? source.stripStart.count : 0
  }

  /**
   * Text that became certain with these tokens; may be empty.
   * @throws ERR_INVALID_TOKEN for a value that is no token id.
   */
  push(ids: Iterable<number>): string {
    let text = ''
    for (const id of ids) text += this.next(id)
    return this.atEnds(text)
  }

  /** Same as {@link push} for one token. */
  pushToken(id: number): string {
    return this.atEnds(this.next(id))
  }

  /**
   * Ends the text: a character under way becomes U+FFFD. The detokenizer can go on afterwards as if the text continued.
   */
  flush(): string {
    const text = this.atEnds(this.utf8.flush())
    this.tail = ''
    return text
  }

  private next(id: number): string {
    if (this.skipSpecial && this.source.isSpecial(id)) return ''
    const piece = this.source.piece(id, this.first)
    this.first = false
    if (typeof piece !== 'string') return this.utf8.push(piece)
    return this.utf8.pending && piece !== '' ? this.utf8.flush() + piece : piece
  }

  private atEnds(text: string): string {
    if (this.startLeft > 0 && text !== '') {
      let cut = 0
      while (cut < this.startLeft && text[cut] === this.source.stripStart.content) cut++
      this.startLeft = cut === text.length ? this.startLeft - cut : 0
      text = text.slice(cut)
    }
    const { content, count } = this.source.stripStop
    if (count === 0) return text
    const whole = this.tail + text
    let end = whole.length
    while (end > 0 && whole.length - end < count && whole[end - 1] === content) end--
    this.tail = whole.slice(end)
    return whole.slice(0, end)
  }
}
