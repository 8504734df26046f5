import { runInNewContext } from 'node:vm'
import { describe, expect, it, vi } from 'vitest'
import '../matchers'
import { StopSet } from '../../../lib/text'
import { checkCloseOptions, checkEngineOptions, checkLoadOptions, checkRequestOptions } from '../../../lib/llm/validate'

const VOCAB = 100
const check = (options: object): ReturnType<typeof checkRequestOptions> =>
  checkRequestOptions({ tokens: [1], ...options }, VOCAB)

describe('request options', () => {
  it('have defaults', () => {
    expect(check({})).toMatchObject({
      n: 1,
      maxTokens: undefined,
      stops: new StopSet([]),
      ignoreEos: false,
      includeStop: false,
      skipSpecialTokens: true,
      priority: 0,
      deadlineIn: undefined,
      timeoutMs: undefined,
      sampling: {
        temperature: undefined,
        presencePenalty: 0,
        frequencyPenalty: 0,
        seed: undefined,
        logprobs: -1,
        promptLogprobs: -1,
        minTokens: 0,
      },
    })
  })

  it.each<[string, unknown[], unknown[]]>([
    ['temperature', [0, 0.7, 100], [NaN, -0.1, -1, 101, Infinity, '1', null, true, {}]],
    ['topK', [0, 1, 2 ** 31 - 1], [-1, 1.5, NaN, 2 ** 31, '5']],
    ['topP', [1, 0.1], [0, -0.5, 1.1, NaN, '0.9']],
    ['minP', [0, 0.5, 1], [-0.1, 1.1, NaN]],
    ['repetitionPenalty', [1, 1.3, 0.5], [0, -1, NaN, Infinity]],
    ['presencePenalty', [0, -2, 2], [NaN, Infinity, 101]],
    ['frequencyPenalty', [0, -2, 2], [NaN, -Infinity]],
    ['seed', [0, 7, Number.MAX_SAFE_INTEGER], [-1, 0.5, NaN, 2 ** 53, 1n]],
    ['maxTokens', [0, 1, 2 ** 31 - 1], [-1, NaN, 2 ** 31, Infinity, 1.5, '10']],
    ['minTokens', [0, 5], [-1, NaN]],
    ['logprobs', [0, 5, 100], [-1, 101, true, NaN]],
    ['promptLogprobs', [0, 100], [-1, 101, 1.5]],
    ['n', [1, 1024], [0, -1, 1025, 2 ** 31, 1.5, NaN]],
    ['priority', [-1000, 0, 1000], [-1001, 0.5, NaN]],
    ['deadlineMs', [1, 0.5], [0, -1, NaN, Infinity]],
    ['deadline', [Date.now(), new Date(), runInNewContext('new Date()')], [NaN, new Date(NaN), 'tomorrow', null]],
    ['timeoutMs', [1, 5000], [0, -1, NaN, Infinity]],
    ['cacheSalt', ['', 'tenant'], [7, 'x'.repeat(1025)]],
    ['ignoreEos', [true, false], [1, 'yes']],
    ['includeStop', [true], [0]],
    ['skipSpecialTokens', [false], ['no']],
    ['stop', ['x', [], ['a', 'b']], ['', [''], [7], { a: 1 }, Array.from({ length: 65 }, () => 'x'), Array.from({ length: 1 }), '\ud800']],
    [
      'logitBias',
      [{}, new Map(), { 5: -100, 99: 1e6 }, new Map([[0, 0.5]]), Object.fromEntries(Array.from({ length: 100 }, (_, i) => [i, 1]))],
      [null, 5, 'x', [1, 2], new Set([1]), new Float32Array(2), new Date(), { 5: NaN }, { 5: '1' }, { 5: null }, { 5: 1.1e6 }, new Map([[5, Infinity]]), new Map(Array.from({ length: 1025 }, (_, i) => [i, 1]))],
    ],
    ['constrain', [() => ({}) as never], [null, {}, 'json', { mask: () => null, accept: () => undefined }]],
    ['signal', [new AbortController().signal], [new AbortController(), {}, null]],
  ])('%s is checked', (name, good, bad) => {
    for (const value of good) expect(() => check({ [name]: value }), String(value)).not.toThrow()
    for (const value of bad) expect(() => check({ [name]: value }), String(value)).toThrowCode('ERR_INVALID_ARGUMENT')
  })

  it('a list of stop strings that is far too long is not copied', () => {
    const stop: string[] = []
    stop.length = 2 ** 32 - 1
    expect(() => check({ stop })).toThrowCode('ERR_INVALID_ARGUMENT', /at most 64 strings/)
  })

  it('errors name the field, what is expected and what was given', () => {
    expect(() => check({ temperature: NaN })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /^"temperature" must be a number from 0 to 100, not NaN$/,
    )
    expect(() => check({ n: 2 ** 31 })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /"n" must be an integer from 1 to 1024, not 2147483648/,
    )
    expect(() => check({ seed: 2 ** 53 })).toThrowCode('ERR_INVALID_ARGUMENT', /from 0 to 2\^53 - 1, not 9007199254740992/)
    expect(() => check({ seed: 5n })).toThrowCode('ERR_INVALID_ARGUMENT', /not 5n$/)
    expect(() => check({ seed: { a: 1 } })).toThrowCode('ERR_INVALID_ARGUMENT', /not an object of Object$/)
  })

  it.each([
    ['max_tokens', 'maxTokens'],
    ['maxtoken', 'maxTokens'],
    ['max_new_tokens', 'maxTokens'],
    ['temprature', 'temperature'],
    ['top_p', 'topP'],
    ['abortSignal', 'signal'],
    ['timeout', 'timeoutMs'],
  ])('an unknown name gets a hint: %s', (name, meant) => {
    expect(() => check({ [name]: 1 })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      new RegExp(`no option "${name}" \\(did you mean "${meant}"\\?\\)`),
    )
  })

  it('a name that looks like nothing gets the list', () => {
    expect(() => check({ quux: 1 })).toThrowCode('ERR_INVALID_ARGUMENT', /there are: prompt, messages, tokens/)
  })

  it.each([[undefined], [null], [7], ['Once'], [[]], [() => 0]])('refuses %s in place of options', (options) => {
    expect(() => checkRequestOptions(options, VOCAB)).toThrowCode('ERR_INVALID_ARGUMENT', /object of options/)
  })

  it('take exactly one of prompt, messages and tokens', () => {
    expect(() => checkRequestOptions({}, VOCAB)).toThrowCode('ERR_INVALID_ARGUMENT', /none was given/)
    expect(() => check({ prompt: 'x' })).toThrowCode('ERR_INVALID_ARGUMENT', /"prompt" and "tokens" were given/)
    for (const bad of [7, null, ['x'], {}]) {
      expect(() => checkRequestOptions({ prompt: bad }, VOCAB)).toThrowCode(
        'ERR_INVALID_ARGUMENT',
        /"prompt" must be a string/,
      )
    }
    for (const bad of ['1 2', 7, null, {}, new DataView(new ArrayBuffer(4))]) {
      expect(() => checkRequestOptions({ tokens: bad }, VOCAB)).toThrowCode(
        'ERR_INVALID_ARGUMENT',
        /"tokens" must be an array/,
      )
    }
  })

  it('refuse what does not go with the prompt', () => {
    expect(() => check({ tools: [] })).toThrowCode('ERR_INVALID_ARGUMENT', /"tools" goes with "messages"/)
    expect(() => check({ addSpecialTokens: false })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /"addSpecialTokens" goes with "prompt"/,
    )
    expect(() => check({ allowSpecial: true })).toThrowCode('ERR_INVALID_ARGUMENT', /"allowSpecial"/)
    expect(() => check({ deadline: Date.now(), deadlineMs: 5 })).toThrowCode('ERR_INVALID_ARGUMENT', /not both/)
    expect(() => check({ minTokens: 6, maxTokens: 5 })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /"minTokens" must be at most/,
    )
  })

  it('check stop tokens', () => {
    expect(check({ stopTokenIds: [5, 99] }).stopTokenIds).toEqual(Int32Array.of(5, 99))
    expect(check({ stopTokenIds: Uint16Array.of(5) }).stopTokenIds).toEqual(Int32Array.of(5))
    for (const bad of [-1, VOCAB, 2 ** 31, NaN, 1.5, '5', null]) {
      expect(() => check({ stopTokenIds: [1, bad] }), String(bad)).toThrowCode(
        'ERR_INVALID_TOKEN',
        /"stopTokenIds\[1\]".*\[0, 100\)/,
      )
    }
    expect(() => check({ stopTokenIds: 5 })).toThrowCode('ERR_INVALID_ARGUMENT')
    expect(() => check({ stopTokenIds: Array.from({ length: 1025 }, () => 1) })).toThrowCode('ERR_INVALID_ARGUMENT')
  })

  it('turn a moment into a distance', () => {
    vi.useFakeTimers({ toFake: ['Date'] })
    try {
      expect(check({ deadline: new Date(Date.now() + 1000) }).deadlineIn).toBe(1000)
      expect(check({ deadline: Date.now() - 1000 }).deadlineIn).toBe(-1000)
      expect(check({ deadlineMs: 250 }).deadlineIn).toBe(250)
    } finally {
      vi.useRealTimers()
    }
  })
})

