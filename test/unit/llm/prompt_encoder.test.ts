/** Prompts that take long are encoded on a thread: what comes out is the same, and the event loop goes on. */
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { type ChatMessage, EncodedPrompt, LLM } from '../../../lib'
import { EncoderThread } from '../../../lib/llm/encoder_thread'
import { PromptEncoder } from '../../../lib/llm/prompt_encoder'
import { ChatTemplate } from '../../../lib/text'
import { TensorRTError } from '../../../lib/errors'
import type { PendingPrompt } from '../../../lib/llm/encoder_thread'
import { inOneOf, timeOf, TurnCounter } from '../../support/patience'

const model = join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
/** Far above what is encoded at once, and above the context. */
const LONG = 'The fox found a silver key. '.repeat(4000)
const BIG = { maxPositions: 2 ** 30, vocabSize: 2 ** 30 }

let llm: LLM
beforeAll(async () => {
  llm = await LLM.load(model, { backend: 'cpu' })
})
afterAll(() => llm.close())

const encoderWith = (template?: string): PromptEncoder =>
  new PromptEncoder(llm.tokenizer, template === undefined ? undefined : new ChatTemplate(template), undefined)

const chat = (messages: ChatMessage[]) => ({ kind: 'messages' as const, options: { messages }, allowSpecial: false })
const closed = (encoder: PromptEncoder): Promise<void> => encoder.close(new TensorRTError('ERR_DISPOSED', 'closed'))
/** Wherever it is encoded, which depends on how busy the machine is for what is short. */
const idsOf = async (prompt: Int32Array | PendingPrompt): Promise<number[]> => [...(prompt instanceof Int32Array ? prompt : await prompt.ids)]
const onThread = (prompt: Int32Array | PendingPrompt): Promise<Int32Array> => {
  if (prompt instanceof Int32Array) throw new Error('It was encoded at once')
  return prompt.ids
}

