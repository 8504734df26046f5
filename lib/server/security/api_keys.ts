/**
 * API keys: made at random, stored as SHA-256 hashes. A key holds 256 bits of chance, so a fast hash is as safe as a slow one, and
 * costs a request nothing.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { TensorRTError } from '../../errors'

const PREFIX = 'ntk_'
const KEY_BYTES = 32
/** A key of someone else's making must be long enough that nobody finds it by trying. */
export const MIN_KEY_LENGTH = 16
const MAX_KEY_LENGTH = 512

/** A new key: 256 random bits. */
export function makeApiKey(): string {
  return `${PREFIX}${randomBytes(KEY_BYTES).toString('base64url')}`
}

/**
 * Hash of a key, as configurations hold it: 64 hexadecimal digits.
 * @throws ERR_INVALID_ARGUMENT for a key that is too short, or cannot be sent in a header
 */
export function hashApiKey(key: string): string {
  if (typeof key !== 'string' || key.length < MIN_KEY_LENGTH || key.length > MAX_KEY_LENGTH || !/^[\x21-\x7e]+$/.test(key)) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `An API key has ${MIN_KEY_LENGTH} to ${MAX_KEY_LENGTH} printable ASCII characters without spaces`, {
      hint: '`node-tensorrt key` makes one',
    })
  }
  return digestOf(key).toString('hex')
}

function digestOf(key: string): Buffer {
  return createHash('sha256').update(key, 'utf8').digest()
}

/** Finds a key among hashes, in a time that depends on their number alone. */
export class KeyRing<T extends { sha256: string }> {
  private readonly digests: readonly Buffer[]

  constructor(private readonly entries: readonly T[]) {
    this.digests = entries.map(({ sha256 }) => Buffer.from(sha256, 'hex'))
  }

  find(key: string): T | undefined {
    const digest = digestOf(key)
    let found = -1
    // To the end, whatever is found: the time tells nothing of the place.
    for (let i = 0; i < this.digests.length; i++) if (timingSafeEqual(this.digests[i]!, digest)) found = i
    return found < 0 ? undefined : this.entries[found]
  }
}