describe('load options', () => {
  it.each<[string, unknown[], unknown[]]>([
    ['backend', ['auto', 'cpu', 'tensorrt'], ['cuda', 7, null]],
    ['kvCacheMemory', [1, 2 ** 40], [0, -1, NaN, 1.5, '1G']],
    ['numPages', [1], [0, 2 ** 31, NaN]],
    ['pageSize', [1, 16], [0, 4097, NaN]],
    ['threads', [1, 64, 1024], [0, -1, 1.5, 1025]],
    ['simd', ['avx2', 'portable'], ['sse', '']],
    ['prefixCache', [true, false], [0]],
    ['maxQueue', [1], [0, NaN, -5]],
    ['retries', [0, 3], [-1, 0.5]],
    ['agingMs', [1], [0]],
    ['maxSequences', [1, 65_536], [0, 65_537]],
    ['maxStepTokens', [1], [0]],
    ['onWarning', [() => {}], ['log']],
    ['signal', [new AbortController().signal], [7]],
  ])('%s is checked', (name, good, bad) => {
    for (const value of good) expect(() => checkLoadOptions({ [name]: value }), String(value)).not.toThrow()
    for (const value of bad)
      expect(() => checkLoadOptions({ [name]: value }), String(value)).toThrowCode(
        'ERR_INVALID_ARGUMENT',
        new RegExp(`"${name}"`),
      )
  })

  it('refuse two sizes of the cache, and unknown names', () => {
    expect(() => checkLoadOptions({ kvCacheMemory: 1, numPages: 1 })).toThrowCode('ERR_INVALID_ARGUMENT', /not both/)
    expect(() => checkLoadOptions({ kvCacheMem: 1 })).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /did you mean "kvCacheMemory"/,
    )
    expect(() => checkEngineOptions({ backend: 'cpu' }, ['tokenizer'], 'f()')).toThrowCode(
      'ERR_INVALID_ARGUMENT',
      /f\(\) has no option "backend"/,
    )
  })
})

it('close takes a time to drain', () => {
  expect(checkCloseOptions({})).toEqual({ drainMs: 0 })
  expect(checkCloseOptions({ drain: 50 })).toEqual({ drainMs: 50 })
  for (const drain of [-1, NaN, '1s'])
    expect(() => checkCloseOptions({ drain })).toThrowCode('ERR_INVALID_ARGUMENT', /"drain"/)
})
