import OpenAI from 'openai'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { LLM } from '../../lib'
import { cpu, tokenizer } from '../fault/storyteller'
import { GatedExecutor } from '../support/gated_executor'
import { type ErrorAnswer, type Fixture, type Json, NAME, serveLLM, startServer, until } from './support'

let fixture: Fixture
beforeAll(async () => {
  fixture = await startServer({ limits: { maxInputs: 40 } }, { embedding: { matryoshkaDimensions: [64] } })
})
afterAll(async () => {
  expect(fixture.failures).toEqual([])
  await fixture.close()
})

const TEXTS = ['The robot was shy.', 'A bear went to the market.', 'Once upon a time']

it('gives what the library gives, as numbers and as base64', async () => {
  const own = await fixture.llm.embed(TEXTS)
  const floats = (await (await fixture.post('/v1/embeddings', { model: NAME, input: TEXTS, encoding_format: 'float' })).json()) as Json
  expect(floats).toMatchObject({ object: 'list', model: NAME, usage: { prompt_tokens: own.usage.promptTokens, total_tokens: own.usage.promptTokens } })
  floats.data.forEach(({ index, object, embedding }: Json, i: number) => {
    expect([index, object]).toEqual([i, 'embedding'])
    expect(Float32Array.from(embedding)).toEqual(own.embeddings[i])
  })
  const base64 = (await (await fixture.post('/v1/embeddings', { input: TEXTS, encoding_format: 'base64' })).json()) as Json
  base64.data.forEach(({ embedding }: Json, i: number) => {
    const bytes = Buffer.from(embedding, 'base64')
    expect(new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))).toEqual(own.embeddings[i])
  })
})

it('serves the openai client, which asks for base64 by itself', async () => {
  const client = new OpenAI({ baseURL: `${fixture.url}/v1`, apiKey: 'unused', maxRetries: 0 })
  const own = await fixture.llm.embed([TEXTS[0]!], { dimensions: 64 })
  const { data } = await client.embeddings.create({ model: NAME, input: TEXTS[0]!, dimensions: 64 })
  expect(data[0]!.embedding).toHaveLength(64)
  expect(Float32Array.from(data[0]!.embedding)).toEqual(own.embeddings[0])
})

it('makes embeddings as the operator says, and refuses to cut those of a model that was not trained for it', async () => {
  const other = await startServer({}, { embedding: { pooling: 'mean' } })
  const own = await other.llm.embed(TEXTS, { pooling: 'mean', normalize: false })
  const answer = (await (await other.post('/v1/embeddings', { input: TEXTS, use_activation: false })).json()) as Json
  expect(answer.data.map(({ embedding }: Json) => Float32Array.from(embedding))).toEqual(own.embeddings)
  expect(own.embeddings).not.toEqual((await fixture.llm.embed(TEXTS, { normalize: false })).embeddings)
  const refused = await other.post('/v1/embeddings', { input: 'a', dimensions: 64 })
  expect([refused.status, ((await refused.json()) as ErrorAnswer).error]).toMatchObject([400, { param: 'dimensions', message: expect.stringContaining('matryoshka') as string }])
  expect((await other.post('/v1/embeddings', { input: 'a', dimensions: 192 })).status).toBe(200)
  await other.close()
})

it('takes token ids, and special tokens in a text for text', async () => {
  const tokens = fixture.llm.tokenize(TEXTS[0]!, { allowSpecial: false })
  const [byText, byIds] = await Promise.all(
    [TEXTS[0], tokens].map(async (input) => ((await (await fixture.post('/v1/embeddings', { input })).json()) as Json).data[0].embedding),
  )
  expect(byIds).toEqual(byText)
  const spelt = (await (await fixture.post('/v1/embeddings', { input: '<|end|>' })).json()) as Json
  expect(spelt.usage.prompt_tokens).toBeGreaterThan(2)
})

it('answers many at once without a long pause of the event loop', async () => {
  const input = Array.from({ length: 40 }, (_, i) => `text number ${i}`)
  const answer = (await (await fixture.post('/v1/embeddings', { input })).json()) as Json
  expect(answer.data.map(({ index }: Json) => index)).toEqual(input.map((_, i) => i))
})

it.each([
  [{}, 'input'],
  [{ input: '' }, 'input'],
  [{ input: [] }, 'input'],
  [{ input: ['a', ''] }, 'input'],
  [{ input: ['a', 'b '.repeat(2000)] }, 'input[1]'],
  [{ input: 'a', encoding_format: 'int8' }, 'encoding_format'],
  [{ input: 'a', dimensions: 100_000 }, 'dimensions'],
  [{ input: 'a', dimensions: 65 }, 'dimensions'],
  [{ input: 'a', embed_dtype: 'float16' }, 'embed_dtype'],
  [{ messages: [{ role: 'user', content: 'a' }] }, 'messages'],
  [{ input: Array.from({ length: 41 }, () => 'a') }, 'input'],
  [{ input: [5000] }, 'input[0]'],
  [{ input: 'a', priority: 5000 }, 'priority'],
])('refuses %.80j by name', async (body, param) => {
  const response = await fixture.post('/v1/embeddings', body)
  expect(response.status).toBe(400)
  expect(((await response.json()) as ErrorAnswer).error.param).toBe(param)
})

it('frees what a client that goes away had asked for', async () => {
  const executor = new GatedExecutor(await cpu())
  const fixture = await serveLLM(LLM.fromExecutor(executor, { tokenizer }))
  const controller = new AbortController()
  const input = Array.from({ length: 40 }, (_, i) => `${i} ${'word '.repeat(300)}`)
  const pending = fetch(`${fixture.url}/v1/embeddings`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ input }),
    signal: controller.signal,
  })
  await until(() => executor.heldResults > 0, 'a step')
  controller.abort()
  await expect(pending).rejects.toThrow()
  await until(() => fixture.server.pending === 0, 'the end')
  // Of 40 inputs of some steps each, what was in flight, and the step that was planned behind it.
  expect(executor.submitted).toBeLessThanOrEqual(3)
  executor.open()
  await until(() => fixture.llm.stats().kv.usedPages === 0, 'free pages')
  await fixture.close()
})
