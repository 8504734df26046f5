import { afterEach, describe, expect, it, vi } from 'vitest'
import { loopSpinner } from '../../../../lib/runtime/session/loop_spinner'
import { PATIENTLY } from '../../../support/patience'

/** The spinner asks for more and more turns. */
async function expectTurns(): Promise<void> {
  const immediate = vi.mocked(setImmediate)
  const before = immediate.mock.calls.length
  await vi.waitFor(() => expect(immediate.mock.calls.length - before).toBeGreaterThan(20), PATIENTLY)
}

/** Turns that the spinner asked for in so many milliseconds: at most, that is, as the machine may have been away. */
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
    loopSpinner.began(1e9)
    loopSpinner.began(1e9)
    await expectTurns()
    loopSpinner.ended()
    await expectTurns()
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
