/**
 * BERT-base shape, 128 tokens, float16: latency of one request at a time and the highest rate of Poisson arrivals with P99 <= 100 ms, with 1 and
 * 4 contexts, with and without dynamic batching. What torch does is what bench/gpu/torch_bert.py wrote on the same machine in the same hour.
 */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { engineFolder, nameOfFolder } from './support/engines.mjs'
import { highestRate, inFlight, oneByOne, summary, texts } from './support/load.mjs'
import { check, describeProgram, enginesFolder, finish, isWanted, lib, options, round } from './support/target.mjs'

const ONE = '1 context,'
const FOUR = '4 contexts,'
describeProgram({
  text: 'BERT-base shape, 128 tokens, float16: latency at batch 1, and the highest rate with P99 <= 100 ms.',
  options: [
    '  --engine FOLDER      an engine of the same shape, in place of bert-serve: a profile for each batch size',
    '  --torch FILE         what bench/gpu/torch_bert.py wrote',
    '  --sizes LIST         batch sizes of bert-serve. Default: 1,32,128',
    '  --max-batch N        default 128;  --max-delay-ms N: default 2',
    '  --sessions N         of which the first request is timed, in each mode. Default: 3',
    "  --spin US            spinUs of the sessions. Default: the session's own",
  ],
  pieces: {
    engine: { checks: 'engine', seconds: 120, about: 'builds bert-serve where it is missing; 10 s with a timing cache' },
    'latency-1': { checks: [`latency at batch 1: ${ONE}`], seconds: 15, about: '1 context' },
    'latency-4': { checks: [`latency at batch 1: ${FOUR}`], seconds: 32, about: '4 contexts' },
    'rate-1': { checks: [`highest rate: ${ONE}`], seconds: 25, about: '1 context' },
    'rate-4': { checks: [`highest rate: ${FOUR}`], seconds: 32, about: '4 contexts' },
    rate: { checks: [`highest rate: ${FOUR} batches`], seconds: 20, about: 'the one that counts alone: 4 contexts, batching' },
    verdict: { checks: 'at least,against', seconds: 1, about: 'what the pieces of this and earlier calls come to' },
  },
})

const RUNS = options.fake ? 300 : 2000
const SESSIONS = Number(options.sessions)
const seconds = Number(options.seconds)
const spin = options.spin === undefined ? {} : { spinUs: Number(options.spin) }
const maxBatch = Number(options['max-batch'])
const torch = options.torch === undefined || !existsSync(options.torch) ? undefined : JSON.parse(readFileSync(options.torch, 'utf8'))
const nameOf = ({ contexts, batched }) => `${contexts === 1 ? ONE : FOUR} ${batched ? `batches up to ${maxBatch}` : 'no batching'}`
const modes = [1, 4].flatMap((contexts) => [false, true].map((batched) => ({ contexts, batched })))

// What other calls of this program have measured with the same engine.
const folder = options.engine === undefined ? undefined : resolve(options.engine)
const memory = join(enginesFolder, `figures-${basename(folder ?? nameOfFolder('bert-serve'))}.json`)
const remembered = existsSync(memory) ? JSON.parse(readFileSync(memory, 'utf8')) : { latencies: {}, rates: {} }
const remember = (kind, name, figures) => {
  remembered[kind][name] = figures
  mkdirSync(enginesFolder, { recursive: true })
  writeFileSync(memory, JSON.stringify(remembered, null, 1))
}

let engine
let requests
const needsEngine = isWanted('engine') || modes.some((mode) => [`latency at batch 1: ${nameOf(mode)}`, `highest rate: ${nameOf(mode)}`].some(isWanted))
const load = async () => {
  engine = await lib.Engine.load(folder ?? (await engineFolder('bert-serve')))
  requests = texts(engine, 512)
  remembered.masked = engine.inputs.some(({ name }) => name === 'attention_mask')
}
await check('engine', async (figures) => {
  await load()
  const { info, profiles, inputs } = engine
  Object.assign(figures, { precision: engine.manifest?.precision, profiles: profiles.length, inputs: inputs.map(({ name }) => name), info })
}, { timeoutMs: 400_000 })
if (needsEngine && engine === undefined) await load()

