/** Requests of an LLM: their course, their choices, what they report. */
import { getEventListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, vi } from 'vitest'
import '../matchers'
import { AbortError, type Generation, type StepResult } from '../../../lib'
import { Detokenizer } from '../../../lib/text'
import { storyTokenizer } from '../text/fixtures'
import { PATIENTLY } from '../../support/patience'
import { collect, expectIdle, failure, gated, serve, tokens } from './hash_llm'

describe('a generation', () => {
  it('starts at the call, and runs although nobody listens', async () => {
    const llm = serve()
    llm.generate({ tokens, maxTokens: 5 })
    expect(llm.stats().requests.added).toBe(1)
    await vi.waitFor(() => expect(llm.stats().sequences.finished).toBe(1), PATIENTLY)
    expect(llm.stats().tokens.generated).toBe(5)
  })

  it('submits at once, and one step ahead', async () => {
    const { llm, executor } = gated()
    llm.generate({ tokens, maxTokens: 5 })
    await Promise.resolve()
    expect(executor.submitted).toBe(2)
    await executor.release()
    expect(executor.submitted).toBe(3)
  })

  it('submits the next step before it turns tokens into text', async () => {
    const { llm, executor } = gated({ tokenizer: storyTokenizer() }, { vocabSize: 4096 })
    const order: string[] = []
    const detokenize = vi.spyOn(Detokenizer.prototype, 'pushToken').mockImplementation(() => {
      order.push('text')
      return ''
    })
    try {
      llm.generate({ tokens, maxTokens: 5 })
      await Promise.resolve()
      executor.onSubmit = () => order.push('submit')
      await executor.release(2)
      expect(order).toEqual(['submit', 'text', 'submit', 'text'])
    } finally {
      detokenize.mockRestore()
    }
  })

  it('plans requests that are made in one go together', async () => {
    const { llm, executor } = gated()
    for (let i = 0; i < 4; i++) llm.generate({ tokens: [i + 1, 2], maxTokens: 1 })
    await Promise.resolve()
    expect(executor.submitted).toBe(1)
    expect(llm.stats().running).toBe(4)
  })

  it('gives chunks that make up the result', async () => {
    const llm = serve({ tokenizer: storyTokenizer() }, { vocabSize: 4096 })
    const generation = llm.generate({ prompt: 'Once', maxTokens: 20, logprobs: 1 })
    const chunks = await collect(generation)
    const result = await generation.result()
    expect(chunks.length).toBeGreaterThan(5)
    for (const chunk of chunks)
      expect(Object.keys(chunk).sort()).toEqual(
        chunk === chunks.at(-1)
          ? ['finishReason', 'index', 'logprobs', 'text', 'tokens']
          : ['index', 'logprobs', 'text', 'tokens'],
      )
    expect(chunks.map((chunk) => chunk.text).join('')).toBe(result.text)
    expect(chunks.flatMap((chunk) => chunk.tokens)).toEqual(result.tokens)
    expect(chunks.flatMap((chunk) => chunk.logprobs)).toEqual(result.logprobs)
    expect(chunks.at(-1)!.finishReason).toBe('length')
    expect(result).toMatchObject({
      finishReason: 'length',
      usage: { promptTokens: 2, completionTokens: 20, cachedTokens: 0 },
      choices: [{ index: 0, text: result.text, tokens: result.tokens, finishReason: 'length' }],
    })
    expect(llm.detokenize(result.tokens, { skipSpecialTokens: true })).toBe(result.text)
    const { queueMs, ttftMs, totalMs } = result.timings
    expect(queueMs).toBeGreaterThanOrEqual(0)
    expect(ttftMs).toBeGreaterThan(queueMs)
    expect(totalMs).toBeGreaterThan(ttftMs)
  })

  it('can be awaited before, during and after the iteration, any number of times', async () => {
    const llm = serve()
    const generation = llm.generate({ tokens, maxTokens: 6 })
    const before = generation.result()
    let during: unknown
    for await (const _ of generation) during ??= generation.result()
    const results = await Promise.all([before, during, generation.result(), generation.result()])
    expect(results[0]!.tokens).toHaveLength(6)
    for (const result of results) expect(result).toBe(results[0])
  })

  it('gets its first token before older requests get a further one of the same step', async () => {
    const llm = serve()
    const heard: string[] = []
    llm.observe(() => void heard.push('step'))
    const listen = async (name: string, generation: Generation, onChunk = (): void => {}): Promise<void> => {
      for await (const _ of generation) {
        heard.push(name)
        onChunk()
      }
    }
    let younger: Promise<void> | undefined
    await listen('older', llm.generate({ tokens: [1, 2], maxTokens: 40, ignoreEos: true }), () => {
      younger ??= listen('younger', llm.generate({ tokens: [3, 4], maxTokens: 10, ignoreEos: true }))
    })
    await younger
    const first = heard.indexOf('younger')
    expect(heard.slice(first - 1, first + 2)).toEqual(['step', 'younger', 'older'])
  })

  it('has one consumer', async () => {
    const generation = serve().generate({ tokens, maxTokens: 3 })
    await collect(generation)
    await expect(collect(generation)).rejects.toHaveCode('ERR_STREAM_CONSUMED')
    expect(() => generation[Symbol.asyncIterator]()).toThrowCode('ERR_STREAM_CONSUMED', /result\(\)/)
    expect((await generation.result()).tokens).toHaveLength(3)
  })

  it('has one consumer also while the first is under way', async () => {
    const generation = serve().generate({ tokens, maxTokens: 3 })
    const first = collect(generation)
    expect(() => generation[Symbol.asyncIterator]()).toThrowCode('ERR_STREAM_CONSUMED')
    expect((await first).flatMap((chunk) => chunk.tokens)).toHaveLength(3)
  })

  it('gives a slow consumer coalesced chunks', async () => {
    const { llm, executor } = gated()
    const generation = llm.generate({ tokens, maxTokens: 9 })
    const iterator = generation[Symbol.asyncIterator]()
    await executor.release()
    expect((await iterator.next()).value!.tokens).toHaveLength(1)
    await executor.release(5)
    expect((await iterator.next()).value!.tokens).toHaveLength(5)
    executor.open()
    await generation.result()
    const last = (await iterator.next()).value!
    expect(last.tokens).toHaveLength(3)
    expect(last.finishReason).toBe('length')
    expect(await iterator.next()).toEqual({ value: undefined, done: true })
    expect(await iterator.next()).toEqual({ value: undefined, done: true })
  })

  it('gives one that comes after the end a single chunk', async () => {
    const generation = serve().generate({ tokens, maxTokens: 8 })
    const result = await generation.result()
    expect(await collect(generation)).toEqual([{ index: 0, text: '', tokens: result.tokens, finishReason: 'length' }])
  })

  it('serves calls of next() in order', async () => {
    const { llm, executor } = gated()
    const generation = llm.generate({ tokens, maxTokens: 2 })
    const iterator = generation[Symbol.asyncIterator]()
    const calls = [iterator.next(), iterator.next(), iterator.next(), iterator.next()]
    executor.open()
    const results = await Promise.all(calls)
    expect(results.map((result) => result.done)).toEqual([false, false, true, true])
    expect(results.slice(0, 2).flatMap((result) => result.value!.tokens)).toEqual((await generation.result()).tokens)
  })

  it('samples the same with the same seed, whatever else runs, and says which it was', async () => {
    const llm = serve()
    const request = { tokens, maxTokens: 20, temperature: 1 }
    const first = await llm.generate({ ...request, seed: 7 }).result()
    const others = Array.from({ length: 6 }, () => llm.generate(request).result())
    expect((await llm.generate({ ...request, seed: 7 }).result()).tokens).toEqual(first.tokens)
    expect(first.seed).toBe(7)
    const random = await Promise.all(others)
    expect(new Set(random.map((result) => result.seed)).size).toBe(6)
    for (const { seed, tokens: sampled } of random)
      expect((await llm.generate({ ...request, seed }).result()).tokens).toEqual(sampled)
  })
})

