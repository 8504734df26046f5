/** The tokenizer of models with random weights, written by Python and read by this library. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { seededRandom } from '../../../lib/llm'
import { Tokenizer } from '../../../lib/text'

const script = resolve(__dirname, '..', '..', '..', 'bench', 'gpu', 'random_tokenizer.py')
const python = spawnSync('python3', ['--version']).status === 0

describe.skipIf(!python)('bench/gpu/random_tokenizer.py', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-tokenizer-'))
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  it.each([256, 32_000, 128_256])('makes %d ids that are texts of their own', (vocab) => {
    expect(spawnSync('python3', [script, String(vocab), folder], { encoding: 'utf8' })).toMatchObject({ status: 0, stderr: '' })
    const read = (file: string): unknown => JSON.parse(readFileSync(join(folder, file), 'utf8'))
    const tokenizer = new Tokenizer(read('tokenizer.json'), read('tokenizer_config.json'))
    expect(tokenizer.vocabSize).toBe(vocab)
    expect(tokenizer.specialTokenIds.size).toBe(0)
    const words = new Set(Array.from({ length: vocab - 256 }, (_, i) => tokenizer.decode([256 + i])))
    expect(words.size).toBe(vocab - 256)
    expect(words.has('')).toBe(false)

    const random = seededRandom(1)
    const ids = Array.from({ length: 500 }, () => Math.min(vocab - 1, 256 + Math.floor(random() * (vocab - 256))))
    if (vocab > 256) expect(tokenizer.encode(tokenizer.decode(ids))).toEqual(ids)
    const text = "It's 12:30, naïve 日本語 👩‍🚀\n\n\tend"
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text)
  })

  it('refuses a vocabulary without room for the bytes', () => {
    expect(spawnSync('python3', [script, '255', folder], { encoding: 'utf8' })).toMatchObject({ status: 1, stderr: expect.stringContaining('256 bytes') })
  })
})
