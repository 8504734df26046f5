/**
 * What a request costs on JavaScript's side: session.run over a device that does nothing, with requests as a BERT takes them (two inputs int64
 * [1, 128]) and gives (float32 [1, 768]). All of it is here: checks, queue, batching, copies of inputs and outputs, promises.
 *
 *     npx tsx bench/session.ts [requests]
 *
 * Measures the compiled library. Prints JSON, and keeps it in docs/benchmarks/session.json. Times are microseconds.
 */
import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { NativeContext, NativeEngine, NativeMemory, NativeRuntime, NativeStream } from '../lib/native'
import type { SessionOptions } from '../lib/runtime'
import { describeMachine } from './machine'

const require = createRequire(__filename)
const { Tensor } = require('../dist') as typeof import('../lib')
const { Session } = require('../dist/runtime/session/session') as typeof import('../lib/runtime/session/session')
const { TensorRTBackend } = require('../dist/runtime/session/tensorrt_session') as typeof import('../lib/runtime/session/tensorrt_session')
const { checkSessionOptions } = require('../dist/runtime/session/options') as typeof import('../lib/runtime/session/options')

const REQUESTS = Number(process.argv[2] ?? 100_000)
const LENGTH = 128
const WIDTH = 768
const MAX_BATCH = 64
/** Parts that a run is timed in; the median of them is reported. */
const PARTS = 20

const closed = Promise.resolve()
const close = (): Promise<void> => closed

/** Commands that are taken and forgotten: what is left is the library's own time. */
function nullEngine(): { native: NativeEngine; nativeRuntime: NativeRuntime } {
  const nothing = (): void => {}
  const shapes = (rows: number): number[][] => [[rows, LENGTH], [rows, LENGTH], [rows, WIDTH]]
  let rows = MAX_BATCH
  const context: NativeContext = {
    close,
    setProfile: nothing,
    setInputShape: (_tensor, shape) => void (rows = shape[0]!),
    setShapeValues: nothing,
    setAddress: nothing,
    setDeviceMemory: nothing,
    setProfiling: nothing,
    output: () => ({ shape: [], memory: null }),
    takeProfile: () => '[]',
  }
  const counters = { commands: 0, enqueues: 0, graphLaunches: 0, reshapes: 0, enqueueUs: 0, queueUs: 0, voluntarySwitches: 0, involuntarySwitches: 0 }
  const stream: NativeStream = {
    close,
    copy: nothing,
    copyRows: nothing,
    fill: nothing,
    enqueue: nothing,
    resolve: () => Promise.resolve(shapes(rows)),
    record: nothing,
    wait: nothing,
    beginCapture: nothing,
    endCapture: () => Promise.resolve({ close }),
    launch: nothing,
    // As the addon does: settled by a callback of the event loop.
    synchronize: () => new Promise((resolve) => setImmediate(resolve)),
    counters: () => counters,
  }
  const memory = (kind: 'device' | 'pinned', bytes: number): NativeMemory => {
    const buffer = new ArrayBuffer(bytes)
    return { close, kind, bytes, address: 0n, arrayBuffer: () => buffer }
  }
  const profile = (width: number) => [{ min: [1, width], opt: [MAX_BATCH, width], max: [MAX_BATCH, width] }]
  const common = { location: 'device', isShapeTensor: false, formats: [], values: null } as const
  const info = {
    name: 'null',
    tensors: [
      { ...common, name: 'input_ids', mode: 'input', dtype: 'int64', shape: [-1, LENGTH], profiles: profile(LENGTH) },
      { ...common, name: 'attention_mask', mode: 'input', dtype: 'int64', shape: [-1, LENGTH], profiles: profile(LENGTH) },
      { ...common, name: 'pooled', mode: 'output', dtype: 'float32', shape: [-1, WIDTH], profiles: null },
    ],
    profiles: 1,
    deviceMemory: [256],
  }
  const native = { close, info: JSON.stringify(info), createContext: () => Promise.resolve(context) } as unknown as NativeEngine
  const deviceCounters = { deviceAllocations: 0, deviceFrees: 0, pinnedAllocations: 0, pinnedFrees: 0, poolHits: 0 }
  const nativeRuntime = {
    close,
    info: JSON.stringify({ name: 'null device' }),
    allocate: (kind: 'device' | 'pinned', bytes: number) => Promise.resolve(memory(kind, bytes)),
    createStream: () => Promise.resolve(stream),
    counters: () => deviceCounters,
  } as unknown as NativeRuntime
  return { native, nativeRuntime }
}

function median(times: number[]): number {
  return times.sort((a, b) => a - b)[times.length >> 1]!
}

interface Case {
  name: string
  /** Requests that are under way at a time. */
  concurrency: number
  options: SessionOptions
  timeoutMs?: number
}

const CASES: Case[] = [
  { name: 'one at a time', concurrency: 1, options: {} },
  { name: '8 under way, each by itself', concurrency: 8, options: {} },
  { name: '256 under way, batched', concurrency: 256, options: { batching: { maxBatch: MAX_BATCH, maxDelayMs: 2 } } },
  { name: '256 under way, batched, each with a timeout', concurrency: 256, options: { batching: { maxBatch: MAX_BATCH, maxDelayMs: 2 } }, timeoutMs: 60_000 },
]

async function measure({ name, concurrency, options, timeoutMs }: Case): Promise<Record<string, unknown>> {
  const checked = checkSessionOptions(options, 'createSession()')
  const session = await Session.open(await TensorRTBackend.create(nullEngine(), checked), checked)
  const ids = BigInt64Array.from({ length: LENGTH }, (_, i) => BigInt(i))
  const request = (): Promise<unknown> => {
    const inputs = { input_ids: Tensor.int64(ids, [1, LENGTH]), attention_mask: Tensor.int64(ids, [1, LENGTH]) }
    return timeoutMs === undefined ? session.run(inputs) : session.run(inputs, { timeoutMs })
  }
  const perPart = Math.ceil(REQUESTS / PARTS / concurrency)
  const times: number[] = []
  const idle: number[] = []
  for (let part = 0; part < PARTS + 2; part++) {
    const before = process.cpuUsage()
    const started = performance.now()
    await Promise.all(
      Array.from({ length: concurrency }, async () => {
        for (let i = 0; i < perPart; i++) await request()
      }),
    )
    const { user, system } = process.cpuUsage(before)
    // The first parts are still being compiled.
    if (part < 2) continue
    times.push(((performance.now() - started) * 1000) / (perPart * concurrency))
    idle.push((user + system) / (perPart * concurrency))
  }
  const { batches, rows, submitTime } = session.stats()
  await session.close()
  const us = median(times)
  const round = (value: number): number => Math.round(value * 10) / 10
  return {
    case: name,
    usPerRequest: round(us),
    cpuUsPerRequest: round(median(idle)),
    requestsPerSecond: Math.round(1e6 / us),
    rowsPerBatch: round(rows / batches),
    submitUsPerBatch: round((submitTime.sum / submitTime.count) * 1000),
  }
}

async function main(): Promise<void> {
  const cases: Record<string, unknown>[] = []
  for (const one of CASES) cases.push(await measure(one))
  const report = JSON.stringify({ command: 'npx tsx bench/session.ts', machine: describeMachine(), requests: REQUESTS, cases }, null, 2)
  writeFileSync(join(__dirname, '..', 'docs', 'benchmarks', 'session.json'), `${report}\n`)
  console.log(report)
}

void main()
