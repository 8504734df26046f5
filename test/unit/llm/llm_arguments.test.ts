import { afterAll, describe, expect, it, vi } from 'vitest'
import '../matchers'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { ChatTemplate, LLM } from '../../../lib'
import { storyTokenizer } from '../text/fixtures'

const chatTemplate = new ChatTemplate('{% for message in messages %}{{ message.content }}{% endfor %}')
const llm = LLM.fromExecutor(new HashExecutor({ vocabSize: 4096 }), { tokenizer: storyTokenizer(), chatTemplate })
afterAll(() => llm.close())

const chat = [{ role: 'user', content: 'Hello' }]

it.each<unknown[]>([[], [{ model: 'folder' }], ['folder'], [null]])('made with new, it names what makes one: %j', (...given) => {
  const make = LLM as unknown as new (...given: unknown[]) => LLM
  expect(() => new make(...given)).toThrowCode('ERR_INVALID_ARGUMENT', /LLM\.load\(folder\)/)
})

describe('calls about text', () => {
  it.each<[string, () => unknown, RegExp]>([
    ['tokenize: a number', () => llm.tokenize(5 as never), /string/],
    ['tokenize: null for options', () => llm.tokenize('a', null as never), /tokenize\(\) takes an object/],
    ['tokenize: an unknown option', () => llm.tokenize('a', { addSpecial: true } as never), /"addSpecial"/],
    ['tokenize: a wrong value', () => llm.tokenize('a', { addSpecialTokens: 'no' as never }), /"addSpecialTokens"/],
    ['detokenize: null', () => llm.detokenize(null as never), /"tokens" must be an array/],
    ['detokenize: a string', () => llm.detokenize('abc' as never), /"tokens" must be an array/],
    ['detokenize: a length alone', () => llm.detokenize({ length: -1 }), /"tokens" must be an array/],
    ['detokenize: a huge length', () => llm.detokenize({ length: 1e12 }), /"tokens" must be an array/],
    ['detokenize: a DataView', () => llm.detokenize(new DataView(new ArrayBuffer(4)) as never), /"tokens"/],
    ['detokenize: null for options', () => llm.detokenize([1], null as never), /detokenize\(\) takes an object/],
    ['detokenize: a wrong value', () => llm.detokenize([1], { skipSpecialTokens: 1 as never }), /"skipSpecialTokens"/],
    ['applyChatTemplate: null for options', () => llm.applyChatTemplate(chat, null as never), /takes an object/],
    ['applyChatTemplate: an unknown option', () => llm.applyChatTemplate(chat, { tool: [] } as never), /"tools"/],
    ['applyChatTemplate: a wrong value', () => llm.applyChatTemplate(chat, { allowSpecial: 0 as never }), /"allowSpecial"/],
  ])('%s', (_name, call, message) => {
    let error: unknown
    try {
      call()
    } catch (caught) {
      error = caught
    }
    expect(error).toHaveCode('ERR_INVALID_ARGUMENT')
    const { message: text, hint = '' } = error as Error & { hint?: string }
    expect(`${text} ${hint}`).toMatch(message)
  })

  it('take what is right', () => {
    const ids = llm.tokenize('Hello', { addSpecialTokens: false, allowSpecial: undefined })
    expect(llm.detokenize(Float64Array.from(ids), { skipSpecialTokens: true })).toBe('Hello')
    expect(llm.applyChatTemplate(chat, { addGenerationPrompt: false, allowSpecial: true })).toMatchObject({ text: 'Hello', tokens: ids })
  })
})

describe('a queue that is full', () => {
  it('refuses without encoding', async () => {
    const tokenizer = storyTokenizer()
    const full = LLM.fromExecutor(new HashExecutor({ vocabSize: 4096 }), { tokenizer, maxQueue: 2 })
    const encode = vi.spyOn(tokenizer, 'encode')
    // Time stands still, or a slow machine would leave the second prompt to the thread, and queue it later.
    const clock = vi.spyOn(performance, 'now').mockReturnValue(performance.now())
    const results = Array.from({ length: 5 }, () => full.generate({ prompt: 'Once', maxTokens: 2 }).result())
    clock.mockRestore()
    const outcomes = await Promise.allSettled(results)
    expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected', 'rejected', 'rejected'])
    expect(outcomes[4]).toMatchObject({ reason: { code: 'ERR_QUEUE_FULL' } })
    expect(encode).toHaveBeenCalledTimes(2)
    await full.close()
  })
})

describe('LLM.fromExecutor', () => {
  const executor = new HashExecutor()
  const whole = { info: executor.info, start() {}, openSlot() {}, closeSlot() {}, submit() {}, close: () => Promise.resolve() }

  it.each<[string, () => unknown, RegExp]>([
    ['a missing method', () => LLM.fromExecutor({ ...whole, close: undefined } as never), /Executor with close\(\)/],
    ['no info', () => LLM.fromExecutor({ ...whole, info: undefined } as never), /"executor.info.vocabSize"/],
    ['a size that is none', () => LLM.fromExecutor({ ...whole, info: { ...executor.info, pageSize: NaN } }), /"executor.info.pageSize"/],
    ['no array of tokens', () => LLM.fromExecutor(executor, { eosTokenIds: 5 as never }), /"eosTokenIds" must be an array/],
    ['a length alone', () => LLM.fromExecutor(executor, { eosTokenIds: { length: -1 } }), /"eosTokenIds" must be an array/],
  ])('refuses %s', (_name, call, message) => {
    expect(call).toThrowCode('ERR_INVALID_ARGUMENT', message)
  })
})
