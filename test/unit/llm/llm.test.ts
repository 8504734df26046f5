import { getEventListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, describe, expect, it, vi } from 'vitest'
import '../matchers'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import {
  AbortError,
  type ExecutorInfo,
  type FromExecutorOptions,
  type Generation,
  type GenerationChunk,
  LLM,
  TensorRTError,
} from '../../../lib'
import { Detokenizer } from '../../../lib/text'
import { storyTokenizer } from '../text/fixtures'
import { GatedExecutor } from './gated_executor'

const open: LLM[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})

function serve(options: FromExecutorOptions = {}, sizes: Partial<ExecutorInfo> = {}): LLM {
  const llm = LLM.fromExecutor(new HashExecutor(sizes), options)
  open.push(llm)
  return llm
}

/** An LLM whose steps complete when the test says so. */
function gated(
  options: FromExecutorOptions = {},
  sizes: Partial<ExecutorInfo> = {},
): { llm: LLM; executor: GatedExecutor } {
  const executor = new GatedExecutor(new HashExecutor(sizes))
  const llm = LLM.fromExecutor(executor, options)
  open.push(llm)
  return { llm, executor }
}

async function collect(generation: Generation): Promise<GenerationChunk[]> {
  const chunks: GenerationChunk[] = []
  for await (const chunk of generation) chunks.push(chunk)
  return chunks
}
const failure = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
const tokens = [1, 2, 3, 4, 5, 6]

const activeTimers = (): number => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length

/** Everything that a request held has been given back. */
async function expectIdle(llm: LLM): Promise<void> {
  await vi.waitFor(() =>
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, steps: { inFlight: 0 }, kv: { usedPages: 0 } }),
  )
  llm.check()
}

