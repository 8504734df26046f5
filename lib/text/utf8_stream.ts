const REPLACEMENT = '\uFFFD'

/**
 * Incremental UTF-8 decoder, as the Encoding Standard defines it ("UTF-8 decoder", maximal subparts become one U+FFFD
 * each), without its BOM handling: a BOM is kept. Node's TextDecoder in streaming mode gives the same text; this one
 * costs no call into native code, which dominates when a token holds one to four bytes.
 */
export class Utf8Stream {
  private codePoint = 0
  private needed = 0
  private lower = 0x80
  private upper = 0xbf

  /** True while the first bytes of a character wait for the rest. */
  get pending(): boolean {
    return this.needed > 0
  }

  /** Text of the characters that `bytes` completes; what it starts and does not finish is kept. */
  push(bytes: Uint8Array): string {
    let text = ''
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i]!
      if (this.needed > 0) {
        if (byte >= this.lower && byte <= this.upper) {
          this.lower = 0x80
          this.upper = 0xbf
          this.codePoint = (this.codePoint << 6) | (byte & 0x3f)
          if (--this.needed === 0) text += String.fromCodePoint(this.codePoint)
          continue
        }
        text += this.flush()
      }
      if (byte < 0x80) {
        text += String.fromCharCode(byte)
      } else if (byte >= 0xc2 && byte <= 0xdf) {
        this.needed = 1
        this.codePoint = byte & 0x1f
      } else if (byte >= 0xe0 && byte <= 0xef) {
        // E0 must not be overlong, ED must not reach the surrogates.
        if (byte === 0xe0) this.lower = 0xa0
        if (byte === 0xed) this.upper = 0x9f
        this.needed = 2
        this.codePoint = byte & 0xf
      } else if (byte >= 0xf0 && byte <= 0xf4) {
        // F0 must not be overlong, F4 must not pass U+10FFFF.
        if (byte === 0xf0) this.lower = 0x90
        if (byte === 0xf4) this.upper = 0x8f
        this.needed = 3
        this.codePoint = byte & 0x7
      } else {
        text += REPLACEMENT
      }
    }
    return text
  }

  /** Ends the character under way, which is then certain to be broken: U+FFFD, or nothing where none was under way. */
  flush(): string {
    if (this.needed === 0) return ''
    this.needed = 0
    this.lower = 0x80
    this.upper = 0xbf
    return REPLACEMENT
  }
}
