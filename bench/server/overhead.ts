/**
 * What the HTTP server costs: the same requests to an LLM in its own process, and over HTTP with metrics on, in turn.
 *
 *     npx tsx bench/server/overhead.ts [--streams 64] [--rounds 7] [--only timed|cpu] [--profile <folder>] [--json <file>]
 *
 * Three processes: one has an LLM and calls `generate()`, one has an LLM behind a server, one sends requests to that. Two kinds of
 * backend: `timed` takes 10 ms a step on a clock and nothing of the processor, as a GPU does, so what is left is the host's own
 * work; `cpu` runs models/tiny-storyteller, where load generator and server take from the cores that the model runs on.
 *
 * Each of `--streams` workers sends one request after another, streamed and greedy, after a pause of up to 20 ms: prompts of 32-128
 * tokens, 32-160 tokens out, exactly (`ignore_eos`). Throughput is output tokens from the first request's start to the last one's end. TTFT leaves
 * out each worker's first request, as all of these come at once (`burst`). `--profile` leaves a .cpuprofile of each process there. Writes
 * docs/benchmarks/server-overhead.json and .svg, or --json.
 */
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { LLM, seededRandom } from '../../lib/llm'
import { createServer, createTelemetry } from '../../lib/server'
import { Tokenizer } from '../../lib/text'
import { commandOf, describeMachine, writeReport } from '../machine'
import { type Bar, writeBars } from '../picture'
import { Peer } from './peer'
import { quantile } from './simulation'
import { TimedExecutor } from './timed_executor'

const { values: flags } = parseArgs({
  options: {
    streams: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '7' },
    only: { type: 'string' },
    profile: { type: 'string' },
    json: { type: 'string', default: join(__dirname, '..', '..', 'docs', 'benchmarks', 'server-overhead.json') },
    role: { type: 'string' },
    config: { type: 'string' },
  },
})

const MODEL = join(__dirname, '..', '..', 'models', 'tiny-storyteller')
/** Of the model; the tokens below are special. */
const VOCAB_SIZE = 4096
const FIRST_TOKEN = 6
const SCRAPE_MS = 5000

type Backend = { kind: 'timed'; stepMs: number } | { kind: 'cpu'; threads: number }

interface Case {
  name: string
  backend: Backend
  /** A round has so many times the streams. */
  requests: number
  pauseMs: number
}

const CASES: readonly Case[] = [
  { name: 'timed, 10 ms a step', backend: { kind: 'timed', stepMs: 10 }, requests: 8, pauseMs: 20 },
  { name: 'cpu, 1 thread', backend: { kind: 'cpu', threads: 1 }, requests: 6, pauseMs: 20 },
  { name: 'cpu, all threads', backend: { kind: 'cpu', threads: 0 }, requests: 6, pauseMs: 20 },
]

interface Load {
  streams: number
  requests: number
  pauseMs: number
  seed: number
}

interface Planned {
  tokens: number[]
  maxTokens: number
  pauseMs: number
}

/** Milliseconds from the call. */
type Send = (request: Planned) => Promise<{ ttftMs: number }>

interface Round {
  tokens: number
  seconds: number
  ttftMs: number[]
  burstTtftMs: number[]
  /** Of the process that sends: seconds of the processor, and the share of time in which its event loop was busy. */
  cpuSeconds: number
  busy: number
}

/** Of the process that answers. */
interface Usage {
  cpuSeconds: number
  busy: number
}

function plan({ streams, requests, pauseMs, seed }: Load): Planned[] {
  const random = seededRandom(seed)
  const between = (min: number, max: number): number => min + Math.floor(random() * (max - min + 1))
  return Array.from({ length: streams * requests }, () => ({
    tokens: Array.from({ length: between(32, 128) }, () => between(FIRST_TOKEN, VOCAB_SIZE - 1)),
    maxTokens: between(32, 160),
    pauseMs: random() * pauseMs,
  }))
}

/** Starts to measure what this process does. */
function meter(): () => Usage {
  const cpu = process.cpuUsage()
  const loop = performance.eventLoopUtilization()
  return () => {
    const { user, system } = process.cpuUsage(cpu)
    return { cpuSeconds: (user + system) / 1e6, busy: performance.eventLoopUtilization(loop).utilization }
  }
}

async function drive(load: Load, send: Send): Promise<Round> {
  const requests = plan(load)
  let next = 0
  const round = { tokens: 0, ttftMs: [] as number[], burstTtftMs: [] as number[] }
  const measured = meter()
  const started = performance.now()
  await Promise.all(
    Array.from({ length: load.streams }, async () => {
      for (let first = true; next < requests.length; first = false) {
        const request = requests[next++]!
        if (!first) await new Promise((resolve) => setTimeout(resolve, request.pauseMs))
        const { ttftMs } = await send(request)
        ;(first ? round.burstTtftMs : round.ttftMs).push(ttftMs)
        round.tokens += request.maxTokens
      }
    }),
  )
  return { ...round, seconds: (performance.now() - started) / 1000, ...measured() }
}

// --- the processes ---

