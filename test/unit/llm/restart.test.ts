/** Backoff, jitter and limits of restarts, in virtual time. What comes of a return is in test/fault/restart.test.ts. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import '../matchers'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { TensorRTError } from '../../../lib'
import { Restart, type RestartFailure } from '../../../lib/llm/restart'
import type { RestartPolicy } from '../../../lib/llm/restart_policy'
import type { StartedExecutor } from '../../../lib/llm/started_executor'
import type { Executor } from '../../../lib/scheduler'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

const VOCAB = new HashExecutor().info.vocabSize
const POLICY: RestartPolicy = { initialDelayMs: 1000, maxDelayMs: 10_000, maxAttempts: Infinity }

function make(create: () => Promise<Executor>, policy: Partial<RestartPolicy> = {}, random = (): number => 0) {
  const failures: RestartFailure[] = []
  const back: StartedExecutor[] = []
  const attempts: number[] = []
  const source = {
    create: () => {
      attempts.push(Date.now() - start)
      return create()
    },
    policy: { ...POLICY, ...policy },
  }
  const start = Date.now()
  const events = { onReady: (started: StartedExecutor) => void back.push(started), onFailure: (of: RestartFailure) => void failures.push(of) }
  const restart = new Restart(source, events, () => Date.now(), random)
  const begin = (freed: Promise<unknown> = Promise.resolve()): void => restart.begin(VOCAB, freed)
  return { restart, begin, failures, back, attempts }
}
/** And a millisecond for the answers of the executor, which come in a turn of the event loop of their own. */
async function pass(ms: number): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms)
  await vi.advanceTimersByTimeAsync(1)
}
const failing = (): Promise<never> => Promise.reject(new TensorRTError('ERR_NO_GPU', 'no GPU'))
const working = (): Promise<Executor> => Promise.resolve(new HashExecutor())