describe('PromptEncoder', () => {
  it('gives the same ids on the thread as at once', async () => {
    const encoder = encoderWith()
    try {
      for (const addSpecialTokens of [true, false]) {
        const ids = await onThread(encoder.encode({ kind: 'prompt', prompt: LONG, addSpecialTokens, allowSpecial: true }, BIG))
        expect([...ids]).toEqual(llm.tokenizer!.encode(LONG, { addSpecialTokens }))
      }
      const short = encoder.encode({ kind: 'prompt', prompt: 'Once', addSpecialTokens: true, allowSpecial: true }, BIG)
      expect([...(short as Int32Array)]).toEqual(llm.tokenizer!.encode('Once'))
    } finally {
      await closed(encoder)
    }
  })

  it('the event loop goes on while a long prompt is encoded', async () => {
    const encoder = encoderWith()
    try {
      const encode = () => encoder.encode({ kind: 'prompt', prompt: LONG, addSpecialTokens: true, allowSpecial: false }, BIG)
      await onThread(encode())
      const pending = onThread(encode())
      const loop = new TurnCounter()
      await pending
      // One or two, had it been done at the call.
      expect(loop.stop()).toBeGreaterThan(20)
    } finally {
      await closed(encoder)
    }
  })

  it('many short prompts at once do not add up to a long pause', async () => {
    const encoder = encoderWith()
    try {
      const prompt = Array.from({ length: 1500 }, (_, i) => String.fromCodePoint(0x4e00 + i * 7)).join('')
      const encode = () => encoder.encode({ kind: 'prompt', prompt, addSpecialTokens: true, allowSpecial: true }, BIG)
      // Each takes 2 ms, by a clock that advances when it is read.
      let now = 0
      const clock = vi.spyOn(performance, 'now').mockImplementation(() => (now += 2))
      const [first, ...rest] = Array.from({ length: 41 }, encode)
      clock.mockRestore()
      // The turn has 8 ms.
      expect([first, ...rest].map((one) => one instanceof Int32Array)).toEqual(Array.from({ length: 41 }, (_, i) => i < 4))
      for (const one of rest) expect(await idsOf(one)).toEqual([...(first as Int32Array)])
      // The next turn begins anew.
      await new Promise(setImmediate)
      expect(encode()).toBeInstanceOf(Int32Array)
    } finally {
      await closed(encoder)
    }
  })

  it('a template of three nested loops blocks nobody, and is ended', async () => {
    const encoder = encoderWith(
      '{% for a in messages %}{% for b in messages %}{% for c in messages %}{{ a.content }}{% endfor %}{% endfor %}{% endfor %}',
    )
    const messages = Array.from({ length: 600 }, () => ({ role: 'user', content: 'x' }))
    const encode = () => encoder.encode(chat(messages), BIG) as PendingPrompt
    try {
      const { ids } = encode()
      const loop = new TurnCounter()
      // The slice on the event loop is 4 ms; a second and more would be the template's.
      await inOneOf(5, () => {
        let dropped: PendingPrompt | undefined
        expect(timeOf(() => (dropped = encode()))).toBeLessThan(500)
        dropped!.ids.catch(() => {})
        dropped!.cancel()
      })
      await expect(ids).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('longer than 1000 ms') as string })
      expect(loop.stop()).toBeGreaterThan(20)
      // The thread lives on.
      const small = encoder.encode(chat(Array.from({ length: 3 }, () => ({ role: 'user', content: 'fox' }))), BIG)
      expect(await idsOf(small)).toEqual(llm.tokenizer!.encode('fox'.repeat(27), { addSpecialTokens: false }))
    } finally {
      await closed(encoder)
    }
  })

  it.each([
    ['a macro that calls itself twice', '{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}', 'longer than 1000 ms'],
    ['a range without end', '{% for i in range(1000000000000) %}x{% endfor %}', 'range() of more than'],
    ['a range that is fine, in loops', '{% for i in range(20000) %}{% for j in range(20000) %}x{% endfor %}{% endfor %}', 'longer than 1000 ms'],
  ])('%s is ended', async (_, template, message) => {
    const encoder = encoderWith(template)
    const work = async (): Promise<number[]> => idsOf(encoder.encode(chat([{ role: 'user', content: 'x' }]), BIG))
    try {
      await expect(work()).rejects.toThrow(message)
    } finally {
      await closed(encoder)
    }
  })

  it('what fails on the thread fails with the code, message and hint that it has at once', async () => {
    const encoder = encoderWith("{{ raise_exception('Only foxes') }}")
    try {
      await expect(onThread(encoder.encode(chat([{ role: 'user', content: LONG }]), BIG))).rejects.toMatchObject({
        code: 'ERR_INVALID_ARGUMENT',
        message: 'The chat template refuses these messages: Only foxes',
      })
      const none = encoderWith()
      await expect(onThread(none.encode(chat([{ role: 'user', content: LONG }]), BIG))).rejects.toMatchObject({
        code: 'ERR_CHAT_TEMPLATE',
        hint: expect.stringContaining('use a prompt') as string,
        message: expect.stringMatching(/^This model has no chat template \(use a prompt[^()]*\)$/) as string,
      })
      await closed(none)
    } finally {
      await closed(encoder)
    }
  })
})

describe('EncoderThread', () => {
  it('one that cannot start fails the prompts, one by one, and leaves the process alone', async () => {
    const thread = new EncoderThread(() => ({ tokenizerJson: '{"model": 7}', tokenizerConfig: {}, chatTemplate: { templates: [], specialTokens: [] } }))
    const job = { input: { kind: 'prompt' as const, prompt: 'x', addSpecialTokens: true, allowSpecial: true }, maxTokens: 10 }
    const pending = [thread.encode(job, 1), thread.encode(job, 1)]
    for (const { ids } of pending) await expect(ids).rejects.toMatchObject({ code: 'ERR_INTERNAL' })
    await thread.close(new TensorRTError('ERR_DISPOSED', 'closed'))
    expect(() => thread.encode(job, 1)).toThrow('closed')
  })
})