async function loadLLM(backend: Backend, streams: number): Promise<LLM> {
  if (backend.kind === 'cpu') return LLM.load(MODEL, { backend: 'cpu', threads: backend.threads === 0 ? undefined : backend.threads, maxSequences: streams, prefixCache: false })
  const json = (file: string): never => JSON.parse(readFileSync(join(MODEL, file), 'utf8')) as never
  const tokenizer = new Tokenizer(json('tokenizer.json'), json('tokenizer_config.json'))
  const random = seededRandom(1)
  const tokens = Int32Array.from({ length: 10_007 }, () => FIRST_TOKEN + Math.floor(random() * (VOCAB_SIZE - FIRST_TOKEN)))
  const executor = new TimedExecutor(backend.stepMs, tokens, { vocabSize: VOCAB_SIZE, maxSlots: streams, maxStepTokens: 8192 })
  return LLM.fromExecutor(executor, { tokenizer, eosTokenIds: [], prefixCache: false })
}

/** In process: what a server would do with the chunks is left out, all else is the same. */
function sendToLLM(llm: LLM): Send {
  return async ({ tokens, maxTokens }) => {
    const started = performance.now()
    let ttftMs = NaN
    for await (const chunk of llm.generate({ tokens, maxTokens, temperature: 0, ignoreEos: true })) {
      // As over HTTP, where a token that is part of a character has no event.
      if (Number.isNaN(ttftMs) && (chunk.text !== '' || chunk.finishReason !== undefined)) ttftMs = performance.now() - started
    }
    return { ttftMs }
  }
}

/** Does as little as can be with what comes: the first chunk's time, and that the stream is complete. */
function sendOverHttp(url: string, agent: http.Agent): Send {
  const target = new URL('/v1/completions', url)
  return ({ tokens, maxTokens }) =>
    new Promise((resolve, reject) => {
      const started = performance.now()
      const body = JSON.stringify({ prompt: tokens, max_tokens: maxTokens, temperature: 0, ignore_eos: true, stream: true })
      const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }
      const request = http.request(target, { method: 'POST', agent, headers }, (response) => {
        let ttftMs = NaN
        let last: Buffer = Buffer.alloc(0)
        response.on('data', (part: Buffer) => {
          if (Number.isNaN(ttftMs)) ttftMs = performance.now() - started
          last = part.length >= 16 ? part : Buffer.concat([last, part])
        })
        response.on('end', () => {
          const complete = response.statusCode === 200 && last.toString('latin1').endsWith('data: [DONE]\n\n')
          if (complete) resolve({ ttftMs })
          else reject(new Error(`${response.statusCode}: ${last.toString('latin1')}`))
        })
        response.on('error', reject)
      })
      request.on('error', reject)
      request.end(body)
    })
}

/** Metrics are read, as a Prometheus would. */
async function driveOverHttp(url: string, load: Load): Promise<Round> {
  const agent = new http.Agent({ keepAlive: true, maxFreeSockets: load.streams })
  const scrapes = setInterval(() => void fetch(`${url}/metrics`).then((response) => response.arrayBuffer()), SCRAPE_MS)
  try {
    return await drive(load, sendOverHttp(url, agent))
  } finally {
    clearInterval(scrapes)
    agent.destroy()
  }
}

type Ask = { drive: Load; url?: string } | { meter: true } | { end: true }

/** Answers what the parent asks for, until it says that this is the end. */
async function child(role: string, backend: Backend, streams: number): Promise<void> {
  let llm: LLM | undefined
  let server: ReturnType<typeof createServer> | undefined
  let url: string | undefined
  if (role !== 'client') {
    llm = await loadLLM(backend, streams)
    if (role === 'server') {
      server = createServer(llm, { modelName: 'bench', telemetry: createTelemetry(llm, { model: 'bench' }) })
      ;({ url } = await server.listen({ port: 0 }))
    }
  }
  let measured = meter()
  process.on('message', (ask: Ask) => {
    void (async () => {
      if ('end' in ask) {
        await server?.close()
        await llm?.close()
        process.disconnect()
      } else if ('meter' in ask) {
        process.send!(measured())
        measured = meter()
      } else {
        process.send!(llm === undefined ? await driveOverHttp(ask.url!, ask.drive) : await drive(ask.drive, sendToLLM(llm)))
      }
    })()
  })
  process.send!({ url })
}

// --- the report ---

interface Arm {
  tokensPerSecond: number
  ttftMeanMs: number
  ttftP50Ms: number
  ttftP99Ms: number
  burstTtftP50Ms: number
  /** Microseconds of the processor per output token in the process that has the LLM, its model included. */
  cpuUsPerToken: number
  /** Share of the time in which that process's event loop was busy. */
  loopBusy: number
}

const median = (of: readonly number[]): number => quantile([...of], 0.5)
const round = (value: number, digits = 2): number => Number(value.toFixed(digits))

function armOf({ tokens, seconds, ttftMs, burstTtftMs }: Round, { cpuSeconds, busy }: Usage): Arm {
  return {
    tokensPerSecond: tokens / seconds,
    ttftMeanMs: ttftMs.reduce((sum, ms) => sum + ms, 0) / ttftMs.length,
    ttftP50Ms: quantile([...ttftMs], 0.5),
    ttftP99Ms: quantile([...ttftMs], 0.99),
    burstTtftP50Ms: quantile([...burstTtftMs], 0.5),
    cpuUsPerToken: (cpuSeconds * 1e6) / tokens,
    loopBusy: busy,
  }
}

