/** What an LLM refuses, and limits of time and room. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import '../matchers'
import { type Generation, LLM } from '../../../lib'
import { EncoderThread } from '../../../lib/llm/encoder_thread'
import { Tokenizer } from '../../../lib/text'
import { storyTokenizer } from '../text/fixtures'
import { activeTimers, collect, expectIdle, expectTimers, failure, gated, serve, tokens } from './hash_llm'

afterEach(() => void vi.useRealTimers())

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
    ['a deadline that has passed', { tokens, deadline: Date.now() - 60_000 }, 'ERR_DEADLINE_EXCEEDED'],
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
    const encoders = [vi.spyOn(Tokenizer.prototype, 'encode'), vi.spyOn(EncoderThread.prototype, 'encode')]
    try {
      const subject = serve({ tokenizer: storyTokenizer() }, { vocabSize: 4096, maxPositions: 4096, numPages: 1024 })
      expect(await failure(subject.generate({ prompt: 'ab'.repeat(5_000_000) }).result())).toHaveCode('ERR_PROMPT_TOO_LONG', /at least/)
      for (const encode of encoders) expect(encode).not.toHaveBeenCalled()
      // What is not, these encode.
      await subject.generate({ prompt: 'ab', maxTokens: 1 }).result()
      await subject.generate({ prompt: ' there'.repeat(400), maxTokens: 1 }).result()
      for (const encode of encoders) expect(encode).toHaveBeenCalledOnce()
    } finally {
      for (const encode of encoders) encode.mockRestore()
    }
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
    expect(await failure(subject.generate({ tokens: [1], stop: ['x'] }).result())).toHaveCode('ERR_INVALID_ARGUMENT', /no tokenizer.*"stop".*give "stopTokenIds"/)
    expect((await subject.generate({ tokens: [1], stop: [], maxTokens: 2 }).result()).tokens).toHaveLength(2)
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
    // No time passes but what the test lets pass.
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    const { llm, executor } = gated()
    const late = llm.generate({ tokens, maxTokens: 50, timeoutMs: 60 })
    await executor.release(2)
    await vi.advanceTimersByTimeAsync(61)
    await failure(late.result())
    vi.useRealTimers()
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
    // By the clock that the deadline is of; a timer of its own could be early.
    expect(performance.now() - started).toBeGreaterThanOrEqual(25)
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
    await expectTimers(before)
  })
})
