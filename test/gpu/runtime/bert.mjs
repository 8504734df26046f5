/**
 * BERT-base shape, 128 tokens, float16: latency of one request at a time and the highest rate of Poisson arrivals with P99 <= 100 ms, with 1 and
 * 4 contexts, with and without dynamic batching. --torch names what bench/gpu/torch_bert.py wrote on the same machine in the same hour.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { engineFolder, SERVED_SIZES } from './support/engines.mjs'
import { highestRate, inFlight, oneByOne, summary, texts } from './support/load.mjs'
import { check, finish, lib, options, round } from './support/target.mjs'

const RUNS = options.fake ? 300 : 2000
const SESSIONS = 5
const seconds = Number(options.seconds)
const spinUs = Number(options.spin)
const maxBatch = Number(options['max-batch'])
const batching = { maxBatch, maxDelayMs: Number(options['max-delay-ms']), runSizes: SERVED_SIZES.filter((size) => size <= maxBatch) }
const torch = options.torch === undefined ? undefined : JSON.parse(readFileSync(options.torch, 'utf8'))
const requests = texts(512)
const folder = await engineFolder('bert-serve')
const engine = await lib.Engine.load(folder)
const modes = [1, 4].flatMap((contexts) => [undefined, batching].map((batching) => ({ contexts, batching })))
const nameOf = ({ contexts, batching }) => `${contexts} context${contexts > 1 ? 's' : ''}, ${batching === undefined ? 'no batching' : `batches up to ${maxBatch}`}`

// The delay of batching is no part of a latency at batch 1: a request that is alone gains nothing from waiting.
const latencyOf = ({ contexts, batching }) => ({ contexts, batching: batching && { ...batching, maxDelayMs: 0 }, spinUs })
const latencies = new Map()
for (const mode of modes) {
  await check(`latency at batch 1: ${nameOf(mode)}`, async (figures) => {
    figures.firstMs = []
    let times = []
    for (let i = 0; i < SESSIONS; i++) {
      const started = performance.now()
      const session = await engine.createSession(latencyOf(mode))
      figures.readyMs = round(performance.now() - started)
      const [first, ...rest] = await oneByOne(session, requests, i === 0 ? RUNS : 200, 0)
      figures.firstMs.push(round(first))
      if (i === 0) times = rest
      if (i === 0) figures.stats = session.stats()
      await session.close()
    }
    figures.latencyMs = summary(times)
    const { p50, p99 } = figures.latencyMs
    figures.p99OverP50 = round(p99 / p50)
    const firsts = figures.firstMs.map((first) => first / p50).sort((a, b) => a - b)
    figures.firstOverP50 = { median: round(firsts[(firsts.length - 1) >> 1]), max: round(firsts.at(-1)) }
    latencies.set(nameOf(mode), figures)
    assert.ok(figures.p99OverP50 <= 1.3, `P99 / P50 is ${figures.p99OverP50}`)
    assert.ok(figures.firstOverP50.median <= 1.5, `the first request takes ${figures.firstOverP50.median} times the median`)
  })
}

const rates = new Map()
for (const mode of modes) {
  await check(`highest rate: ${nameOf(mode)}`, async (figures) => {
    const session = await engine.createSession({ ...mode, maxQueue: 100_000, spinUs })
    try {
      const saturating = mode.batching === undefined ? 4 * mode.contexts : 3 * maxBatch * mode.contexts
      await inFlight(session, requests, saturating, 0.5)
      figures.saturatedPerSecond = round(await inFlight(session, requests, saturating, 1), 5)
      const { best, trials } = await highestRate(session, requests, figures.saturatedPerSecond, seconds, mode.batching === undefined ? 2 : 6)
      Object.assign(figures, { best, trials, stats: session.stats() })
      rates.set(nameOf(mode), figures)
    } finally {
      await session.close()
    }
  }, { timeoutMs: 120_000 })
}

const bestRate = Math.max(0, ...[...rates.values()].map(({ best }) => best?.offered ?? 0))
await check('at least 10,000 requests per second with P99 <= 100 ms', () => {
  assert.ok(bestRate >= 10_000, `${bestRate}`)
  return { bestRate }
})
await check('against torch', (figures) => {
  if (torch === undefined) return { skipped: 'no --torch' }
  const p50 = Math.min(...[...latencies.values()].map(({ latencyMs }) => latencyMs.p50))
  figures.eagerOverOurs = round(torch.eager.latencyMs.p50 / p50)
  figures.compiledOverOurs = round(torch.compiled.latencyMs.p50 / p50)
  figures.torchRate = { eager: torch.eager.load?.best?.offered, compiled: torch.compiled.load.best.offered }
  figures.rateOverCompiled = round(bestRate / torch.compiled.load.best.offered)
  assert.ok(figures.eagerOverOurs >= 4, `${figures.eagerOverOurs} times as fast as eager`)
  assert.ok(figures.rateOverCompiled >= 1.3, `${figures.rateOverCompiled} times the rate of torch compiled`)
  return undefined
})
await engine.close()
await finish()
