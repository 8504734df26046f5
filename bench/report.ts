/**
 * The CPU report: continuous against static batching, prefix cache on and off, and this library against transformers on the
 * same machine in the same run. Writes JSON and pictures.
 *
 *   npm run bench -- [--out docs/benchmarks] [--only batching,prefix,transformers] [--python python3]
 */
import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { LLM } from '../lib'
import { planLoad, type PlannedRequest, quantiles, type Quantiles, runLoad, seededRandom } from '../lib/cli/load_generator'
import { describeMachine } from './machine'
import { type Bar, writeBars } from './picture'

const MODEL = resolve(__dirname, '..', 'models', 'tiny-storyteller')
const { values: args } = parseArgs({
  options: {
    out: { type: 'string', default: join(__dirname, '..', 'docs', 'benchmarks') },
    only: { type: 'string', default: 'batching,prefix,transformers' },
    python: { type: 'string', default: 'python3' },
  },
})
const out = resolve(args.out)
const wanted = new Set(args.only.split(','))
const median = (values: number[]): number => quantiles(values).p50
const say = (text: string): void => void process.stderr.write(`${text}\n`)

interface ArrivalReport {
  seconds: number
  outputTokensPerSecond: number
  ttftMs: Quantiles
  latencyMs: Quantiles
}

/** Arrivals at given times. `batchSize` set: a batch starts when the one before has ended wholly, with what has arrived by then. */
async function serveArrivals(llm: LLM, plan: PlannedRequest[], batchSize?: number): Promise<ArrivalReport> {
  const ttft: number[] = []
  const latency: number[] = []
  let tokens = 0
  const started = performance.now()
  const now = (): number => (performance.now() - started) / 1000
  const run = async (request: PlannedRequest): Promise<void> => {
    let first = true
    const generation = llm.generate({ tokens: request.tokens, maxTokens: request.outputTokens, temperature: 0, ignoreEos: true })
    for await (const chunk of generation) {
      if (first && chunk.tokens.length > 0) ttft.push((now() - request.arrival) * 1000)
      first &&= chunk.tokens.length === 0
      tokens += chunk.tokens.length
    }
    latency.push((now() - request.arrival) * 1000)
  }
  const until = (time: number): Promise<void> => new Promise((done) => setTimeout(done, Math.max(0, time - now()) * 1000))
  if (batchSize === undefined) {
    await Promise.all(plan.map((request) => until(request.arrival).then(() => run(request))))
  } else {
    for (let next = 0; next < plan.length; ) {
      const first = plan[next]
      if (first !== undefined && first.arrival > now()) await until(first.arrival)
      const batch: PlannedRequest[] = []
      for (let request = plan[next]; request !== undefined && batch.length < batchSize && request.arrival <= now(); request = plan[++next]) {
        batch.push(request)
      }
      await Promise.all(batch.map(run))
    }
  }
  const seconds = now()
  return { seconds, outputTokensPerSecond: tokens / seconds, ttftMs: quantiles(ttft), latencyMs: quantiles(latency) }
}

