/** Every class of the runtime API once on the device, by what it is for. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { runByHand } from './support/by_hand.mjs'
import { engineFolder } from './support/engines.mjs'
import { distance, readCases } from './support/references.mjs'
import { check, describeProgram, finish, lib, modelsFolder, options, round, sleep } from './support/target.mjs'

describeProgram({
  text: 'Every class of the runtime API once on the device. Builds six small engines (35 s) where they are missing.',
  options: ['  --lean FILE          libnvinfer_lean of a later version, to run the version-compatible plan on'],
  pieces: { all: { checks: '', seconds: 3, about: 'everything' } },
})
const { Engine, KvCache, Runtime, Tensor } = lib
const runtime = await Runtime.create()
const MLP = readCases('mlp')
const [{ inputs: single, outputs: expectedSingle }, { inputs: seven, outputs: expectedSeven }] = MLP
const near = (tensor, expected, tolerance = 1e-3) => {
  const { relative } = distance(tensor, expected)
  assert.ok(relative <= tolerance, `${relative}`)
  return round(relative)
}

/** A context of the MLP with its buffers. */
async function prepare(engine, inputs, contextOptions) {
  const { runtime } = engine
  const stream = await runtime.createStream()
  const context = await engine.createContext(contextOptions)
  const rows = inputs.x.shape[0]
  const [pinnedX, pinnedY] = [await runtime.allocatePinned({ dtype: 'float32', shape: [rows, 256] }), await runtime.allocatePinned({ dtype: 'float32', shape: [rows, 64] })]
  const [x, y] = [await runtime.allocateDevice({ dtype: 'float32', shape: [rows, 256] }), await runtime.allocateDevice({ dtype: 'float32', shape: [rows, 64] })]
  pinnedX.write(inputs.x)
  context.setInputShape('x', inputs.x.shape)
  context.setTensor('x', x)
  context.setTensor('y', y)
  const commands = () => {
    stream.copy(x, pinnedX)
    stream.enqueue(context)
    stream.copy(pinnedY, y)
  }
  const close = () => Promise.all([context, stream, pinnedX, pinnedY, x, y].map((object) => object.close()))
  return { stream, context, x, y, pinnedX, pinnedY, commands, close, read: () => pinnedY.read('float32', [rows, 64]) }
}

await check('runtime: facts and figures', () => {
  const { libraryVersion, computeCapability, name } = runtime.info
  assert.ok(Math.floor(libraryVersion / 10_000) === 10)
  const { freeBytes, totalBytes } = runtime.memory()
  assert.ok(freeBytes > 0 && freeBytes < totalBytes)
  return { info: runtime.info, memory: runtime.memory(), counters: runtime.counters(), name, computeCapability, gpus: typeof lib.gpus }
})

const engine = await Engine.load(await engineFolder('mlp-fp32'), { runtime })

await check('engine: inspection', async () => {
  assert.deepEqual(engine.inputs.map(({ name, dtype, shape }) => [name, dtype, [...shape]]), [['x', 'float32', [-1, 256]]])
  assert.deepEqual(engine.outputs.map(({ name, dtype, shape }) => [name, dtype, [...shape]]), [['y', 'float32', [-1, 64]]])
  assert.deepEqual(engine.profiles[0].inputs.x, { min: [1, 256], opt: [8, 256], max: [64, 256] })
  const { layers, bindings } = await engine.layers(0)
  assert.ok(layers.length > 0)
  assert.throws(() => engine.tensor('z'), { code: 'ERR_INVALID_TENSOR' })
  return { info: engine.info, layers: layers.length, bindings, formats: engine.tensor('x').formats }
})