describe('Restart', () => {
  it('waits twice as long after each failure, up to the limit', async () => {
    const { begin, attempts, failures, restart } = make(failing)
    begin()
    expect(restart.nextAttemptMs).toBe(1000)
    await pass(45_000)
    expect(attempts).toEqual([1000, 3000, 7000, 15_000, 25_000, 35_000, 45_000])
    expect(failures.map(({ attempt }) => attempt)).toEqual([1, 2, 3, 4, 5, 6, 7])
    expect(failures[0]).toMatchObject({ nextDelayMs: 2000, error: { code: 'ERR_NO_GPU' } })
    expect(restart).toMatchObject({ hopeful: true, restartable: true, attempts: 7 })
    restart.stop()
  })

  it('leaves out up to half of a delay', async () => {
    const { begin, attempts, restart } = make(failing, {}, () => 0.999)
    begin()
    await pass(1510)
    expect(attempts[0]).toBeLessThan(505)
    expect(attempts[1]).toBeLessThan(1510)
    restart.stop()
  })

  it('gives up after the last attempt', async () => {
    const { begin, failures, restart } = make(failing, { maxAttempts: 2 })
    begin()
    await pass(60_000)
    expect(failures).toHaveLength(2)
    expect(failures[1]!.nextDelayMs).toBeUndefined()
    expect(restart).toMatchObject({ hopeful: false, restartable: false, nextAttemptMs: undefined })
  })

  it('one that dies soon after its return goes on with the delays, one that lived begins anew', async () => {
    const { begin, back, restart } = make(working)
    begin()
    await pass(1000)
    expect(back).toHaveLength(1)
    for (const delay of [2000, 4000, 8000, 10_000, 10_000]) {
      begin()
      expect(restart.nextAttemptMs).toBe(delay)
      await pass(delay)
      expect(restart.hopeful).toBe(false)
    }
    expect(back).toHaveLength(6)
    await pass(10_001)
    begin()
    expect(restart.attempts).toBe(0)
    expect(restart.nextAttemptMs).toBe(1000)
    restart.stop()
  })

  it('flapping counts for the limit', async () => {
    const { begin, restart, back } = make(working, { maxAttempts: 2 })
    begin()
    await pass(1000)
    begin()
    await pass(2000)
    expect(back).toHaveLength(2)
    begin()
    expect(restart).toMatchObject({ hopeful: false, restartable: false })
  })

  it('an error of the device that a new executor meets is told as one that stays, until an attempt finds otherwise', async () => {
    let works = false
    const cuda = new TensorRTError('ERR_CUDA', 'an illegal memory access was encountered')
    const { begin, back, restart } = make(() => (works ? working() : Promise.reject(cuda)))
    expect(restart.restartable).toBe(true)
    begin()
    await pass(1000)
    expect(restart).toMatchObject({ hopeful: true, restartable: false })
    works = true
    await pass(2000)
    expect(back).toHaveLength(1)
    begin()
    expect(restart.restartable).toBe(true)
    restart.stop()
  })

  it('waits for the dead one to free what it held, but not for ever', async () => {
    let free!: () => void
    const first = make(working)
    first.begin(new Promise<void>((resolve) => (free = resolve)))
    await pass(2500)
    expect(first.attempts).toEqual([])
    free()
    await pass(0)
    expect(first.attempts).toEqual([2501])
    const second = make(working)
    second.begin(new Promise(() => {}))
    await pass(7000)
    // A second's delay, and five of waiting.
    expect(second.attempts).toEqual([6000])
  })

  it('does not trust one whose first step does not end', async () => {
    const mute = new HashExecutor()
    mute.submit = () => {}
    const close = vi.spyOn(mute, 'close')
    let first = true
    const { begin, back, failures } = make(() => {
      if (!first) return working()
      first = false
      return Promise.resolve(mute)
    })
    begin()
    await pass(60_000)
    expect(back).toHaveLength(0)
    await pass(4000)
    expect(failures[0]!.error).toHaveCode('ERR_TIMEOUT')
    expect(close).toHaveBeenCalledTimes(1)
    expect(back).toHaveLength(1)
  })

  it('after stop nothing more is made, and what was on its way is closed', async () => {
    const idle = make(working)
    idle.begin()
    idle.restart.stop()
    await pass(60_000)
    expect(idle.attempts).toEqual([])
    let arrive!: (executor: Executor) => void
    const late = make(() => new Promise<Executor>((resolve) => (arrive = resolve)))
    late.begin()
    await pass(1000)
    late.restart.stop()
    const executor = new HashExecutor()
    const close = vi.spyOn(executor, 'close')
    arrive(executor)
    await pass(0)
    expect(close).toHaveBeenCalledTimes(1)
    expect(late.back).toHaveLength(0)
    expect(late.failures).toEqual([])
    late.begin()
    expect(late.restart.hopeful).toBe(false)
  })

  it('without a source there is no restart', () => {
    const restart = new Restart(undefined, { onReady: () => {}, onFailure: () => {} }, () => 0)
    restart.begin(VOCAB, Promise.resolve())
    expect(restart).toMatchObject({ hopeful: false, restartable: false, nextAttemptMs: undefined })
  })

  it('what cannot be used is closed, and was a failed attempt', async () => {
    const executor = new HashExecutor()
    const close = vi.spyOn(executor, 'close')
    const events = {
      onReady: () => {
        throw new Error('it does not fit')
      },
      onFailure: vi.fn(),
    }
    const restart = new Restart({ create: () => Promise.resolve(executor), policy: POLICY }, events, () => Date.now(), () => 0)
    restart.begin(VOCAB, Promise.resolve())
    await pass(1000)
    expect(close).toHaveBeenCalledTimes(1)
    expect(events.onFailure).toHaveBeenCalledWith(expect.objectContaining({ attempt: 1, nextDelayMs: 2000 }))
    expect(restart.hopeful).toBe(true)
    restart.stop()
  })
})
