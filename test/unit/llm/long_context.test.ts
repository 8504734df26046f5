/** Models whose config.json names a context that no machine has the memory for. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import '../matchers'
import { LLM } from '../../../lib'

const DEMO = resolve(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
const MAX_POSITIONS = 2 ** 31 - 1
const BYTES_PER_TOKEN = 6144
let folder: string

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-context-'))
  cpSync(DEMO, folder, { recursive: true })
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as object
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, max_position_embeddings: MAX_POSITIONS }))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const PROMPT = { prompt: 'Once upon a time', temperature: 0, maxTokens: 24 }

it('a full context that does not fit is refused before anything is read, with what was tried and what to do', async () => {
  const error = await LLM.load(folder, { backend: 'cpu', threads: 1 }).then(() => undefined, (reason: unknown) => reason as Error)
  expect(error).toHaveCode('ERR_OUT_OF_MEMORY')
  expect(error!.message).toContain('"kvCacheMemory"')
  expect(error!.message).toContain('"max_position_embeddings"')
  expect(error!.message).toContain(`${MAX_POSITIONS}`)
  expect(error!.message).toContain(`${Math.ceil((2 ** 31 * BYTES_PER_TOKEN) / 2 ** 20)} MiB`)
})

it('so is a cache that was asked for', async () => {
  const asked = LLM.load(folder, { backend: 'cpu', threads: 1, kvCacheMemory: 2 ** 43 })
  await expect(asked).rejects.toThrow(`${2 ** 23} MiB`)
})

it('with a cache of its own size it takes memory for that many tokens, and computes the same', async () => {
  const before = process.memoryUsage().rss
  const llm = await LLM.load(folder, { backend: 'cpu', threads: 1, kvCacheMemory: 64 * 16 * BYTES_PER_TOKEN })
  try {
    // Tables for the whole context would take 64 bytes a position at the least, 128 GiB.
    expect(process.memoryUsage().rss - before).toBeLessThan(2 ** 29)
    expect(llm.info.numPages).toBe(64)
    const demo = await LLM.load(DEMO, { backend: 'cpu', threads: 1 })
    try {
      const short = await llm.generate(PROMPT).result()
      expect(short.text).toBe((await demo.generate(PROMPT).result()).text)
      // To the last position that the cache has room for.
      const all = { ...PROMPT, maxTokens: 1024 - short.usage.promptTokens, ignoreEos: true }
      const results = await Promise.all([llm.generate(all).result(), demo.generate(all).result()])
      expect(results[0].usage.completionTokens).toBe(all.maxTokens)
      expect(results[0].tokens).toEqual(results[1].tokens)
    } finally {
      await demo.close()
    }
  } finally {
    await llm.close()
  }
})
