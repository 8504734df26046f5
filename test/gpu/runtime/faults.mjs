/**
 * Failures on demand. The Nth allocation on the device fails, for N = 1 ... 100: whatever was under way ends in a typed error or well, and
 * nothing stays behind. Runs that fail: the request hears of it, the session goes on.
 */
import assert from 'node:assert/strict'
import { engineFolder } from './support/engines.mjs'
import { oneByOne } from './support/load.mjs'
import { distance } from './support/references.mjs'
import { check, describeProgram, finish, injectNativeFaults, lib, sleep } from './support/target.mjs'

describeProgram({
  text: 'Failures on demand, with a ResNet-18: what fails says so, nothing stays behind, and the rest goes on. Builds resnet-fp16 (6 s) where it is missing.',
  pieces: {
    runs: { checks: 'allocations of,an enqueue,a batch,everything,a closed', seconds: 15, about: 'enqueues, graph launches and copies that fail; closing under load' },
    device: { checks: 'the Nth device,a closed', seconds: 130, about: 'the Nth allocation on the device fails, N = 1 ... 100' },
    pinned: { checks: 'the Nth pinned,a closed', seconds: 16, about: 'the Nth pinned allocation fails, N = 1 ... 16' },
  },
})
const NTH = 100
/** One life has fewer of them. */
const PINNED = 16
const { Engine, Runtime, Tensor, TensorRTError } = lib
const folder = await engineFolder('resnet-fp16')
const runtime = await Runtime.create()
const image = (rows) => ({ image: Tensor.float32(Float32Array.from({ length: rows * 3 * 64 * 64 }, (_, i) => Math.sin(i)), [rows, 3, 64, 64]) })
const SESSION = { batching: { maxBatch: 8, runSizes: [1, 8] } }

/** Load, sessions with graphs, runs of several sizes, buffers: everything that allocates. */
async function everything() {
  const open = []
  try {
    const engine = await Engine.load(folder, { runtime })
    open.push(engine)
    const session = await engine.createSession(SESSION)
    open.push(session)
    const answers = await Promise.all([1, 2, 8].map((rows) => session.run(image(rows))))
    open.push(await runtime.allocateDevice(1 << 20, { pooled: false }))
    return answers
  } finally {
    for (const object of open.reverse()) await object.close()
  }
}

const LET_GO_MS = 2000

/** Bytes in use once all that was closed has been let go of, which happens on threads of the module's; waits until it is as before. */
async function used(before) {
  for (const until = performance.now() + LET_GO_MS; ; ) {
    await sleep(5)
    await runtime.trim()
    const { deviceBytes, pinnedBytes, freeBytes } = runtime.memory()
    if ((deviceBytes === before.deviceBytes && pinnedBytes === before.pinnedBytes) || performance.now() > until) return { deviceBytes, pinnedBytes, freeBytes }
  }
}

async function countAllocations() {
  const before = runtime.counters()
  await everything()
  await runtime.trim()
  await everything()
  const after = runtime.counters()
  return { device: after.deviceAllocations - before.deviceAllocations, pinned: after.pinnedAllocations - before.pinnedAllocations }
}

const allocations = (fault) => runtime.counters()[fault === 'failDeviceAllocation' ? 'deviceAllocations' : 'pinnedAllocations']

async function failEachNth(fault, most, report) {
  await everything()
  const before = await used({ deviceBytes: 0, pinnedBytes: 0 })
  report.codes = {}
  report.messages = []
  let succeeded = 0
  for (let n = 1; n <= most; n++) {
    // Lives without memory left from the one before, until the nth allocation was one of theirs.
    const until = allocations(fault) + n
    injectNativeFaults({ [fault]: n })
    let error
    for (let life = 0; error === undefined && allocations(fault) < until && life < 2 * NTH; life++) {
      await runtime.trim()
      error = await everything().then(() => undefined, (error) => error)
    }
    injectNativeFaults({})
    if (error === undefined) {
      succeeded++
    } else {
      assert.ok(error instanceof TensorRTError, `n = ${n}: ${error?.stack}`)
      report.codes[error.code] = (report.codes[error.code] ?? 0) + 1
      if (!report.messages.includes(error.message) && report.messages.length < 6) report.messages.push(error.message)
    }
    const now = await used(before)
    assert.equal(now.deviceBytes, before.deviceBytes, `n = ${n}: bytes on the device after ${error?.code ?? 'success'}`)
    assert.equal(now.pinnedBytes, before.pinnedBytes, `n = ${n}: pinned bytes after ${error?.code ?? 'success'}`)
  }
  const after = await used(before)
  // What succeeds has done without: a graph that could not be captured, say.
  Object.assign(report, { succeeded, before, after })
  // It works again.
  const answers = await everything()
  assert.equal(answers.length, 3)
  assert.ok(before.freeBytes - after.freeBytes <= 4 * 2 ** 20, `${before.freeBytes - after.freeBytes} bytes of the GPU did not come back`)
}

