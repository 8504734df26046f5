/**
 * A vocabulary of as many tokens as large models have, and made up like theirs: all bytes; words with and without a space before
 * them, of an alphabet's frequencies, lengths and prefixes of each other as merges make them; words of other scripts; numbers of up
 * to three digits; spaces and newlines; and what code and JSON are full of, quotes among it. The same each time.
 */
import { seededRandom } from '../lib/llm'

const ONSETS = ['', '', 't', 's', 'r', 'n', 'l', 'd', 'm', 'c', 'p', 'b', 'f', 'g', 'st', 'pr', 'tr', 'ch', 'sh', 'th', 'w', 'v', 'h', 'k', 'qu', 'cl', 'br', 'y', 'j']
const VOWELS = ['e', 'e', 'e', 'a', 'a', 'i', 'i', 'o', 'o', 'u', 'ea', 'ou', 'io', 'ee']
const CODAS = ['', '', 'n', 'r', 's', 't', 'l', 'd', 'm', 'ng', 'nt', 'st', 'ck', 'ly', 'ble', 'ing', 'ed', 'er']
const OTHERS = ['абвгдеиклмнопрстуя', 'αβγδεικλμνοπρστ', 'éèàüößçñáíóå', '的一是不了人我在有他这中大来上国', 'あいうえおかきくけこさしすせそ', 'ابتجدرسعفقكلمنهوي', '가나다라마바사아자하', '😀😂😍👍🎉🔥🌍🚀']
const SIGNS = ['"', '\\', "'", '{', '}', '[', ']', '(', ')', ':', ',', ';', '.', '=', '-', '_', '/', '<', '>', '*', '+', '!', '?', '#', '@', '&', '|', '$', '%', '^', '~', '`']

/** Bytes of the tokens, by id. */
export function largeVocabulary(size: number): Buffer[] {
  const random = seededRandom(128)
  const pick = <T>(from: ArrayLike<T>): T => from[Math.floor(random() * from.length)]!
  const some = (count: number, of: () => string): string => Array.from({ length: count }, of).join('')
  const tokens = new Map<string, Buffer>(Array.from({ length: 256 }, (_, byte) => [`<${byte}>`, Buffer.of(byte)]))
  const add = (text: string): void => {
    if (tokens.size < size && !tokens.has(text)) tokens.set(text, Buffer.from(text))
  }
  for (let number = 0; number < 1000; number++) for (let digits = 1; digits <= 3; digits++) add(String(number).padStart(digits, '0'))
  for (let count = 2; count <= 80; count++) for (const blank of [' ', '\n', '\t']) add(blank.repeat(count))
  while (tokens.size < size) {
    const kind = random()
    if (kind < 0.72) {
      const word = some(1 + Math.floor(random() * random() * 5), () => pick(ONSETS) + pick(VOWELS) + pick(CODAS))
      const shown = random() < 0.2 ? word[0]!.toUpperCase() + word.slice(1) : random() < 0.04 ? word.toUpperCase() : word
      add(random() < 0.55 ? ` ${shown}` : shown)
    } else if (kind < 0.94) {
      const script = Array.from(pick(OTHERS))
      add((random() < 0.4 ? ' ' : '') + some(1 + Math.floor(random() * 5), () => pick(script)))
    } else {
      const signs = some(1 + Math.floor(random() * 4), () => pick(SIGNS))
      add(random() < 0.5 ? signs : random() < 0.5 ? ` ${signs}` : random() < 0.5 ? `${signs}\n` : signs + pick(ONSETS) + pick(VOWELS) + pick(CODAS))
    }
  }
  return [...tokens.values()]
}