describe('leaving', () => {
  it('break aborts, and result() says so', async () => {
    const llm = serve()
    const generation = llm.generate({ tokens, maxTokens: 200 })
    for await (const _ of generation) break
    expect(await failure(generation.result())).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR' })
    expect(llm.stats().sequences).toEqual({ finished: 0, failed: 0, aborted: 1 })
    await expectIdle(llm)
  })

  it('so does an exception in the loop', async () => {
    const llm = serve()
    const generation = llm.generate({ tokens, maxTokens: 200 })
    const loop = (async () => {
      for await (const _ of generation) throw new Error('mine')
    })()
    await expect(loop).rejects.toThrow('mine')
    expect(await failure(generation.result())).toBeInstanceOf(AbortError)
    await expectIdle(llm)
  })

  it('break after the end leaves the result', async () => {
    const generation = serve().generate({ tokens, maxTokens: 4 })
    await generation.result()
    for await (const _ of generation) break
    expect((await generation.result()).tokens).toHaveLength(4)
  })

  it('an aborted signal rejects with its reason, and nothing runs', async () => {
    const llm = serve()
    const reason = new Error('no more')
    const generation = llm.generate({ tokens, signal: AbortSignal.abort(reason) })
    const error = await failure(generation.result())
    expect(error).toBeInstanceOf(AbortError)
    expect(error).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR', cause: reason })
    expect(await failure(collect(generation))).toBe(error)
    expect(llm.stats().requests.added).toBe(0)
  })

  it('a signal ends a wait for the next chunk at once', async () => {
    const { llm } = gated()
    const controller = new AbortController()
    const generation = llm.generate({ tokens, maxTokens: 9, signal: controller.signal })
    const loop = failure(collect(generation))
    await sleep(5)
    controller.abort('reason of any type')
    expect(await loop).toMatchObject({ code: 'ABORT_ERR', cause: 'reason of any type' })
    expect(await failure(generation.result())).toMatchObject({ code: 'ABORT_ERR', cause: 'reason of any type' })
    expect(llm.stats().running).toBe(0)
  })

  it('a signal drops what was not read', async () => {
    const { llm, executor } = gated()
    const controller = new AbortController()
    const generation = llm.generate({ tokens, maxTokens: 9, signal: controller.signal })
    await executor.release(3)
    controller.abort()
    await expect(generation[Symbol.asyncIterator]().next()).rejects.toBeInstanceOf(AbortError)
  })

  it('nothing stays on the signal after the end', async () => {
    const llm = serve()
    const { signal } = new AbortController()
    await llm.generate({ tokens, maxTokens: 3, signal }).result()
    expect(await failure(llm.generate({ tokens: [-1], signal }).result())).toHaveCode('ERR_INVALID_TOKEN')
    for await (const _ of llm.generate({ tokens, maxTokens: 30, signal })) break
    expect(getEventListeners(signal, 'abort')).toHaveLength(0)
  })

  it('return() ends the iteration, and may be called again', async () => {
    const generation = gated().llm.generate({ tokens, maxTokens: 9 })
    const iterator = generation[Symbol.asyncIterator]()
    const waiting = iterator.next()
    expect(await iterator.return!()).toEqual({ value: undefined, done: true })
    expect(await waiting).toEqual({ value: undefined, done: true })
    expect(await failure(generation.result())).toBeInstanceOf(AbortError)
    expect(await iterator.return!()).toEqual({ value: undefined, done: true })
    expect(await iterator.next()).toEqual({ value: undefined, done: true })
  })
})

