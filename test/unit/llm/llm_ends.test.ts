/** Ends of an LLM: closed, or by an executor that fails. */
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, vi } from 'vitest'
import '../matchers'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { AbortError, LLM, TensorRTError } from '../../../lib'
import { storyTokenizer } from '../text/fixtures'
import { GatedExecutor } from '../../support/gated_executor'
import { activeTimers, collect, expectIdle, expectTimers, failure, gated, serve, tokens } from './hash_llm'

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
    await expectTimers(timers)
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
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const { llm } = gated()
      const generation = llm.generate({ tokens, maxTokens: 30 })
      let closed = false
      const closing = llm.close({ drain: 40 }).then(() => (closed = true))
      await vi.advanceTimersByTimeAsync(39)
      expect(closed).toBe(false)
      expect(llm.stats().running).toBe(1)
      await vi.advanceTimersByTimeAsync(1)
      expect(await failure(generation.result())).toHaveCode('ERR_DISPOSED')
      await closing
    } finally {
      vi.useRealTimers()
    }
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