await check('buffers: copies in all directions, fill, rows, typed views', async () => {
  const stream = await runtime.createStream()
  const [host, device, other, back] = [await runtime.allocatePinned(4096), await runtime.allocateDevice(4096), await runtime.allocateDevice(4096), await runtime.allocatePinned(4096)]
  const values = host.view('int32')
  values.forEach((_, i) => (values[i] = i * 3))
  stream.copy(device, host)
  stream.copy(other, device, { toOffset: 1024, fromOffset: 0, bytes: 2048 })
  stream.fill(other, 0xab, { offset: 0, bytes: 1024 })
  stream.fill(other, 0, { offset: 3072, bytes: 1024 })
  stream.copyRows(other, device, { rows: 4, bytes: 16, fromPitch: 64, toPitch: 32, toOffset: 3072, fromOffset: 0 })
  stream.copy(back, other)
  await stream.synchronize()
  const bytes = back.view('uint8')
  const ints = back.view('int32')
  assert.ok(bytes.subarray(0, 1024).every((byte) => byte === 0xab))
  assert.deepEqual([...ints.subarray(256, 260)], [0, 3, 6, 9])
  assert.deepEqual([...ints.subarray(768 + 8, 768 + 12)], [48, 51, 54, 57])
  assert.throws(() => stream.copy(device, host, { bytes: 5000 }), { code: 'ERR_INVALID_ARGUMENT' })
  await Promise.all([stream, host, device, other, back].map((object) => object.close()))
  assert.equal(values.length, 0, 'a closed buffer has no view')
})

await check('events: order between streams, time of a run', async () => {
  const run = await prepare(engine, seven)
  const consumer = await runtime.createStream({ priority: runtime.info.maxPriority })
  const [start, end, done] = [await runtime.createEvent({ timing: true }), await runtime.createEvent({ timing: true }), await runtime.createEvent()]
  const copied = await runtime.allocatePinned(run.y.bytes)
  run.stream.record(start)
  for (let i = 0; i < 50; i++) run.commands()
  run.stream.record(end)
  run.stream.record(done)
  // The other stream reads what the first one is still to write.
  consumer.wait(done)
  consumer.copy(copied, run.y)
  await consumer.synchronize()
  const difference = near(copied.read('float32', [7, 64]), expectedSeven.y)
  await run.stream.synchronize()
  assert.ok(done.isComplete() && end.isComplete())
  const elapsedMs = end.elapsedSince(start)
  assert.ok(elapsedMs > 0 && elapsedMs < 1000)
  assert.throws(() => done.elapsedSince(start), { code: 'ERR_INVALID_ARGUMENT' })
  await Promise.all([run.close(), consumer.close(), start.close(), end.close(), done.close(), copied.close()])
  return { difference, elapsedMs: round(elapsedMs) }
})

await check('graphs: capture, replay with other inputs', async () => {
  const run = await prepare(engine, single)
  run.commands()
  await run.stream.synchronize()
  const graph = await run.stream.capture(run.commands)
  run.pinnedX.view('float32').fill(0)
  run.stream.launch(graph)
  await run.stream.synchronize()
  const zero = run.read()
  run.pinnedX.write(single.x)
  for (let i = 0; i < 100; i++) run.stream.launch(graph)
  await run.stream.synchronize()
  const difference = near(run.read(), expectedSingle.y)
  assert.notDeepEqual(zero.data, run.read().data)
  const counters = run.stream.counters()
  assert.ok(counters.graphLaunches >= 101)
  await graph.close()
  await run.close()
  return { difference, counters }
})

await check('contexts: hundreds of runs in flight, shapes that change, user memory', async () => {
  const run = await prepare(engine, seven, { memory: 'user' })
  const memory = await runtime.allocateDevice(Math.max(engine.profiles[0].deviceMemory, 1))
  assert.throws(() => run.stream.enqueue(run.context), { code: 'ERR_INVALID_ARGUMENT' })
  run.context.setDeviceMemory(memory)
  const waits = []
  for (let i = 0; i < 300; i++) {
    run.context.setInputShape('x', [1 + (i % 7), 256])
    run.commands()
    waits.push(run.stream.synchronize())
  }
  await Promise.all(waits)
  run.context.setInputShape('x', [7, 256])
  run.commands()
  await run.stream.synchronize()
  const difference = near(run.read(), expectedSeven.y)
  assert.deepEqual([...run.context.output('y').shape], [7, 64])
  assert.throws(() => run.context.setInputShape('x', [65, 256]), { code: 'ERR_INVALID_TENSOR' })
  await run.close()
  await memory.close()
  return { difference }
})

