import { afterEach, expect, it } from 'vitest'
import { LLM } from '../../../lib'
import { dryRunOf } from '../../../lib/llm'
import { MODEL } from '../../server/support'

const llms: LLM[] = []
afterEach(async () => {
  for (const llm of llms.splice(0)) await llm.close()
})

async function pair(): Promise<{ llm: LLM; dryRun: LLM }> {
  const llm = await LLM.load(MODEL, { backend: 'cpu', threads: 1 })
  const dryRun = dryRunOf(llm)
  llms.push(dryRun, llm)
  return { llm, dryRun }
}

it('answers prompts, texts and chats of the model, which hears of none', async () => {
  const { llm, dryRun } = await pair()
  const before = llm.stats()
  const asked = [{ tokens: [1, 2, 3] }, { prompt: 'Once upon a time' }, { messages: [{ role: 'user', content: 'Hello' }] }]
  const results = await Promise.all(Array.from({ length: 30 }, (_, i) => dryRun.generate({ ...asked[i % 3], maxTokens: 5, temperature: 1 }).result()))
  for (const { tokens, text, finishReason } of results) {
    expect(tokens).toHaveLength(5)
    expect(finishReason).toBe('length')
    expect(llm.detokenize(tokens)).toBe(text)
  }
  expect(new Set(results.map(({ text }) => text)).size).toBeGreaterThan(10)
  expect(dryRun.stats().tokens.generated).toBe(150)
  expect(llm.stats()).toEqual(before)
  dryRun.check()
})

it('streams, a step at a time', async () => {
  const { dryRun } = await pair()
  let chunks = 0
  for await (const { tokens } of dryRun.generate({ tokens: [7], maxTokens: 6 })) {
    chunks++
    expect(tokens).toHaveLength(1)
  }
  expect(chunks).toBe(6)
})

it('ends what is under way, and leaves the model as it is', async () => {
  const { llm, dryRun } = await pair()
  const under = dryRun.generate({ tokens: [1], maxTokens: 1000 })
  await new Promise((resolve) => setTimeout(resolve, 5))
  await dryRun.close()
  await expect(under.result()).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
  expect((await llm.generate({ prompt: 'Once', maxTokens: 2 }).result()).tokens).toHaveLength(2)
})
