/**
 * What a session adds to a bare loop of C++ (bench/native/bare_loop.cpp, named by --bare) with the same plan: at batch 1, one request at a
 * time, and with 8 in flight on 4 streams. The loop runs before and after each session, the better figure counts.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { engineFolder } from './support/engines.mjs'
import { inFlight, oneByOne, summary, texts } from './support/load.mjs'
import { readCases } from './support/references.mjs'
import { check, finish, lib, options, round } from './support/target.mjs'

const MOST_EXTRA_US = 40
const LEAST_THROUGHPUT = 0.95
const RUNS = options.fake ? 300 : 2000
const LANES = 4
const IN_FLIGHT = 8

const PLANS = [
  { engine: 'bert-serve', requests: () => texts(64), shapes: ['input_ids=1x128', 'attention_mask=1x128'] },
  { engine: 'resnet-fp16', requests: () => [readCases('resnet')[0].inputs], shapes: ['image=1x3x64x64'] },
  { engine: 'mlp-fp16', requests: () => [readCases('mlp')[0].inputs], shapes: ['x=1x256'] },
]

function bareLoop(folder, shapes) {
  if (options.bare === undefined) return undefined
  const given = shapes.flatMap((shape) => ['--shape', shape])
  const sizes = ['--runs', String(RUNS), '--lanes', String(LANES), '--in-flight', String(IN_FLIGHT), '--seconds', '2']
  return JSON.parse(execFileSync(options.bare, [join(folder, 'plan'), ...given, ...sizes], { encoding: 'utf8', timeout: 60_000 }))
}

for (const { engine: name, requests: make, shapes } of PLANS) {
  const requests = make()
  const folder = await engineFolder(name)
  let bare = []
  await check(`${name}: bare loop, before`, () => {
    bare.push(bareLoop(folder, shapes))
    return { bare: bare[0] }
  })
  const ours = []
  for (const spinUs of [Number(options.spin), 50]) {
    await check(`${name}: session, spinUs ${spinUs}`, async (figures) => {
      const engine = await lib.Engine.load(folder)
      try {
        const single = await engine.createSession({ contexts: 1, spinUs })
        figures.latencyMs = summary(await oneByOne(single, requests, RUNS, 300))
        const { submitTime, runTime, queueTime, lanes } = single.stats()
        Object.assign(figures, { submitTime, runTime, queueTime, lane: lanes[0] })
        await single.close()
        const many = await engine.createSession({ contexts: LANES, spinUs })
        await inFlight(many, requests, IN_FLIGHT, 0.5)
        figures.perSecond = round(await inFlight(many, requests, IN_FLIGHT, 2), 5)
        await many.close()
        ours.push({ spinUs, ...figures })
      } finally {
        await engine.close()
      }
    })
  }
  await check(`${name}: at most ${MOST_EXTRA_US} us more, at least ${LEAST_THROUGHPUT} of the throughput`, () => {
    bare.push(bareLoop(folder, shapes))
    bare = bare.filter((loop) => loop !== undefined)
    if (bare.length === 0) return { skipped: 'no --bare' }
    const p50 = Math.min(...bare.map(({ latency }) => latency.p50))
    const perSecond = Math.max(...bare.map(({ throughput }) => throughput.perSecond))
    const sessions = ours.map(({ spinUs, latencyMs, perSecond: own }) => ({
      spinUs,
      extraUs: round((latencyMs.p50 - p50) * 1000),
      throughputRatio: round(own / perSecond),
    }))
    const figures = { bare: { p50, p99: bare[0].latency.p99, graphP50: Math.min(...bare.map(({ latencyGraph }) => latencyGraph.p50)), perSecond }, sessions }
    assert.ok(Math.min(...sessions.map(({ extraUs }) => extraUs)) <= MOST_EXTRA_US, JSON.stringify(figures))
    assert.ok(Math.max(...sessions.map(({ throughputRatio }) => throughputRatio)) >= LEAST_THROUGHPUT, JSON.stringify(figures))
    return figures
  })
}
await finish()
