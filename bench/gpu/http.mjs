/**
 * The HTTP server beside the library in its own process and beside `vllm serve`, under the same requests from the same load generator.
 *
 *   node bench/gpu/http.mjs --out REPORT.json [--sides library,server,vllm] [--model MODEL_FOLDER] [--seconds 10] [--rates 16,40] ENGINE_FOLDER
 *
 * Sides run one after another, each in a process of its own, which is ended when its loads are over:
 *
 *   library   LLM.load and generate()
 *   server    node-tensorrt serve on loopback, with metrics, which are read every 5 s
 *   vllm      python3 -m vllm.entrypoints.cli.main serve MODEL_FOLDER, likewise; --python is another interpreter, --vllm-arg=--flag a further flag
 *
 * Each gets the --loads 64x128-128, 64x512-256 and 256x128-128 (streams of a closed loop, tokens in and out: all in step), 64xmixed (64 streams, 64 to 192
 * tokens in and out: not in step) and sharegpt (Poisson arrivals at each of --rates, lengths like ShareGPT's), sent for --seconds each; what has not ended
 * 5 s later (12 s with arrivals) is broken off. With the defaults that is at most 104 s a side, beside starting it and a warm-up of --warmup requests. Greedy, exact lengths, no prefix cache, 256 sequences at once, steps of at most
 * 8192 tokens. MODEL_FOLDER (make_random_llama.py writes one) is by default the engine folder without "-engine", and is what vLLM loads.
 *
 * The report is written after each load, what sides print goes to REPORT.json.SIDE.log. Two runs with a side each, on a GPU each (CUDA_VISIBLE_DEVICES), are
 * put together by http_report.mjs. `--backend cpu --scale 0.1` runs a model folder on the CPU with short requests, to try the program.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism, cpus } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { LOAD_NAMES, planLoads, warmUpLoad } from './http_loads.mjs'
import { SIDES } from './http_sides.mjs'

const root = resolve(import.meta.dirname, '..', '..')
const { SHAREGPT } = createRequire(join(root, 'package.json'))(join(root, 'dist', 'cli', 'bench_serve_plan.js'))

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    backend: { type: 'string', default: 'tensorrt' },
    'kv-cache-fraction': { type: 'string' },
    loads: { type: 'string', default: LOAD_NAMES.join(',') },
    'max-model-len': { type: 'string', default: '4096' },
    'max-sequences': { type: 'string', default: '256' },
    'max-step-tokens': { type: 'string' },
    model: { type: 'string' },
    out: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    rates: { type: 'string', default: '16,40' },
    scale: { type: 'string', default: '1' },
    seconds: { type: 'string', default: '10' },
    sides: { type: 'string', default: 'library,server,vllm' },
    'start-seconds': { type: 'string', default: '300' },
    'vllm-arg': { type: 'string', multiple: true, default: [] },
    warmup: { type: 'string', default: '512' },
  },
})
const [engine] = positionals
if (engine === undefined || options.out === undefined) throw new Error('http.mjs --out REPORT.json ENGINE_FOLDER')
const names = options.sides.split(',')
for (const name of names) if (SIDES[name] === undefined) throw new Error(`there is no side ${name}; there are ${Object.keys(SIDES).join(', ')}`)

const onCpu = options.backend === 'cpu'
const number = (name) => (options[name] === undefined ? undefined : Number(options[name]))
const model = options.model ?? engine.replace(/-engine\/?$/, '')
// An engine folder has the model's config, too.
const { vocab_size: vocabulary } = JSON.parse(readFileSync(join(engine, 'config.json'), 'utf8'))
const lengths = { scale: number('scale'), tokenIds: { min: 256, max: Math.min(30_000, vocabulary) - 1 } }
const loads = planLoads(SHAREGPT, { names: options.loads.split(','), rates: options.rates.split(',').map(Number), seconds: number('seconds'), ...lengths })
const warmUp = warmUpLoad({ requests: number('warmup'), ...lengths })
const settings = {
  backend: options.backend,
  engine,
  model,
  maxSequences: number('max-sequences'),
  maxStepTokens: number('max-step-tokens') ?? (onCpu ? undefined : 8192),
  maxModelLength: number('max-model-len'),
  kvCacheFraction: number('kv-cache-fraction'),
  startSeconds: number('start-seconds'),
  python: options.python,
  vllmArgs: options['vllm-arg'],
}

/** @returns name of the first GPU that this process may use; undefined without one */
function gpuName() {
  try {
    const visible = process.env.CUDA_VISIBLE_DEVICES
    const which = visible === undefined ? [] : ['-i', visible.split(',')[0]]
    return execFileSync('nvidia-smi', [...which, '--query-gpu=name,driver_version', '--format=csv,noheader'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).split('\n')[0]
  } catch {
    return undefined
  }
}

const report = {
  at: new Date().toISOString(),
  node: process.version,
  machine: { cores: availableParallelism(), processor: cpus()[0]?.model, gpu: gpuName() },
  settings: { seconds: number('seconds'), scale: lengths.scale, ...settings, engine: undefined, model: undefined, python: undefined },
  loads: Object.fromEntries(loads.map(({ name, what }) => [name, what])),
  sides: {},
}
const save = () => writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`)

const stop = new AbortController()
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) {
  process.on(signal, () => {
    // Again: programs are killed on the way out.
    if (stop.signal.aborted) process.exit(1)
    stop.abort(new Error(`ended by ${signal}`))
  })
}

/** Processor time of a program in all, and by name of its processes, between two looks at it. */
function processorTime(before, after) {
  const earlier = new Map(before.map(({ pid, cpuSeconds }) => [pid, cpuSeconds]))
  const byName = {}
  for (const { pid, name, cpuSeconds } of after) byName[name] = (byName[name] ?? 0) + cpuSeconds - (earlier.get(pid) ?? 0)
  return { seconds: Object.values(byName).reduce((sum, seconds) => sum + seconds, 0), byName }
}

/** Without the machine's paths. */
function commandOf({ command }) {
  const names = [[process.execPath, 'node'], [`${root}/`, ''], [engine, 'ENGINE_FOLDER'], [model, 'MODEL_FOLDER']]
  return names.reduce((text, [path, short]) => text.replaceAll(path, short), command)
}

async function measure(name) {
  const found = { command: undefined, startSeconds: undefined, loads: {} }
  report.sides[name] = found
  const started = performance.now()
  console.log(`${name}: starting`)
  const { side, facts } = await SIDES[name]({ ...settings, log: `${options.out}.${name}.log` }, stop.signal)
  try {
    Object.assign(found, facts, { command: commandOf(side.program), startSeconds: (performance.now() - started) / 1000 })
    save()
    const warm = await side.run(warmUp, stop.signal)
    stop.signal.throwIfAborted()
    console.log(`${name}: ready after ${found.startSeconds.toFixed(1)} s, warmed up in ${warm.seconds.toFixed(1)} s, ${warm.failed} failed`)
    for (const { name: loadName, what, ...load } of loads) {
      const before = side.program.processorTimes()
      const result = await side.run(load, stop.signal)
      // What was broken off is no measurement.
      stop.signal.throwIfAborted()
      const processor = processorTime(before, side.program.processorTimes())
      found.loads[loadName] = { ...result, processor: { ...processor, usPerOutputToken: (processor.seconds * 1e6) / result.outputTokens } }
      save()
      const { outputTokensPerSecond, ttftMs, itlMs, failed, aborted, otherLengths } = result
      const ms = (value) => value.toFixed(1)
      console.log(
        `${name} ${loadName} (${what}): ${Math.round(outputTokensPerSecond)} tokens/s; TTFT ${ms(ttftMs.p50)} / ${ms(ttftMs.p99)} ms, ITL ${ms(itlMs.p50)} / ${ms(itlMs.p99)} ms (P50 / P99); ` +
          `${result.completed} completed, ${failed} failed, ${aborted} broken off, ${otherLengths} of another length; ${processor.seconds.toFixed(1)} s of the processor`,
      )
    }
  } finally {
    await side.program.end()
  }
}

save()
for (const name of names) {
  if (stop.signal.aborted) break
  try {
    await measure(name)
  } catch (error) {
    // The other sides still count.
    report.sides[name].error = stop.signal.aborted ? stop.signal.reason.message : String(error.message ?? error)
    console.error(`${name}: ${report.sides[name].error}`)
    process.exitCode = 1
    save()
  }
}