describe('several choices', () => {
  it('share the prompt, are told apart, and the first is what n = 1 gives', async () => {
    const llm = serve({ prefixCache: false })
    const prompt = Array.from({ length: 41 }, (_, i) => i + 1)
    const request = { tokens: prompt, maxTokens: 6, temperature: 1, seed: 3 }
    const alone = await llm.generate(request).result()
    const before = llm.stats().tokens.prefill
    const generation = llm.generate({ ...request, n: 4 })
    const chunks = await collect(generation)
    const { choices, usage, tokens: first } = await generation.result()
    expect(choices.map((choice) => choice.index)).toEqual([0, 1, 2, 3])
    expect(choices[0]!.tokens).toEqual(alone.tokens)
    expect(first).toEqual(alone.tokens)
    expect(new Set(choices.map((choice) => choice.tokens.join())).size).toBe(4)
    for (const { index, tokens: own } of choices) {
      expect(chunks.filter((chunk) => chunk.index === index).flatMap((chunk) => chunk.tokens)).toEqual(own)
    }
    expect(chunks.filter((chunk) => chunk.finishReason === 'length')).toHaveLength(4)
    expect(usage).toMatchObject({ promptTokens: 41, completionTokens: 24 })
    // The prompt was computed once: the other three computed its last page only.
    expect(llm.stats().tokens.prefill - before).toBeLessThan(2 * 41)
    expect((await llm.generate({ ...request, n: 4 }).result()).choices).toEqual(choices)
    await expectIdle(llm)
  })

  it('fail together', async () => {
    const { llm, executor } = gated({ retries: 0 })
    executor.change = (result) => ({
      ...result,
      tokens: new Int32Array(0),
      error: { code: 'ERR_STEP_FAILED', message: 'injected', retryable: false },
    })
    const generation = llm.generate({ tokens, maxTokens: 5, n: 3 })
    executor.open()
    expect(await failure(generation.result())).toHaveCode('ERR_STEP_FAILED', /injected/)
    await expectIdle(llm)
  })
})

it.each<[string, (result: StepResult) => unknown]>([
  ['a word', () => 'done'],
  ['no timings', (result) => ({ ...result, timings: undefined })],
  ['no log-probabilities', (result) => ({ ...result, logprobs: undefined })],
  ['no tokens', (result) => ({ ...result, tokens: undefined })],
])('an executor that reports %s in place of a result is named by the error', async (_, change) => {
  const { llm, executor } = gated()
  executor.change = (result) => change(result) as StepResult
  const generation = llm.generate({ tokens, maxTokens: 5 })
  executor.open()
  expect(await failure(generation.result())).toHaveCode('ERR_INTERNAL', /The executor reported what is no result of a step/)
  expect(llm.health().state).toBe('dead')
})