await check('abort: the wait ends, the work goes on', async () => {
  const run = await prepare(engine, seven)
  const controller = new AbortController()
  for (let i = 0; i < 2000; i++) run.commands()
  const waiting = run.stream.synchronize({ signal: controller.signal })
  controller.abort(new Error('enough'))
  await assert.rejects(waiting, { name: 'AbortError', code: 'ABORT_ERR' })
  await run.stream.synchronize()
  near(run.read(), expectedSeven.y)
  await run.close()
})

await check('profiling by layer', async () => {
  const run = await prepare(engine, seven)
  run.context.setProfiling(true)
  for (let i = 0; i < 3; i++) run.commands()
  await run.stream.synchronize()
  const layers = run.context.takeProfile()
  assert.ok(layers.length > 0 && layers.every(({ ms, runs }) => ms >= 0 && runs === 3), JSON.stringify(layers))
  assert.deepEqual(run.context.takeProfile(), [])
  await run.close()
  return { layers: layers.map(({ name, ms }) => ({ name, ms: round(ms) })) }
})

await check('outputs whose size depends on the data', async () => {
  const select = await Engine.load(await engineFolder('select-fp32'), { runtime })
  const sizes = []
  for (const { inputs, outputs } of readCases('select')) {
    const { rows, features } = await runByHand(select, inputs)
    assert.deepEqual(rows.data, outputs.rows.data)
    near(features, outputs.features)
    sizes.push(rows.shape[0])
  }
  const none = await runByHand(select, { x: Tensor.zeros('float32', [4, 32]) })
  sizes.push(none.rows.shape[0])
  await select.close()
  return { sizes }
})

await check('several engines, streams and contexts at once', async () => {
  const resnet = await Engine.load(await engineFolder('resnet-fp32'), { runtime })
  const [images] = readCases('resnet')
  const jobs = Array.from({ length: 24 }, (_, i) => (i % 2 === 0 ? runByHand(engine, seven).then(({ y }) => near(y, expectedSeven.y)) : runByHand(resnet, images.inputs).then(({ logits }) => near(logits, images.outputs.logits))))
  const differences = await Promise.all(jobs)
  await resnet.close()
  return { largest: Math.max(...differences) }
})

await check('refit: another model in the same engine; all or nothing', async () => {
  const refittable = await Engine.load(await engineFolder('mlp-refit'), { runtime })
  const names = await refittable.refittableWeights()
  const before = await runByHand(refittable, seven)
  near(before.y, expectedSeven.y)
  const bias = names.find((name) => /4\.bias/.test(name))
  assert.ok(bias !== undefined, names.join(', '))
  const wrong = { [bias]: Tensor.float32(new Float32Array(63)) }
  await assert.rejects(refittable.refit(wrong), { code: 'ERR_WEIGHTS_INVALID' })
  await assert.rejects(refittable.refit({ nothing: wrong[bias] }), { code: 'ERR_INVALID_TENSOR' })
  assert.deepEqual((await runByHand(refittable, seven)).y.data, before.y.data)
  const weights = initializers('mlp')
  const shifted = Float32Array.from(weights[bias].data, (value) => value + 2)
  await refittable.refit({ [bias]: Tensor.float32(shifted) })
  const after = await runByHand(refittable, seven)
  const shift = after.y.data.map((value, i) => value - before.y.data[i])
  assert.ok(shift.every((value) => Math.abs(value - 2) < 1e-3), `${shift.slice(0, 4)}`)
  const plan = await refittable.serialize()
  await refittable.close()
  const again = await Engine.load(plan, { runtime })
  near((await runByHand(again, seven)).y, after.y, 1e-5)
  await again.close()
  return { names, planBytes: plan.length }
})

