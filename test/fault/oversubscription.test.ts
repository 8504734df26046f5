/** Many more tokens than the KV pool holds, on the real CPU backend: nothing is lost, and nobody's text changes. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { AbortError, LLM, TensorRTError } from '../../lib'
import { graphFromConfig } from '../../lib/models'
import { CpuBackend } from '../../lib/native'
import { Tokenizer } from '../../lib/text'
import { seededRandom } from '../../lib/cli/load_generator'
import { FaultyExecutor } from './faulty_executor'

const folder = resolve(__dirname, '..', '..', 'models', 'tiny-storyteller')
const json = (file: string): never => JSON.parse(readFileSync(join(folder, file), 'utf8')) as never
const PAGE_SIZE = 16
const REQUESTS = 200

interface Planned {
  tokens: number[]
  maxTokens: number
}

function plan(seed: number): Planned[] {
  const random = seededRandom(seed)
  return Array.from({ length: REQUESTS }, () => ({
    tokens: Array.from({ length: 1 + Math.floor(random() ** 2 * 150) }, () => 6 + Math.floor(random() * 4000)),
    maxTokens: 1 + Math.floor(random() * 200),
  }))
}

/** Room for a tenth of what all requests together would take, and never less than the largest of them. */
function scarcePages(requests: Planned[]): number {
  const pages = requests.map(({ tokens, maxTokens }) => Math.ceil((tokens.length + maxTokens) / PAGE_SIZE))
  return Math.max(...pages, Math.floor(pages.reduce((a, b) => a + b, 0) / 10))
}

async function load(numPages: number, maxSequences: number, shouldFail: ConstructorParameters<typeof FaultyExecutor>[1] = () => undefined) {
  const backend = await CpuBackend.create({
    graph: graphFromConfig(json('config.json')),
    files: [join(folder, 'model.safetensors')],
    pageSize: PAGE_SIZE,
    numPages,
    maxSlots: maxSequences,
    maxStepTokens: 256,
    threads: 0,
    simd: '',
  })
  const executor = new FaultyExecutor(backend, shouldFail)
  const tokenizer = new Tokenizer(json('tokenizer.json'), json('tokenizer_config.json'))
  return { executor, llm: LLM.fromExecutor(executor, { tokenizer, maxQueue: REQUESTS, retries: 3 }) }
}

const requests = plan(2024)
const greedy = { temperature: 0, ignoreEos: true } as const
let solo: number[][]

beforeAll(async () => {
  const { llm } = await load(80, 1)
  solo = []
  for (const request of requests) solo.push([...(await llm.generate({ ...request, ...greedy }).result()).tokens])
  await llm.close()
}, 300_000)

/** What was aborted, or failed, may still be in a step that runs. */
async function expectWhole(llm: LLM): Promise<void> {
  await expect.poll(() => llm.stats()).toMatchObject({ running: 0, waiting: 0, kv: { usedPages: 0 } })
  llm.check()
}

describe('200 requests in a KV pool ten times too small', () => {
  const open: LLM[] = []
  afterAll(async () => {
    for (const llm of open) await llm.close()
  })

  it('all finish, with the text of their solo run, and no page is lost', { timeout: 300_000 }, async () => {
    const { llm } = await load(scarcePages(requests), 64)
    open.push(llm)
    const results = await Promise.all(requests.map((request) => llm.generate({ ...request, ...greedy }).result()))
    expect(results.map((result) => [...result.tokens])).toEqual(solo)
    expect(llm.stats().preemptions).toBeGreaterThan(0)
    await expectWhole(llm)
  })

  it('the same under random aborts, priorities, timeouts and injected step failures', { timeout: 300_000 }, async () => {
    const random = seededRandom(5)
    const fails = seededRandom(6)
    const { llm, executor } = await load(scarcePages(requests), 64, () => (fails() < 0.01 ? { retryable: true } : undefined))
    open.push(llm)
    const outcomes = { finished: 0, aborted: 0, timedOut: 0, gaveUp: 0 }
    await Promise.all(
      requests.map(async (request, i) => {
        const controller = new AbortController()
        const kind = random()
        if (kind < 0.2) setTimeout(() => controller.abort(), random() * 400)
        const seen: number[] = []
        try {
          const generation = llm.generate({
            ...request,
            ...greedy,
            signal: controller.signal,
            priority: Math.floor(random() * 3),
            ...(kind > 0.9 ? { timeoutMs: 1 + random() * 200 } : {}),
          })
          for await (const chunk of generation) {
            seen.push(...chunk.tokens)
            if (kind > 0.2 && kind < 0.3 && seen.length > 3) break
          }
          if (kind > 0.2 && kind < 0.3 && seen.length > 3) outcomes.aborted++
          else {
            outcomes.finished++
            expect(seen, `request ${i}`).toEqual(solo[i])
          }
        } catch (error) {
          if (error instanceof AbortError) outcomes.aborted++
          else if (error instanceof TensorRTError && error.code === 'ERR_TIMEOUT') outcomes.timedOut++
          else if (error instanceof TensorRTError && error.code === 'ERR_STEP_FAILED') outcomes.gaveUp++
          else throw error
        }
        // Whatever came out before the end is what the solo run began with.
        expect(seen, `request ${i}`).toEqual(solo[i]?.slice(0, seen.length))
      }),
    )
    expect(executor.failures).toBeGreaterThan(3)
    expect(outcomes.finished).toBeGreaterThan(REQUESTS / 3)
    expect(outcomes.aborted).toBeGreaterThan(5)
    expect(outcomes.finished + outcomes.aborted + outcomes.timedOut + outcomes.gaveUp).toBe(REQUESTS)
    await expectWhole(llm)
  })

  it('a failure that cannot be retried fails its own requests only', { timeout: 120_000 }, async () => {
    const { llm } = await load(scarcePages(requests), 4, (step) => (step === 5 ? { retryable: false } : undefined))
    open.push(llm)
    const results = await Promise.allSettled(requests.slice(0, 40).map((request) => llm.generate({ ...request, ...greedy }).result()))
    const failed = results.filter((result) => result.status === 'rejected')
    expect(failed.length).toBeGreaterThan(0)
    // At most the slots of the step that failed, and of the one that was already under way behind it.
    expect(failed.length).toBeLessThanOrEqual(8)
    for (const { reason } of failed as PromiseRejectedResult[]) expect(reason).toMatchObject({ code: 'ERR_STEP_FAILED' })
    results.forEach((result, i) => {
      if (result.status === 'fulfilled') expect([...result.value.tokens]).toEqual(solo[i])
    })
    await expectWhole(llm)
  })
})
