/** The server as the field's own clients see it: openai 6 and ai 6. */
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Admission, AdmissionDecision } from '../../lib/server'
import { type Fixture, NAME, startServer, until } from './support'

/** Answers of admission to come; when there is none left, everything is let in. */
const verdicts: AdmissionDecision[] = []
const admission: Admission = {
  admit: () => verdicts.shift() ?? { admitted: true, ticket: { firstToken() {}, tokens() {}, end() {} } },
  retryAfterSeconds: () => 1,
  close() {},
}

let fixture: Fixture
let client: OpenAI
beforeAll(async () => {
  fixture = await startServer({ admission })
  client = new OpenAI({ baseURL: `${fixture.url}/v1`, apiKey: 'unused', maxRetries: 0 })
})
afterAll(async () => {
  expect(fixture.failures).toEqual([])
  await fixture.close()
})

const messages = [{ role: 'user' as const, content: 'Write a short story about a shy robot.' }]
const idle = (): boolean => {
  const { running, waiting, kv } = fixture.llm.stats()
  return running === 0 && waiting === 0 && kv.usedPages === 0
}

describe('openai', () => {
  it('lists models', async () => {
    const models = await client.models.list()
    expect(models.data.map(({ id }) => id)).toEqual([NAME])
    expect((await client.models.retrieve(NAME)).id).toBe(NAME)
  })

  it('completes chats, whole and streamed', async () => {
    const whole = await client.chat.completions.create({ model: NAME, messages, temperature: 0, max_tokens: 24, logprobs: true, top_logprobs: 2 })
    expect(whole.choices[0]!.logprobs!.content).toHaveLength(24)
    const stream = await client.chat.completions.create({
      model: NAME,
      messages,
      temperature: 0,
      max_tokens: 24,
      stream: true,
      stream_options: { include_usage: true },
    })
    let text = ''
    let usage: OpenAI.CompletionUsage | null | undefined
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ''
      usage = chunk.usage ?? usage
    }
    expect(text).toBe(whole.choices[0]!.message.content)
    expect(usage).toMatchObject({ completion_tokens: 24, total_tokens: whole.usage!.total_tokens })
  })

  it('accumulates a stream with its own helper', async () => {
    const runner = client.chat.completions.stream({ model: NAME, messages, temperature: 0, max_tokens: 12 })
    const final = await runner.finalChatCompletion()
    expect(final.choices[0]!.finish_reason).toBe('length')
    expect(await runner.finalContent()).not.toBe('')
  })

  it('completes texts', async () => {
    const completion = await client.completions.create({ model: NAME, prompt: 'Once upon a time', max_tokens: 8, temperature: 0, logprobs: 1 })
    expect(completion.choices[0]!.logprobs!.tokens).toHaveLength(8)
    let text = ''
    const stream = await client.completions.create({ model: NAME, prompt: 'Once upon a time', max_tokens: 8, temperature: 0, stream: true })
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? ''
    expect(text).toBe(completion.choices[0]!.text)
  })

  it('ends a request by leaving its loop', async () => {
    const stream = await client.chat.completions.create({ model: NAME, messages, max_tokens: 900, stream: true, ignore_eos: true } as OpenAI.ChatCompletionCreateParamsStreaming)
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break
    await until(idle, 'free pages')
  })

  it('ends a request by its signal', async () => {
    const controller = new AbortController()
    const pending = client.chat.completions.create({ model: NAME, messages, max_tokens: 900, ignore_eos: true } as OpenAI.ChatCompletionCreateParamsNonStreaming, {
      signal: controller.signal,
    })
    await until(() => fixture.llm.stats().running === 1, 'the request')
    controller.abort()
    await expect(pending).rejects.toBeInstanceOf(OpenAI.APIUserAbortError)
    await until(idle, 'free pages')
  })

  it('tells what is wrong by class, status, type, code and parameter', async () => {
    const bad = client.chat.completions.create({ model: NAME, messages, temperature: -1 })
    await expect(bad).rejects.toMatchObject({ constructor: OpenAI.BadRequestError, status: 400, type: 'invalid_request_error', param: 'temperature' })
    const missing = client.chat.completions.create({ model: 'gpt-5', messages })
    await expect(missing).rejects.toMatchObject({ constructor: OpenAI.NotFoundError, status: 404, code: 'model_not_found', requestID: expect.stringMatching(/^req-/) })
    const long = client.completions.create({ model: NAME, prompt: 'word '.repeat(3000) })
    await expect(long).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' })
    const images = client.images.generate({ prompt: 'a robot' })
    await expect(images).rejects.toMatchObject({ constructor: OpenAI.NotFoundError, code: 'not_found' })
  })

  it('comes again after 429 and 503, when it is told to', async () => {
    for (const reason of ['sla', 'not_ready'] as const) {
      verdicts.push({ admitted: false, reason, retryAfterSeconds: 1, message: 'Come again' })
      const before = performance.now()
      const completion = await client.completions.create({ model: NAME, prompt: 'Once', max_tokens: 2 }, { maxRetries: 2 })
      expect(completion.usage!.completion_tokens).toBe(2)
      expect(performance.now() - before).toBeGreaterThan(900)
    }
    verdicts.push({ admitted: false, reason: 'sla', retryAfterSeconds: 1, message: 'Come again' })
    const once = client.completions.create({ model: NAME, prompt: 'Once', max_tokens: 2 })
    await expect(once).rejects.toMatchObject({ constructor: OpenAI.RateLimitError, status: 429, code: 'sla' })
  })

  it('does not come again where that is no use', async () => {
    const { added } = fixture.llm.stats().requests
    const late = client.completions.create(
      { model: NAME, prompt: 'Once', max_tokens: 900, ignore_eos: true } as OpenAI.CompletionCreateParamsNonStreaming,
      { maxRetries: 3, headers: { 'x-request-deadline-ms': '1' } },
    )
    await expect(late).rejects.toMatchObject({ status: 504, code: 'deadline_exceeded' })
    expect(fixture.llm.stats().requests.added - added).toBeLessThanOrEqual(1)
  })
})

describe('ai', () => {
  const model = () => createOpenAICompatible({ name: 'local', baseURL: `${fixture.url}/v1`, includeUsage: true })(NAME)

  it('generates text', async () => {
    const { text, usage, finishReason } = await generateText({ model: model(), messages, temperature: 0, maxOutputTokens: 16 })
    const own = await fixture.llm.generate({ messages, temperature: 0, maxTokens: 16 }).result()
    expect(text).toBe(own.text)
    expect(usage).toMatchObject({ inputTokens: own.usage.promptTokens, outputTokens: 16 })
    expect(finishReason).toBe('length')
  })

  it('streams text', async () => {
    const { textStream, usage } = streamText({ model: model(), messages, temperature: 0, maxOutputTokens: 16 })
    let text = ''
    for await (const piece of textStream) text += piece
    expect(text).toBe((await fixture.llm.generate({ messages, temperature: 0, maxTokens: 16 }).result()).text)
    expect((await usage).outputTokens).toBe(16)
  })

  it('ends a request by its signal', async () => {
    const controller = new AbortController()
    const result = streamText({ model: model(), messages, maxOutputTokens: 900, abortSignal: controller.signal, onError: () => {} })
    let pieces = 0
    for await (const part of result.fullStream) {
      if (part.type === 'text-delta' && ++pieces === 2) controller.abort()
    }
    await until(idle, 'free pages')
  })
})
