/**
 * Several GPUs by index: everything that is made on GPU 1 is there and works, alone and while GPU 0 does the same; what belongs to one GPU is
 * refused on the other. On a machine with one GPU each check says that it was left out.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { runByHand } from './support/by_hand.mjs'
import { engineFolder, freshFolder } from './support/engines.mjs'
import { inFlight } from './support/load.mjs'
import { check, describeProgram, enginesFolder, finish, lib, modelsFolder, options, root, round, stopSignal, timingCache } from './support/target.mjs'

describeProgram({
  text: 'Several GPUs by index, on a machine that has two. Builds mlp-fp32 and resnet-fp16 (7 s each) where they are missing.',
  options: ['  --llm FOLDER         engine folder of models/tiny-storyteller. Default: one is built (20 s)'],
  pieces: {
    runtime: { checks: 'GPUs,memory,buffers,what,engines,sessions,closing', seconds: 25, about: 'memory, streams, engines, contexts, sessions; builds included' },
    build: { checks: 'a build', seconds: 8, about: 'an engine built on GPU 1' },
    llm: { checks: 'an LLM', seconds: 30, about: 'an LLM on each GPU at once; build included' },
  },
})
const { Engine, Runtime, Tensor } = lib
const found = await lib.gpus()
const missing = found.length < 2 ? `this machine has ${found.length} GPU${found.length === 1 ? '' : 's'}` : undefined
const MIB = 2 ** 20
const ROWS = 7
const x = Tensor.float32(Float32Array.from({ length: ROWS * 256 }, (_, i) => Math.sin(i)), [ROWS, 256])
const image = { image: Tensor.float32(Float32Array.from({ length: 3 * 64 * 64 }, (_, i) => Math.cos(i)), [1, 3, 64, 64]) }

/** A check that is left out, with the reason, where there is no second GPU. */
const onTwo = (name, body, more) => check(name, async (figures) => (missing === undefined ? body(figures) : { skipped: missing }), more)
const runtimes = missing === undefined ? await Promise.all([0, 1].map((device) => Runtime.create({ device }))) : []
const [first, second] = runtimes
const memories = () => runtimes.map((runtime) => runtime.memory())

await onTwo('GPUs by index', async () => {
  for (const [device, { info }] of runtimes.entries()) {
    assert.deepEqual([info.device, info.name, info.memoryBytes], [device, found[device].name, found[device].memoryBytes])
  }
  await assert.rejects(Runtime.create({ device: found.length }), { code: 'ERR_INVALID_ARGUMENT' })
  return { gpus: found }
})

await onTwo('memory: an allocation counts on its own GPU', async () => {
  const bytes = 512 * MIB
  const counts = () => runtimes.map((runtime) => runtime.counters().deviceAllocations)
  for (const [own, other] of [[0, 1], [1, 0]]) {
    const before = memories()
    const counted = counts()
    const buffer = await runtimes[own].allocateDevice(bytes, { pooled: false })
    const after = memories()
    assert.equal(after[own].deviceBytes - before[own].deviceBytes, bytes)
    assert.equal(after[other].deviceBytes, before[other].deviceBytes)
    assert.ok(before[own].freeBytes - after[own].freeBytes >= bytes * 0.99, `GPU ${own}: ${before[own].freeBytes - after[own].freeBytes} bytes fewer are free`)
    assert.ok(before[other].freeBytes - after[other].freeBytes < 64 * MIB, `GPU ${other} is to have as much as before`)
    assert.deepEqual([counts()[own] - counted[own], counts()[other] - counted[other]], [1, 0])
    await buffer.close()
  }
  return { memory: memories() }
})

