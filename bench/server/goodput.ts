/**
 * Load to saturation and beyond: goodput under an SLA with admission, and the same arrivals without.
 *
 *     npx tsx bench/server/goodput.ts simulation [--out <folder>]
 *     npx tsx bench/server/goodput.ts server [model folder] [--seconds 10] [--out <folder>]
 *     npx tsx bench/server/goodput.ts clock [--seconds 10] [--out <folder>]
 *
 * `simulation` is the real scheduler and admission over a model of a GPU, in virtual time; `server` is the server over HTTP on
 * this machine's CPU, with the clients in a process of their own; `clock` is that
 * server over steps of 20 ms that take none of the processor, as a GPU's do, so that what is missed is the server's own, or the clients'. Arrivals are Poisson, in an open loop: who is refused does not
 * come again. A request is good when its first token came in time and its mean inter-token latency is within the bound; goodput
 * is good requests a second. `--seconds` is how long requests arrive, for each rate. Writes goodput-<which>.json and .svg into docs/benchmarks, or --out.
 */
import { fork } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { LLM, seededRandom } from '../../lib/llm'
import { createServer } from '../../lib/server'
import { createSlaAdmission, type SlaOptions } from '../../lib/server/admission'
import { Tokenizer } from '../../lib/text'
import { commandOf, describeMachine, writeReport } from '../machine'
import { type Point, writeLines } from '../picture'
import { TimedExecutor } from './timed_executor'
import { H200_MEASURED, judge, makeArrivals, quantile, saturation, simulate } from './simulation'

interface Row {
  /** Of the rate that saturates. */
  load: number
  requestsPerSecond: number
  admission: boolean
  offered: number
  admitted: number
  goodput: number
  /** Share of the admitted. */
  good: number
  ttftP50Ms: number
  ttftP99Ms: number
  /** Of requests' means in `server`, of all gaps in `simulation`. */
  itlP99Ms: number
}

const ROUND = (value: number): number => Math.round(value * 100) / 100

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '10' },
    out: { type: 'string', default: join(__dirname, '..', '..', 'docs', 'benchmarks') },
  },
})

async function report(which: string, title: string, sla: SlaOptions, facts: object, rows: Row[]): Promise<void> {
  const rounded = rows.map((row) => Object.fromEntries(Object.entries(row).map(([key, value]) => [key, typeof value === 'number' ? ROUND(value) : value])))
  const command = `${commandOf(__filename)} ${which}${which === 'simulation' ? '' : ` --seconds ${SECONDS}`}`
  writeReport(join(flags.out, `goodput-${which}.json`), { command, sla, ...facts, rows: rounded })
  const points: Point[] = rows.flatMap(({ admission, load, goodput, ttftP99Ms }) => {
    const line = admission ? 'with admission' : 'without'
    return [
      { panel: 'good requests per second', line, x: load, y: goodput },
      { panel: 'TTFT, 99th percentile (ms)', line, x: load, y: Math.min(ttftP99Ms, 5 * sla.ttftMs) },
    ]
  })
  const subtitle = `first token within ${sla.ttftMs} ms, mean inter-token latency within ${sla.itlMs} ms; TTFT cut at five times the bound`
  const rules = [{ panel: 'TTFT, 99th percentile (ms)', y: sla.ttftMs }]
  await writeLines(join(flags.out, `goodput-${which}.svg`), title, subtitle, 'offered load, of what saturates', points, rules)
  console.table(rounded)
}

async function simulation(): Promise<void> {
  const sla = { ttftMs: 1000, itlMs: 50 }
  const scheduler = { maxStepMs: sla.itlMs }
  const machine = H200_MEASURED
  const capacity = saturation({ machine, scheduler })
  const rows: Row[] = []
  for (const load of [0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 2.5, 3]) {
    const arrivals = makeArrivals({ count: 3000, rate: load * capacity, seed: 17 })
    for (const admission of [true, false]) {
      const { ttftP50, ttftP99, itlP99, ...rest } = judge(simulate(arrivals, { machine, scheduler, ...(admission ? { sla } : {}) }).served, sla)
      rows.push({ load, requestsPerSecond: load * capacity, admission, ...rest, ttftP50Ms: ttftP50, ttftP99Ms: ttftP99, itlP99Ms: itlP99 })
    }
  }
  await report('simulation', 'Goodput in simulation: an 8B model on one H200', sla, { machine, saturation: ROUND(capacity) }, rows)
}

// --- over HTTP ---

interface Request {
  at: number
  tokens: number[]
  maxTokens: number
}

interface Answer {
  status: number
  ttftMs: number
  itlMs: number
  /** On the client's clock. */
  endMs: number
}

const SECONDS = Number(flags.seconds)
const MODEL = join(__dirname, '..', '..', 'models', 'tiny-storyteller')

function makeRequests(rate: number, count: number, seed: number, vocabSize: number): Request[] {
  const random = seededRandom(seed)
  let at = 0
  return Array.from({ length: count }, () => {
    at += (-Math.log(1 - random()) / rate) * 1000
    const tokens = Array.from({ length: 20 + Math.floor(random() ** 2 * 230) }, () => 6 + Math.floor(random() * (vocabSize - 6)))
    return { at, tokens, maxTokens: 8 + Math.floor(random() * 56) }
  })
}

