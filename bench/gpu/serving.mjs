/**
 * What users of a language model see, each figure beside what the hardware would allow. Greedy, prefix cache off where nothing else is said, up
 * to 256 sequences at once, contexts of up to 4096 tokens.
 *
 *   node bench/gpu/serving.mjs --out REPORT.json [--limits LIMITS.json] [--config CONFIG.json] [--rows ttft,single,...] ENGINE_FOLDER
 *   node bench/gpu/serving.mjs --write-requests REQUESTS.json [--rows batch,mixed,long] [--vocab N]     the requests, for other programs
 *
 * LIMITS.json is what limits.py printed on the same machine. CONFIG.json is the model's Hugging Face config; by default that of the folder, or
 * of the folder of the same name without "-engine". Rows:
 *
 *   ttft      one request alone: 128, 512, 1024 and 2048 tokens         single     one stream
 *   batch     256 requests of 128 in, 128 out                           waves      1024 of them
 *   mixed     512 of 16-1023 in, 16-511 out                             long       512 of 1000 in, 1000 out
 *   poisson   conversations that arrive at random, --seconds each at --rates, shares of saturation
 *   decode-64, decode-256     sequences that only decode: how busy the GPU is, and what the host takes
 *   waste     KV places without a token at steady load                  prefix     90% shared prompts, prefix cache on and off
 *   soak      random lengths, aborts, priorities for --soak-seconds: failures and memory
 *
 * Fixed loads are repeated (`--repeats`), the median counts. A row that fails is noted, and the next one runs. `--backend cpu` runs a model folder
 * on the CPU with fewer and shorter requests (`--scale`), to try the program.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { runLoad } from './load.mjs'
import { FIXED_LOADS, fixedLoad, RequestSource } from './requests.mjs'
import { roofline } from './roofline.mjs'
import { decode, poisson, prefix, single, soak, ttft, waste } from './serving_rows.mjs'

const root = resolve(import.meta.dirname, '..', '..')
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    backend: { type: 'string', default: 'tensorrt' },
    config: { type: 'string' },
    limits: { type: 'string' },
    out: { type: 'string' },
    'kv-cache-fraction': { type: 'string', default: '0.9' },
    'max-step-tokens': { type: 'string', default: '8192' },
    rates: { type: 'string', default: '0.5,0.7,0.9' },
    repeats: { type: 'string', default: '2' },
    rows: { type: 'string' },
    scale: { type: 'string' },
    seconds: { type: 'string', default: '20' },
    'soak-seconds': { type: 'string', default: '300' },
    vocab: { type: 'string', default: '30000' },
    weights: { type: 'string' },
    'write-requests': { type: 'string' },
  },
})
const [folder] = positionals
const onCpu = options.backend === 'cpu'
const rows = options.rows?.split(',') ?? (options['write-requests'] === undefined ? ['ttft', 'single', 'batch', 'waves', 'mixed'] : ['batch', 'mixed', 'long'])
const scale = Number(options.scale ?? (onCpu ? 0.125 : 1))

if (options['write-requests'] !== undefined) {
  const lengths = { vocab: Number(options.vocab), scale }
  const loads = Object.fromEntries(rows.map((name) => [name, { what: FIXED_LOADS[name].what, requests: fixedLoad(name, lengths) }]))
  writeFileSync(options['write-requests'], `${JSON.stringify(loads)}\n`)
  process.exit()
}

const { LLM, version } = createRequire(join(root, 'package.json'))(join(root, 'dist', 'index.js'))
const limits = options.limits === undefined ? undefined : JSON.parse(readFileSync(options.limits, 'utf8'))
const configFiles = [options.config, join(folder, 'config.json'), join(folder.replace(/-engine\/?$/, ''), 'config.json')]
const configFile = configFiles.find((file) => file !== undefined && existsSync(file))
const bound = limits !== undefined && configFile !== undefined ? roofline(JSON.parse(readFileSync(configFile, 'utf8')), limits) : undefined

const base = onCpu
  ? { backend: 'cpu', maxSequences: 64, prefixCache: false }
  : {
      backend: 'tensorrt',
      maxSequences: 256,
      maxStepTokens: Number(options['max-step-tokens']),
      prefixCache: false,
      kvCacheFraction: Number(options['kv-cache-fraction']),
      weights: options.weights,
    }
let loaded

const bench = {
  onCpu,
  scale,
  seconds: Number(options.seconds),
  rates: options.rates.split(',').map(Number),
  soakSeconds: Number(options['soak-seconds']),
  roofline: bound,
  source: (seed) => new RequestSource(seed, { vocab: loaded?.llm.info.vocabSize, scale }),

  /** The model with these options: the loaded one if it has them and lives; warmed up. */
  async load(wanted) {
    const key = JSON.stringify({ ...base, ...wanted })
    if (loaded?.key === key) return loaded.llm
    await bench.unload()
    const started = performance.now()
    const llm = await LLM.load(folder, { ...base, ...wanted })
    loaded = { key, llm }
    report.loadSeconds ??= (performance.now() - started) / 1000
    report.device ??= llm.info.device
    await runLoad(llm, new RequestSource(1, { vocab: llm.info.vocabSize, scale }).same(4, 64, 8))
    return llm
  },

  async unload() {
    const { llm } = loaded ?? {}
    loaded = undefined
    await llm?.close()
  },

  /** What an ideal engine would need for a load. */
  limitOf(llm, requests) {
    if (bound === undefined) return undefined
    const { maxSlots, maxStepTokens, numPages, pageSize } = llm.info
    const lengths = requests.map(({ tokens, output, at }) => ({ input: tokens.length, output, at }))
    const seconds = bound.loadSeconds(lengths, { maxSequences: Math.min(maxSlots, base.maxSequences), maxStepTokens, kvTokens: numPages * pageSize })
    return { seconds, tokensPerSecond: requests.reduce((sum, { output }) => sum + output, 0) / seconds }
  },
}