describe('prompts that wait', () => {
  const { definition } = new ChatTemplate('')
  const jobOf = (prompt: string) => ({ input: { kind: 'prompt' as const, prompt, addSpecialTokens: false, allowSpecial: false }, maxTokens: 100 })
  const threadOf = (maxQueue?: number): EncoderThread =>
    new EncoderThread(() => ({ ...llm.tokenizer!.definition, chatTemplate: definition }), maxQueue)

  it.each([[undefined, 1024], [10, 1024], [3000, 3000]])('are as many as requests may wait, at least 1024: maxQueue %j', async (maxQueue, most) => {
    const thread = threadOf(maxQueue)
    const pending = Array.from({ length: most }, (_, i) => thread.encode(jobOf(`${i}`), 1))
    expect(() => thread.encode(jobOf('x'), 1)).toThrow(/^\d+ prompts wait to be encoded \(retry later, or raise maxQueue\)$/)
    pending[5]!.cancel()
    pending.push(thread.encode(jobOf('x'), 1))
    const ends = Promise.allSettled(pending.map(({ ids }) => ids))
    await thread.close(new TensorRTError('ERR_DISPOSED', 'closed'))
    expect((await ends).map((end) => (end as PromiseRejectedResult).reason?.code as string)).toEqual(
      pending.map((_, i) => (i === 5 ? 'ABORT_ERR' : 'ERR_DISPOSED')),
    )
  })

  it('are encoded in their order, without those that were dropped, and all units of text are given back', async () => {
    const thread = threadOf()
    const share = Math.floor((1024 * 2 ** 16) / 300)
    for (let round = 0; round < 3; round++) {
      const order: number[] = []
      const pending = Array.from({ length: 300 }, (_, i) => thread.encode(jobOf(`${i}`), share))
      // The first may have begun.
      expect(() => thread.encode(jobOf('x'), 2 * share)).toThrow('wait to be encoded')
      const told = pending.map(({ ids }, i) => ids.then((tokens) => [order.push(i), [...tokens]] as const, (error: unknown) => error))
      const dropped = new Set([1, 2, ...Array.from({ length: 200 }, (_, i) => 50 + i), 299])
      for (const i of dropped) pending[i]!.cancel()
      for (const [i, end] of (await Promise.all(told)).entries()) {
        if (dropped.has(i)) expect(end).toMatchObject({ code: 'ABORT_ERR' })
        else expect((end as [number, number[]])[1]).toEqual(llm.tokenizer!.encode(`${i}`, { addSpecialTokens: false }))
      }
      expect(order).toEqual([...order].sort((a, b) => a - b))
    }
    await thread.close(new TensorRTError('ERR_DISPOSED', 'closed'))
  })

  it('are no more than the queue of requests lets wait', async () => {
    const busy = LLM.fromExecutor(new HashExecutor({ vocabSize: 4096 }), { tokenizer: llm.tokenizer, maxQueue: 1500 })
    const controller = new AbortController()
    const prompt = 'The fox found a silver key. '.repeat(80)
    const all = Array.from({ length: 1500 }, () => busy.generate({ prompt, maxTokens: 4, signal: controller.signal }).result())
    const ends = Promise.allSettled(all)
    controller.abort()
    expect(new Set((await ends).map((end) => (end as PromiseRejectedResult).reason?.code as string))).toEqual(new Set(['ABORT_ERR']))
    await busy.close()
  })
})

