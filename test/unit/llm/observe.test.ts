/** Figures of steps for those who watch an engine all the time. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { LLM, type StepProfile } from '../../../lib'
import { DyingExecutor } from '../../fault/dying_executor'
import '../matchers'
import { demoModel, failure } from '../tensorrt/fixtures'

const open: LLM[] = []
afterEach(async () => {
  vi.restoreAllMocks()
  for (const llm of open.splice(0)) await llm.close()
})

function keep(llm: LLM): LLM {
  open.push(llm)
  return llm
}
const request = { tokens: [1, 2, 3, 4, 5], maxTokens: 10, ignoreEos: true }

describe('observe', () => {
  it('tells each step of the CPU backend, until it ends', async () => {
    const llm = keep(await LLM.load(demoModel, { backend: 'cpu', numPages: 256 }))
    const steps: StepProfile[] = []
    const end = llm.observe((step) => steps.push(step))
    await Promise.all([1, 2, 3].map((i) => llm.generate({ prompt: `A story of ${i} cats`, maxTokens: 12, ignoreEos: true }).result()))
    const stats = llm.stats()
    expect(steps).toHaveLength(stats.steps.completed)
    const sum = (name: keyof StepProfile): number => steps.reduce((total, step) => total + step[name], 0)
    expect(sum('prefillRows')).toBe(stats.tokens.prefill)
    expect(sum('decodeRows')).toBe(stats.tokens.decode)
    expect(sum('runUs') / 1000).toBeCloseTo(stats.steps.runMs, 3)
    for (const name of ['planUs', 'packUs', 'submitUs', 'queueUs', 'completeUs', 'emitUs'] as const) expect(sum(name), name).toBeGreaterThan(0)
    end()
    end()
    await llm.generate({ prompt: 'More', maxTokens: 4 }).result()
    expect(steps).toHaveLength(stats.steps.completed)
  })

  it('goes beside other observers and profiles', async () => {
    const llm = keep(LLM.fromExecutor(new HashExecutor()))
    let first = 0
    let second = 0
    const ends = [llm.observe(() => first++), llm.observe(() => second++)]
    const running = llm.generate(request).result()
    const profile = await llm.profile({ until: running })
    expect(first).toBe(llm.stats().steps.completed)
    expect(second).toBe(first)
    expect(profile.steps).toBeGreaterThan(0)
    ends[0]!()
    await llm.generate(request).result()
    expect(second).toBe(llm.stats().steps.completed)
    expect(first).toBeLessThan(second)
  })

  it('lets no observer in the way of requests: one that throws is heard of, and not called again', async () => {
    const llm = keep(LLM.fromExecutor(new HashExecutor()))
    const warned = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    let calls = 0
    let others = 0
    llm.observe(() => {
      calls++
      throw new Error('my bug')
    })
    llm.observe(() => others++)
    expect((await llm.generate(request).result()).tokens).toHaveLength(10)
    expect(calls).toBe(1)
    expect(others).toBe(llm.stats().steps.completed)
    expect(warned.mock.calls.map(([error]) => (error as Error).message)).toEqual(['my bug'])
  })

  it('is as forgiving of one that rejects', async () => {
    const llm = keep(LLM.fromExecutor(new HashExecutor()))
    const warned = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    let calls = 0
    llm.observe(() => {
      calls++
      return Promise.reject(new Error('my later bug')) as never
    })
    expect((await llm.generate(request).result()).tokens).toHaveLength(10)
    expect(calls).toBeLessThan(llm.stats().steps.completed)
    for (const [error] of warned.mock.calls) expect((error as Error).message).toBe('my later bug')
    expect(warned).toHaveBeenCalledTimes(calls)
  })

  it('goes on after a failover', async () => {
    const mortal = new DyingExecutor(new HashExecutor(), 4)
    const llm = keep(LLM.fromExecutor(mortal, { failover: () => Promise.resolve(new HashExecutor()), onWarning: () => {} }))
    let steps = 0
    llm.observe(() => steps++)
    expect((await llm.generate(request).result()).tokens).toHaveLength(10)
    expect(llm.stats().failovers).toBe(1)
    expect(steps).toBe(llm.stats().steps.completed)
    expect(steps).toBeGreaterThan(4)
  })

  it('ends with the LLM', async () => {
    const llm = LLM.fromExecutor(new HashExecutor())
    const end = llm.observe(() => {})
    const running = llm.generate(request).result()
    await llm.close()
    expect(await failure(running)).toHaveCode('ERR_DISPOSED')
    end()
    llm.observe(() => {})()
  })

  it('takes a function', () => {
    const llm = keep(LLM.fromExecutor(new HashExecutor()))
    for (const bad of [undefined, null, 'x', {}]) expect(() => llm.observe(bad as never)).toThrowCode('ERR_INVALID_ARGUMENT', /"onStep" must be a function/)
  })
})
