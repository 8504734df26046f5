// Ends of processes and Workers with the native runtime at work; see runtime_addon.test.ts.
//   node runtime_addon_child.cjs <name> <addon> <module> <library> <plan in base64>
const { setFlagsFromString } = require('node:v8')
const { runInNewContext } = require('node:vm')
const { isMainThread, parentPort, Worker, workerData } = require('node:worker_threads')

const [name, addonPath, modulePath, libraryPath, plan] = workerData ?? process.argv.slice(2)
const holder = { exports: {} }
process.dlopen(holder, addonPath)
const addon = holder.exports
const noFaults = { failDeviceAllocation: 0, failPinnedAllocation: 0, failEnqueue: 0, failCopy: 0 }

const createRuntime = () => addon.createRuntime({ modulePath, libraryPath, device: 0 })
const planBuffer = () => new Uint8Array(Buffer.from(plan, 'base64')).buffer
/** What a flag of V8's adds to contexts made later. */
const flagged = (flag, code) => {
  setFlagsFromString(flag)
  return runInNewContext(code)
}
const turn = () => new Promise((resolve) => setImmediate(resolve))
/** Collects garbage until `done` says so, for as long as a machine may take that has other things to do. */
const collectUntil = async (collect, done) => {
  for (const from = performance.now(); performance.now() - from < 60_000; ) {
    collect()
    await turn()
    if (done()) return true
  }
  return false
}
const ok = () => process.stdout.write('ok\n')

async function everything(runtime) {
  const engine = await runtime.deserialize(planBuffer(), false)
  const context = await engine.createContext({ profile: 0, memory: 'static' })
  const stream = await runtime.createStream({ priority: 0, spinUs: 0 })
  const event = await runtime.createEvent(true)
  const device = await runtime.allocate('device', 1 << 20, false)
  const pinned = await runtime.allocate('pinned', 1 << 20, false)
  pinned.arrayBuffer()
  return { engine, context, stream, event, device, pinned }
}

function load({ stream, context, event, device, pinned }, copies) {
  for (let i = 0; i < copies; i++) stream.copy(device, 0, pinned, 0, 1 << 20)
  context.setInputShape(0, [1, 4])
  context.setAddress(0, device, 0)
  context.setAddress(1, null, 0)
  stream.enqueue(context)
  stream.record(event)
  return stream.synchronize()
}

