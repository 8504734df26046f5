/** References that are kept in a file, so that an engine can be verified where the CPU backend has no room. */
import { open, readFile, rename, rm } from 'node:fs/promises'
import { randomUUID } from 'node:crypto'
import { resolve } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { TensorRTError } from '../errors'
import { describeValue } from '../runtime'
import type { PromptReference, ReferenceRow } from './logit_comparison'

/** To be raised when a reader of the old format would misread the new one. */
const REFERENCE_FORMAT = 1
/** Logits that are kept of each position: those of the most probable tokens. */
const KEPT_LOGITS = 64

export interface LogitReferences {
  /** What computed them, for humans. */
  device: string
  vocabSize: number
  /** SHA-256 of the weights' files by name; empty where they are not known. */
  weights: Readonly<Record<string, string>>
  prompts: PromptReference[]
}

interface StoredPrompt {
  tokens: number[]
  /** Of tokens[1], tokens[2], ... */
  promptLogprobs: number[]
  rows: { token: number; logprob: number; ids: number[]; logits: number[] }[]
}

interface StoredReferences {
  format: typeof REFERENCE_FORMAT
  packageVersion: string
  createdAt: string
  device: string
  vocabSize: number
  weights: Record<string, string>
  prompts: StoredPrompt[]
}

/** A float32 with as many digits as tell it from its neighbours. */
const short = (value: number): number => Number(value.toPrecision(9))

function storeRow({ ids, logits, token, logprob }: ReferenceRow): StoredPrompt['rows'][number] {
  const least = Float32Array.from(logits).sort().at(-KEPT_LOGITS) ?? -Infinity
  const top: number[] = []
  for (let i = 0; i < logits.length; i++) if (logits[i]! >= least) top.push(i)
  top.sort((a, b) => logits[b]! - logits[a]! || a - b)
  top.length = Math.min(top.length, KEPT_LOGITS)
  return { token, logprob: short(logprob), ids: top.map((i) => ids?.[i] ?? i), logits: top.map((i) => short(logits[i]!)) }
}

/**
 * Writes the file as a whole or not at all.
 *
 * @throws (as a rejection) ERR_IO
 */
export async function writeReferences(file: string, references: LogitReferences, packageVersion: string): Promise<void> {
  const { device, vocabSize, weights, prompts } = references
  const storedPrompts: StoredPrompt[] = []
  for (const { prompt, promptLogprobs, rows } of prompts) {
    storedPrompts.push({ tokens: [...prompt], promptLogprobs: Array.from(promptLogprobs.subarray(1), short), rows: rows.map(storeRow) })
    // Large vocabularies take a while to sort.
    await setImmediate()
  }
  const stored: StoredReferences = {
    format: REFERENCE_FORMAT,
    packageVersion,
    createdAt: new Date().toISOString(),
    device,
    vocabSize,
    weights,
    prompts: storedPrompts,
  }
  const path = resolve(file)
  const temporary = `${path}.${process.pid}-${randomUUID()}`
  try {
    const handle = await open(temporary, 'wx')
    try {
      await handle.writeFile(`${JSON.stringify(stored)}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, path)
  } catch (cause) {
    await rm(temporary, { force: true })
    throw new TensorRTError('ERR_IO', `Writing ${path} failed: ${(cause as Error).message}`, { cause })
  }
}

/**
 * @param vocabSize of the model that they are for
 * @throws (as a rejection) ERR_IO; ERR_INVALID_ARGUMENT for what is no file of references, or is of another model
 */
export async function readReferences(file: string, vocabSize: number): Promise<LogitReferences> {
  const path = resolve(file)
  const text = await readFile(path, 'utf8').catch((cause: Error) => {
    throw new TensorRTError('ERR_IO', `Reading ${path} failed: ${cause.message}`, { cause })
  })
  const invalid = (what: string): TensorRTError =>
    new TensorRTError('ERR_INVALID_ARGUMENT', `${path} holds no references: ${what}`, {
      hint: 'make it with node-tensorrt verify --save-references',
    })
  let stored: Partial<StoredReferences> | null
  try {
    stored = JSON.parse(text) as Partial<StoredReferences> | null
  } catch (cause) {
    throw invalid(`no valid JSON: ${(cause as Error).message}`)
  }
  if (typeof stored !== 'object' || stored === null) throw invalid('no JSON object')
  if (stored.format !== REFERENCE_FORMAT) throw invalid(`"format" is ${describeValue(stored.format)}, not ${REFERENCE_FORMAT}`)
  if (stored.vocabSize !== vocabSize) {
    throw invalid(`"vocabSize" is ${describeValue(stored.vocabSize)}, and the model's is ${vocabSize}`)
  }
  const isId = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 0 && (value as number) < vocabSize
  const list = (value: unknown, where: string, of: string, holds: (item: unknown) => boolean): number[] => {
    if (Array.isArray(value) && value.every(holds)) return value as number[]
    throw invalid(`"${where}" must be an array of ${of}`)
  }
  const finite = (value: unknown): boolean => Number.isFinite(value)
  const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null
  const objects = <T>(value: unknown, where: string): Partial<T>[] => {
    if (Array.isArray(value) && value.length > 0 && value.every(isObject)) return value as Partial<T>[]
    throw invalid(`"${where}" must be an array of objects that is not empty`)
  }
  const { weights = {}, device = 'unknown' } = stored
  if (!isObject(weights) || Object.values(weights).some((hash) => typeof hash !== 'string')) {
    throw invalid('"weights" must be an object of hashes')
  }
  if (typeof device !== 'string') throw invalid('"device" must be a string')
  const prompts = objects<StoredPrompt>(stored.prompts, 'prompts').map((prompt, i): PromptReference => {
    const at = `prompts[${i}]`
    const tokens = list(prompt.tokens, `${at}.tokens`, 'token ids', isId)
    const logprobs = list(prompt.promptLogprobs, `${at}.promptLogprobs`, 'numbers', finite)
    if (tokens.length === 0) throw invalid(`"${at}.tokens" is empty`)
    if (logprobs.length !== tokens.length - 1) throw invalid(`"${at}.promptLogprobs" must have one less than "tokens"`)
    const rows = objects<StoredPrompt['rows'][number]>(prompt.rows, `${at}.rows`).map((row, j): ReferenceRow => {
      const where = `${at}.rows[${j}]`
      const ids = list(row.ids, `${where}.ids`, 'token ids', isId)
      const logits = list(row.logits, `${where}.logits`, 'numbers', finite)
      if (ids.length === 0 || ids.length !== logits.length) throw invalid(`"${where}" must have as many "logits" as "ids", and one at least`)
      if (!isId(row.token) || !finite(row.logprob)) throw invalid(`"${where}" must have a "token" and its "logprob"`)
      return { ids: Int32Array.from(ids), logits: Float32Array.from(logits), token: row.token!, logprob: row.logprob!, best: ids[0]! }
    })
    return { prompt: Int32Array.from(tokens), promptLogprobs: Float64Array.from([NaN, ...logprobs]), rows }
  })
  const lengths = new Set(prompts.map(({ rows }) => rows.length))
  if (lengths.size > 1) throw invalid('all prompts must have as many "rows"')
  return { device, vocabSize, weights, prompts }
}
