/**
 * Loading and unloading: 300 rounds of good and bad plans, after which GPU memory and RSS are where they were; 1,000 mutated plans that are
 * refused before TensorRT sees a byte of them.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { engineFolder, freshFolder } from './support/engines.mjs'
import { random } from './support/load.mjs'
import { check, deviceMemoryMiB, describeProgram, finish, injectNativeFaults, lib, options, round, sleep } from './support/target.mjs'

describeProgram({
  text: 'Loading and unloading, and plans that are damaged. Builds resnet-fp16 and mlp-fp16 (6 s each) where they are missing.',
  pieces: {
    rounds: { checks: 'once,300,peak', seconds: 36, about: '300 rounds of load, run, fail and unload' },
    mutations: { checks: '1000,a damaged', seconds: 28, about: '1,000 mutated plans, and trials in a process of their own' },
  },
})
const ROUNDS = 300
const MUTATIONS = 1000
/** The driver counts in blocks of 2 MiB; one of them may be in flight. */
const MOST_LEFT_MIB = 4
const MOST_RSS_MIB = 48
const { Engine, Runtime, Tensor } = lib
const gc = globalThis.gc ?? (() => {})

const folder = await engineFolder('resnet-fp16')
const manifest = readFileSync(join(folder, 'engine.json'))
const plan = readFileSync(join(folder, 'plan'))
const inputs = { image: Tensor.float32(Float32Array.from({ length: 3 * 64 * 64 }, (_, i) => Math.sin(i)), [1, 3, 64, 64]) }

const flipped = Buffer.from(plan)
for (let i = 0; i < 16; i++) flipped[Math.floor((plan.length * (i + 1)) / 18)] ^= 0x55
const flippedFolder = freshFolder('damaged-flipped', { 'engine.json': manifest, plan: flipped })
const otherVersion = { ...JSON.parse(manifest), tensorrtVersion: '10.3.0' }
const otherVersionFolder = freshFolder('damaged-version', { 'engine.json': JSON.stringify(otherVersion), plan })
const truncated = plan.subarray(0, plan.length >> 1)
const headless = Buffer.from(plan)
headless.fill(0x5a, 0, 16)

const runtime = await Runtime.create()

async function good() {
  const engine = await Engine.load(folder, { runtime })
  const session = await engine.createSession({ contexts: 2 })
  const { logits } = await session.run(inputs)
  assert.ok(logits.toFloat32().every(Number.isFinite))
  await session.close()
  await engine.close()
}

/** A run that fails, and one that does not, on the same session. */
async function failingRun() {
  const engine = await Engine.load(folder, { runtime })
  const session = await engine.createSession()
  injectNativeFaults({ failEnqueue: 1 })
  await assert.rejects(session.run(inputs), { code: 'ERR_EXECUTION_FAILED' })
  await session.run(inputs)
  await session.close()
  await engine.close()
}

const refused = (source, codes) => async () => {
  await assert.rejects(Engine.load(source, { runtime }), (error) => {
    assert.ok(error instanceof lib.TensorRTError && codes.includes(error.code), `${error.code}: ${error.message}`)
    return true
  })
}

const KINDS = {
  good,
  'failing run': failingRun,
  'flipped bytes, with a manifest': refused(flippedFolder, ['ERR_ENGINE_INVALID']),
  'another version, with a manifest': refused(otherVersionFolder, ['ERR_ENGINE_INCOMPATIBLE']),
  'truncated, bare plan': refused(truncated, ['ERR_ENGINE_INVALID']),
  'no header, bare plan': refused(headless, ['ERR_ENGINE_INVALID', 'ERR_ENGINE_INCOMPATIBLE']),
}
const rounds = Object.entries(KINDS)

async function figures() {
  gc()
  await runtime.trim()
  const { freeBytes, deviceBytes, pinnedBytes } = runtime.memory()
  return {
    freeMiB: round(freeBytes / 2 ** 20, 7), deviceBytes, pinnedBytes, smiMiB: deviceMemoryMiB(),
    rssMiB: round(process.memoryUsage.rss() / 2 ** 20, 5),
  }
}
/** What was closed is let go of on threads of the module's, and what was collected later. */
const settled = async () => {
  for (let i = 0; i < 5; i++) {
    gc()
    await sleep(100)
  }
  return figures()
}