await check('a stripped plan runs once it has its weights', async (figures) => {
  const folder = await engineFolder('mlp-stripped')
  const stripped = await Engine.load(folder, { runtime })
  const [full, bytes] = ['mlp-fp32', 'mlp-stripped'].map((name) => JSON.parse(readFileSync(join(folder, '..', name, 'engine.json'))).plan.bytes)
  const names = await stripped.refittableWeights()
  Object.assign(figures, { fullBytes: full, strippedBytes: bytes, names })
  await assert.rejects(stripped.createContext(), { code: 'ERR_WEIGHTS_MISSING' })
  const weights = initializers('mlp')
  const given = Object.fromEntries(names.map((name) => [name, weights[name]]))
  const last = names.at(-1)
  const { [last]: left, ...rest } = given
  await assert.rejects(stripped.refit(rest), (error) => {
    figures.missing = `${error.code}: ${error.message}`
    return error.code === 'ERR_WEIGHTS_MISSING' && error.message.includes(last)
  })
  await assert.rejects(stripped.createContext(), { code: 'ERR_WEIGHTS_MISSING' })
  await stripped.refit({ ...rest, [last]: left })
  const { y } = await runByHand(stripped, seven)
  figures.difference = near(y, expectedSeven.y)
  await stripped.close()
})

await check('a version-compatible plan on the library that built it', async () => {
  const portable = await Engine.load(await engineFolder('mlp-portable'), { runtime })
  const { y } = await runByHand(portable, seven)
  await portable.close()
  return { difference: near(y, expectedSeven.y) }
})

if (options.lean !== undefined) {
  await check('the version-compatible plan on the lean runtime of a later version', async () => {
    const lean = await Runtime.create({ libraryPath: options.lean })
    assert.ok(lean.info.libraryVersion > runtime.info.libraryVersion)
    const portable = await Engine.load(await engineFolder('mlp-portable'), { runtime: lean })
    const { y } = await runByHand(portable, seven)
    await portable.close()
    const { libraryVersion, libraryPath } = lean.info
    await lean.close()
    return { libraryVersion, libraryPath, difference: near(y, expectedSeven.y) }
  })
}

await check('a paged KV cache: write, append, fork, copy, read back', async () => {
  const kv = await KvCache.create(runtime, { layers: 3, pages: 32, kvHeads: 2, headDim: 64, dtype: 'float16' })
  const sequence = kv.allocate()
  kv.append(sequence, 20)
  const [first, second] = kv.pageTable(sequence)
  const shape = [3, 2, 16, 2, 64]
  const values = Tensor.float16(Float32Array.from({ length: 3 * 2 * 16 * 2 * 64 }, (_, i) => (i % 2048) / 8), shape)
  await kv.writePage(second, values)
  assert.deepEqual((await kv.readPage(second)).data, values.data)
  assert.ok((await kv.readPage(first)).data.every((bits) => bits === 0))
  const fork = kv.fork(sequence)
  kv.append(fork, 1)
  const copied = kv.pageTable(fork)[1]
  assert.notEqual(copied, second)
  assert.deepEqual((await kv.readPage(copied)).data, values.data)
  kv.copy(second, first)
  assert.deepEqual((await kv.readPage(first, { layer: 2 })).data, values.data.slice(2 * 2 * 16 * 2 * 64))
  const stats = kv.stats()
  kv.check()
  kv.free(fork)
  kv.free(sequence)
  kv.check()
  await kv.close()
  return { stats }
})

