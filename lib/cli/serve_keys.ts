/** API keys of `serve`: from the configuration, a file of keys, and the environment. */
import { readFileSync, statSync } from 'node:fs'
import { TensorRTError } from '../errors'
import { type ApiKey, hashApiKey } from '../server'
import { KEY_NAME } from './key'
import type { ServeConfig } from './serve_config'

export const KEY_VARIABLE = 'NODE_TENSORRT_API_KEY'
/** The names of keys that a file gives without one. */
const UNNAMED = 'key'

export interface FoundKeys {
  keys: ApiKey[]
  warnings: string[]
}

/** @throws ERR_INVALID_ARGUMENT, ERR_IO */
export function findKeys({ auth }: ServeConfig, env: Readonly<Record<string, string | undefined>>): FoundKeys {
  const found: FoundKeys = { keys: [...(auth.keys as ApiKey[])], warnings: [] }
  if (auth.keyFile !== undefined) readKeyFile(auth.keyFile, found)
  const fromEnv = env[KEY_VARIABLE]
  if (fromEnv !== undefined && fromEnv !== '') found.keys.push({ name: 'environment', sha256: hashOf(fromEnv, KEY_VARIABLE) })
  return found
}

function readKeyFile(file: string, { keys, warnings }: FoundKeys): void {
  let text: string
  let mode: number
  try {
    text = readFileSync(file, 'utf8')
    mode = statSync(file).mode
  } catch (cause) {
    throw new TensorRTError('ERR_IO', `The file of API keys ${file} cannot be read: ${(cause as Error).message}`, { cause })
  }
  let plain = false
  const before = keys.length
  for (const [index, raw] of text.split(/\r?\n/).entries()) {
    const line = raw.trim()
    if (line === '' || line.startsWith('#')) continue
    const where = `${file}:${index + 1}`
    const words = line.split(/\s+/)
    if (words.length > 2) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} must hold a name and sha256:<hash>, or a name and a key`)
    const secret = words.at(-1)!
    const name = words.length === 2 ? words[0]! : `${UNNAMED}-${keys.length - before + 1}`
    if (!KEY_NAME.test(name)) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where}: a name has 1 to 64 letters, digits and . _ @ -`)
    const hash = /^sha256:([0-9a-f]{64})$/i.exec(secret)?.[1]
    if (hash === undefined) plain = true
    keys.push({ name, sha256: hash ?? hashOf(secret, where) })
  }
  if (keys.length === before) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${file} holds no API key`)
  if (plain && process.platform !== 'win32' && (mode & 0o077) !== 0) {
    warnings.push(`${file} holds keys as they are, and others can read it; chmod 600, or store hashes (node-tensorrt key --hash)`)
  }
}

function hashOf(key: string, where: string): string {
  try {
    return hashApiKey(key)
  } catch (error) {
    // Where it is, never what it is.
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where}: ${(error as Error).message}`)
  }
}
