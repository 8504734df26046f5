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
  it('answers all requests correctly while steps fail in passing and the backend dies and returns', async () => {
    // At least 150 steps lie between two that fail, more than any of these requests takes: each may run again once.
    const faulty = await startFaultyServer({ unit: 'steps', retryable: 300, fatal: Infinity, death: 200 }, { maxSlots: STREAMS }, 5000)
    const { injected, warnings, failures, llm } = faulty
    // Until everything has happened that is to happen.
    const happened = (): boolean => injected.retryable > 2 && Object.values(injected.deaths).every((times) => times > 0) && llm.stats().restarts > 2
    const counts = await runFaultLoad({ url: faulty.url, more: (sent) => sent < 150 || !happened(), streams: STREAMS, seed: 9, known })
    expect(counts.otherwise).toEqual({})
    expect(counts.correct).toBe(counts.wellFormed)
    expect(counts.wellFormed).toBeGreaterThan(50)
    expect(counts.left).toBeGreaterThan(5)
    expect(counts.slow).toBeGreaterThan(5)
    expect(llm.stats().failovers).toBeGreaterThanOrEqual(5)
    expect(warnings).not.toContain('BACKEND_DOWN')
    expect(failures).toEqual([])
    await expectWhole(llm)
    await faulty.close()
  })

  it('a step that fails for good ends the requests in it, each with an error of its own, and no others', async () => {
    const faulty = await startFaultyServer({ unit: 'steps', retryable: Infinity, fatal: 400, death: Infinity }, { maxSlots: STREAMS }, 60_000)
    const { injected, failures, llm } = faulty
    const counts = await runFaultLoad({ url: faulty.url, more: (sent) => sent < 150 || injected.fatal < 3, streams: STREAMS, seed: 10, known })
    const told = (counts.otherwise['500 step_failed'] ?? 0) + (counts.otherwise['error in a stream: step_failed'] ?? 0)
    expect(told).toBe(counts.wellFormed - counts.correct)
    expect(told).toBeLessThanOrEqual(injected.fatal * STREAMS)
    expect(counts.correct).toBeGreaterThan(told)
    for (const failure of failures) expect(failure).toContain('injected')
    await expectWhole(llm)
    await faulty.close()
  })
})
