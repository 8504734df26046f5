/**
 * What a session adds to a bare loop of C++ (bench/native/bare_loop.cpp, named by --bare) with the same plan: at batch 1, one request at a
 * time, and with 8 in flight on 4 streams. The loop runs before and after the sessions, the better figure counts.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { engineFolder } from './support/engines.mjs'
import { inFlight, oneByOne, summary, texts } from './support/load.mjs'
import { check, describeProgram, finish, lib, options, round, stopSignal } from './support/target.mjs'

describeProgram({
  text: 'What a session adds to a bare loop of C++ with the same plan, at batch 1: latency, and throughput with 8 in flight.',
  options: [
    '  --bare FILE          the loop: build-bench/bare_loop, of bench/native',
    "  --spin LIST          values of spinUs to compare, default: what a session takes by itself. Default: default. Try default,50",
    '  --sizes LIST         batch sizes of bert-serve. Default: 1,32,128',
  ],
  pieces: {
    bert: { checks: 'bert', seconds: 24, about: 'BERT-base shape (bert-serve), of which each value of --spin takes 11 s' },
    resnet: { checks: 'resnet', seconds: 10, about: 'ResNet-18; 6 s more where its engine is missing' },
    mlp: { checks: 'mlp', seconds: 8, about: 'an MLP; 6 s more where its engine is missing' },
  },
})
const MOST_EXTRA_US = 40
const LEAST_THROUGHPUT = 0.95
const RUNS = options.fake ? 300 : 2000
const LANES = 4
const IN_FLIGHT = 8

const values = (name, shape) => [{ [name]: lib.Tensor.float32(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => Math.sin(i)), shape) }]
const PLANS = [
  { engine: 'bert-serve', requests: (engine) => texts(engine, 64), shapes: ['input_ids=1x128', 'attention_mask=1x128'] },
  { engine: 'resnet-fp16', requests: () => values('image', [1, 3, 64, 64]), shapes: ['image=1x3x64x64'] },
  { engine: 'mlp-fp16', requests: () => values('x', [1, 256]), shapes: ['x=1x256'] },
]

const SPINS = (options.spin ?? 'default').split(',')

async function bareLoop(folder, shapes) {
  if (options.bare === undefined) return undefined
  const given = shapes.flatMap((shape) => ['--shape', shape])
  const sizes = ['--runs', String(RUNS), '--lanes', String(LANES), '--in-flight', String(IN_FLIGHT), '--seconds', '2']
  const { stdout } = await promisify(execFile)(options.bare, [join(folder, 'plan'), ...given, ...sizes], { timeout: 60_000, signal: stopSignal })
  return JSON.parse(stdout)
}

for (const { engine: name, requests: make, shapes } of PLANS) {
  let built
  const folder = () => (built ??= engineFolder(name))
  let bare = []
  await check(`${name}: bare loop, before`, async () => {
    bare.push(await bareLoop(await folder(), shapes))
    return { bare: bare[0] }
  })
  const ours = []
  for (const given of SPINS) {
    await check(`${name}: session, spinUs ${given}`, async (figures) => {
      const spin = given === 'default' ? {} : { spinUs: Number(given) }
      const path = await folder()
      const started = performance.now()
      const since = (from) => Math.round(performance.now() - from)
      const engine = await lib.Engine.load(path)
      figures.loadMs = since(started)
      const requests = make(engine)
      try {
        const made = performance.now()
        const single = await engine.createSession({ contexts: 1, ...spin })
        figures.readyMs = [since(made)]
        figures.latencyMs = summary(await oneByOne(single, requests, RUNS, 300))
        const { submitTime, runTime, queueTime, lanes } = single.stats()
        Object.assign(figures, { submitTime, runTime, queueTime, lane: lanes[0] })
        await single.close()
        const madeMany = performance.now()
        const many = await engine.createSession({ contexts: LANES, ...spin })
        figures.readyMs.push(since(madeMany))
        await inFlight(many, requests, IN_FLIGHT, 0.5)
        figures.perSecond = round(await inFlight(many, requests, IN_FLIGHT, 2), 5)
        await many.close()
        ours.push({ spinUs: given, ...figures })
      } finally {
        await engine.close()
      }
    })
  }
  await check(`${name}: at most ${MOST_EXTRA_US} us more, at least ${LEAST_THROUGHPUT} of the throughput`, async (figures) => {
    bare.push(await bareLoop(await folder(), shapes))
    bare = bare.filter((loop) => loop !== undefined)
    if (bare.length === 0) return { skipped: 'no --bare' }
    const p50 = Math.min(...bare.map(({ latency }) => latency.p50))
    const perSecond = Math.max(...bare.map(({ throughput }) => throughput.perSecond))
    const sessions = ours.map(({ spinUs, latencyMs, perSecond: own }) => ({
      spinUs,
      extraUs: round((latencyMs.p50 - p50) * 1000),
      throughputRatio: round(own / perSecond),
    }))
    Object.assign(figures, { bare: { p50, p99: bare[0].latency.p99, graphP50: Math.min(...bare.map(({ latencyGraph }) => latencyGraph.p50)), perSecond }, sessions })
    assert.ok(Math.min(...sessions.map(({ extraUs }) => extraUs)) <= MOST_EXTRA_US, JSON.stringify(figures))
    assert.ok(Math.max(...sessions.map(({ throughputRatio }) => throughputRatio)) >= LEAST_THROUGHPUT, JSON.stringify(figures))
    return undefined
  })
}
await finish()