describe('a generation', () => {
  it('starts at the call, and runs although nobody listens', async () => {
    const llm = serve()
    llm.generate({ tokens, maxTokens: 5 })
    expect(llm.stats().requests.added).toBe(1)
    await vi.waitFor(() => expect(llm.stats().sequences.finished).toBe(1))
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

describe('bad requests', () => {
  const llm = (): LLM => serve({ tokenizer: storyTokenizer() }, { vocabSize: 4096, numPages: 20, maxPositions: 64 })

  it.each<[string, object, string]>([
    ['token -1', { tokens: [1, -1] }, 'ERR_INVALID_TOKEN'],
    ['token vocab', { tokens: [4096] }, 'ERR_INVALID_TOKEN'],
    ['token 2^31', { tokens: [2 ** 31] }, 'ERR_INVALID_TOKEN'],
    ['token NaN', { tokens: [NaN] }, 'ERR_INVALID_TOKEN'],
    ['half a token', { tokens: [1.5] }, 'ERR_INVALID_TOKEN'],
    ['a hole', { tokens: [1, , 3] }, 'ERR_INVALID_TOKEN'], // eslint-disable-line no-sparse-arrays
    ['a string', { tokens: ['1'] }, 'ERR_INVALID_TOKEN'],
    ['no tokens', { tokens: [] }, 'ERR_INVALID_ARGUMENT'],
    ['NaN temperature', { tokens, temperature: NaN }, 'ERR_INVALID_ARGUMENT'],
    ['negative topP', { tokens, topP: -1 }, 'ERR_INVALID_ARGUMENT'],
    ['n = 2^31', { tokens, n: 2 ** 31 }, 'ERR_INVALID_ARGUMENT'],
    ['a prompt at the limit', { tokens: new Int32Array(64).fill(1) }, 'ERR_PROMPT_TOO_LONG'],
    ['a prompt one over', { tokens: new Int32Array(65).fill(1) }, 'ERR_PROMPT_TOO_LONG'],
    ['a prompt ten times over', { tokens: new Int32Array(640).fill(1) }, 'ERR_PROMPT_TOO_LONG'],
    ['a text ten times over', { prompt: 'once upon a time '.repeat(160) }, 'ERR_PROMPT_TOO_LONG'],
    ['a request larger than the pool', { tokens: new Int32Array(40).fill(1), maxTokens: 60 }, 'none'],
    ['messages without a template', { messages: [{ role: 'user', content: 'Hi' }] }, 'ERR_CHAT_TEMPLATE'],
    ['a deadline that has passed', { tokens, deadline: Date.now() - 1 }, 'ERR_DEADLINE_EXCEEDED'],
  ])('%s', async (_name, options, code) => {
    const subject = llm()
    const neighbour = subject.generate({ tokens, maxTokens: 8 })
    let generation!: Generation
    expect(() => (generation = subject.generate(options as never))).not.toThrow()
    if (code === 'none') {
      expect((await generation.result()).tokens).toHaveLength(24)
    } else {
      expect(await failure(generation.result())).toHaveCode(code)
      expect(await failure(collect(generation))).toHaveCode(code)
    }
    expect((await neighbour.result()).tokens).toHaveLength(8)
    await expectIdle(subject)
  })

  it('a request larger than the whole pool', async () => {
    const subject = serve({}, { numPages: 5, pageSize: 4 })
    expect(await failure(subject.generate({ tokens, maxTokens: 16 }).result())).toHaveCode(
      'ERR_REQUEST_TOO_LARGE',
      /20 tokens/,
    )
    expect((await subject.generate({ tokens, maxTokens: 15 }).result()).tokens).toHaveLength(15)
    expect((await subject.generate({ tokens }).result()).tokens).toHaveLength(15)
  })

  it('a huge text is refused before it is encoded', async () => {
    const started = performance.now()
    expect(
      await failure(
        llm()
          .generate({ prompt: 'ab'.repeat(5_000_000) })
          .result(),
      ),
    ).toHaveCode('ERR_PROMPT_TOO_LONG', /at least/)
    expect(performance.now() - started).toBeLessThan(500)
  })

  it('options of a wrong kind reject, too', async () => {
    for (const options of [undefined, null, 'Once', 7, { prompt: 'a', max_tokens: 3 }]) {
      expect(
        await failure(
          llm()
            .generate(options as never)
            .result(),
        ),
      ).toHaveCode('ERR_INVALID_ARGUMENT')
    }
  })

  it('a text for an LLM without a tokenizer', async () => {
    const subject = serve()
    expect(await failure(subject.generate({ prompt: 'x' }).result())).toHaveCode(
      'ERR_INVALID_ARGUMENT',
      /no tokenizer.*give "tokens"/,
    )
    expect(() => subject.tokenize('x')).toThrowCode('ERR_INVALID_ARGUMENT', /no tokenizer/)
    expect(() => subject.detokenize([1])).toThrowCode('ERR_INVALID_ARGUMENT', /no tokenizer/)
  })

  it('do not change a request that was made: tokens are copied', async () => {
    const { llm: subject, executor } = gated()
    const mine = [1, 2, 3]
    const generation = subject.generate({ tokens: mine, maxTokens: 4 })
    mine.fill(9)
    executor.open()
    expect((await generation.result()).tokens).toEqual(
      (await subject.generate({ tokens: [1, 2, 3], maxTokens: 4 }).result()).tokens,
    )
  })
})

describe('limits of time and room', () => {
  it('a timeout fails a request that runs, and the rest goes on', async () => {
    const { llm, executor } = gated()
    const late = llm.generate({ tokens, maxTokens: 50, timeoutMs: 30 })
    const other = llm.generate({ tokens: [9, 8], maxTokens: 4 })
    expect(await failure(late.result())).toHaveCode('ERR_TIMEOUT', /30 ms/)
    executor.open()
    expect((await other.result()).tokens).toHaveLength(4)
    await expectIdle(llm)
  })

  it('what came before a failure is delivered, then the error', async () => {
    const { llm, executor } = gated()
    const late = llm.generate({ tokens, maxTokens: 50, timeoutMs: 60 })
    await executor.release(2)
    await failure(late.result())
    const seen: number[] = []
    const error = await failure(
      (async () => {
        for await (const chunk of late) seen.push(...chunk.tokens)
      })(),
    )
    expect(seen).toHaveLength(2)
    expect(error).toHaveCode('ERR_TIMEOUT')
  })

  it('a deadline fails a request that waits in vain', async () => {
    const { llm, executor } = gated({ maxSequences: 1 })
    const first = llm.generate({ tokens, maxTokens: 5 })
    const started = performance.now()
    const second = llm.generate({ tokens, maxTokens: 5, deadlineMs: 25 })
    expect(await failure(second.result())).toHaveCode('ERR_DEADLINE_EXCEEDED')
    expect(performance.now() - started).toBeGreaterThan(20)
    executor.open()
    await first.result()
  })

  it('the more urgent runs first, and among equals the one that is due first', async () => {
    const { llm, executor } = gated({ maxSequences: 1 })
    const order: string[] = []
    const request = (name: string, options: object): Promise<unknown> =>
      llm
        .generate({ tokens, maxTokens: 2, ...options })
        .result()
        .then(() => order.push(name))
    const all = [request('running', {})]
    await Promise.resolve()
    all.push(
      request('later', {}),
      request('last', { priority: 5 }),
      request('due', { deadlineMs: 60_000 }),
      request('due first', { deadlineMs: 50_000 }),
      request('urgent', { priority: -5 }),
    )
    executor.open()
    await Promise.all(all)
    expect(order).toEqual(['running', 'urgent', 'due first', 'due', 'later', 'last'])
  })

  it('a full queue refuses', async () => {
    const { llm, executor } = gated({ maxQueue: 2 })
    const accepted = [llm.generate({ tokens, maxTokens: 2 }), llm.generate({ tokens, maxTokens: 2 })]
    expect(await failure(llm.generate({ tokens, maxTokens: 2 }).result())).toHaveCode(
      'ERR_QUEUE_FULL',
      /raise maxQueue/,
    )
    executor.open()
    for (const generation of accepted) expect((await generation.result()).tokens).toHaveLength(2)
  })

  it('no timer outlives the requests', async () => {
    const llm = serve()
    const before = activeTimers()
    await llm.generate({ tokens, maxTokens: 5, timeoutMs: 60_000 }).result()
    await vi.waitFor(() => expect(activeTimers()).toBeLessThanOrEqual(before), { interval: 0 })
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

describe('close', () => {
  it('rejects what is pending, refuses what comes, and may be called again', async () => {
    const { llm, executor } = gated()
    const generation = llm.generate({ tokens, maxTokens: 50 })
    const loop = failure(collect(generation))
    const waiting = Array.from({ length: 30 }, () => failure(llm.generate({ tokens, maxTokens: 5 }).result()))
    await executor.release()
    const closing = llm.close()
    expect(llm.close()).toBe(closing)
    for (const error of [await loop, await failure(generation.result()), ...(await Promise.all(waiting))])
      expect(error).toHaveCode('ERR_DISPOSED')
    await closing
    expect(executor.closed).toBe(1)
    expect(await failure(llm.generate({ tokens }).result())).toHaveCode('ERR_DISPOSED')
    expect(await failure(collect(llm.generate({ tokens })))).toHaveCode('ERR_DISPOSED')
    await llm.close()
  })

  it('lets pending requests end while it drains', async () => {
    const llm = serve()
    const generation = llm.generate({ tokens, maxTokens: 30 })
    const timers = activeTimers()
    const closing = llm.close({ drain: 60_000 })
    expect(activeTimers()).toBe(timers + 1)
    expect(await failure(llm.generate({ tokens }).result())).toHaveCode('ERR_DISPOSED')
    expect((await generation.result()).tokens).toHaveLength(30)
    await closing
    expect(activeTimers()).toBeLessThanOrEqual(timers)
  })

  it('an abort is an end, too, for what is drained', async () => {
    const { llm } = gated()
    const controller = new AbortController()
    const generation = llm.generate({ tokens, maxTokens: 30, signal: controller.signal })
    const closing = llm.close({ drain: 60_000 })
    controller.abort()
    await closing
    expect(await failure(generation.result())).toBeInstanceOf(AbortError)
  })

  it('drains for so long and no longer', async () => {
    const { llm } = gated()
    const generation = llm.generate({ tokens, maxTokens: 30 })
    const started = performance.now()
    await llm.close({ drain: 40 })
    expect(performance.now() - started).toBeGreaterThanOrEqual(35)
    expect(await failure(generation.result())).toHaveCode('ERR_DISPOSED')
  })

  it('a second call cuts the draining short', async () => {
    const { llm } = gated()
    const generation = llm.generate({ tokens, maxTokens: 30 })
    const closing = llm.close({ drain: 1e9 })
    await sleep(5)
    await llm.close()
    await closing
    expect(await failure(generation.result())).toHaveCode('ERR_DISPOSED')
  })

  it('is what Symbol.asyncDispose does', async () => {
    const llm = serve()
    await llm[Symbol.asyncDispose]()
    expect(await failure(llm.generate({ tokens }).result())).toHaveCode('ERR_DISPOSED')
  })

  it('refuses bad options without closing', async () => {
    const llm = serve()
    expect(await failure(llm.close({ drain: NaN }))).toHaveCode('ERR_INVALID_ARGUMENT')
    expect((await llm.generate({ tokens, maxTokens: 2 }).result()).tokens).toHaveLength(2)
  })
})

describe('an executor that fails', () => {
  it('is asked again where that may help, and nothing is lost', async () => {
    const expected = (await serve().generate({ tokens, maxTokens: 12 }).result()).tokens
    const { llm, executor } = gated()
    executor.change = (result) =>
      result.stepId === 4
        ? {
            ...result,
            tokens: new Int32Array(0),
            error: { code: 'ERR_STEP_FAILED', message: 'injected', retryable: true },
          }
        : result
    executor.open()
    const generation = llm.generate({ tokens, maxTokens: 12 })
    expect((await collect(generation)).flatMap((chunk) => chunk.tokens)).toEqual(expected)
    expect(llm.stats()).toMatchObject({ retries: 1, steps: { failed: 1 } })
    await expectIdle(llm)
  })

  it('dies: everything rejects, and it is closed', async () => {
    const { llm, executor } = gated()
    executor.change = (result) =>
      result.stepId === 2
        ? {
            ...result,
            tokens: new Int32Array(0),
            error: { code: 'ERR_BACKEND_DEAD', message: 'the GPU fell off', retryable: false },
          }
        : result
    executor.open()
    const errors = await Promise.all(
      Array.from({ length: 40 }, () => failure(llm.generate({ tokens, maxTokens: 20 }).result())),
    )
    for (const error of errors) {
      expect(error).toHaveCode('ERR_BACKEND_DEAD', /the GPU fell off/)
      expect((error as TensorRTError).cause).toHaveCode('ERR_BACKEND_DEAD')
    }
    expect(await failure(llm.generate({ tokens }).result())).toHaveCode('ERR_BACKEND_DEAD')
    await llm.close()
    expect(executor.closed).toBe(1)
  })

  it('refuses a step: its requests fail, in their turn, and later ones run', async () => {
    const { llm, executor } = gated()
    let calls = 0
    executor.onSubmit = () => {
      if (++calls === 3) throw new TensorRTError('ERR_INVALID_ARGUMENT', 'a step of a wrong kind')
    }
    executor.open()
    expect(await failure(llm.generate({ tokens, maxTokens: 20 }).result())).toHaveCode('ERR_STEP_FAILED', /wrong kind/)
    expect((await llm.generate({ tokens, maxTokens: 5 }).result()).tokens).toHaveLength(5)
    await expectIdle(llm)
  })

  it('refuses a step long before its turn', async () => {
    const { llm, executor } = gated()
    let calls = 0
    executor.onSubmit = () => {
      if (++calls === 2) throw new Error('no second step')
    }
    const generation = llm.generate({ tokens, maxTokens: 20 })
    await sleep(5)
    executor.open()
    expect(await failure(generation.result())).toHaveCode('ERR_STEP_FAILED', /no second step/)
  })

  it('refuses the very first step', async () => {
    const { llm, executor } = gated()
    executor.onSubmit = () => {
      executor.onSubmit = undefined
      throw new Error('not yet')
    }
    executor.open()
    expect(await failure(llm.generate({ tokens, maxTokens: 20 }).result())).toHaveCode('ERR_STEP_FAILED', /not yet/)
    expect((await llm.generate({ tokens, maxTokens: 5 }).result()).tokens).toHaveLength(5)
  })

  it('does not take a slot: it cannot be trusted any more', async () => {
    const { llm, executor } = gated()
    executor.onOpenSlot = () => {
      throw new Error('no slot')
    }
    expect(await failure(llm.generate({ tokens }).result())).toHaveCode('ERR_BACKEND_DEAD', /no slot/)
  })

  it('answers for a step that nobody submitted', async () => {
    const { llm, executor } = gated()
    executor.change = (result) => ({ ...result, stepId: result.stepId + 7 })
    executor.open()
    expect(await failure(llm.generate({ tokens }).result())).toHaveCode('ERR_INTERNAL', /step/)
  })

  it('rejects its close, and so does the LLM', async () => {
    const executor = new GatedExecutor(new HashExecutor())
    executor.close = () => Promise.reject(new Error('stuck'))
    await expect(LLM.fromExecutor(executor).close()).rejects.toThrow('stuck')
  })
})

describe('fromExecutor', () => {
  it('describes what runs', () => {
    const llm = serve({ tokenizer: storyTokenizer(), maxSequences: 3, maxStepTokens: 9 }, { vocabSize: 4096 })
    expect(llm.backend).toBe('hash')
    expect(llm.warnings).toEqual([])
    expect(llm.info).toMatchObject({
      name: 'hash',
      vocabSize: 4096,
      maxSlots: 3,
      maxStepTokens: 9,
      model: undefined,
      hasTokenizer: true,
      hasChatTemplate: false,
      specialTokenIds: [0, 1, 2, 3, 4, 5],
      eosTokenIds: [5],
    })
    expect(Object.isFrozen(llm.info)).toBe(true)
  })

  it('checks its arguments', () => {
    const executor = new HashExecutor()
    expect(() => LLM.fromExecutor({} as never)).toThrowCode('ERR_INVALID_ARGUMENT', /"executor"/)
    expect(() => LLM.fromExecutor(null as never)).toThrowCode('ERR_INVALID_ARGUMENT', /"executor"/)
    expect(() => LLM.fromExecutor(executor, { tokenizer: {} as never })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /"tokenizer"/,
    )
    expect(() => LLM.fromExecutor(executor, { eosTokenIds: [97] })).toThrowCode('ERR_INVALID_TOKEN', /eosTokenIds/)
    expect(() => LLM.fromExecutor(executor, { maxQueues: 5 } as never)).toThrowCode('ERR_INVALID_ARGUMENT', /maxQueue/)
  })

  it('counts pages whole in a snapshot', async () => {
    const { llm, executor } = gated()
    llm.generate({ tokens, maxTokens: 9 })
    await executor.release(3)
    const { kv, running, steps } = llm.stats()
    expect(running).toBe(1)
    expect(steps).toMatchObject({ completed: 3, inFlight: 2 })
    expect(kv.freePages + kv.cachedPages + kv.usedPages).toBe(kv.totalPages)
    expect(kv.usedPages).toBeGreaterThan(0)
    expect(kv.utilisation).toBeGreaterThan(0)
  })
})