for (const [kind, round] of rounds) await check(`once: ${kind}`, round)
await check(`${ROUNDS} rounds of load, run, fail and unload`, async (report) => {
  // What the process keeps for good (kernels, TensorRT's own state) is there after some rounds.
  for (let i = 0; i < 30; i++) await rounds[i % rounds.length][1]()
  const before = await settled()
  const samples = []
  for (let i = 0; i < ROUNDS; i++) {
    await rounds[i % rounds.length][1]()
    if (i % 50 === 49) samples.push(await figures())
  }
  const after = await settled()
  Object.assign(report, { before, after, samples, kinds: Object.keys(KINDS) })
  assert.equal(after.deviceBytes, before.deviceBytes, 'bytes that the module holds')
  assert.equal(after.pinnedBytes, before.pinnedBytes, 'pinned bytes')
  assert.ok(before.freeMiB - after.freeMiB <= MOST_LEFT_MIB, `${before.freeMiB - after.freeMiB} MiB of the GPU did not come back`)
  assert.ok(after.rssMiB - before.rssMiB <= MOST_RSS_MIB, `${after.rssMiB - before.rssMiB} MiB of the host did not come back`)
}, { timeoutMs: 240_000 })

await check('peak host memory of a load is at most the plan and a tenth', async () => {
  // TensorRT's own allocations are not ours to bound: what is measured is what is ours, before TensorRT reads.
  const { arrayBuffers } = process.memoryUsage()
  let peak = 0
  const timer = setInterval(() => (peak = Math.max(peak, process.memoryUsage().arrayBuffers - arrayBuffers)), 1)
  const engine = await Engine.load(folder, { runtime })
  clearInterval(timer)
  await engine.close()
  assert.ok(peak <= 1.1 * plan.length + 2 ** 16, `${peak} bytes for a plan of ${plan.length}`)
  return { planBytes: plan.length, peakArrayBufferBytes: peak }
})

await check(`${MUTATIONS} mutated plans are refused before TensorRT sees them`, async (report) => {
  const small = await engineFolder('mlp-fp16')
  const original = readFileSync(join(small, 'plan'))
  const target = freshFolder('damaged-mutated', { 'engine.json': readFileSync(join(small, 'engine.json')), plan: original })
  await (await Engine.load(target, { runtime })).close()
  const lines = []
  lib.setLogger(({ text }) => lines.push(text), { level: 'verbose' })
  const { deviceAllocations } = runtime.counters()
  const next = random(9)
  const at = (length) => Math.floor(next() * length)
  const mutate = [
    (bytes) => ((bytes[at(bytes.length)] ^= 1 << at(8)), bytes),
    (bytes) => bytes.subarray(0, at(bytes.length)),
    (bytes) => Buffer.concat([bytes, Buffer.from([at(256)])]),
    (bytes) => bytes.fill(at(256), at(bytes.length - 64), bytes.length - at(32)),
    (bytes) => bytes.copyWithin(at(bytes.length >> 1), at(bytes.length), bytes.length),
  ]
  report.codes = {}
  let same = 0
  for (let i = 0; i < MUTATIONS; i++) {
    const mutated = mutate[i % mutate.length](Buffer.from(original))
    if (mutated.equals(original)) {
      same++
      continue
    }
    writeFileSync(join(target, 'plan'), mutated)
    const error = await Engine.load(target, { runtime }).then(
      (engine) => engine.close().then(() => assert.fail(`mutation ${i} was loaded`)),
      (error) => error,
    )
    report.codes[error.code] = (report.codes[error.code] ?? 0) + 1
  }
  await sleep(50)
  lib.setLogger(null)
  report.unchanged = same
  assert.deepEqual(Object.keys(report.codes), ['ERR_ENGINE_INVALID'])
  assert.equal(runtime.counters().deviceAllocations, deviceAllocations, 'nothing was allocated')
  assert.deepEqual(lines, [], 'TensorRT said nothing')
}, { timeoutMs: 240_000 })

if (!options.fake) {
  await check('a damaged plan without a manifest is tried in a process of its own', async (report) => {
    report.results = {}
    for (const [name, bytes] of Object.entries({ good: plan, truncated, headless, flipped })) {
      const file = join(freshFolder('damaged-bare', { 'model.plan': bytes }), 'model.plan')
      const { ok, outcome, signal, error, milliseconds } = await lib.tryEngine(file)
      report.results[name] = { ok, outcome, signal, error: error?.message, milliseconds: round(milliseconds) }
    }
    assert.equal(report.results.good.outcome, 'loaded')
    assert.ok(!report.results.truncated.ok && !report.results.headless.ok)
  })
}
await runtime.close()
await finish()