function mediansOf(arms: readonly Arm[]): Arm {
  const names = Object.keys(arms[0]!) as (keyof Arm)[]
  return Object.fromEntries(names.map((name) => [name, round(median(arms.map((arm) => arm[name])), 3)])) as unknown as Arm
}

async function measure({ name, backend, requests, pauseMs }: Case, streams: number, rounds: number) {
  const config = { backend, streams }
  const start = (role: string): Promise<Peer<{ url: string }, Ask>> =>
    Peer.start(__filename, ['--role', role, '--config', JSON.stringify(config)], flags.profile, `${config.backend.kind}-${role}`)
  const [library, server, client] = await Promise.all([start('library'), start('server'), start('client')])
  const load = (seed: number): Load => ({ streams, requests, pauseMs, seed })
  const inProcess = async (seed: number): Promise<Arm> => {
    const result = await library.ask<Round>({ drive: load(seed) })
    return armOf(result, result)
  }
  const clients: Round[] = []
  const overHttp = async (seed: number): Promise<Arm> => {
    await server.ask<Usage>({ meter: true })
    const result = await client.ask<Round>({ drive: load(seed), url: server.ready.url })
    clients.push(result)
    return armOf(result, await server.ask<Usage>({ meter: true }))
  }
  // What is compiled and cached comes with the first.
  await inProcess(1)
  await overHttp(1)
  clients.length = 0
  const a: Arm[] = []
  const b: Arm[] = []
  for (let i = 0; i < rounds; i++) {
    a.push(await inProcess(2 + i))
    b.push(await overHttp(2 + i))
    process.stderr.write(`${name}: ${Math.round(a[i]!.tokensPerSecond)} and ${Math.round(b[i]!.tokensPerSecond)} tokens/s\n`)
  }
  await Promise.all([library.end(), server.end(), client.end()])
  const pairs = (of: (a: Arm, b: Arm) => number): number => median(a.map((arm, i) => of(arm, b[i]!)))
  return {
    name,
    streams,
    rounds,
    library: mediansOf(a),
    server: mediansOf(b),
    client: {
      cpuUsPerToken: round(median(clients.map(({ cpuSeconds, tokens }) => (cpuSeconds * 1e6) / tokens))),
      loopBusy: round(median(clients.map(({ busy }) => busy)), 3),
    },
    /** Medians over pairs of rounds with the same requests. */
    throughputRatio: round(pairs((a, b) => b.tokensPerSecond / a.tokensPerSecond), 4),
    throughputRatios: a.map((arm, i) => round(b[i]!.tokensPerSecond / arm.tokensPerSecond, 4)),
    addedTtftMeanMs: round(pairs((a, b) => b.ttftMeanMs - a.ttftMeanMs)),
    addedTtftP50Ms: round(pairs((a, b) => b.ttftP50Ms - a.ttftP50Ms)),
    addedTtftP99Ms: round(pairs((a, b) => b.ttftP99Ms - a.ttftP99Ms)),
    addedCpuUsPerToken: round(pairs((a, b) => b.cpuUsPerToken - a.cpuUsPerToken)),
  }
}

async function main(): Promise<void> {
  if (flags.role !== undefined) {
    const { backend, streams } = JSON.parse(flags.config!) as { backend: Backend; streams: number }
    await child(flags.role, backend, streams)
    return
  }
  const streams = Number(flags.streams)
  const cases = []
  for (const one of CASES) if (flags.only === undefined || one.backend.kind === flags.only) cases.push(await measure(one, streams, Number(flags.rounds)))
  const command = `${commandOf(__filename)} --streams ${streams} --rounds ${flags.rounds}${flags.only === undefined ? '' : ` --only ${flags.only}`}`
  writeReport(flags.json, { command, machine: describeMachine(), cases })
  const bars = cases.flatMap(({ name, library, server }): Bar[] => [
    { panel: 'output tokens per second', label: `${name}: in process`, value: library.tokensPerSecond },
    { panel: 'output tokens per second', label: `${name}: over HTTP`, value: server.tokensPerSecond },
    { panel: 'TTFT, median (ms)', label: `${name}: in process`, value: library.ttftP50Ms },
    { panel: 'TTFT, median (ms)', label: `${name}: over HTTP`, value: server.ttftP50Ms },
  ])
  await writeBars(flags.json.replace(/(\.json)?$/, '.svg'), 'What the HTTP server costs', `${streams} streams at once, metrics on; medians of ${flags.rounds} rounds, in turn`, bars)
  console.table(
    cases.flatMap(({ name, library, server, throughputRatio, addedTtftP50Ms, addedTtftP99Ms }) => [
      { case: name, arm: 'library', ...library },
      { case: name, arm: 'server', ...server, throughputRatio, addedTtftP50Ms, addedTtftP99Ms },
    ]),
  )
}

void main()
