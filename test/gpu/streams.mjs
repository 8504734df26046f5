/**
 * Many sequences at once. A sequence's tokens equal those of its solo run up to the first position where the two best tokens were closer
 * there than the measured noise: what batching changes in that distance, at positions with equal context (its 99.9% quantile).
 */
import assert from 'node:assert/strict'
import { prompts } from './support/goldens.mjs'
import { record, verify } from './support/report.mjs'
import { quantile, seededRandom } from './support/statistics.mjs'
import { AbortError, createExecutor, LLM, loadLLM, onCpu, PAGE_SIZE, precisions, TensorRTError } from './support/target.mjs'
import { FaultyExecutor } from './support/faulty_executor.mjs'

const REQUESTS = 200
/** More noise than this would be an error of its own, and excuse anything. BF16 logits between 16 and 32 are multiples of 0.125: four steps. */
const MOST_NOISE = { fp32: 1e-3, bf16: 0.5, fp16: 0.1 }
const GREEDY = { temperature: 0, ignoreEos: true, logprobs: 2 }

/** Distances of the two best log-probabilities, one per token. */
const gapsOf = ({ tokens, logprobs }) => ({ tokens: [...tokens], gaps: logprobs.map(({ top }) => top[0].logprob - top[1].logprob) })

/** Collects how runs differ from solo runs. */
class Comparison {
  differences = []
  divergences = []
  equal = 0

  add(name, solo, { tokens, gaps }) {
    const end = Math.min(solo.tokens.length, tokens.length)
    for (let at = 0; at < end; at++) {
      if (tokens[at] !== solo.tokens[at]) return this.divergences.push({ name, at, gap: solo.gaps[at] })
      this.differences.push(Math.abs(gaps[at] - solo.gaps[at]))
    }
    return this.equal++
  }

  /** Records, and fails where a text left its solo run without a near tie. */
  conclude(name, precision) {
    assert.ok(this.differences.length > 100, 'too little to compare')
    const noise = quantile(this.differences, 0.999)
    const most = this.divergences.reduce((a, { gap }) => Math.max(a, gap), 0)
    record(name, {
      equal: this.equal,
      diverged: this.divergences.length,
      positions: this.differences.length,
      noise,
      noiseMedian: quantile(this.differences, 0.5),
      noiseMax: this.differences.reduce((a, b) => Math.max(a, b), 0),
      largestGapAtDivergence: most,
    })
    if (onCpu) return assert.deepEqual(this.divergences, [])
    assert.ok(noise < MOST_NOISE[precision], `noise of ${noise}`)
    return assert.deepEqual(this.divergences.filter(({ gap }) => gap > noise), [], `no near tie (noise ${noise})`)
  }
}

function expectWhole(llm) {
  llm.check()
  const { running, waiting, kv } = llm.stats()
  assert.deepEqual({ running, waiting, used: kv.usedPages }, { running: 0, waiting: 0, used: 0 })
}

/** What was aborted may still be in a step that runs. */
async function settle(llm) {
  for (let i = 0; i < 200 && llm.stats().kv.usedPages > 0; i++) await new Promise((resolve) => setTimeout(resolve, 10))
}

function plan(seed) {
  const random = seededRandom(seed)
  return Array.from({ length: REQUESTS }, () => ({
    tokens: Array.from({ length: 1 + Math.floor(random() ** 2 * 150) }, () => 6 + Math.floor(random() * 4000)),
    maxTokens: 1 + Math.floor(random() * 200),
  }))
}

/** Room for a tenth of what all requests together would take, and never less than the largest of them. */
function scarcePages(requests) {
  const pages = requests.map(({ tokens, maxTokens }) => Math.ceil((tokens.length + maxTokens) / PAGE_SIZE))
  return Math.max(...pages, Math.floor(pages.reduce((a, b) => a + b, 0) / 10))
}

async function soloRuns(precision, requests) {
  const llm = await loadLLM(precision, { maxSequences: 1, prefixCache: false })
  try {
    const runs = []
    for (const request of requests) runs.push(gapsOf(await llm.generate({ ...request, ...GREEDY }).result()))
    return runs
  } finally {
    await llm.close()
  }
}