describe('LLM with long prompts', () => {
  const story = 'Once upon a time, there was a fox. '.repeat(80)
  const room = (): string => {
    // As long as fits, so that it is both above what is encoded at once and below the context.
    let text = story
    while (llm.tokenize(text).length > llm.info.maxPositions - 16) text = text.slice(0, -35)
    return text
  }

  it('encodePrompt and generate({ encoded }) give what generate() gives', async () => {
    const prompt = room()
    const direct = await llm.generate({ prompt, maxTokens: 8, temperature: 0 }).result()
    const encoded = await llm.encodePrompt({ prompt })
    expect(encoded).toBeInstanceOf(EncodedPrompt)
    expect([...encoded.tokens]).toEqual(llm.tokenize(prompt))
    const again = await llm.generate({ encoded, maxTokens: 8, temperature: 0 }).result()
    expect(again).toMatchObject({ text: direct.text, tokens: direct.tokens })
    const messages = [{ role: 'user', content: 'What is 7 plus 5?' }]
    const chatted = await llm.encodePrompt({ messages })
    expect([...chatted.tokens]).toEqual(llm.applyChatTemplate(messages).tokens)
    expect((await llm.generate({ encoded: chatted, temperature: 0, maxTokens: 16 }).result()).text).toBe('7 plus 5 is 12.')
    await expect(llm.encodePrompt({ prompt: LONG.repeat(10) })).rejects.toMatchObject({ code: 'ERR_PROMPT_TOO_LONG' })
    await expect(llm.encodePrompt({})).rejects.toThrow('encodePrompt() takes exactly one of')
    await expect(llm.generate({ encoded: { tokens: new Int32Array(1) } as EncodedPrompt }).result()).rejects.toThrow('what encodePrompt() gave')
  })

  it('a request that is aborted, left or timed out while its prompt is encoded ends then', async () => {
    // Keeps the thread busy for a second, whatever the machine.
    const endless = new ChatTemplate('{% for i in range(20000) %}{% for j in range(20000) %}{% endfor %}{% endfor %}{{ messages[0].content }}')
    const busy = LLM.fromExecutor(new HashExecutor({ vocabSize: 4096 }), { tokenizer: llm.tokenizer, chatTemplate: endless })
    try {
      const messages = [{ role: 'user', content: 'x' }]
      const reason = new Error('enough')
      const controller = new AbortController()
      const { signal } = controller
      const first = busy.encodePrompt({ messages })
      // Behind it, so none of these has begun.
      const aborted = busy.generate({ messages, maxTokens: 4, signal })
      const encoding = busy.encodePrompt({ messages, signal })
      const left = busy.generate({ messages, maxTokens: 4 })
      const late = busy.generate({ messages, maxTokens: 400, timeoutMs: 5 })
      let running = true
      const told = first.catch((error: unknown) => error).finally(() => (running = false))
      const iterator = left[Symbol.asyncIterator]()
      void iterator.next().catch(() => {})
      controller.abort(reason)
      await iterator.return!()
      await expect(aborted.result()).rejects.toMatchObject({ code: 'ABORT_ERR', cause: reason })
      await expect(encoding).rejects.toMatchObject({ code: 'ABORT_ERR', cause: reason })
      await expect(left.result()).rejects.toMatchObject({ code: 'ABORT_ERR' })
      expect(running).toBe(true)
      await expect(late.result()).rejects.toMatchObject({ code: 'ERR_TIMEOUT' })
      expect(await told).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('longer than 1000 ms') as string })
      expect(busy.stats()).toMatchObject({ running: 0, waiting: 0, requests: { added: 0 } })
      busy.check()
    } finally {
      await busy.close()
    }
  })

  it('one that ends while the thread is at its prompt is not started afterwards', async () => {
    const prompt = room()
    const before = llm.stats().requests.added
    // The thread is there, and idle: it begins at the call.
    await llm.encodePrompt({ prompt })
    const aborted = new AbortController()
    const first = llm.generate({ prompt, maxTokens: 4, signal: aborted.signal })
    aborted.abort()
    await expect(first.result()).rejects.toMatchObject({ code: 'ABORT_ERR' })
    // Its answers come in the order of the prompts.
    await llm.encodePrompt({ prompt })
    await expect(llm.generate({ prompt, maxTokens: 4, timeoutMs: 1e-6 }).result()).rejects.toMatchObject({ code: 'ERR_TIMEOUT' })
    await llm.encodePrompt({ prompt })
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, requests: { added: before } })
    llm.check()
  })

  it('close() lets prompts that are being encoded run when it drains, and rejects them when not', async () => {
    const prompt = room()
    const one = await LLM.load(model, { backend: 'cpu' })
    const last = one.generate({ prompt, maxTokens: 2 }).result()
    const closing = one.close({ drain: 600_000 })
    expect((await last).usage.completionTokens).toBe(2)
    await closing
    const other = await LLM.load(model, { backend: 'cpu' })
    const pending = [other.generate({ prompt, maxTokens: 2 }).result(), other.encodePrompt({ prompt })]
    const outcomes = Promise.allSettled(pending)
    await other.close()
    for (const outcome of await outcomes) expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ERR_DISPOSED' } })
    await expect(other.encodePrompt({ prompt: 'x' })).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
  })
})
