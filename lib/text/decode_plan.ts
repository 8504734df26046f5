import { TensorRTError } from '../errors'

/**
 * A token's text: a string where it holds whole characters only, else its bytes (it starts, continues or breaks a
 * character).
 */
export type Piece = string | Uint8Array

/** Up to `count` copies of the character `content` are cut from one end of the whole text. */
export interface StripRule {
  readonly content: string
  readonly count: number
}

/**
 * The decoder of a tokenizer.json, compiled into what a stream can do: every token maps to a piece of its own, the
 * pieces are concatenated as bytes, and only the two ends of the text are treated specially.
 */
export interface DecodePlan {
  /** Piece of a token; `first` when no kept token precedes it. */
  piece(token: string, added: boolean, first: boolean): Piece
  /** Whether `first` ever matters. */
  readonly firstDiffers: boolean
  readonly stripStart: StripRule
  readonly stripStop: StripRule
}

interface DecoderConfig {
  readonly type?: unknown
  readonly [key: string]: unknown
}

type TokenStage = (token: string, first: boolean) => string

const NO_STRIP: StripRule = { content: '', count: 0 }
const utf8 = new TextEncoder()
const utf8Strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** GPT-2's alphabet: printable bytes stand for themselves, the other 68 for U+0100 and up, in order of their value. */
const BYTE_OF_CHAR: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>()
  let next = 0x100
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    map.set(String.fromCharCode(printable ? byte : next++), byte)
  }
  return map
})()

function pieceOfBytes(bytes: Uint8Array): Piece {
  try {
    return utf8Strict.decode(bytes)
  } catch {
    return bytes
  }
}

/** Bytes of a piece, in UTF-8. */
export function bytesOfPiece(piece: Piece): Uint8Array {
  return typeof piece === 'string' ? utf8.encode(piece) : piece
}

function byteLevelPiece(token: string): Piece {
  const bytes = new Uint8Array(token.length)
  let length = 0
  for (const char of token) {
    const byte = BYTE_OF_CHAR.get(char)
    if (byte === undefined) return token
    bytes[length++] = byte
  }
  return pieceOfBytes(bytes.subarray(0, length))
}

function byteFallbackPiece(token: string): Piece {
  const match = /^<0x([0-9A-Fa-f]{2})>$/.exec(token)
  return match ? pieceOfBytes(Uint8Array.of(Number.parseInt(match[1]!, 16))) : token
}

function unsupported(what: string): TensorRTError {
  return new TensorRTError('ERR_MODEL_UNSUPPORTED', `The tokenizer's decoder cannot be streamed: ${what}`, {
    hint: 'supported are ByteLevel, Metaspace, WordPiece, and sequences of Replace, Strip, ByteFallback and Fuse',
  })
}

function replaceStage(config: DecoderConfig): TokenStage {
  const pattern = config['pattern'] as { String?: unknown; Regex?: unknown } | undefined
  const content = typeof config['content'] === 'string' ? config['content'] : ''
  if (typeof pattern?.String === 'string') {
    const literal = pattern.String
    return (token) => token.replaceAll(literal, () => content)
  }
  if (typeof pattern?.Regex === 'string') {
    let regex: RegExp
    try {
      regex = new RegExp(pattern.Regex, 'gu')
    } catch (cause) {
      throw new TensorRTError('ERR_MODEL_UNSUPPORTED', `Pattern of the tokenizer's decoder: ${pattern.Regex}`, {
        cause,
      })
    }
    return (token) => token.replace(regex, () => content)
  }
  throw new TensorRTError('ERR_TOKENIZER_INVALID', "A Replace step of the tokenizer's decoder has no pattern")
}

function metaspaceStage(config: DecoderConfig): TokenStage {
  const mark = typeof config['replacement'] === 'string' ? config['replacement'] : '\u2581'
  const prepends = config['prepend_scheme'] !== 'never' && config['add_prefix_space'] !== false
  return (token, first) => token.replaceAll(mark, first && prepends ? '' : ' ')
}

/** The tidying of spaces before punctuation that WordPiece decoders ask for, token by token. */
function cleanUp(text: string): string {
  return text
    .replaceAll(' .', '.')
    .replaceAll(' ?', '?')
    .replaceAll(' !', '!')
    .replaceAll(' ,', ',')
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re")
}

