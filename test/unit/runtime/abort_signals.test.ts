import { getEventListeners } from 'node:events'
import { describe, expect, it } from 'vitest'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { LLM } from '../../../lib'
import { followSignal } from '../../../lib/runtime/abort_signals'

const listeners = (signal: AbortSignal): number => getEventListeners(signal, 'abort').length

describe('followSignal', () => {
  it('has one listener for all who follow, and none when nobody does', async () => {
    const warnings: Error[] = []
    // Node has others, of features and of what it will not have for ever.
    const onWarning = (warning: Error): void => void (warning.name === 'MaxListenersExceededWarning' && warnings.push(warning))
    process.on('warning', onWarning)
    const { signal } = new AbortController()
    const ends = Array.from({ length: 1000 }, () => followSignal(signal, () => {}))
    expect(listeners(signal)).toBe(1)
    for (const end of ends) end()
    expect(listeners(signal)).toBe(0)
    ends[0]!()
    const again = followSignal(signal, () => {})
    expect(listeners(signal)).toBe(1)
    ends[1]!()
    expect(listeners(signal)).toBe(1)
    again()
    await new Promise((resolve) => setImmediate(resolve))
    process.off('warning', onWarning)
    expect(warnings).toEqual([])
  })

  it('calls everyone once, in order, except who has left, also in the course of the abort', () => {
    const controller = new AbortController()
    const calls: string[] = []
    followSignal(controller.signal, () => {
      calls.push('a')
      endC()
    })
    const endB = followSignal(controller.signal, () => calls.push('b'))
    const endC = followSignal(controller.signal, () => calls.push('c'))
    const same = (): void => void calls.push('same')
    followSignal(controller.signal, same)
    followSignal(controller.signal, same)
    endB()
    controller.abort()
    controller.abort()
    expect(calls).toEqual(['a', 'same', 'same'])
  })

  it('calls at once after the abort', () => {
    let calls = 0
    followSignal(AbortSignal.abort(), () => calls++)()
    expect(calls).toBe(1)
  })
})

describe('a signal that many requests share', () => {
  it('has one listener, and ends them all', async () => {
    const llm = LLM.fromExecutor(new HashExecutor(), { maxQueue: 2000 })
    const controller = new AbortController()
    const { signal } = controller
    const results = Array.from({ length: 1000 }, () => llm.generate({ tokens: [1, 2, 3], maxTokens: 9, signal }).result())
    expect(listeners(signal)).toBe(1)
    controller.abort('enough')
    for (const outcome of await Promise.allSettled(results)) {
      expect(outcome).toMatchObject({ reason: { code: 'ABORT_ERR', cause: 'enough' } })
    }
    expect(listeners(signal)).toBe(0)
    await llm.close()
  })
})
