/**
 * What one streamed request costs the server's event loop where many come at once.
 *
 *     npx tsx bench/server/burst.ts [--streams 64] [--rounds 9] [--bursts 20] [--against <file>] [--only chat] [--profile <folder>] [--fresh <processes>] [--json <file>]
 *
 * A process sends `--streams` requests in one go over as many connections that it keeps, waits until all answers are complete, and does so again. The server's
 * backend takes 10 ms a step on a clock and nothing of the processor; outputs have two tokens, so what is measured is the way in, the first event and the end.
 * Arms take turns, a round of bursts each, in processes of their own:
 *
 *     library  calls `generate()` for all requests at once
 *     node     an HTTP server of node:http alone: reads the body, JSON.parse, writes as many events after a timer. What Node itself takes
 *     before   the server of another checkout: `--against` names its bundle of this program (scripts/bundle-bench.mjs)
 *     server   this one, with metrics
 *
 * Figures are microseconds of the processor a request, of the whole process: `in` from the first request's submission to the last one's, per request between; `all` from
 * the burst to its end. They change less than times do where the machine has other work. `spreadMs` is the time from the first submission to the last.
 * TTFT is from the burst's first byte, in milliseconds. Writes docs/benchmarks/server-burst.json, or --json.
 *
 * `--fresh <n>` asks for the first bursts of a process in place of later ones: n new processes an arm, and the figures of each burst by its number, medians over
 * the processes. Writes docs/benchmarks/server-first-bursts.json, or --json.
 */
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type GenerateOptions, type Generation, LLM, seededRandom } from '../../lib/llm'
import { createServer, createTelemetry } from '../../lib/server'
import { ChatTemplate, Tokenizer } from '../../lib/text'
import { commandOf, describeMachine, writeReport } from '../machine'
import { Peer } from './peer'
import { quantile } from './simulation'
import { TimedExecutor } from './timed_executor'

const ROOT = join(__dirname, '..', '..')
const { values: flags } = parseArgs({
  options: {
    streams: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '9' },
    bursts: { type: 'string', default: '20' },
    against: { type: 'string' },
    only: { type: 'string' },
    profile: { type: 'string' },
    fresh: { type: 'string' },
    json: { type: 'string' },
    role: { type: 'string' },
  },
})
const STREAMS = Number(flags.streams)

const MODEL = join(ROOT, 'models', 'tiny-storyteller')
const VOCAB_SIZE = 4096
const FIRST_TOKEN = 6
const STEP_MS = 10
const MAX_TOKENS = 2
const PROMPT_TOKENS = 128
const PAUSE_MS = 5
/** Before the first burst of a new process: it has started. */
const FRESH_PAUSE_MS = 200
/** A burst's answers are lost where they take longer. */
const PATIENCE_MS = 60_000

const ENDPOINTS = ['completions', 'chat'] as const
type Endpoint = (typeof ENDPOINTS)[number]

// --- requests ---

const WORDS = 'once upon a time there was a little bird who lived in a tall tree near the river and every day it sang to the sun'.split(' ')

function wordsOf(count: number, random: () => number): string {
  return Array.from({ length: count }, () => WORDS[Math.floor(random() * WORDS.length)]).join(' ')
}

/** Bodies as OpenAI's clients send them, no two alike. */
function bodyOf(endpoint: Endpoint, random: () => number): string {
  const common = { model: 'bench', max_tokens: MAX_TOKENS, temperature: 0.7, top_p: 0.95, ignore_eos: true, stream: true, stream_options: { include_usage: true } }
  if (endpoint === 'chat') {
    const messages = [
      { role: 'system', content: 'You are a helpful assistant. Answer briefly.' },
      { role: 'user', content: wordsOf(80, random) },
    ]
    return JSON.stringify({ messages, ...common })
  }
  const prompt = Array.from({ length: PROMPT_TOKENS }, () => FIRST_TOKEN + Math.floor(random() * (VOCAB_SIZE - FIRST_TOKEN)))
  return JSON.stringify({ prompt, ...common })
}

const pathOf = (endpoint: Endpoint): string => (endpoint === 'chat' ? '/v1/chat/completions' : '/v1/completions')

function requestOf(endpoint: Endpoint, random: () => number): Buffer {
  const body = bodyOf(endpoint, random)
  const head = [
    `POST ${pathOf(endpoint)} HTTP/1.1`,
    'host: 127.0.0.1',
    'content-type: application/json',
    'accept: application/json',
    'user-agent: OpenAI/JS 6.0.0',
    'authorization: Bearer none',
    `content-length: ${Buffer.byteLength(body)}`,
  ]
  return Buffer.from(`${head.join('\r\n')}\r\n\r\n${body}`)
}