/** Both policies on the same requests: all there at once (what each can carry), and at 80% of what static batching carries. */
async function batching(): Promise<object> {
  const size = 32
  const llm = await LLM.load(MODEL, { backend: 'cpu', maxSequences: size, prefixCache: false })
  const lengths = { inputTokens: { min: 16, max: 128 }, outputTokens: { min: 8, max: 256 }, sharedPrefix: 0, seed: 7 }
  const requests = 320
  const plan = (rate?: number): PlannedRequest[] =>
    planLoad(
      { ...lengths, requests, concurrency: 0, ...(rate === undefined ? {} : { rate }) },
      llm.info.vocabSize,
      new Set(llm.info.specialTokenIds),
    )
  const measure = async (arrivals: PlannedRequest[]): Promise<{ continuous: ArrivalReport; static: ArrivalReport }> => ({
    continuous: await serveArrivals(llm, arrivals),
    static: await serveArrivals(llm, arrivals, size),
  })
  await measure(plan())
  const rounds: { saturated: Awaited<ReturnType<typeof measure>>; steady: Awaited<ReturnType<typeof measure>> }[] = []
  const rates: number[] = []
  for (let round = 0; round < 3; round++) {
    const saturated = await measure(plan())
    const rate = (0.8 * requests) / saturated.static.seconds
    rates.push(rate)
    rounds.push({ saturated, steady: await measure(plan(rate)) })
    say(`batching, round ${round + 1} of 3`)
  }
  await llm.close()
  const ratio = (load: 'saturated' | 'steady', pick: (r: ArrivalReport) => number): number =>
    median(rounds.map((r) => pick(r[load].static) / pick(r[load].continuous)))
  return {
    size,
    requests,
    lengths,
    steadyRequestsPerSecond: median(rates),
    /** Continuous over static. */
    saturatedThroughputRatio: ratio('saturated', (r) => r.seconds),
    /** Static over continuous, at 80% of static batching's capacity. */
    steadyTtftP50Ratio: ratio('steady', (r) => r.ttftMs.p50),
    steadyTtftP99Ratio: ratio('steady', (r) => r.ttftMs.p99),
    steadyLatencyP50Ratio: ratio('steady', (r) => r.latencyMs.p50),
    steadyLatencyP99Ratio: ratio('steady', (r) => r.latencyMs.p99),
    bars: (['continuous', 'static'] as const).flatMap((kind): Bar[] => {
      const of = (load: 'saturated' | 'steady', pick: (r: ArrivalReport) => number): number => median(rounds.map((r) => pick(r[load][kind])))
      return [
        { panel: 'all at once: output tokens/s', label: kind, value: of('saturated', (r) => r.outputTokensPerSecond) },
        { panel: 'at 80% of static capacity: TTFT P50, ms', label: kind, value: of('steady', (r) => r.ttftMs.p50) },
        { panel: 'at 80% of static capacity: TTFT P99, ms', label: kind, value: of('steady', (r) => r.ttftMs.p99) },
        { panel: 'at 80% of static capacity: request P99, ms', label: kind, value: of('steady', (r) => r.latencyMs.p99) },
      ]
    }),
    rounds,
  }
}

async function prefixCache(): Promise<object> {
  const load = { requests: 120, concurrency: 16, inputTokens: { min: 500, max: 500 }, outputTokens: { min: 32, max: 32 }, sharedPrefix: 0.9, seed: 3 }
  const rounds: { on: Awaited<ReturnType<typeof runLoad>>; off: Awaited<ReturnType<typeof runLoad>> }[] = []
  for (let round = 0; round < 3; round++) {
    const measure = async (on: boolean): Promise<Awaited<ReturnType<typeof runLoad>>> => {
      const llm = await LLM.load(MODEL, { backend: 'cpu', maxSequences: 16, prefixCache: on })
      try {
        await runLoad(llm, { ...load, requests: 4, sharedPrefix: 0, seed: 99 })
        return await runLoad(llm, load)
      } finally {
        await llm.close()
      }
    }
    rounds.push({ on: await measure(true), off: await measure(false) })
    say(`prefix cache, round ${round + 1} of 3`)
  }
  return {
    load,
    throughputRatio: median(rounds.map((r) => r.on.outputTokensPerSecond / r.off.outputTokensPerSecond)),
    ttftP50Ratio: median(rounds.map((r) => r.off.ttftMs.p50 / r.on.ttftMs.p50)),
    bars: (['on', 'off'] as const).flatMap((kind): Bar[] => [
      { panel: 'output tokens/s', label: `prefix cache ${kind}`, value: median(rounds.map((r) => r[kind].outputTokensPerSecond)) },
      { panel: 'TTFT P50, ms', label: `prefix cache ${kind}`, value: median(rounds.map((r) => r[kind].ttftMs.p50)) },
    ]),
    rounds,
  }
}

/** A running transformers_cpu.py. */
class Transformers {
  readonly #child
  readonly #lines
  facts: Record<string, unknown> = {}

  constructor(readonly dtype: string, threads: number) {
    this.#child = spawn(args.python, [join(__dirname, 'transformers_cpu.py')], { stdio: ['pipe', 'pipe', 'ignore'] })
    this.#child.on('error', () => undefined)
    this.#child.stdin.on('error', () => undefined)
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
    this.#send({ model: MODEL, dtype, threads })
  }

  #send(job: object): void {
    this.#child.stdin.write(`${JSON.stringify(job)}\n`)
  }

  async #receive(): Promise<Record<string, unknown> | undefined> {
    const { value, done } = await this.#lines.next()
    return done === true ? undefined : (JSON.parse(value) as Record<string, unknown>)
  }

  async ready(): Promise<boolean> {
    const facts = await this.#receive()
    if (facts !== undefined) this.facts = facts
    return facts !== undefined
  }

  async generate(prompts: number[][], newTokens: number): Promise<{ seconds: number; tokens: number[][] }> {
    this.#send({ prompts, new_tokens: newTokens })
    const answer = await this.#receive()
    if (answer === undefined) throw new Error('transformers ended early')
    return answer as { seconds: number; tokens: number[][] }
  }

  close(): void {
    this.#child.stdin.end()
  }
}

