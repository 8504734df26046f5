/** Tokens as answers name them: a string and its bytes. */
import type { Tokenizer } from '../../text'

const utf8 = new TextDecoder('utf-8')

export interface TokenText {
  token: string
  /** undefined for tokens that stand for no bytes. */
  bytes: number[] | undefined
  /** UTF-16 units that it adds to a text. */
  length: number
}

export class TokenTexts {
  private readonly known = new Map<number, TokenText>()

  /** @param asIds names each token by its id, `token_id:17` */
  constructor(
    private readonly tokenizer: Tokenizer | undefined,
    private readonly asIds: boolean,
  ) {}

  of(id: number): TokenText {
    let text = this.known.get(id)
    if (text === undefined) {
      text = this.make(id)
      this.known.set(id, text)
    }
    return text
  }

  private make(id: number): TokenText {
    const bytes = this.tokenizer?.tokenBytes(id)
    const known = bytes instanceof Uint8Array ? bytes : undefined
    const text = known === undefined ? undefined : utf8.decode(known)
    return {
      token: this.asIds ? `token_id:${id}` : (text ?? this.tokenizer?.idToToken(id) ?? ''),
      bytes: known && Array.from(known),
      length: text?.length ?? 0,
    }
  }
}