/** What `generate()` is called with for such a body. */
function optionsOf(endpoint: Endpoint, random: () => number): GenerateOptions {
  const { prompt, messages } = JSON.parse(bodyOf(endpoint, random)) as { prompt?: number[]; messages?: never }
  return { ...(prompt === undefined ? { messages } : { tokens: prompt }), maxTokens: MAX_TOKENS, temperature: 0.7, topP: 0.95, ignoreEos: true }
}

// --- what is measured ---

interface Round {
  ttftMs: number[]
  /** Per burst. */
  lastTtftMs: number[]
}

interface Cost {
  /** Microseconds of the processor a request; NaN where nothing is submitted. */
  in: number
  all: number
  /** Per burst, from the first submission to the last. */
  spreadMs: number
}

const cpuUs = (): number => {
  const { user, system } = process.cpuUsage()
  return user + system
}

/** Counts what the process takes, and what it takes between the first submission of a burst and the last. */
class Meter {
  private from = cpuUs()
  private count = 0
  private first = { cpu: 0, at: 0 }
  private inUs = 0
  private bursts = 0
  private spreadMs = 0

  submitted(): void {
    const position = this.count++ % STREAMS
    if (position === 0) this.first = { cpu: cpuUs(), at: performance.now() }
    if (position !== STREAMS - 1) return
    this.bursts++
    this.inUs += cpuUs() - this.first.cpu
    this.spreadMs += performance.now() - this.first.at
  }

  read(requests: number): Cost {
    const cost = { in: this.inUs / (this.bursts * (STREAMS - 1)), all: (cpuUs() - this.from) / requests, spreadMs: this.spreadMs / this.bursts }
    this.reset()
    return cost
  }

  reset(): void {
    this.from = cpuUs()
    this.count = this.inUs = this.bursts = this.spreadMs = 0
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

// --- the processes ---

function loadLLM(meter: Meter): LLM {
  const json = (file: string): never => JSON.parse(readFileSync(join(MODEL, file), 'utf8')) as never
  const config: { chat_template: string } = json('tokenizer_config.json')
  const tokenizer = new Tokenizer(json('tokenizer.json'), config)
  const random = seededRandom(1)
  // Whole words: a token that is part of a character has no event of its own, and the next one would count as the first.
  const words = Array.from({ length: VOCAB_SIZE - FIRST_TOKEN }, (_, i) => FIRST_TOKEN + i).filter((id) => /^ [a-z]+$/.test(tokenizer.decode([id])))
  const tokens = Int32Array.from({ length: 10_007 }, () => words[Math.floor(random() * words.length)]!)
  const executor = new TimedExecutor(STEP_MS, tokens, { vocabSize: VOCAB_SIZE, maxSlots: STREAMS, maxStepTokens: 16_384 })
  const llm = LLM.fromExecutor(executor, { tokenizer, chatTemplate: new ChatTemplate(config.chat_template, tokenizer.specialTokens), eosTokenIds: [], prefixCache: false })
  const generate = llm.generate.bind(llm)
  llm.generate = (options: GenerateOptions): Generation => {
    const generation = generate(options)
    meter.submitted()
    return generation
  }
  return llm
}

async function burstOfLibrary(llm: LLM, endpoint: Endpoint, random: () => number, round: Round): Promise<void> {
  const options = Array.from({ length: STREAMS }, () => optionsOf(endpoint, random))
  const started = performance.now()
  let last = 0
  await Promise.all(
    options.map(async (one) => {
      let ttftMs = NaN
      for await (const _ of llm.generate(one)) if (Number.isNaN(ttftMs)) ttftMs = performance.now() - started
      round.ttftMs.push(ttftMs)
      last = Math.max(last, ttftMs)
    }),
  )
  round.lastTtftMs.push(last)
}

const END = Buffer.from('data: [DONE]\n\n\r\n0\r\n\r\n')

/** Connections that are kept, and next to no work for what comes. */
class Sender {
  private constructor(private readonly sockets: readonly Socket[]) {}

  static async open(port: number): Promise<Sender> {
    const sockets = await Promise.all(
      Array.from({ length: STREAMS }, () => {
        const socket = connect({ port, host: '127.0.0.1', noDelay: true })
        return new Promise<Socket>((resolve, reject) => socket.once('connect', () => resolve(socket)).once('error', reject))
      }),
    )
    return new Sender(sockets)
  }

  async burst(endpoint: Endpoint, random: () => number, round: Round): Promise<void> {
    const requests = this.sockets.map(() => requestOf(endpoint, random))
    let last = 0
    const started = performance.now()
    const answers = this.sockets.map(
      (socket, index) =>
        new Promise<void>((resolve, reject) => {
          let ttftMs = NaN
          let tail: Buffer = Buffer.alloc(0)
          const onData = (part: Buffer): void => {
            if (Number.isNaN(ttftMs)) {
              ttftMs = performance.now() - started
              if (part.toString('latin1', 9, 12) !== '200') reject(new Error(part.toString('latin1')))
            }
            tail = part.length >= END.length ? part : Buffer.concat([tail, part])
            if (!tail.subarray(-END.length).equals(END)) return
            socket.off('data', onData).off('close', onClose)
            round.ttftMs.push(ttftMs)
            last = Math.max(last, ttftMs)
            resolve()
          }
          const onClose = (): void => reject(new Error('The connection broke'))
          socket.on('data', onData).on('close', onClose)
          socket.write(requests[index]!)
        }),
    )
    const late = setTimeout(() => this.close(), PATIENCE_MS)
    await Promise.all(answers)
    clearTimeout(late)
    round.lastTtftMs.push(last)
  }

  close(): void {
    for (const socket of this.sockets) socket.destroy()
  }
}

/** The least that an answer of this form takes in Node. */
function bareServer(meter: Meter): Promise<http.Server> {
  const event = `data: ${JSON.stringify({ id: 'cmpl-0', object: 'text_completion', created: 0, model: 'bench', choices: [{ index: 0, text: ' time', logprobs: null, finish_reason: null }] })}\n\n`
  const server = http.createServer((incoming, outgoing) => {
    const parts: Buffer[] = []
    incoming.on('data', (part: Buffer) => parts.push(part))
    incoming.on('end', () => {
      JSON.parse(Buffer.concat(parts).toString())
      meter.submitted()
      setTimeout(() => {
        outgoing.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-store' })
        outgoing.write(event)
        setTimeout(() => outgoing.end(`${event}data: [DONE]\n\n`), STEP_MS)
      }, STEP_MS)
    })
  })
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)))
}

