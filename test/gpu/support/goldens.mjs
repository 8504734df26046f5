/** Reference values of the demo model: transformers in float32. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './target.mjs'

const fixtures = join(root, 'test', 'fixtures', 'tiny-storyteller-goldens')

export const { prompts } = JSON.parse(readFileSync(join(fixtures, 'goldens.json'), 'utf8'))

/** Whole rows of logits, after the prompt, of some prompts: name -> Float32Array. */
export function fullLogits() {
  const file = readFileSync(join(fixtures, 'goldens.safetensors'))
  const start = 8 + Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, start))
  return new Map(
    Object.entries(header)
      .filter(([name]) => name !== '__metadata__')
      .map(([name, { data_offsets: [from, to] }]) => [name, new Float32Array(Uint8Array.from(file.subarray(start + from, start + to)).buffer)]),
  )
}
