/**
 * A million hostile requests against a server of its own, over loopback: what it answers, how late its event loop is, and what becomes
 * of its memory.
 *   npx tsx bench/server/hostile.ts [--requests 1000000] [--connections 32] [--seed 1] [--json docs/benchmarks/server-hostile.json]
 */
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { makeApiKey } from '../../lib/server'
import { runHostile } from '../../test/fuzz/http/hostile_run'
import { commandOf, describeMachine, writeReport } from '../machine'
import { type LiveMemory, LiveMemoryReader } from './live_memory'

const root = join(__dirname, '..', '..')
const { values } = parseArgs({
  options: {
    requests: { type: 'string', default: '1000000' },
    connections: { type: 'string', default: '32' },
    seed: { type: 'string', default: '1' },
    json: { type: 'string' },
  },
})

interface Sample {
  requests: number
  rssMiB: number
}

/**
 * By how much live memory may grow after the first fifth, in MiB: caches of grammar threads fill and empty, and a thread that comes is 25.
 * A million requests that leave 128 bytes each behind are beyond it.
 */
const MAX_GROWTH_MIB = 96

/** Starts the server as a user does; resolves with its port once it listens. */
async function startServer(apiKey: string, nodeOptions: string): Promise<{ child: ReturnType<typeof spawn>; port: number; log: () => string }> {
  // A KV cache that the first requests fill: its memory is the process's from when it is touched.
  const flags = ['--backend', 'cpu', '--threads', '1', '--kv-cache-memory', '32M', '--port', '0']
  const child = spawn(process.execPath, [join(root, 'dist', 'cli', 'main.js'), 'serve', ...flags], {
    env: { ...process.env, NODE_TENSORRT_API_KEY: apiKey, NODE_OPTIONS: nodeOptions },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    // Ctrl-C is for this process.
    detached: true,
  })
  let log = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (log = (log + text).slice(-20_000)))
  for (;;) {
    const port = /listening at http:\/\/127\.0\.0\.1:(\d+)/.exec(log)?.[1]
    if (port !== undefined) return { child, port: Number(port), log: () => log }
    if (child.exitCode !== null) throw new Error(`The server ended: ${log}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

function rssMiB(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024
}

/** Samples of the event loop's delay up to each bound, in seconds. */
async function eventLoop(port: number, apiKey: string): Promise<Map<number, number>> {
  const response = await fetch(`http://127.0.0.1:${port}/metrics`, { headers: { authorization: `Bearer ${apiKey}` } })
  const text = await response.text()
  const rows = text.matchAll(/^node_tensorrt_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\d+)/gm)
  return new Map(Array.from(rows, ([, bound, count]) => [bound === '+Inf' ? Infinity : Number(bound), Number(count)]))
}

/** The least bound under which the share of the samples between two readings lies. */
function quantileBound(from: Map<number, number>, to: Map<number, number>, share: number): number {
  const total = to.get(Infinity)! - from.get(Infinity)!
  for (const [bound, count] of to) if (count - from.get(bound)! >= share * total) return bound
  return Infinity
}

async function main(): Promise<void> {
  const apiKey = makeApiKey()
  const requests = Number(values.requests)
  const reader = new LiveMemoryReader()
  const { child, port, log } = await startServer(apiKey, reader.nodeOptions)
  const samples: Sample[] = []
  // Ctrl-C ends the run, and what has run is reported.
  const interrupt = new AbortController()
  process.once('SIGINT', () => interrupt.abort())
  const sample = (done: number): void => void samples.push({ requests: done, rssMiB: Math.round(rssMiB(child.pid!) * 10) / 10 })
  const live: ({ requests: number } & LiveMemory)[] = []
  const readLive = async (done: number): Promise<void> => void live.push({ requests: done, ...(await reader.read(child)) })
  // What is compiled, cached and pooled comes with the first ten thousand.
  const warm = Math.min(10_000, requests)
  const common = { port, seed: Number(values.seed), connections: Number(values.connections), apiKey }
  await runHostile({ ...common, requests: warm, from: requests })
  await readLive(0)
  const before = await eventLoop(port, apiKey)
  sample(0)
  const every = Math.max(1000, Math.floor(requests / 50 / 1000) * 1000)
  // In the middle of the load: its collections are five samples of the event loop's delay among tens of thousands.
  const fifth = Math.max(1000, Math.floor(requests / 5 / 1000) * 1000)
  const reading: Promise<void>[] = []
  const report = await runHostile({
    ...common,
    requests,
    signal: interrupt.signal,
    onProgress: (done) => {
      if (done % fifth === 0 && done <= requests - fifth) reading.push(readLive(done))
      if (done % every !== 0) return
      sample(done)
      process.stderr.write(`${done} requests, ${samples.at(-1)!.rssMiB} MiB\n`)
    },
  })
  const after = await eventLoop(port, apiKey)
  const unread = (await Promise.allSettled(reading)).flatMap((read) => (read.status === 'rejected' ? [String(read.reason)] : []))
  await readLive(report.requests)
  live.sort((a, b) => a.requests - b.requests)
  const grownMiB = Math.round((live.at(-1)!.totalMiB - live[Math.min(1, live.length - 1)]!.totalMiB) * 10) / 10
  const health = await fetch(`http://127.0.0.1:${port}/health/ready`)
  const end = new Promise<number | null>((resolve) => child.once('exit', resolve))
  child.kill('SIGTERM')
  const exitCode = await end
  reader.close()
  const serverErrors = [...log().matchAll(/^node-tensorrt: request .* failed: (.*)$/gm)].map(([, message]) => message)
  const result = {
    what: 'hostile requests, loopback, keep-alive raw sockets; client and server on the same machine',
    command: `${commandOf(__filename)} --requests ${requests} --connections ${common.connections} --seed ${common.seed}`,
    machine: describeMachine(),
    ...report,
    requestsPerSecond: Math.round(report.requests / report.seconds),
    eventLoopDelayMs: {
      p50Below: quantileBound(before, after, 0.5) * 1000,
      p99Below: quantileBound(before, after, 0.99) * 1000,
      p999Below: quantileBound(before, after, 0.999) * 1000,
      samples: after.get(Infinity)! - before.get(Infinity)!,
    },
    rss: samples,
    liveMemory: { grownMiB, mayGrowMiB: MAX_GROWTH_MIB, readings: live, unread },
    readyAfterwards: health.status === 200,
    exitCode,
    serverErrors,
  }
  if (values.json === undefined) process.stdout.write(`${JSON.stringify(result, null, 2)}\n`)
  else writeReport(values.json, result)
  process.exitCode = report.failed === 0 && exitCode === 0 && grownMiB <= MAX_GROWTH_MIB && unread.length === 0 ? 0 : 1
}

void main()