type Ask = { bursts: number; endpoint: Endpoint; seed: number; port?: number } | { cost: number } | { reset: true } | { end: true }

async function child(role: string): Promise<void> {
  const meter = new Meter()
  let llm: LLM | undefined
  let server: ReturnType<typeof createServer> | undefined
  let bare: http.Server | undefined
  let port = 0
  if (role === 'library' || role === 'server') llm = loadLLM(meter)
  if (role === 'server') {
    server = createServer(llm!, { modelName: 'bench', telemetry: createTelemetry(llm!, { model: 'bench' }) })
    ;({ port } = await server.listen({ port: 0 }))
  } else if (role === 'node') {
    bare = await bareServer(meter)
    port = (bare.address() as { port: number }).port
  }
  const run = async ({ bursts, endpoint, seed, port }: Extract<Ask, { bursts: number }>): Promise<Round> => {
    const random = seededRandom(seed)
    const round: Round = { ttftMs: [], lastTtftMs: [] }
    // Anew for each round: servers close connections that wait for seconds, as they do while it is others' turn.
    const sender = port === undefined ? undefined : await Sender.open(port)
    for (let i = 0; i < bursts; i++) {
      if (sender === undefined) await burstOfLibrary(llm!, endpoint, random, round)
      else await sender.burst(endpoint, random, round)
      await pause(PAUSE_MS)
    }
    sender?.close()
    return round
  }
  process.on('message', (ask: Ask) => {
    void (async () => {
      if ('bursts' in ask) process.send!(await run(ask))
      else if ('cost' in ask) process.send!(meter.read(ask.cost))
      else if ('reset' in ask) {
        meter.reset()
        process.send!({})
      } else {
        bare?.close()
        await server?.close()
        await llm?.close()
        process.disconnect()
      }
    })()
  })
  // Of a parent that failed.
  process.on('disconnect', () => process.exit())
  process.send!({ port })
}

// --- the report ---

const median = (of: readonly number[]): number => quantile([...of], 0.5)
const rounded = (value: number, digits = 1): number => Number(value.toFixed(digits))

type Arm = readonly [name: string, role: string, file: string]

function armsOf(): Arm[] {
  const arms: Arm[] = [
    ['library', 'library', __filename],
    ['node', 'node', __filename],
    ['server', 'server', __filename],
  ]
  if (flags.against !== undefined) arms.splice(2, 0, ['before', 'server', flags.against])
  return arms
}

const start = (role: string, file: string, name: string): Promise<Peer<{ port: number }, Ask>> =>
  Peer.start(file, ['--role', role, '--streams', String(STREAMS)], flags.profile, `burst-${name}`)

