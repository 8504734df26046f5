import { setImmediate as turn } from 'node:timers/promises'
import type { Tokenizer } from '../text'
import type { VocabularyData } from './messages'

/** Tokens between two turns of the event loop. */
const CHUNK = 4096

/**
 * The bytes of all tokens, as they stand in the middle of a text, in shared memory. Whatever spelling a tokenizer uses
 * (byte-level, byte fallback, word pieces), its decoder knows. Special tokens are no text, so a grammar never allows them.
 *
 * @param size of the model's vocabulary, which may be larger than the tokenizer's
 */
export async function readVocabulary(tokenizer: Tokenizer, size: number): Promise<VocabularyData> {
  const known = Math.min(size, tokenizer.vocabSize)
  const offsets = new Int32Array(new SharedArrayBuffer((size + 1) * Int32Array.BYTES_PER_ELEMENT))
  const pieces: Uint8Array[] = []
  let end = 0
  for (let id = 0; id < size; id++) {
    offsets[id] = end
    if (id >= known) continue
    const bytes = tokenizer.tokenBytes(id)
    if (bytes instanceof Uint8Array && bytes.length > 0) {
      pieces.push(bytes)
      end += bytes.length
    }
    if (id % CHUNK === CHUNK - 1) await turn()
  }
  offsets[size] = end
  const bytes = new Uint8Array(new SharedArrayBuffer(end))
  let at = 0
  for (const piece of pieces) {
    bytes.set(piece, at)
    at += piece.length
  }
  return { bytes, offsets, size }
}
