/** Requests that come one by one while nothing runs: who starts with whom, and when. */
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, describe, expect, it } from 'vitest'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { LLM, type StepProfile } from '../../../lib'
import { BurstGate } from '../../../lib/llm/burst_gate'
import { GatedExecutor } from '../../support/gated_executor'
import { inOneOf } from '../../support/patience'

const open: LLM[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})

describe('BurstGate', () => {
  function gateAt(): { gate: BurstGate; clock: { now: number }; starts: () => number } {
    const clock = { now: 0 }
    let starts = 0
    const gate = new BurstGate(
      () => starts++,
      () => clock.now,
    )
    return { gate, clock, starts: () => starts }
  }

  it('lets one that stays alone go after two turns', async () => {
    const { gate, starts } = gateAt()
    expect(gate.add(10)).toBe(true)
    await turn()
    expect(starts()).toBe(0)
    await turn()
    expect(starts()).toBe(1)
    await turn()
    expect(starts()).toBe(1)
    expect(gate.add(10)).toBe(true)
  })

  it('waits as long as each turn brings another one, and no longer than they would lose', async () => {
    const { gate, clock, starts } = gateAt()
    expect(gate.add(10)).toBe(true)
    for (clock.now = 1; clock.now < 10; clock.now++) {
      await turn()
      expect(starts()).toBe(0)
      // Whatever runs by now: it comes with the first.
      expect(gate.add(0)).toBe(true)
    }
    await turn()
    expect(starts()).toBe(1)
  })

  it('waits for a twentieth of what they would lose for the next one, once there are two', async () => {
    const { gate, clock, starts } = gateAt()
    gate.add(10)
    gate.add(0)
    clock.now = 1
    await turn()
    for (clock.now = 1; clock.now < 1.5; clock.now += 0.125) {
      await turn()
      expect(starts()).toBe(0)
    }
    await turn()
    expect(starts()).toBe(1)
  })

  it('never waits for more than 20 ms', async () => {
    const { gate, clock, starts } = gateAt()
    gate.add(1000)
    clock.now = 19
    await turn()
    gate.add(1000)
    expect(starts()).toBe(0)
    clock.now = 20
    await turn()
    expect(starts()).toBe(1)
  })

  it('has nothing to do with those who would lose nothing', async () => {
    const { gate, starts } = gateAt()
    for (const losesMs of [0, NaN, -1]) expect(gate.add(losesMs)).toBe(false)
    await turn()
    await turn()
    expect(starts()).toBe(0)
  })
})

describe('an LLM that is served', () => {
  const request = { tokens: [1, 2, 3], maxTokens: 2, ignoreEos: true }

  /** Sequences of the first step after a rest, where requests come a turn apart. */
  async function firstStep(served: boolean): Promise<number> {
    const executor = new GatedExecutor(new HashExecutor())
    executor.change = (result) => ({ ...result, timings: { queueUs: 0, runUs: 1e6 } })
    executor.open()
    const llm = LLM.fromExecutor(executor)
    open.push(llm)
    if (served) llm.gatherBursts()
    await llm.generate({ ...request, maxTokens: 20 }).result()
    const steps: StepProfile[] = []
    llm.observe((step) => steps.push(step))
    const results: Promise<unknown>[] = []
    executor.hold()
    for (let i = 0; i < 4; i++) {
      results.push(llm.generate(request).result())
      await turn()
    }
    executor.open()
    await Promise.all(results)
    llm.check()
    return steps[0]!.sequences
  }

  it('starts a burst in one step, where its requests come a turn apart', async () => {
    await inOneOf(5, async () => expect(await firstStep(true)).toBe(4))
    expect(await firstStep(false)).toBe(1)
  })

  it('ends what is aborted before it started, and closes', async () => {
    const llm = LLM.fromExecutor(new HashExecutor())
    open.push(llm)
    llm.gatherBursts()
    await llm.generate({ ...request, maxTokens: 20 }).result()
    const aborted = new AbortController()
    const ends = llm.generate({ ...request, signal: aborted.signal }).result()
    aborted.abort()
    await expect(ends).rejects.toMatchObject({ code: 'ABORT_ERR' })
    const last = llm.generate(request).result()
    const refused = expect(last).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await llm.close()
    await refused
    await turn()
    await turn()
  })
})