const report = {
  command: ['node', 'bench/gpu/serving.mjs', ...process.argv.slice(2)].join(' '),
  version,
  node: process.version,
  engine: folder,
  at: new Date().toISOString(),
  limits,
  rows: {},
}

function note(name, value) {
  report.rows[name] = value
  const short = (key, each) => (key === 'samples' && Array.isArray(each) ? undefined : typeof each === 'number' ? Number(each.toPrecision(5)) : each)
  const text = JSON.stringify(value, short)
  console.log(name, text)
  if (options.out !== undefined) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`)
}

async function fixedRow(name) {
  const llm = await bench.load({})
  const requests = fixedLoad(name, { vocab: llm.info.vocabSize, scale, count: onCpu ? 64 : undefined })
  const results = []
  for (let i = 0; i < Number(options.repeats); i++) results.push(await runLoad(llm, requests))
  results.sort((a, b) => a.tokensPerSecond - b.tokensPerSecond)
  return { ...results[results.length >> 1], all: results.map(({ tokensPerSecond }) => Math.round(tokensPerSecond)), limit: bench.limitOf(llm, requests) }
}

const special = { single, poisson, waste, prefix, soak, 'decode-64': () => decode(bench, 64), 'decode-256': () => decode(bench, 256) }

for (const name of rows) {
  try {
    if (name === 'ttft') for (const [row, value] of Object.entries(await ttft(bench))) note(row, value)
    else if (FIXED_LOADS[name] !== undefined) note(name, await fixedRow(name))
    else if (special[name] !== undefined) note(name, await special[name](bench))
    else throw new Error(`there is no row ${name}`)
  } catch (error) {
    note(name, { error: `${error.code ?? ''} ${error.stack ?? error}`.trim() })
    process.exitCode = 1
    // Requests of the failed row may still run.
    await bench.unload().catch((cause) => console.error(`closing failed: ${cause}`))
  }
}
await bench.unload()
