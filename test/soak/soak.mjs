/**
 * Serves many requests, some aborted, and decides whether memory, handles and pages stayed flat after warm-up. Run in a process of
 * its own (node --expose-gc) so that a planted leak can be loaded instead of the real addon. Prints one JSON object.
 *
 *   node --expose-gc test/soak/soak.mjs [requests]
 */
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

const { LLM } = createRequire(import.meta.url)('../../dist/index.js')

const REQUESTS = Number(process.argv[2] ?? 20_000)
const WARM_UP = Math.floor(REQUESTS * 0.25)
const SAMPLE_EVERY = Math.max(1, Math.floor(REQUESTS / 80))
const CONCURRENCY = 32
/** Growth of resident memory allowed between the first and the last quarter after warm-up. A leak of 1 KiB a request is 2x that. */
const MAX_GROWTH_BYTES = 6 * 2 ** 20
/** What an allocator or the system does now and then it does not do each time; a leak does. */
const ROUNDS = 2
/** For what the last requests leave to be done: a step in flight, a timer. */
const SETTLE_MS = 60_000

let state = 12345
const random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 4294967296
}
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
const count = (folder) => readdirSync(folder).length

const llm = await LLM.load(fileURLToPath(new URL('../../models/tiny-storyteller', import.meta.url)), {
  backend: 'cpu',
  maxSequences: CONCURRENCY,
  numPages: 400,
})
const outcomes = { finished: 0, aborted: 0, failed: 0 }

async function one() {
  const length = 1 + Math.floor(random() * 40)
  const tokens = Array.from({ length }, () => 6 + Math.floor(random() * 4000))
  const controller = new AbortController()
  const kind = random()
  const generation = llm.generate({ tokens, maxTokens: 1 + Math.floor(random() * 12), signal: controller.signal, ignoreEos: true })
  try {
    if (kind < 0.1) {
      controller.abort()
      await generation.result()
    } else if (kind < 0.2) {
      for await (const _ of generation) break
      outcomes.aborted++
      return
    } else if (kind < 0.3) {
      setTimeout(() => controller.abort(), random() * 5)
      await generation.result()
    } else {
      for await (const _ of generation);
    }
    outcomes.finished++
  } catch (error) {
    if (error.name === 'AbortError') outcomes.aborted++
    else {
      outcomes.failed++
      outcomes.lastError ??= String(error)
    }
  }
}

/** Bytes by which resident memory grew over so many requests, after warm-up. */
async function growthOfRound() {
  const samples = []
  let started = 0
  let done = 0
  const worker = async () => {
    while (started < REQUESTS) {
      started++
      await one()
      if (++done % SAMPLE_EVERY === 0) {
        globalThis.gc()
        samples.push({ done, rss: process.memoryUsage.rss() })
      }
    }
  }
  await Promise.all(Array.from({ length: CONCURRENCY }, worker))
  const settled = samples.filter((sample) => sample.done > WARM_UP)
  const quarter = Math.ceil(settled.length / 4)
  return median(settled.slice(-quarter).map(({ rss }) => rss)) - median(settled.slice(0, quarter).map(({ rss }) => rss))
}

const fdsBefore = count('/proc/self/fd')
const threadsBefore = count('/proc/self/task')
const growths = []
do growths.push(await growthOfRound())
while (growths.at(-1) > MAX_GROWTH_BYTES && growths.length < ROUNDS)

const left = () => ({
  usedPages: llm.stats().kv.usedPages,
  fdGrowth: Math.max(0, count('/proc/self/fd') - fdsBefore),
  threadGrowth: Math.max(0, count('/proc/self/task') - threadsBefore),
  timers: process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length,
})
const leftSomething = (now) => Object.values(now).some((number) => number > 0)
// Waits by turns, as a timer of its own would be one that is left.
for (const end = performance.now() + SETTLE_MS; leftSomething(left()) && performance.now() < end; ) await new Promise(setImmediate)

const rssGrowthBytes = Math.min(...growths)
const remains = left()
await llm.close()
const leak = rssGrowthBytes > MAX_GROWTH_BYTES || leftSomething(remains)
const report = { requests: REQUESTS * growths.length, ...outcomes, rssGrowthBytes, growths, ...remains, leak }
process.stdout.write(`${JSON.stringify(report)}\n`)
