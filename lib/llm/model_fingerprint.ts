/** What tells one model from another, on any machine, without reading all of its weights. */
import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { basename } from 'node:path'
import { TensorRTError } from '../errors'
import type { ModelFolder } from './model_folder'

/** Of each file of weights, blocks at even distances, the first and the last among them: training changes all of a tensor. */
const BLOCKS = 32
const BLOCK_BYTES = 4096

/**
 * SHA-256, in hexadecimal digits, of graph, tokenizer, chat template, defaults, samples of the weights and, of an engine, its plan. Models
 * that differ in a few numbers alone may have the same.
 * @throws (as a rejection) ERR_IO
 */
export async function modelFingerprint({ graph, tokenizerJson, chatTemplate, defaults, embedding, weightFiles, engine }: ModelFolder): Promise<string> {
  const hash = createHash('sha256')
  const { eosTokenIds, ...others } = defaults
  const facts = { graph, chatTemplate: chatTemplate.definition, defaults: { ...others, eosTokenIds: [...eosTokenIds] }, embedding, plan: engine?.manifest.plan.sha256 }
  hash.update(JSON.stringify(facts)).update(tokenizerJson)
  const block = Buffer.alloc(BLOCK_BYTES)
  for (const path of weightFiles) {
    try {
      const file = await open(path)
      try {
        const { size } = await file.stat()
        hash.update(`\n${basename(path)} ${size}\n`)
        const last = Math.max(0, size - BLOCK_BYTES)
        for (let i = 0; i < BLOCKS; i++) {
          const { bytesRead } = await file.read(block, 0, BLOCK_BYTES, Math.floor((last * i) / (BLOCKS - 1)))
          hash.update(block.subarray(0, bytesRead))
        }
      } finally {
        await file.close()
      }
    } catch (cause) {
      throw new TensorRTError('ERR_IO', `Reading ${path} failed: ${(cause as Error).message}`, { cause })
    }
  }
  return hash.digest('hex')
}