await check('allocations of one life', countAllocations)

await check('an enqueue that fails: its request hears of it, the session goes on', async (report) => {
  const engine = await Engine.load(folder, { runtime })
  try {
    report.outcomes = {}
    for (const cudaGraphs of [true, false]) {
      const session = await engine.createSession({ cudaGraphs })
      const expected = (await session.run(image(1))).logits.data
      const before = runtime.memory().deviceBytes
      for (const fault of ['failEnqueue', 'failCopy']) {
        for (let n = 1; n <= 20; n++) {
          injectNativeFaults({ [fault]: n })
          const outcomes = await Promise.allSettled(Array.from({ length: 8 }, () => session.run(image(1))))
          injectNativeFaults({})
          for (const { status, reason, value } of outcomes) {
            const key = `${fault}, graphs ${cudaGraphs}: ${status === 'fulfilled' ? 'answered' : reason.code}`
            report.outcomes[key] = (report.outcomes[key] ?? 0) + 1
            if (status === 'fulfilled') assert.deepEqual(value.logits.data, expected)
            else assert.ok(reason instanceof TensorRTError && ['ERR_EXECUTION_FAILED', 'ERR_CUDA'].includes(reason.code), reason.stack)
          }
          // A graph has no copies of its own to fail.
          if (n <= 8 && !(cudaGraphs && fault === 'failCopy')) {
            assert.equal(outcomes.filter(({ status }) => status === 'rejected').length, 1, `${fault} ${n}, graphs ${cudaGraphs}: one request fails`)
          }
          assert.deepEqual((await session.run(image(1))).logits.data, expected, 'the session goes on')
        }
      }
      assert.equal(runtime.memory().deviceBytes, before)
      await session.close()
    }
  } finally {
    await engine.close()
  }
}, { timeoutMs: 120_000 })

await check('a batch that fails: its requests run again by themselves', async (report) => {
  const engine = await Engine.load(folder, { runtime })
  try {
    const session = await engine.createSession({ batching: { maxBatch: 8, preferredSizes: [8], maxDelayMs: 200 } })
    const expected = (await session.run(image(1))).logits
    injectNativeFaults({ failEnqueue: 1 })
    const answers = await Promise.all(Array.from({ length: 8 }, () => session.run(image(1))))
    injectNativeFaults({})
    const { retried, failed } = session.stats()
    Object.assign(report, { retried, failed })
    assert.deepEqual([answers.length, retried, failed], [8, 8, 0])
    // Another number of rows may have run, with other kernels.
    for (const { logits } of answers) assert.ok(distance(logits, expected).relative <= 2e-2)
    await session.close()
  } finally {
    await engine.close()
  }
})

await check('everything is closed while hundreds of requests are in flight', async (report) => {
  const before = await used({ deviceBytes: 0, pinnedBytes: 0 })
  const engine = await Engine.load(folder, { runtime })
  const session = await engine.createSession({ contexts: 4 })
  await oneByOne(session, [image(1)], 10, 0)
  const pending = Promise.allSettled(Array.from({ length: 500 }, () => session.run(image(1))))
  await new Promise((done) => setTimeout(done, 2))
  await Promise.all([session.close(), engine.close()])
  const outcomes = await pending
  report.outcomes = {}
  for (const { status, reason } of outcomes) {
    const key = status === 'fulfilled' ? 'answered' : reason.code
    report.outcomes[key] = (report.outcomes[key] ?? 0) + 1
  }
  assert.ok(Object.keys(report.outcomes).every((key) => ['answered', 'ERR_DISPOSED'].includes(key)))
  const after = await used(before)
  assert.equal(after.deviceBytes, before.deviceBytes)
  assert.equal(after.pinnedBytes, before.pinnedBytes)
})

// Last, as they take minutes: a life each.
await check(`the Nth device allocation fails, N = 1 ... ${NTH}`, (report) => failEachNth('failDeviceAllocation', NTH, report), { timeoutMs: 300_000 })
await check(`the Nth pinned allocation fails, N = 1 ... ${PINNED}`, (report) => failEachNth('failPinnedAllocation', PINNED, report), { timeoutMs: 300_000 })

await runtime.close()
await check('a closed runtime is gone', () => assert.throws(() => runtime.memory(), { code: 'ERR_DISPOSED' }))
await finish()