await onTwo('buffers and streams on each GPU; from one to the other through pinned memory', async () => {
  const count = MIB
  const open = []
  const keep = (object) => (open.push(object), object)
  const streams = []
  const devices = []
  for (const runtime of runtimes) {
    streams.push(keep(await runtime.createStream()))
    devices.push(keep(await runtime.allocateDevice({ dtype: 'int32', shape: [count] })))
  }
  // Pinned memory is every GPU's.
  const [host, back] = [keep(await first.allocatePinned(count * 4)), keep(await second.allocatePinned(count * 4))]
  const values = host.view('int32')
  values.forEach((_, i) => (values[i] = i ^ 0x5a5a))
  streams[0].copy(devices[0], host)
  await streams[0].synchronize()
  values.fill(0)
  streams[0].copy(host, devices[0])
  await streams[0].synchronize()
  streams[1].fill(devices[1], 0xff)
  streams[1].copy(devices[1], host)
  streams[1].copy(back, devices[1])
  await streams[1].synchronize()
  assert.ok(back.view('int32').every((value, i) => value === (i ^ 0x5a5a)))
  const timed = []
  for (const [i, runtime] of runtimes.entries()) {
    const [start, end] = [keep(await runtime.createEvent({ timing: true })), keep(await runtime.createEvent({ timing: true }))]
    streams[i].record(start)
    for (let n = 0; n < 20; n++) streams[i].copy(devices[i], host)
    streams[i].record(end)
    timed.push({ i, start, end })
  }
  await Promise.all(streams.map((stream) => stream.synchronize()))
  const gigabytesPerSecond = timed.map(({ start, end }) => round((20 * count * 4) / 1e6 / end.elapsedSince(start)))
  await Promise.all(open.map((object) => object.close()))
  return { gigabytesPerSecond }
})

let engines = []
await onTwo('engines: the same plan on both GPUs gives the same bits, alone and at once', async () => {
  const folder = await engineFolder('mlp-fp32')
  engines = [await Engine.load(folder, { runtime: first }), await Engine.load(folder, { device: 1 })]
  assert.deepEqual(engines.map(({ runtime }) => runtime.info.device), [0, 1])
  const alone = []
  for (const engine of engines) alone.push((await runByHand(engine, { x })).y.data)
  assert.deepEqual(alone[1], alone[0])
  assert.ok(alone[0].some((value) => value !== 0) && alone[0].every(Number.isFinite))
  const outputs = await Promise.all(Array.from({ length: 60 }, (_, i) => runByHand(engines[i % 2], { x })))
  for (const { y } of outputs) assert.deepEqual(y.data, alone[0])
  return { runs: outputs.length }
})

await onTwo('what belongs to one GPU is refused on the other', async () => {
  if (engines.length === 0) engines = [await Engine.load(await engineFolder('mlp-fp32'), { runtime: first }), await Engine.load(await engineFolder('mlp-fp32'), { device: 1 })]
  const open = []
  const keep = (object) => (open.push(object), object)
  const stream = keep(await first.createStream())
  const [here, there] = [keep(await first.allocateDevice(4096)), keep(await second.allocateDevice(4096))]
  const event = keep(await second.createEvent({ timing: true }))
  const foreignStream = keep(await second.createStream())
  const own = keep(await first.createEvent({ timing: true }))
  stream.record(own)
  foreignStream.record(event)
  await Promise.all([stream.synchronize(), foreignStream.synchronize()])
  const [context, foreign] = [keep(await engines[0].createContext()), keep(await engines[1].createContext())]
  const large = keep(await second.allocateDevice({ dtype: 'float32', shape: [ROWS, 256] }))
  const result = keep(await second.allocateDevice({ dtype: 'float32', shape: [ROWS, engines[1].tensor('y').shape[1]] }))
  for (const each of [context, foreign]) each.setInputShape('x', [ROWS, 256])
  foreign.setTensor('x', large)
  foreign.setTensor('y', result)
  const errors = {}
  const refused = (name, code, call) =>
    assert.throws(call, (error) => {
      errors[name] = `${error.code}: ${error.message}`
      assert.equal(error.code, code, error.message)
      assert.match(error.message, /GPU 1/)
      assert.match(error.message, /GPU 0/)
      return true
    }, name)
  refused('copy from GPU 1', 'ERR_INVALID_ARGUMENT', () => stream.copy(here, there))
  refused('copy to GPU 1', 'ERR_INVALID_ARGUMENT', () => stream.copy(there, here))
  refused('fill', 'ERR_INVALID_ARGUMENT', () => stream.fill(there, 0))
  refused('wait', 'ERR_INVALID_ARGUMENT', () => stream.wait(event))
  refused('record', 'ERR_INVALID_ARGUMENT', () => stream.record(event))
  refused('elapsed', 'ERR_INVALID_ARGUMENT', () => own.elapsedSince(event))
  refused('context', 'ERR_INVALID_ARGUMENT', () => stream.enqueue(foreign))
  refused('tensor', 'ERR_INVALID_TENSOR', () => context.setTensor('x', large))
  // Nothing of it has reached the stream.
  stream.fill(here, 1)
  await stream.synchronize()
  await Promise.all(open.map((object) => object.close()))
  return { errors }
})