for (const precision of precisions) {
  verify(`${precision}: 32 mixed sequences`, {}, async () => {
    const long = prompts.find(({ name }) => name === 'long-700').ids
    const random = seededRandom(7)
    const requests = Array.from({ length: 32 }, (_, i) => {
      const { ids } = prompts[i % prompts.length]
      return { tokens: i % 5 === 4 ? long.slice(0, 1 + Math.floor(random() * 700)) : ids, maxTokens: 16 + Math.floor(random() * 100) }
    })
    const solo = await soloRuns(precision, requests)
    const llm = await loadLLM(precision, { maxSequences: 48 })
    try {
      const comparison = new Comparison()
      // Greedy ones of different lengths, beside sampled ones, several choices, prompt log-probabilities and early ends.
      const others = Array.from({ length: 8 }, (_, i) =>
        llm.generate({ tokens: requests[i].tokens, maxTokens: 40, temperature: 1, n: 1 + (i % 3), seed: i, promptLogprobs: i % 2 === 0 ? 1 : undefined }).result())
      const results = await Promise.all(requests.map((request) => llm.generate({ ...request, ...GREEDY }).result()))
      for (const { tokens, choices } of await Promise.all(others)) assert.ok(tokens.length > 0 && choices.length >= 1)
      results.forEach((result, i) => {
        assert.equal(result.tokens.length, requests[i].maxTokens)
        comparison.add(i, solo[i], gapsOf(result))
      })
      expectWhole(llm)
      comparison.conclude(`${precision}.mixed`, precision)
    } finally {
      await llm.close()
    }
  })
}

for (const precision of precisions.filter((name) => name !== 'fp16')) {
  const requests = plan(2024)
  const numPages = scarcePages(requests)
  let solo

  verify(`${precision}: ${REQUESTS} requests in a KV pool ten times too small`, { timeout: 300_000 }, async () => {
    solo = await soloRuns(precision, requests)
    const llm = await loadLLM(precision, { numPages, maxSequences: 64, maxStepTokens: 256, maxQueue: REQUESTS })
    try {
      const comparison = new Comparison()
      const results = await Promise.all(requests.map((request) => llm.generate({ ...request, ...GREEDY }).result()))
      results.forEach((result, i) => {
        assert.equal(result.tokens.length, requests[i].maxTokens)
        comparison.add(i, solo[i], gapsOf(result))
      })
      assert.ok(llm.stats().preemptions > 0)
      expectWhole(llm)
      comparison.conclude(`${precision}.oversubscribed`, precision)
    } finally {
      await llm.close()
    }
  })

  verify(`${precision}: the same under random aborts, priorities, timeouts and failing steps`, { timeout: 300_000 }, async () => {
    const random = seededRandom(5)
    const executor = new FaultyExecutor(await createExecutor(precision, { numPages, maxSlots: 64, maxStepTokens: 256 }), () => random() < 0.03)
    const llm = LLM.fromExecutor(executor, { maxSequences: 64, maxQueue: REQUESTS, retries: 3 })
    const outcomes = { finished: 0, aborted: 0, timedOut: 0, gaveUp: 0 }
    const comparison = new Comparison()
    const started = performance.now()
    try {
      await Promise.all(
        requests.map(async (request, i) => {
          const controller = new AbortController()
          const kind = random()
          const seen = { tokens: [], gaps: [] }
          const limit = Math.floor(random() * request.maxTokens)
          try {
            const generation = llm.generate({
              ...request,
              ...GREEDY,
              signal: controller.signal,
              priority: Math.floor(random() * 3),
              ...(kind > 0.9 ? { timeoutMs: 1 + random() * 200 } : {}),
            })
            if (kind < 0.1) setTimeout(() => controller.abort(), random() * 400)
            for await (const { tokens, logprobs } of generation) {
              const part = gapsOf({ tokens, logprobs })
              seen.tokens.push(...part.tokens)
              seen.gaps.push(...part.gaps)
              if (kind >= 0.1 && kind < 0.2 && seen.tokens.length > limit) controller.abort()
              if (kind >= 0.2 && kind < 0.3 && seen.tokens.length > limit) break
            }
            if (kind >= 0.2 && kind < 0.3) outcomes.aborted++
            else {
              outcomes.finished++
              assert.equal(seen.tokens.length, request.maxTokens)
            }
          } catch (error) {
            if (error instanceof AbortError) outcomes.aborted++
            else if (error instanceof TensorRTError && error.code === 'ERR_TIMEOUT') outcomes.timedOut++
            else if (error instanceof TensorRTError && error.code === 'ERR_STEP_FAILED') outcomes.gaveUp++
            else throw error
          }
          comparison.add(i, solo[i], seen)
        }),
      )
      const ms = Math.round(performance.now() - started)
      record(`${precision}.aborts`, { ...outcomes, failedSteps: executor.failures, ms, preemptions: llm.stats().preemptions })
      assert.ok(executor.failures > 3, `${executor.failures} failed steps`)
      assert.ok(outcomes.finished > REQUESTS / 3)
      assert.ok(outcomes.aborted > 5)
      assert.equal(outcomes.finished + outcomes.aborted + outcomes.timedOut + outcomes.gaveUp, REQUESTS)
      await settle(llm)
      expectWhole(llm)
      comparison.conclude(`${precision}.aborted`, precision)
    } finally {
      await llm.close()
    }
  })
}