/** The batch sizes that have a profile: smaller batches are filled up. */
const runSizes = engine === undefined ? [] : engine.profiles.map(({ inputs }) => inputs.input_ids.opt[0]).filter((size) => size <= maxBatch)
const sessionOptions = ({ contexts, batched }, maxDelayMs) => ({ contexts, ...spin, ...(batched ? { batching: { maxBatch, maxDelayMs, runSizes } } : {}) })

for (const mode of modes) {
  await check(`latency at batch 1: ${nameOf(mode)}`, async (figures) => {
    figures.firstMs = []
    figures.readyMs = []
    let times = []
    for (let i = 0; i < SESSIONS; i++) {
      const started = performance.now()
      // The delay of batching is no part of a latency at batch 1: a request that is alone gains nothing from waiting.
      const session = await engine.createSession(sessionOptions(mode, 0))
      figures.readyMs.push(round(performance.now() - started))
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
    remember('latencies', nameOf(mode), figures.latencyMs)
    assert.ok(figures.p99OverP50 <= 1.3, `P99 / P50 is ${figures.p99OverP50}`)
    assert.ok(figures.firstOverP50.median <= 1.5, `the first request takes ${figures.firstOverP50.median} times the median`)
  })
}

for (const mode of modes) {
  await check(`highest rate: ${nameOf(mode)}`, async (figures) => {
    const session = await engine.createSession({ ...sessionOptions(mode, Number(options['max-delay-ms'])), maxQueue: 100_000 })
    try {
      const saturating = mode.batched ? 3 * maxBatch * mode.contexts : 4 * mode.contexts
      await inFlight(session, requests, saturating, 0.5)
      figures.saturatedPerSecond = round(await inFlight(session, requests, saturating, 1), 5)
      // Trials are in the report as they come.
      const { best } = await highestRate(session, requests, figures.saturatedPerSecond, seconds, mode.batched ? 6 : 2, (figures.trials = []))
      Object.assign(figures, { best, stats: session.stats() })
      remember('rates', nameOf(mode), best)
    } finally {
      await session.close()
    }
  })
}

await check('at least 10,000 requests per second with P99 <= 100 ms', () => {
  const bestRate = Math.max(0, ...Object.values(remembered.rates).map((best) => best?.offered ?? 0))
  assert.ok(bestRate >= 10_000, `${bestRate}`)
  return { bestRate, rates: remembered.rates }
})
await check('against torch', (figures) => {
  if (torch === undefined) return { skipped: 'no --torch' }
  const p50 = Math.min(...Object.values(remembered.latencies).map((latency) => latency.p50))
  const bestRate = Math.max(0, ...Object.values(remembered.rates).map((best) => best?.offered ?? 0))
  const ratio = (theirs, ours) => (theirs === undefined ? undefined : round(theirs / ours))
  figures.eagerOverOurs = ratio(torch.eager?.latencyMs?.p50, p50)
  figures.compiledOverOurs = ratio(torch.compiled?.latencyMs?.p50, p50)
  figures.torchRate = { eager: torch.eager?.load?.best?.offered, compiled: torch.compiled?.load?.best?.offered }
  figures.rateOverCompiled = ratio(bestRate, figures.torchRate.compiled)
  figures.masked = { ours: remembered.masked, torch: torch.masked ?? true }
  assert.equal(figures.masked.ours, figures.masked.torch, 'both with a mask, or neither')
  assert.ok(figures.eagerOverOurs >= 4, `${figures.eagerOverOurs} times as fast as eager`)
  assert.ok(figures.rateOverCompiled >= 1.3, `${figures.rateOverCompiled} times the rate of torch compiled`)
  return undefined
})
await engine?.close()
await finish()