async function measure(endpoint: Endpoint, rounds: number, bursts: number) {
  const files = armsOf()
  const client = await start('client', __filename, 'client')
  const arms = await Promise.all(files.map(async ([name, role, file]) => ({ name, peer: await start(role, file, name), rounds: [] as Round[], costs: [] as Cost[] })))
  const run = async ({ name, peer }: (typeof arms)[number], seed: number, count: number): Promise<{ round: Round; cost: Cost }> => {
    await peer.ask({ reset: true })
    const ask = { bursts: count, endpoint, seed }
    const round = name === 'library' ? await peer.ask<Round>(ask) : await client.ask<Round>({ ...ask, port: peer.ready.port })
    return { round, cost: await peer.ask<Cost>({ cost: count * STREAMS }) }
  }
  // What is compiled comes with the first thousands.
  for (const arm of arms) await run(arm, 1, 3 * bursts)
  for (let i = 0; i < rounds; i++) {
    for (const arm of arms) {
      const { round, cost } = await run(arm, 2 + i, bursts)
      arm.rounds.push(round)
      arm.costs.push(cost)
      process.stderr.write(`${endpoint}, ${arm.name}: ${Math.round(cost.in)} and ${Math.round(cost.all)} us a request\n`)
    }
  }
  await Promise.all([client, ...arms.map(({ peer }) => peer)].map((peer) => peer.end()))
  return arms.map(({ name, rounds, costs }) => {
    const of = (pick: (cost: Cost) => number): number => rounded(median(costs.map(pick)))
    const ttft = rounds.flatMap(({ ttftMs }) => ttftMs)
    return {
      endpoint,
      arm: name,
      inUs: of((cost) => cost.in),
      allUs: of((cost) => cost.all),
      leastAllUs: rounded(Math.min(...costs.map(({ all }) => all))),
      spreadMs: rounded(median(costs.map(({ spreadMs }) => spreadMs)), 2),
      ttftP50Ms: rounded(quantile([...ttft], 0.5), 2),
      ttftP99Ms: rounded(quantile([...ttft], 0.99), 2),
      lastTtftP50Ms: rounded(median(rounds.flatMap(({ lastTtftMs }) => lastTtftMs)), 2),
    }
  })
}

const FRESH_BURSTS = 6

/** The first bursts of `processes` new processes an arm. */
async function measureFresh(endpoint: Endpoint, processes: number) {
  const client = await start('client', __filename, 'client')
  const arms = armsOf().map(([name, role, file]) => ({ name, role, file, rounds: Array.from({ length: FRESH_BURSTS }, (): { round: Round; cost: Cost }[] => []) }))
  for (let i = -1; i < processes; i++) {
    for (const { name, role, file, rounds } of arms) {
      const peer = await start(role, file, `${name}-${i}`)
      await pause(FRESH_PAUSE_MS)
      for (const [number, all] of rounds.entries()) {
        const ask = { bursts: 1, endpoint, seed: 2 + i * FRESH_BURSTS + number }
        await peer.ask({ reset: true })
        const round = role === 'library' ? await peer.ask<Round>(ask) : await client.ask<Round>({ ...ask, port: peer.ready.port })
        // What the client compiles comes with the first of all.
        if (i >= 0) all.push({ round, cost: await peer.ask<Cost>({ cost: STREAMS }) })
      }
      await peer.end()
    }
    process.stderr.write(`${endpoint}: ${i + 1} of ${processes}\n`)
  }
  await client.end()
  return arms.flatMap(({ name, rounds }) =>
    rounds.map((all, index) => {
      const of = (pick: (of: (typeof all)[number]) => number, digits: number): number => rounded(median(all.map(pick)), digits)
      return {
        endpoint,
        arm: name,
        burst: index + 1,
        inUs: of(({ cost }) => cost.in, 0),
        allUs: of(({ cost }) => cost.all, 0),
        spreadMs: of(({ cost }) => cost.spreadMs, 1),
        ttftP50Ms: of(({ round }) => quantile([...round.ttftMs], 0.5), 1),
        lastTtftMs: of(({ round }) => round.lastTtftMs[0]!, 1),
      }
    }),
  )
}

async function main(): Promise<void> {
  if (flags.role !== undefined) return child(flags.role)
  const rows = []
  for (const endpoint of ENDPOINTS) {
    if (flags.only !== undefined && flags.only !== endpoint) continue
    if (flags.fresh === undefined) rows.push(...(await measure(endpoint, Number(flags.rounds), Number(flags.bursts))))
    else rows.push(...(await measureFresh(endpoint, Number(flags.fresh))))
  }
  const kind = flags.fresh === undefined ? `--rounds ${flags.rounds} --bursts ${flags.bursts}` : `--fresh ${flags.fresh}`
  const command = `${commandOf(__filename)} --streams ${STREAMS} ${kind}${flags.against === undefined ? '' : ' --against BEFORE'}`
  const file = flags.json ?? join(ROOT, 'docs', 'benchmarks', flags.fresh === undefined ? 'server-burst.json' : 'server-first-bursts.json')
  writeReport(file, { command, machine: describeMachine(), rows })
  console.table(rows)
}

void main()
