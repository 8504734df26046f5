/** LLMs over the executor of the examples, closed after each test, and what tests of them share. */
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, expect, vi } from 'vitest'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { type ExecutorInfo, type FromExecutorOptions, type Generation, type GenerationChunk, LLM } from '../../../lib'
import { GatedExecutor } from '../../support/gated_executor'
import { PATIENTLY } from '../../support/patience'

export const open: LLM[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})

export function serve(options: FromExecutorOptions = {}, sizes: Partial<ExecutorInfo> = {}): LLM {
  const llm = LLM.fromExecutor(new HashExecutor(sizes), options)
  open.push(llm)
  return llm
}

/** An LLM whose steps complete when the test says so. */
export function gated(
  options: FromExecutorOptions = {},
  sizes: Partial<ExecutorInfo> = {},
): { llm: LLM; executor: GatedExecutor } {
  const executor = new GatedExecutor(new HashExecutor(sizes))
  const llm = LLM.fromExecutor(executor, options)
  open.push(llm)
  return { llm, executor }
}

export async function collect(generation: Generation): Promise<GenerationChunk[]> {
  const chunks: GenerationChunk[] = []
  for await (const chunk of generation) chunks.push(chunk)
  return chunks
}
export const failure = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
export const tokens = [1, 2, 3, 4, 5, 6]

export const activeTimers = (): number => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length

/** No more timers than these are left; looked at without timers, and more than once, as the test runner has some now and then. */
export async function expectTimers(atMost: number): Promise<void> {
  for (const from = performance.now(); activeTimers() > atMost && performance.now() - from < 10_000; ) await turn()
  expect(activeTimers()).toBeLessThanOrEqual(atMost)
}

/** Everything that a request held has been given back. */
export async function expectIdle(llm: LLM): Promise<void> {
  await vi.waitFor(
    () => expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, steps: { inFlight: 0 }, kv: { usedPages: 0 } }),
    PATIENTLY,
  )
  llm.check()
}