const parts = {
  // Everything open, nothing pending: the process ends by itself.
  async idle() {
    const runtime = await createRuntime()
    const objects = await everything(runtime)
    await load(objects, 1)
    addon.setLogListener(modulePath, 'verbose', () => {})
    ok()
  },

  // Nothing is closed; the memory comes back all the same.
  async collected() {
    const runtime = await createRuntime()
    const before = runtime.memory()
    const collect = flagged('--expose-gc', 'gc')
    for (let i = 0; i < 20; i++) await load(await everything(runtime), 3)
    const same = ({ deviceBytes, pinnedBytes }) => deviceBytes === before.deviceBytes && pinnedBytes === before.pinnedBytes
    if (await collectUntil(collect, () => same(runtime.memory()))) return ok()
    throw new Error(`left over: ${JSON.stringify(runtime.memory())}, before: ${JSON.stringify(before)}`)
  },

  // With commands queued, promises pending, closes under way and objects open.
  async exit() {
    const runtime = await createRuntime()
    const [first, second] = [await everything(runtime), await everything(runtime)]
    void load(first, 50)
    void load(second, 50)
    void second.stream.close()
    void second.engine.close()
    void runtime.allocate('device', 64, false)
    ok()
    process.exit(0)
  },

  async 'exit-loading'() {
    const runtime = await createRuntime()
    for (let i = 0; i < 10; i++) void runtime.deserialize(planBuffer(), false)
    void createRuntime()
    ok()
    process.exit(0)
  },

  // While a thousand objects are on their way back.
  async 'exit-closing'() {
    const runtime = await createRuntime()
    const allocations = Array.from({ length: 1000 }, (_, i) => runtime.allocate(i % 2 === 0 ? 'device' : 'pinned', 4096, i % 3 === 0))
    const made = await Promise.all(allocations)
    for (const memory of made) void memory.close()
    void runtime.close()
    ok()
    process.exit(0)
  },

  async workers() {
    if (!isMainThread) {
      const runtime = await createRuntime()
      addon.setLogListener(modulePath, 'verbose', () => {})
      for (;;) {
        const objects = await everything(runtime)
        void load(objects, 5)
        void objects.stream.close()
        void objects.pinned.close()
        parentPort.postMessage('at work')
      }
    }
    const runtime = await createRuntime()
    const before = runtime.memory()
    for (let i = 0; i < 12; i++) {
      const worker = new Worker(__filename, { workerData: process.argv.slice(2) })
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
      for (let turns = 0; turns < i; turns++) await turn()
      await worker.terminate()
    }
    const after = runtime.memory()
    if (after.deviceBytes !== before.deviceBytes || after.pinnedBytes !== before.pinnedBytes) {
      throw new Error(`left over: ${JSON.stringify(after)}, before: ${JSON.stringify(before)}`)
    }
    ok()
  },

  // A Worker's listener goes with it, while lines are written.
  async 'worker-log'() {
    if (!isMainThread) {
      addon.setLogListener(modulePath, 'verbose', () => {})
      parentPort.postMessage('listening')
      return void setInterval(() => {}, 1000)
    }
    const runtime = await createRuntime()
    for (let i = 0; i < 10; i++) {
      const worker = new Worker(__filename, { workerData: process.argv.slice(2) })
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
      const loads = Array.from({ length: 4 }, () => runtime.deserialize(new ArrayBuffer(64), false).catch(() => {}))
      await worker.terminate()
      await Promise.all(loads)
    }
    ok()
  },

  async log() {
    const runtime = await createRuntime()
    const [first, second] = [[], []]
    addon.setLogListener(modulePath, 'verbose', (lines) => first.push(...lines))
    const fail = () => runtime.deserialize(new ArrayBuffer(64), false).then(() => 'no error', (error) => error.code)
    const settled = async () => {
      for (let i = 0; i < 100; i++) await turn()
    }
    if ((await fail()) !== 'ERR_ENGINE_INVALID') throw new Error('a bad plan was taken')
    await settled()
    if (first.length === 0 || !first.every(({ severity, text }) => typeof severity === 'string' && text !== '')) {
      throw new Error(`lines: ${JSON.stringify(first)}`)
    }
    const heard = first.length
    addon.setLogListener(modulePath, 'verbose', (lines) => second.push(...lines))
    await fail()
    await settled()
    addon.setLogListener(modulePath, 'verbose', null)
    addon.setLogListener(modulePath, 'verbose', null)
    await fail()
    await settled()
    if (first.length !== heard || second.length !== heard) throw new Error(`heard ${first.length}, ${second.length}, not ${heard}`)
    ok()
  },

  // A script has moved the bytes elsewhere: they stay as long as that does, and nothing waits for it.
  async moved() {
    const runtime = await createRuntime()
    const before = runtime.memory().pinnedBytes
    const collect = flagged('--expose-gc', 'gc')
    // Of Node 20 and 21 behind a flag.
    const transfer = ArrayBuffer.prototype.transfer ?? flagged('--harmony-rab-gsab-transfer', 'ArrayBuffer.prototype.transfer')
    const pinned = await runtime.allocate('pinned', 1 << 20, false)
    const buffer = pinned.arrayBuffer()
    new Uint8Array(buffer).fill(5)
    let moved = transfer.call(buffer)
    if (buffer.byteLength !== 0 || pinned.arrayBuffer() !== buffer) throw new Error('not moved')
    await pinned.close()
    const other = await runtime.allocate('pinned', 1 << 20, false)
    new Uint8Array(other.arrayBuffer()).fill(6)
    if (!new Uint8Array(moved).every((byte) => byte === 5)) throw new Error('the bytes have changed')
    await other.close()
    moved = undefined
    if (await collectUntil(collect, () => runtime.memory().pinnedBytes === before)) return ok()
    throw new Error('the memory is still held')
  },

  // Uncaught, as it would be from a timer; nothing else goes astray.
  async 'log-throws'() {
    const runtime = await createRuntime()
    const uncaught = new Promise((resolve) => process.once('uncaughtException', resolve))
    // A line that waits does not.
    const alive = setInterval(() => {}, 1000)
    addon.setLogListener(modulePath, 'verbose', () => {
      throw new Error('mine')
    })
    await runtime.deserialize(new ArrayBuffer(64), false).catch(() => {})
    if ((await uncaught).message !== 'mine') throw new Error('another error')
    clearInterval(alive)
    addon.setLogListener(modulePath, 'verbose', null)
    addon.injectFaults(modulePath, noFaults)
    ok()
  },
}

parts[name]().catch((error) => {
  console.error(error)
  process.exit(1)
})
