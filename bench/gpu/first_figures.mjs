/**
 * First figures of a model on a GPU, beside what the hardware would allow: plan size, time of build and load, time to first token, one
 * stream and many, and where a step's time goes.
 *
 *   node bench/gpu/first_figures.mjs --limits LIMITS.json --out REPORT.json NAME=MODEL_FOLDER=ENGINE_FOLDER...
 *
 * Engines that are missing are built. LIMITS.json is what limits.py prints, from the same machine and hour. Given the same shape with few and
 * with all layers, the last table splits a step into time per layer and the rest (embedding, head, sampling, host).
 * `--backend cpu` runs model folders on the CPU, to try the program; engines are not built then.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { roofline } from './roofline.mjs'
import { StepTimer } from './step_timer.mjs'

const root = resolve(import.meta.dirname, '..', '..')
const require = createRequire(join(root, 'package.json'))
const { buildLLMEngine, LLM, version } = require(join(root, 'dist', 'index.js'))
const { graphFromConfig } = require(join(root, 'dist', 'models'))
const { createTensorRTBackend, CpuBackend, probeTensorRT } = require(join(root, 'dist', 'native'))
const { readEngineFolder, readPlan } = require(join(root, 'dist', 'runtime'))

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    backend: { type: 'string', default: 'tensorrt' },
    limits: { type: 'string' },
    out: { type: 'string' },
    'timing-cache': { type: 'string' },
    'max-step-tokens': { type: 'string', default: '8192' },
    streams: { type: 'string', default: '64' },
  },
})
const onCpu = options.backend === 'cpu'
const limits = options.limits === undefined ? undefined : JSON.parse(readFileSync(options.limits, 'utf8'))
const maxStepTokens = Number(options['max-step-tokens'])
const STREAMS = Number(options.streams)
const INPUT = 128
const OUTPUT = 256
const PAGE = 16

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
const round = (value, digits = 3) => Number(value.toPrecision(digits))
let seed = 1
/** Tokens that no request had before, so no prefix is cached. */
function freshPrompt(length, vocab) {
  const base = seed++
  return Array.from({ length }, (_, i) => 3 + (Math.imul(i + 1 + 7919 * base, 2654435761) >>> 8) % (vocab - 3))
}

/** Bytes per second at which these files can be read now, by one thread. */
async function readRate(files) {
  const buffer = Buffer.allocUnsafe(16 << 20)
  const started = performance.now()
  let bytes = 0
  for (const path of files) {
    const file = await open(path)
    for (let read = 1; read > 0; bytes += read) read = (await file.read(buffer, 0, buffer.length)).bytesRead
    await file.close()
  }
  return { bytes, seconds: (performance.now() - started) / 1000 }
}

async function stream(llm, tokens, maxTokens) {
  const started = performance.now()
  let first = 0
  let count = 0
  for await (const chunk of llm.generate({ tokens, maxTokens, temperature: 0, ignoreEos: true })) {
    if (count === 0) first = performance.now()
    count += chunk.tokens.length
  }
  const ended = performance.now()
  if (count !== maxTokens) throw new Error(`${count} tokens instead of ${maxTokens}`)
  return { started, first, ended, ttft: first - started }
}

async function measureRequests(llm) {
  const { vocabSize: vocab } = llm.info
  for (let i = 0; i < 2; i++) await stream(llm, freshPrompt(512, vocab), 8)
  const ttft = []
  for (let i = 0; i < 8; i++) ttft.push((await stream(llm, freshPrompt(512, vocab), 1)).ttft)
  const single = []
  for (let i = 0; i < 3; i++) {
    const { first, ended } = await stream(llm, freshPrompt(INPUT, vocab), OUTPUT)
    single.push((OUTPUT - 1) / ((ended - first) / 1000))
  }
  const many = () => Promise.all(Array.from({ length: STREAMS }, () => stream(llm, freshPrompt(INPUT, vocab), OUTPUT)))
  await many()
  const runs = await many()
  const from = Math.min(...runs.map(({ started }) => started))
  const decodeFrom = Math.max(...runs.map(({ first }) => first))
  const to = Math.max(...runs.map(({ ended }) => ended))
  return {
    ttft512Ms: { median: round(median(ttft), 4), all: ttft.map((ms) => round(ms, 4)) },
    singleTokensPerSecond: { median: round(median(single), 4), all: single.map((rate) => round(rate, 4)) },
    concurrent: {
      streams: STREAMS,
      tokensPerSecond: round((STREAMS * OUTPUT) / ((to - from) / 1000), 4),
      ttftMs: { median: round(median(runs.map(({ ttft: ms }) => ms)), 4), last: round(decodeFrom - from, 4) },
    },
    stats: llm.stats().steps,
  }
}