async function againstTransformers(): Promise<object> {
  const llm = await LLM.load(MODEL, { backend: 'cpu', prefixCache: false })
  const threads = describeMachine().cores
  const peers: Transformers[] = []
  for (const dtype of ['float32', 'bfloat16']) {
    const peer = new Transformers(dtype, threads)
    if (await peer.ready()) peers.push(peer)
  }
  if (peers.length === 0) {
    await llm.close()
    return { skipped: `${args.python} has no torch and transformers` }
  }
  const random = seededRandom(11)
  const newTokens = 128
  const results = []
  for (const requests of [1, 16]) {
    const prompts = Array.from({ length: requests }, () => Array.from({ length: 64 }, () => 6 + Math.floor(random() * 4000)))
    const ours = async (): Promise<{ seconds: number; tokens: number[][] }> => {
      const started = performance.now()
      const results = await Promise.all(
        prompts.map((tokens) => llm.generate({ tokens, maxTokens: newTokens, temperature: 0, ignoreEos: true }).result()),
      )
      return { seconds: (performance.now() - started) / 1000, tokens: results.map((r) => [...r.tokens]) }
    }
    await ours()
    for (const peer of peers) await peer.generate(prompts, 8)
    const rounds: Record<string, number>[] = []
    let equalTokens = 0
    for (let round = 0; round < 5; round++) {
      const mine = await ours()
      const seconds: Record<string, number> = { 'node-tensorrt': mine.seconds }
      for (const peer of peers) {
        const theirs = await peer.generate(prompts, newTokens)
        seconds[peer.dtype] = theirs.seconds
        if (peer.dtype === 'float32') {
          equalTokens = mine.tokens.reduce((sum, row, i) => sum + row.filter((t, j) => t === theirs.tokens[i]?.[j]).length, 0)
        }
      }
      rounds.push(seconds)
    }
    say(`transformers, ${requests} request(s)`)
    const rate = (name: string): number => (requests * newTokens) / median(rounds.map((r) => r[name] ?? NaN))
    const ratios = Object.fromEntries(peers.map((p) => [p.dtype, median(rounds.map((r) => (r[p.dtype] ?? NaN) / (r['node-tensorrt'] ?? NaN)))]))
    results.push({
      requests,
      promptTokens: 64,
      newTokens,
      tokensPerSecond: Object.fromEntries(['node-tensorrt', ...peers.map((p) => p.dtype)].map((name) => [name, rate(name)])),
      ratioToTransformers: ratios,
      /** Share of output tokens that are the same as transformers float32 chose. */
      sameTokens: equalTokens / (requests * newTokens),
      rounds,
    })
  }
  for (const peer of peers) peer.close()
  await llm.close()
  return {
    peer: peers[0]?.facts,
    results,
    bars: results.flatMap((r): Bar[] =>
      Object.entries(r.tokensPerSecond).map(([name, value]) => ({
        panel: `output tokens/s, ${r.requests} request${r.requests === 1 ? '' : 's'}`,
        label: name === 'node-tensorrt' ? name : `transformers ${name}`,
        value,
      })),
    ),
  }
}

async function main(): Promise<void> {
  mkdirSync(out, { recursive: true })
  const machine = describeMachine()
  const llm = await LLM.load(MODEL, { backend: 'cpu' })
  const device = llm.info.device
  await llm.close()
  const sections = { batching, prefix: prefixCache, transformers: againstTransformers }
  const titles = {
    batching: 'Continuous against static batching, same arrivals',
    prefix: 'Prefix cache at 90% shared prompts',
    transformers: 'node-tensorrt (CPU backend) against transformers',
  }
  for (const name of ['batching', 'prefix', 'transformers'] as const) {
    if (!wanted.has(name)) continue
    const result = (await sections[name]()) as { bars?: Bar[] }
    const { bars, ...report } = result
    writeFileSync(join(out, `cpu-${name}.json`), `${JSON.stringify({ command: 'npm run bench', machine, device, model: 'tiny-storyteller', ...report }, null, 2)}\n`)
    if (bars !== undefined) await writeBars(join(out, `cpu-${name}.svg`), titles[name], `tiny-storyteller, ${device}, ${machine.date.slice(0, 10)}`, bars)
    const { rounds: _, ...summary } = report as { rounds?: unknown }
    process.stdout.write(`${JSON.stringify({ [name]: summary }, null, 2)}\n`)
  }
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`)
  process.exitCode = 1
})