async function ask(url: string, { tokens, maxTokens }: Request): Promise<Answer> {
  const started = performance.now()
  const body = { prompt: tokens, max_tokens: maxTokens, temperature: 0, ignore_eos: true, stream: true }
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  let first = NaN
  let last = NaN
  if (response.status !== 200) await response.arrayBuffer()
  else {
    for await (const part of response.body!) {
      if (!Buffer.from(part as Uint8Array).includes('data: {')) continue
      last = performance.now()
      if (Number.isNaN(first)) first = last
    }
  }
  const itlMs = (last - first) / Math.max(maxTokens - 1, 1)
  return { status: response.status, ttftMs: first - started, itlMs, endMs: performance.now() }
}

/** In a process of its own. */
async function client(url: string, rate: number, count: number, seed: number, vocabSize: number): Promise<Answer[]> {
  const started = performance.now()
  return Promise.all(
    makeRequests(rate, count, seed, vocabSize).map(async (request) => {
      await new Promise((resolve) => setTimeout(resolve, Math.max(request.at - (performance.now() - started), 0)))
      try {
        return await ask(url, request)
      } catch {
        return { status: 0, ttftMs: NaN, itlMs: NaN, endMs: NaN }
      }
    }),
  )
}

function drive(...of: [url: string, rate: number, count: number, seed: number, vocabSize: number]): Promise<Answer[]> {
  return new Promise((resolve, reject) => {
    const child = fork(__filename, ['client', JSON.stringify(of)], { execArgv: process.execArgv })
    child.once('message', (answers) => resolve(answers as Answer[]))
    child.once('error', reject)
    child.once('exit', (code) => code !== 0 && reject(new Error(`The client ended with ${code}`)))
  })
}

/** Steps of 20 ms: 128 sequences at once are some 180 requests a second. */
function clockLLM(options: Parameters<typeof LLM.fromExecutor>[1]): LLM {
  const vocabSize = 4096
  const json = (file: string): never => JSON.parse(readFileSync(join(MODEL, file), 'utf8')) as never
  const tokenizer = new Tokenizer(json('tokenizer.json'), json('tokenizer_config.json'))
  const tokens = Int32Array.from({ length: 1000 }, (_, i) => 6 + i)
  return LLM.fromExecutor(new TimedExecutor(20, tokens, { vocabSize, maxSlots: 128, maxStepTokens: 1024 }), { ...options, tokenizer, eosTokenIds: [] })
}

/** @param folder of a model for the CPU; undefined: a clock */
async function server(folder: string | undefined): Promise<void> {
  const sla = { ttftMs: 500, itlMs: 50 }
  const run = async (admission: boolean, rate: number, seconds: number, seed: number): Promise<Answer[]> => {
    const options = { maxStepMs: sla.itlMs, maxQueue: 8192, prefixCache: false }
    const llm = folder === undefined ? clockLLM(options) : await LLM.load(folder, { backend: 'cpu', ...options })
    const served = createServer(llm, admission ? { admission: createSlaAdmission(llm, sla) } : {})
    const { url } = await served.listen({ port: 0 })
    const { vocabSize } = llm.info
    // A server that has just started does not know its step times yet.
    await drive(url, 20, 40, 1, vocabSize)
    const answers = await drive(url, rate, Math.round(rate * seconds), seed, vocabSize)
    await served.close()
    await llm.close()
    return answers
  }
  // Everything at once, and how fast that is worked off.
  const ends = (await run(false, 1e5, 600 / 1e5, 3)).map(({ endMs }) => endMs).sort((a, b) => a - b)
  const [first, last] = [Math.floor(0.2 * ends.length), Math.floor(0.8 * ends.length)]
  const capacity = ((last - first) / (ends[last]! - ends[first]!)) * 1000
  const rows: Row[] = []
  for (const load of [0.5, 0.8, 1, 1.5, 2, 3]) {
    for (const admission of [true, false]) {
      const answers = await run(admission, load * capacity, SECONDS, 5)
      const admitted = answers.filter(({ status }) => status === 200)
      const failed = answers.filter(({ status }) => status !== 200 && status !== 429).length
      if (failed > 0) console.error(`${failed} requests failed`)
      const good = admitted.filter(({ ttftMs, itlMs }) => ttftMs <= sla.ttftMs && itlMs <= sla.itlMs).length
      rows.push({
        load,
        requestsPerSecond: load * capacity,
        admission,
        offered: answers.length,
        admitted: admitted.length,
        goodput: good / SECONDS,
        good: good / Math.max(admitted.length, 1),
        ttftP50Ms: quantile(admitted.map(({ ttftMs }) => ttftMs), 0.5),
        ttftP99Ms: quantile(admitted.map(({ ttftMs }) => ttftMs), 0.99),
        itlP99Ms: quantile(admitted.map(({ itlMs }) => itlMs), 0.99),
      })
      console.log(JSON.stringify(rows.at(-1)))
    }
  }
  const title = folder === undefined ? 'Goodput over HTTP: steps on a clock' : 'Goodput over HTTP: tiny-storyteller on a CPU'
  await report(folder === undefined ? 'clock' : 'server', title, sla, { machine: describeMachine(), saturation: ROUND(capacity), secondsPerPoint: SECONDS }, rows)
}

async function main(): Promise<void> {
  const [which, argument] = positionals
  if (which === 'client') {
    const answers = await client(...(JSON.parse(argument!) as Parameters<typeof client>))
    process.send!(answers, () => process.exit(0))
  } else if (which === 'server') {
    await server(resolve(argument ?? MODEL))
  } else if (which === 'clock') {
    await server(undefined)
  } else if (which === 'simulation') {
    await simulation()
  } else {
    throw new Error('simulation, server or clock?')
  }
}

void main()