async function measureSteps(executor) {
  const timer = new StepTimer(executor)
  const { numPages, maxSlots } = executor.info
  const steps = { decode: {}, prefill: {} }
  for (const rows of [1, 8, 32, 64, 128, 256]) {
    if (rows > maxSlots || rows * (INPUT / PAGE + 3) > numPages) continue
    steps.decode[rows] = await timer.decode(rows, INPUT, (length) => freshPrompt(length, executor.info.vocabSize))
  }
  for (const tokens of [128, 512, 1024, 2048]) {
    if (tokens > executor.info.maxStepTokens || tokens > executor.info.maxPositions) continue
    steps.prefill[tokens] = await timer.prefill(freshPrompt(tokens, executor.info.vocabSize))
  }
  return steps
}

async function measure(argument) {
  const [name, model, engine] = argument.split('=')
  const report = { name }
  const config = JSON.parse(readFileSync(join(model, 'config.json'), 'utf8'))
  const load = { maxSequences: onCpu ? STREAMS : 256 }
  if (!onCpu) {
    if (!existsSync(join(engine, 'engine.json'))) {
      await buildLLMEngine(model, engine, { precision: 'bf16', maxStepTokens, timingCache: options['timing-cache'] })
    }
    const { manifest } = await readEngineFolder(engine)
    report.plan = { bytes: manifest.plan.bytes, profiles: manifest.profiles }
    report.build = manifest.build
  }
  const files = [...new Set(Object.values(JSON.parse(readFileSync(join(model, 'model.safetensors.index.json'), 'utf8')).weight_map))]
  const paths = files.map((file) => join(model, file))
  const { bytes, seconds } = await readRate(paths)
  const started = performance.now()
  const llm = onCpu
    ? await LLM.load(model, { backend: 'cpu', ...load })
    : await LLM.load(engine, { backend: 'tensorrt', weights: model, ...load })
  const loadSeconds = (performance.now() - started) / 1000
  report.load = {
    seconds: round(loadSeconds, 4),
    weightBytes: bytes,
    weightGBs: round(bytes / loadSeconds / 1e9),
    fileReadGBs: round(bytes / seconds / 1e9),
    uploadGBs: limits?.uploadGBs,
  }
  report.executor = { device: llm.info.device, numPages: llm.info.numPages, kvCacheBytes: llm.info.kvCacheBytes, weightBytes: llm.info.weightBytes }
  try {
    report.requests = await measureRequests(llm)
  } finally {
    await llm.close()
  }
  const common = { files: paths, pageSize: PAGE, maxSlots: load.maxSequences, maxStepTokens: onCpu ? 2048 : maxStepTokens }
  const folder = onCpu ? undefined : await readEngineFolder(engine)
  const executor = onCpu
    ? await CpuBackend.create({ ...common, graph: graphFromConfig(config), numPages: 2048, threads: 0, simd: '' })
    : await createTensorRTBackend({
        ...common, graph: folder.graph, plan: await readPlan(folder), libraryPath: '', device: 0, numPages: 0, kvCacheFraction: 0.9,
        cudaGraphs: true, plainKernels: false, faultAtStep: 0,
      })
  try {
    report.steps = await measureSteps(executor)
  } finally {
    await executor.close()
  }
  if (limits !== undefined) {
    const { layers, weightBytes, decodeMs, prefillMs } = roofline(config, limits)
    const context = INPUT + OUTPUT / 2
    report.limits = {
      layers,
      weightBytes,
      ttft512Ms: round(prefillMs(512)),
      singleTokensPerSecond: round(1000 / decodeMs(1, context), 4),
      concurrentTokensPerSecond: round((STREAMS * 1000) / decodeMs(STREAMS, context), 4),
      uploadSeconds: round(weightBytes / (limits.uploadGBs * 1e9)),
      decode: Object.fromEntries(Object.keys(report.steps.decode).map((rows) => [rows, round(decodeMs(Number(rows), INPUT))])),
      prefill: Object.fromEntries(Object.keys(report.steps.prefill).map((tokens) => [tokens, round(prefillMs(Number(tokens)))])),
    }
  }
  return report
}