function wordPieceStage(config: DecoderConfig): TokenStage {
  const prefix = typeof config['prefix'] === 'string' ? config['prefix'] : '##'
  const tidy = config['cleanup'] === true ? cleanUp : (text: string) => text
  return (token, first) => {
    if (first) return tidy(token)
    return tidy(prefix !== '' && token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`)
  }
}

function stripRules(config: DecoderConfig): { start: StripRule; stop: StripRule } {
  const content = config['content']
  if (typeof content !== 'string' || content.length !== 1) {
    throw new TensorRTError('ERR_TOKENIZER_INVALID', "A Strip step of the tokenizer's decoder must name one character")
  }
  const count = (key: string) => {
    const value = config[key] ?? 0
    if (!Number.isInteger(value) || (value as number) < 0) {
      throw new TensorRTError('ERR_TOKENIZER_INVALID', `A Strip step of the tokenizer's decoder has a bad "${key}"`)
    }
    return value as number
  }
  return { start: { content, count: count('start') }, stop: { content, count: count('stop') } }
}

function stripStage(config: DecoderConfig): TokenStage {
  const { start, stop } = stripRules(config)
  return (token) => {
    let from = 0
    let to = token.length
    while (from < start.count && token[from] === start.content) from++
    while (to > from && token.length - to < stop.count && token[to - 1] === stop.content) to--
    return token.slice(from, to)
  }
}

function flatten(config: DecoderConfig): DecoderConfig[] {
  if (config.type !== 'Sequence') return [config]
  return ((config['decoders'] as DecoderConfig[] | undefined) ?? []).flatMap(flatten)
}

/**
 * Compiles the `decoder` of a tokenizer.json.
 * @throws ERR_MODEL_UNSUPPORTED for a decoder whose output for a token depends on tokens further on (CTC, BPEDecoder, a
 *   Replace after Fuse).
 */
export function compileDecoder(config: unknown): DecodePlan {
  if (config === null || config === undefined) {
    return {
      piece: (token, _added, first) => (first ? token : ` ${token}`),
      firstDiffers: true,
      stripStart: NO_STRIP,
      stripStop: NO_STRIP,
    }
  }
  const stages: TokenStage[] = []
  let toPiece: ((token: string) => Piece) | undefined
  let byteLevel = false
  let fused = false
  let firstDiffers = false
  let stripStart = NO_STRIP
  let stripStop = NO_STRIP

  const addStage = (stage: TokenStage, type: string) => {
    if (fused || toPiece) throw unsupported(`${type} after ${fused ? 'Fuse' : 'a step that makes bytes'}`)
    stages.push(stage)
  }
  for (const step of flatten(config as DecoderConfig)) {
    switch (step.type) {
      case 'ByteLevel':
      case 'ByteFallback':
        if (fused || toPiece) throw unsupported(`${step.type} after ${fused ? 'Fuse' : 'a step that makes bytes'}`)
        byteLevel = step.type === 'ByteLevel'
        toPiece = byteLevel ? byteLevelPiece : byteFallbackPiece
        break
      case 'Replace':
        addStage(replaceStage(step), step.type)
        break
      case 'Metaspace':
        addStage(metaspaceStage(step), step.type)
        firstDiffers = true
        break
      case 'WordPiece':
        addStage(wordPieceStage(step), step.type)
        firstDiffers = true
        break
      case 'Fuse':
        fused = true
        break
      case 'Strip':
        if (!fused) {
          addStage(stripStage(step), step.type)
        } else {
          if (stripStart.count > 0 || stripStop.count > 0) throw unsupported('two Strip steps after Fuse')
          ;({ start: stripStart, stop: stripStop } = stripRules(step))
        }
        break
      default:
        throw unsupported(`a step of type ${String(step.type)}`)
    }
  }
  return {
    piece(token, added, first) {
      // An added token is text as it stands, not spelt in GPT-2's alphabet.
      if (added && byteLevel) return token
      let text = token
      for (const stage of stages) text = stage(text, first)
      return toPiece ? toPiece(text) : text
    },
    firstDiffers,
    stripStart,
    stripStop,
  }
}
