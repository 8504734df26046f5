/**
 * What users of a language model see, on fixed loads: time to first token, one stream, and throughput of many requests. Greedy, without prefix
 * cache, up to 256 sequences at once, contexts of up to 4096 tokens; all requests of a load are there from its start.
 *
 *   node bench/gpu/serving.mjs --out REPORT.json [--limits LIMITS.json] [--rows ttft,single,...] ENGINE_FOLDER
 *
 * Rows: ttft (128, 512, 1024 and 2048 tokens), single (one stream), batch (256 requests of 128 in, 128 out), waves (1024 of them), mixed (512 of
 * 16 ... 1023 in, 16 ... 511 out), long (512 of 1000 in, 1000 out). Each is repeated (`--repeats`), the median counts.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'

const root = resolve(import.meta.dirname, '..', '..')
const require = createRequire(join(root, 'package.json'))
const { LLM, version } = require(join(root, 'dist', 'index.js'))

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: 'string' },
    limits: { type: 'string' },
    rows: { type: 'string', default: 'ttft,single,batch,waves,mixed' },
    repeats: { type: 'string', default: '2' },
    'max-step-tokens': { type: 'string', default: '8192' },
  },
})
const rows = options.rows.split(',')
const repeats = Number(options.repeats)
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

/** mulberry32 */
function randomSource(seed) {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
const random = randomSource(1)
const between = (from, to) => from + Math.floor(random() * (to - from))
const prompt = (length) => Array.from({ length }, () => between(5, 30000))

const start = performance.now()
const llm = await LLM.load(positionals[0], {
  backend: 'tensorrt',
  maxSequences: 256,
  maxStepTokens: Number(options['max-step-tokens']),
  prefixCache: false,
  kvCacheFraction: 0.9,
})
const report = { version, node: process.version, engine: positionals[0], device: llm.info.device, at: new Date().toISOString(), loadSeconds: (performance.now() - start) / 1000, rows: {} }
if (options.limits !== undefined) report.limits = JSON.parse(readFileSync(options.limits, 'utf8'))

async function one(input, output) {
  const generation = llm.generate({ tokens: input, maxTokens: output, temperature: 0, ignoreEos: true })
  let first = 0
  const at = performance.now()
  for await (const chunk of generation) if (first === 0 && chunk.tokens.length > 0) first = performance.now() - at
  const { usage } = await generation.result()
  if (usage.completionTokens !== output) throw new Error(`${usage.completionTokens} tokens instead of ${output}`)
  return first
}

/** Output tokens a second over the whole load, and what the engine did meanwhile. */
async function load(requests) {
  const before = llm.stats()
  const at = performance.now()
  const firsts = await Promise.all(requests.map(([input, output]) => one(input, output)))
  const seconds = (performance.now() - at) / 1000
  const after = llm.stats()
  const tokens = requests.reduce((sum, [, output]) => sum + output, 0)
  return {
    tokensPerSecond: tokens / seconds,
    seconds,
    ttftMs: { p50: median(firsts), max: Math.max(...firsts) },
    steps: after.steps.completed - before.steps.completed,
    preemptions: (after.preemptions ?? 0) - (before.preemptions ?? 0),
  }
}

function note(name, value) {
  report.rows[name] = value
  console.log(name, JSON.stringify(value))
  if (options.out !== undefined) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`)
}

async function measure(name, make) {
  if (!rows.includes(name)) return
  try {
    const results = []
    for (let i = 0; i < repeats; i++) results.push(await load(make()))
    note(name, { ...results.sort((a, b) => a.tokensPerSecond - b.tokensPerSecond)[results.length >> 1], all: results.map(({ tokensPerSecond }) => Math.round(tokensPerSecond)) })
  } catch (error) {
    note(name, { error: String(error) })
  }
}

await Promise.all(Array.from({ length: 4 }, () => one(prompt(64), 8)))
if (rows.includes('ttft')) {
  for (const length of [128, 512, 1024, 2048]) {
    const times = []
    for (let i = 0; i < 10; i++) times.push(await one(prompt(length), 1))
    note(`ttft-${length}`, { ms: median(times), all: times.map((ms) => Number(ms.toFixed(2))) })
  }
}
if (rows.includes('single')) {
  const rates = []
  for (let i = 0; i < 3; i++) {
    const times = []
    for (const output of [16, 272]) {
      const at = performance.now()
      await one(prompt(128), output)
      times.push(performance.now() - at)
    }
    rates.push(256_000 / (times[1] - times[0]))
  }
  note('single', { tokensPerSecond: median(rates), all: rates.map((rate) => Number(rate.toFixed(1))) })
}
await measure('batch', () => Array.from({ length: 256 }, () => [prompt(128), 128]))
await measure('waves', () => Array.from({ length: 1024 }, () => [prompt(128), 128]))
await measure('mixed', () => Array.from({ length: 512 }, () => [prompt(between(16, 1024)), between(16, 512)]))
await measure('long', () => Array.from({ length: 512 }, () => [prompt(1000), 1000]))
await llm.close()