await onTwo('sessions on both GPUs at once', async (figures) => {
  const folder = await engineFolder('resnet-fp16')
  const loaded = await Promise.all([0, 1].map((device) => Engine.load(folder, { device })))
  const sessions = await Promise.all(loaded.map((engine) => engine.createSession({ contexts: 2 })))
  const seconds = options.fake ? 0.2 : 1
  const answers = await Promise.all(sessions.map((session) => session.run(image)))
  assert.deepEqual(answers[1].logits.data, answers[0].logits.data)
  figures.alone = []
  for (const session of sessions) figures.alone.push(round(await inFlight(session, [image], 8, seconds)))
  figures.together = (await Promise.all(sessions.map((session) => inFlight(session, [image], 8, seconds)))).map((rate) => round(rate))
  figures.stats = sessions.map((session) => {
    const { completed, failed, deviceAllocations } = session.stats()
    return { completed, failed, deviceAllocations }
  })
  assert.ok(figures.stats.every(({ failed, completed }) => failed === 0 && completed > 100))
  await Promise.all(sessions.map((session) => session.close()))
  await Promise.all(loaded.map((engine) => engine.close()))
})

await onTwo('a build on GPU 1', async () => {
  if (options.fake) return { skipped: 'the fake TensorRT builds nothing' }
  const out = join(freshFolder('built-on-1', {}), 'engine')
  const { manifest } = await lib.buildEngine({
    onnx: join(modelsFolder, 'mlp.onnx'), out, cache: false, timingCache, device: 1, signal: stopSignal,
    profiles: [{ x: { min: [1, 256], opt: [8, 256], max: [64, 256] } }],
  })
  const outputs = []
  for (const device of [0, 1]) {
    const engine = await Engine.load(out, { device })
    outputs.push((await runByHand(engine, { x })).y.data)
    await engine.close()
  }
  assert.deepEqual(outputs[0], outputs[1])
  return { seconds: round(manifest.build.seconds), gpu: manifest.gpu }
}, { timeoutMs: 200_000 })

await onTwo('an LLM on each GPU at once', async (figures) => {
  if (options.fake) return { skipped: 'the fake TensorRT builds nothing' }
  const weights = join(root, 'models', 'tiny-storyteller')
  const folder = options.llm === undefined ? join(enginesFolder, 'storyteller') : resolve(options.llm)
  if (!existsSync(join(folder, 'engine.json'))) {
    const started = performance.now()
    await lib.buildLLMEngine(weights, folder, { precision: 'fp16', maxStepTokens: 64, timingCache, device: 1 })
    figures.buildSeconds = round((performance.now() - started) / 1000)
  }
  const before = memories()
  const llms = []
  for (const device of [0, 1]) llms.push(await lib.LLM.load(folder, { backend: 'tensorrt', weights, device, numPages: 256, maxStepTokens: 64 }))
  const after = memories()
  figures.usedMiB = after.map(({ freeBytes }, i) => round((before[i].freeBytes - freeBytes) / MIB))
  const text = (llm) => llm.generate({ prompt: 'Once upon a time', maxTokens: 48, temperature: 0 }).result()
  const alone = await text(llms[0])
  const both = await Promise.all(llms.map(text))
  for (const result of both) assert.equal(result.text, alone.text)
  figures.text = alone.text.slice(0, 60)
  assert.ok(figures.usedMiB.every((used) => used > 1), `${figures.usedMiB} MiB: each has its own on its own GPU`)
  await Promise.all(llms.map((llm) => llm.close()))
  return undefined
}, { timeoutMs: 200_000 })

await onTwo('closing the runtime of GPU 1 leaves GPU 0 as it is', async () => {
  await Promise.all(engines.slice(1).map((engine) => engine.close()))
  const { deviceBytes } = first.memory()
  await second.close()
  assert.throws(() => second.memory(), { code: 'ERR_DISPOSED' })
  assert.equal(first.memory().deviceBytes, deviceBytes)
  const stream = await first.createStream()
  const buffer = await first.allocateDevice(4096)
  stream.fill(buffer, 0)
  await stream.synchronize()
  await Promise.all([stream.close(), buffer.close()])
})
await Promise.all(engines.map((engine) => engine.close()))
await Promise.all(runtimes.map((runtime) => runtime.close()))
await finish()