/** From two depths of one shape: milliseconds per layer, and of the rest. */
function perLayer(few, all) {
  const split = {}
  for (const kind of ['decode', 'prefill']) {
    for (const [rows, ms] of Object.entries(all.steps[kind])) {
      const other = few.steps[kind][rows]
      if (other === undefined) continue
      const layer = (ms - other) / (all.limits.layers - few.limits.layers)
      split[`${kind} ${rows}`] = { layerMs: round(layer), restMs: round(other - few.limits.layers * layer), stepMs: ms, limitMs: all.limits[kind][rows] }
    }
  }
  return split
}

function print(report) {
  const { requests, limits: least, plan, build, load, steps } = report
  console.log(`\n## ${report.name}\n`)
  const lines = [
    ['plan', plan && `${round(plan.bytes / 1e6)} MB`, ''],
    ['build', build && `${round(build.seconds)} s`, build && build.parts.map((part) => `${part.name} ${round(part.seconds)} s`).join(', ')],
    ['load', `${load.seconds} s`, `${load.weightGBs} GB/s; the file reads at ${load.fileReadGBs}, the bus takes ${load.uploadGBs ?? '?'}`],
    ['TTFT, 512 tokens', `${requests.ttft512Ms.median} ms`, least && `limit ${least.ttft512Ms} ms`],
    [`one stream, ${INPUT} in, ${OUTPUT} out`, `${requests.singleTokensPerSecond.median} tokens/s`, least && `limit ${least.singleTokensPerSecond}`],
    [`${STREAMS} streams`, `${requests.concurrent.tokensPerSecond} tokens/s`, least && `limit of decoding ${least.concurrentTokensPerSecond}`],
    ...Object.entries(steps.decode).map(([rows, ms]) => [`decode step, ${rows} rows`, `${ms} ms`, least && `limit ${least.decode[rows]} ms`]),
    ...Object.entries(steps.prefill).map(([rows, ms]) => [`prefill step, ${rows} tokens`, `${ms} ms`, least && `limit ${least.prefill[rows]} ms`]),
  ]
  for (const line of [['', 'measured', 'beside'], ['---', '---', '---'], ...lines]) console.log(`| ${line.map((cell) => cell ?? '-').join(' | ')} |`)
}

const models = []
const machine = { node: process.version, package: version, ...limits, tensorrt: onCpu ? undefined : (await probeTensorRT()).libraryVersion }
const report = { date: new Date().toISOString(), command: ['node', 'bench/gpu/first_figures.mjs', ...process.argv.slice(2)].join(' '), machine, models }
const save = () => options.out && writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`)
for (const argument of positionals) {
  try {
    models.push(await measure(argument))
    print(models.at(-1))
  } catch (error) {
    models.push({ name: argument, error: `${error.code ?? ''} ${error.stack}` })
    console.error(argument, error)
    process.exitCode = 1
  }
  save()
}
const complete = models.filter(({ limits: least }) => least !== undefined)
if (complete.length === 2) {
  report.perLayer = perLayer(...complete)
  console.log('\n| step | ms | limit | per layer | rest |\n|---|---|---|---|---|')
  for (const [step, split] of Object.entries(report.perLayer)) {
    console.log(`| ${step} | ${split.stepMs} | ${split.limitMs} | ${split.layerMs} | ${split.restMs} |`)
  }
  save()
}
