/** A server under load whose steps fail and whose backend dies in every way: who asked gets what a server without faults would say. */
import { beforeAll, describe, expect, it } from 'vitest'
import { type KnownOutput, runFaultLoad } from './fault_load'
import { knownOutputs, startFaultyServer } from './faulty_server'
import { expectWhole } from './storyteller'

const STREAMS = 12
let known: KnownOutput[]

beforeAll(async () => {
  known = await knownOutputs(24, 3)
})

describe('a server with faults', () => {
  it('answers all requests correctly while steps fail in passing and the backend dies and returns', { timeout: 180_000 }, async () => {
    const faulty = await startFaultyServer({ retryable: 3, fatal: Infinity, death: 2 }, { maxSlots: STREAMS }, 3000)
    const counts = await runFaultLoad({ url: faulty.url, seconds: 20, streams: STREAMS, seed: 9, known })
    const { injected, warnings, failures, llm } = faulty
    expect(counts.otherwise).toEqual({})
    expect(counts.correct).toBe(counts.wellFormed)
    expect(counts.wellFormed).toBeGreaterThan(50)
    expect(counts.left).toBeGreaterThan(5)
    expect(counts.slow).toBeGreaterThan(5)
    expect(injected.retryable).toBeGreaterThan(1)
    expect(llm.stats().failovers).toBeGreaterThan(1)
    expect(llm.stats().restarts).toBeGreaterThan(1)
    expect(warnings).not.toContain('BACKEND_DOWN')
    expect(failures).toEqual([])
    await expectWhole(llm)
    await faulty.close()
  })

  it('a step that fails for good ends the requests in it, each with an error of its own, and no others', { timeout: 120_000 }, async () => {
    const faulty = await startFaultyServer({ retryable: Infinity, fatal: 2, death: Infinity }, { maxSlots: STREAMS }, 60_000)
    const counts = await runFaultLoad({ url: faulty.url, seconds: 8, streams: STREAMS, seed: 10, known })
    const { injected, failures, llm } = faulty
    expect(injected.fatal).toBeGreaterThan(0)
    const told = (counts.otherwise['500 step_failed'] ?? 0) + (counts.otherwise['error in a stream: step_failed'] ?? 0)
    expect(told).toBe(counts.wellFormed - counts.correct)
    expect(told).toBeLessThanOrEqual(injected.fatal * STREAMS)
    expect(counts.correct).toBeGreaterThan(told)
    for (const failure of failures) expect(failure).toContain('injected')
    await expectWhole(llm)
    await faulty.close()
  })
})
