import { afterEach, describe, expect, it, vi } from 'vitest'
import { loopSpinner } from '../../../../lib/runtime/session/loop_spinner'

/** Turns that the spinner asked for in so many milliseconds. */
async function turnsWithin(ms: number): Promise<number> {
  const immediate = vi.mocked(setImmediate)
  const before = immediate.mock.calls.length
  await new Promise((done) => setTimeout(done, ms))
  return immediate.mock.calls.length - before
}

describe('loopSpinner', () => {
  afterEach(() => void vi.restoreAllMocks())

  it('keeps the loop turning while a batch is in flight', async () => {
    vi.spyOn(globalThis, 'setImmediate')
    loopSpinner.began(1_000_000)
    loopSpinner.began(1_000_000)
    expect(await turnsWithin(30)).toBeGreaterThan(20)
    loopSpinner.ended()
    expect(await turnsWithin(30)).toBeGreaterThan(20)
    loopSpinner.ended()
    expect(await turnsWithin(30)).toBeLessThanOrEqual(1)
  })

  it('stops after the time it was given, though the batch goes on', async () => {
    vi.spyOn(globalThis, 'setImmediate')
    loopSpinner.began(1000)
    await turnsWithin(20)
    expect(await turnsWithin(30)).toBe(0)
    loopSpinner.ended()
  })

  it('does nothing where nobody wants it', async () => {
    vi.spyOn(globalThis, 'setImmediate')
    loopSpinner.began(0)
    expect(await turnsWithin(20)).toBe(0)
    loopSpinner.ended()
  })
})