await check('the logger hears TensorRT, of this thread and its own', async () => {
  const lines = []
  lib.setLogger((line) => lines.push(line), { level: 'verbose' })
  const loaded = await Engine.load(await engineFolder('mlp-fp32'), { runtime })
  await loaded.close()
  await assert.rejects(Engine.load(Buffer.alloc(4096, 7), { runtime }), (error) => {
    return ['ERR_ENGINE_INVALID', 'ERR_ENGINE_INCOMPATIBLE'].includes(error.code)
  })
  await sleep(50)
  lib.setLogger(null)
  const severities = {}
  for (const { severity } of lines) severities[severity] = (severities[severity] ?? 0) + 1
  assert.ok(severities.error > 0 && severities.verbose > 0, JSON.stringify(severities))
  return { severities, first: lines[0], error: lines.find(({ severity }) => severity === 'error') }
})

await check('what is wrong is said with names', async () => {
  const run = await prepare(engine, single)
  const errors = {}
  const note = (name, call) => {
    try {
      call()
      errors[name] = 'no error'
    } catch (error) {
      errors[name] = `${error.code}: ${error.message}`
    }
  }
  note('dtype', () => run.context.setTensor('x', run.x, { offset: 3 }))
  note('rank', () => run.context.setInputShape('x', [256]))
  note('name', () => run.context.setInputShape('xx', [1, 256]))
  note('profile', () => run.context.setProfile(1))
  await run.close()
  note('closed', () => run.stream.enqueue(run.context))
  assert.ok(Object.values(errors).every((text) => text.startsWith('ERR_')), JSON.stringify(errors))
  return { errors }
})

await engine.close()
await runtime.close()

/** float32 weights of an ONNX file by name, initializers and constants: a reader of as much protobuf as that takes. */
function initializers(model) {
  const bytes = readFileSync(join(modelsFolder, `${model}.onnx`))
  const found = {}
  const add = (name, tensor) => {
    const [raw] = fields(tensor, 9)
    if (raw === undefined || varints(tensor, 2).next().value !== 1) return
    found[name.toString()] = Tensor.float32(new Float32Array(Uint8Array.from(raw).buffer), [...varints(tensor, 1)])
  }
  for (const graph of fields(bytes, 7)) {
    for (const tensor of fields(graph, 5)) add(fields(tensor, 8).next().value, tensor)
    // A constant is a node, and its weights have the name of its output.
    for (const node of fields(graph, 1)) {
      if (String(fields(node, 4).next().value) !== 'Constant') continue
      for (const attribute of fields(node, 5)) for (const tensor of fields(attribute, 5)) add(fields(node, 2).next().value, tensor)
    }
  }
  return found
}

/** @returns a varint and where it ends */
function varintAt(bytes, at) {
  let value = 0n
  for (let shift = 0n; ; shift += 7n) {
    const byte = bytes[at++]
    value |= BigInt(byte & 127) << shift
    if (byte < 128) return [Number(value), at]
  }
}
/** Every field of a message: [number, wire type, value]. */
function* message(bytes) {
  for (let at = 0, value; at < bytes.length; ) {
    ;[value, at] = varintAt(bytes, at)
    const [number, type] = [value >> 3, value & 7]
    if (type === 0) {
      ;[value, at] = varintAt(bytes, at)
      yield [number, type, value]
      continue
    }
    let length = type === 1 ? 8 : 4
    if (type === 2) [length, at] = varintAt(bytes, at)
    yield [number, type, bytes.subarray(at, at + length)]
    at += length
  }
}
function* fields(bytes, wanted) {
  for (const [number, type, value] of message(bytes)) if (number === wanted && type === 2) yield value
}
/** Packed or not. */
function* varints(bytes, wanted) {
  for (const [number, type, value] of message(bytes)) {
    if (number !== wanted) continue
    if (type === 0) yield value
    else for (let at = 0, inner; at < value.length; yield inner) [inner, at] = varintAt(value, at)
  }
}
await finish()
