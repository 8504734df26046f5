/**
 * What telemetry costs: the processor's time per step of an engine without observers, with one, and with all metrics; and
 * per call of what a server tells of its requests. The executor does nothing, so all that is measured is the host's own work.
 *
 *     npm run bench:telemetry -- [sequences]
 *
 * Measures the sources. Prints JSON, and keeps it in docs/benchmarks/telemetry.json.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { LLM } from '../lib/llm'
import { createTelemetry } from '../lib/server'
import { httpFacts, requestFacts } from '../test/support/request_facts'
import { describeMachine } from './machine'
import { TimedExecutor } from './server/timed_executor'

const SEQUENCES = Number(process.argv[2] ?? 64)
const ROUNDS = 12
const OUTPUT = 1000
const CALLS = 1_000_000
const REQUESTS = 20_000
const SCRAPES = 50
const facts = requestFacts({ promptTokens: 100, maxTokens: 100 })
const http = httpFacts()
const options = { model: 'model', gpus: false, tracing: false }
const kinds = ['none', 'observer', 'telemetry'] as const
const round = (value: number): number => Math.round(value * 100) / 100
const median = (values: number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN

/** Microseconds of the processor per step. */
async function stepUs(llm: LLM, kind: (typeof kinds)[number]): Promise<number> {
  let steps = 0
  const stop = kind === 'observer' ? llm.observe(() => steps++) : () => {}
  const telemetry = kind === 'telemetry' ? createTelemetry(llm, options) : undefined
  const before = llm.stats().steps.completed
  const since = process.cpuUsage()
  await Promise.all(Array.from({ length: SEQUENCES }, () => llm.generate({ tokens: [1, 2, 3], maxTokens: OUTPUT, ignoreEos: true }).result()))
  const { user, system } = process.cpuUsage(since)
  stop()
  await telemetry?.close()
  return (user + system) / (llm.stats().steps.completed - before)
}

/** Microseconds per call, the best of three runs, as the first ones compile. */
function callUs(calls: number, call: (i: number) => void): number {
  const times = Array.from({ length: 3 }, () => {
    const since = performance.now()
    for (let i = 0; i < calls; i++) call(i)
    return ((performance.now() - since) / calls) * 1000
  })
  return round(Math.min(...times) * 10) / 10
}

async function main(): Promise<void> {
  const llm = LLM.fromExecutor(new TimedExecutor(0, Int32Array.of(7), { vocabSize: 32_000, maxSlots: 256, maxStepTokens: 8192 }))
  const perStep: Record<string, number[]> = { none: [], observer: [], telemetry: [] }
  for (let i = 0; i < ROUNDS; i++) {
    // In turn, from either end: what the machine does beside this falls on all of them.
    for (const kind of i % 2 === 0 ? kinds : kinds.toReversed()) perStep[kind]!.push(await stepUs(llm, kind))
  }
  const telemetry = createTelemetry(llm, options)
  const streams = Array.from({ length: SEQUENCES }, () => telemetry.start(facts))
  const tokensUs = callUs(CALLS, (i) => streams[i % SEQUENCES]!.tokens(0, 1))
  const requestUs = callUs(REQUESTS, () => {
    const request = telemetry.start(facts)
    request.tokens(0, 1)
    request.end({ kind: 'finished', finishReasons: ['stop'], usage: { promptTokens: 100, completionTokens: 1, cachedTokens: 0 } }, { queueMs: 1 })
    telemetry.httpStarted()
    telemetry.http(http)
  })
  const scrapes: number[] = []
  for (let i = 0; i < SCRAPES; i++) {
    const since = performance.now()
    await telemetry.metrics()
    scrapes.push(performance.now() - since)
  }
  await telemetry.close()
  await llm.close()
  const report = {
    command: `npm run bench:telemetry${SEQUENCES === 64 ? '' : ` -- ${SEQUENCES}`}`,
    machine: describeMachine(),
    sequences: SEQUENCES,
    cpuUsPerStep: Object.fromEntries(kinds.map((kind) => [kind, round(median(perStep[kind]!))])),
    usPerCallOfTokens: tokensUs,
    usPerRequest: requestUs,
    msPerScrape: round(median(scrapes)),
  }
  const text = JSON.stringify(report, null, 2)
  writeFileSync(join(__dirname, '..', 'docs', 'benchmarks', 'telemetry.json'), `${text}\n`)
  console.log(text)
}

void main()
