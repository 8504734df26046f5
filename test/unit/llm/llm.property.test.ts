/** Whatever callers and executor do, every generation settles, nothing is lost, and nobody's output depends on the others. */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, expect, it, vi } from 'vitest'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { AbortError, LLM, TensorRTError } from '../../../lib'
import { GatedExecutor } from '../../support/gated_executor'
import fc from '../../support/fast_check'
import { PATIENTLY } from '../../support/patience'

const sizes = { vocabSize: 31, maxPositions: 64, pageSize: 4, numPages: 24, maxSlots: 5, maxStepTokens: 12 }
const solo = LLM.fromExecutor(new HashExecutor({ ...sizes, numPages: 512 }), { prefixCache: false })
afterAll(() => solo.close())

const request = fc.record({
  tokens: fc.array(fc.nat(30), { minLength: 1, maxLength: 30 }),
  maxTokens: fc.integer({ min: 0, max: 30 }),
  n: fc.constantFrom(1, 1, 1, 2, 3),
  seed: fc.nat(1000),
  temperature: fc.constantFrom(0, 1),
  priority: fc.integer({ min: -2, max: 2 }),
  cacheSalt: fc.constantFrom(undefined, 'a'),
})
const end = fc.oneof(
  { weight: 6, arbitrary: fc.constant({ kind: 'none' as const }) },
  fc.record({ kind: fc.constant('abort' as const), afterMs: fc.nat(4) }),
  fc.record({ kind: fc.constant('break' as const), afterTokens: fc.nat(5) }),
  fc.record({ kind: fc.constant('timeout' as const), timeoutMs: fc.integer({ min: 1, max: 6 }) }),
)
type Fault = 'ok' | 'retryable' | 'fatal' | 'refused'
const faults = fc.array(
  fc.constantFrom<Fault>('ok', 'ok', 'ok', 'ok', 'ok', 'ok', 'ok', 'ok', 'retryable', 'fatal', 'refused'),
  {
    minLength: 1,
    maxLength: 60,
  },
)

it('requests of all kinds, with an executor that fails now and then', { timeout: 600_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ request, end, startMs: fc.nat(5) }), { minLength: 1, maxLength: 14 }),
      faults,
      fc.constantFrom(undefined, 0, 3, 30),
      async (callers, scenario, closeAfterMs) => {
        const script = [...scenario]
        const executor = new GatedExecutor(new HashExecutor(sizes))
        executor.change = (result) => {
          const fault = script[result.stepId % script.length]
          if (fault !== 'retryable' && fault !== 'fatal') return result
          const error = { code: 'ERR_STEP_FAILED', message: 'injected', retryable: fault === 'retryable' } as const
          return { ...result, tokens: new Int32Array(0), logprobs: [], error }
        }
        executor.onSubmit = () => {
          if (script[executor.submitted % script.length] !== 'refused') return
          script[executor.submitted % script.length] = 'ok'
          throw new Error('refused')
        }
        executor.open()
        const llm = LLM.fromExecutor(executor, { retries: 2 })

        const all = callers.map(async ({ request: options, end: how, startMs }) => {
          await sleep(startMs)
          const controller = new AbortController()
          const { signal } = controller
          const timeoutMs = how.kind === 'timeout' ? how.timeoutMs : undefined
          const generation = llm.generate({ ...options, timeoutMs, signal })
          if (how.kind === 'abort') setTimeout(() => controller.abort(), how.afterMs)
          const seen = Array.from({ length: options.n }, (): number[] => [])
          let error: unknown
          try {
            for await (const chunk of generation) {
              seen[chunk.index]!.push(...chunk.tokens)
              if (how.kind === 'break' && seen.flat().length > how.afterTokens) break
            }
          } catch (caught) {
            error = caught
          }
          const result = await generation.result().catch((caught: unknown) => {
            if (error !== undefined) expect(caught).toBe(error)
            expect(caught instanceof AbortError || caught instanceof TensorRTError).toBe(true)
            return undefined
          })
          if (error !== undefined) expect(result).toBeUndefined()
          if (how.kind !== 'break') expect(result === undefined).toBe(error !== undefined)
          return { options, seen, result, broke: how.kind === 'break' }
        })
        const closing = closeAfterMs === undefined ? undefined : sleep(closeAfterMs).then(() => llm.close())
        const outcomes = await Promise.all(all)

        for (const { options, seen, result, broke } of outcomes) {
          const expected = (await solo.generate(options).result()).choices.map((choice) => choice.tokens)
          // What came out before an end is the beginning of what would have come.
          seen.forEach((tokens, i) => expect(tokens).toEqual(expected[i]!.slice(0, tokens.length)))
          if (result !== undefined) expect(result.choices.map((choice) => choice.tokens)).toEqual(expected)
          if (result !== undefined && !broke) expect(seen).toEqual(expected)
        }
        if (closing === undefined) {
          const idle = { running: 0, waiting: 0, kv: { usedPages: 0 } }
          await vi.waitFor(() => expect(llm.stats()).toMatchObject(idle), { ...PATIENTLY, interval: 1 })
          llm.check()
        }
        await closing
        await llm.close()
      },
    ),
    { numRuns: 150 },
  )
})