describe('what is asked for beside the text', () => {
  it('log-probabilities of the output and of the prompt', async () => {
    const llm = serve()
    const result = await llm.generate({ tokens, maxTokens: 3, logprobs: 2, promptLogprobs: 1 }).result()
    expect(result.logprobs).toHaveLength(3)
    for (const [i, { token, logprob, rank, top }] of result.logprobs!.entries()) {
      expect(token).toBe(result.tokens[i])
      expect(rank).toBe(1)
      expect(top).toHaveLength(2)
      expect(top[0]!.token).toBe(token)
      expect(top[0]!.logprob).toBeCloseTo(logprob, 5)
      expect(top[1]!.logprob).toBeLessThanOrEqual(logprob)
    }
    expect(result.promptLogprobs).toHaveLength(tokens.length)
    expect(result.promptLogprobs![0]).toBeNull()
    expect(result.promptLogprobs!.slice(1).map((entry) => entry!.token)).toEqual(tokens.slice(1))
  })

  it('the same log-probabilities of a prompt that is in the cache', async () => {
    const llm = serve()
    const request = { tokens: Array.from({ length: 30 }, (_, i) => i), maxTokens: 2, promptLogprobs: 0 }
    const first = await llm.generate(request).result()
    expect((await llm.generate(request).result()).promptLogprobs).toEqual(first.promptLogprobs)
  })

  it('the prompt alone', async () => {
    const generation = serve().generate({ tokens, maxTokens: 0, promptLogprobs: 0 })
    expect(await collect(generation)).toEqual([{ index: 0, text: '', tokens: [], finishReason: 'length' }])
    const result = await generation.result()
    expect(result).toMatchObject({ text: '', tokens: [], finishReason: 'length', usage: { completionTokens: 0 } })
    expect(result.promptLogprobs).toHaveLength(tokens.length)
    expect(result.timings.ttftMs).toBe(result.timings.totalMs)
  })

  it('stop tokens, end of sequence, and going on past it', async () => {
    const llm = serve()
    const whole = (await llm.generate({ tokens, maxTokens: 12 }).result()).tokens
    const stop = whole[4]!
    const until = whole.slice(0, whole.indexOf(stop) + 1)
    expect(await llm.generate({ tokens, maxTokens: 12, stopTokenIds: [stop] }).result()).toMatchObject({
      tokens: until,
      finishReason: 'stop',
      stop,
    })
    const withEos = serve({ eosTokenIds: [stop] })
    expect(withEos.info.eosTokenIds).toEqual([stop])
    expect((await withEos.generate({ tokens, maxTokens: 12 }).result()).tokens).toEqual(until)
    expect((await withEos.generate({ tokens, maxTokens: 12, ignoreEos: true }).result()).tokens).toEqual(whole)
    expect((await withEos.generate({ tokens, maxTokens: 12, minTokens: 9 }).result()).tokens.length).toBeGreaterThan(9)
  })

  it('a stop string ends the sequence at the scheduler too', async () => {
    const llm = serve({ tokenizer: storyTokenizer() }, { vocabSize: 4096 })
    const whole = await llm.generate({ tokens, maxTokens: 40 }).result()
    const stop = whole.text.slice(20, 24)
    const stopped = await llm.generate({ tokens, maxTokens: 40, stop }).result()
    expect(stopped).toMatchObject({ text: whole.text.slice(0, whole.text.indexOf(stop)), finishReason: 'stop', stop })
    expect(stopped.tokens.length).toBeLessThan(40)
    expect((await llm.generate({ tokens, maxTokens: 40, stop, includeStop: true }).result()).text).toBe(
      stopped.text + stop,
    )
    expect(llm.stats().sequences.finished).toBe(3)
    await expectIdle(llm)
  })

  it('prefixes are shared under one salt only', async () => {
    const llm = serve()
    const prompt = Array.from({ length: 33 }, (_, i) => i + 3)
    const cached = async (cacheSalt?: string): Promise<number> =>
      (await llm.generate({ tokens: prompt, maxTokens: 2, cacheSalt }).result()).usage.cachedTokens
    expect([await cached(), await cached(), await cached('a'), await cached('a'), await cached('b')]).toEqual([
      0, 32, 0, 32, 0,
    ])
    expect(llm.stats().prefixCache).toEqual({ queriedTokens: 160, hitTokens: 64, hitRate: 0.4 })
  })
})
