/**
 * What the programs of this folder share: the built package, the options, and a harness that runs named checks one after the other and
 * writes what they measured to `<out>/<program>.json` (with pieces: `<program>-<pieces>.json`) after each of them, so that an end at any
 * moment loses nothing. Plain JavaScript over dist/, for a GPU machine that has nothing else.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism, cpus } from 'node:os'
import { basename, join, relative, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { Worker } from 'node:worker_threads'

export const root = resolve(import.meta.dirname, '..', '..', '..', '..')
const require = createRequire(join(root, 'package.json'))
export const lib = require(join(root, 'dist', 'index.js'))
export const { injectNativeFaults, probeTensorRT } = require(join(root, 'dist', 'native'))

const OPTIONS = `  --piece NAMES        pieces of the program, with commas between. Default: all of them
  --only NAMES         checks whose names begin like this, with commas between
  --models DIR         what bench/gpu/models/export.py wrote. Default: build/models
  --engines DIR        engine folders, shared by all programs; what is missing is built. Default: build/engines-onnx
  --timing-cache FILE  timings of kernels, shared by all builds. Keep it: with it a build of the same takes seconds. Default: DIR/timing-cache
  --out DIR            reports. Default: the environment's OUT, else build/gpu-report
  --limit SECONDS      ends the program after that time, as SIGTERM does
  --seconds N          of each measurement of a rate. Default: 2
  --fake               small plans of test/native/fake_gpu in place of engines, to try the programs without a GPU
  --help`

export const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    models: { type: 'string', default: join(root, 'build', 'models') },
    engines: { type: 'string', default: join(root, 'build', 'engines-onnx') },
    'timing-cache': { type: 'string' },
    out: { type: 'string', default: process.env.OUT || join(root, 'build', 'gpu-report') },
    only: { type: 'string' },
    piece: { type: 'string' },
    limit: { type: 'string' },
    help: { type: 'boolean', default: false },
    fake: { type: 'boolean', default: false },
    // Of single programs.
    bare: { type: 'string' },
    torch: { type: 'string' },
    lean: { type: 'string' },
    llm: { type: 'string' },
    engine: { type: 'string' },
    serve: { type: 'boolean', default: false },
    dynamic: { type: 'boolean', default: false },
    layers: { type: 'string', default: '12' },
    python: { type: 'string', default: 'python3' },
    seconds: { type: 'string', default: '2' },
    spin: { type: 'string' },
    sessions: { type: 'string', default: '3' },
    sizes: { type: 'string', default: '1,32,128' },
    'max-batch': { type: 'string', default: '128' },
    'max-delay-ms': { type: 'string', default: '2' },
  },
})
export const modelsFolder = resolve(options.models)
export const enginesFolder = resolve(options.engines)
export const timingCache = resolve(options['timing-cache'] ?? join(enginesFolder, 'timing-cache'))
const outFolder = resolve(options.out)

export const round = (value, digits = 4) => Number(value.toPrecision(digits))
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms))

function nvidiaSmi(query) {
  try {
    return execFileSync('nvidia-smi', [`--query-gpu=${query}`, '--format=csv,noheader,nounits'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return undefined
  }
}

/** Device memory in use on GPU 0, in MiB; undefined where there is none to ask. */
export function deviceMemoryMiB() {
  const used = nvidiaSmi('memory.used')
  return used === undefined ? undefined : Number(used.split('\n')[0])
}

export async function machine() {
  const [gpu, driver, memoryMiB] = nvidiaSmi('name,driver_version,memory.total')?.split(', ') ?? []
  const facts = await probeTensorRT().catch(() => undefined)
  return {
    gpu,
    driver,
    gpuMemoryMiB: memoryMiB && Number(memoryMiB),
    tensorrt: facts?.libraryVersion,
    cpu: cpus()[0]?.model,
    cores: cpus().length,
    node: process.version,
    package: lib.version,
    processors: availableParallelism(),
    fake: options.fake || undefined,
  }
}

const program = basename(process.argv[1], '.mjs')
let pieces = {}
let chosen
let reportPath
/** Checks of earlier calls. */
let earlier = []

/**
 * To be called first: what `--help` says, and which checks make up which piece.
 *
 * @param text what the program shows
 * @param pieces by name: `checks` (beginnings of names: an array, or text with commas between), `seconds` that it takes on an H200 (engines built before
 *   unless it says so), `about`
 * @param options lines of options of its own
 * @param joins whether calls for other pieces go on with one report, `<program>.json`
 */
export function describeProgram({ text, pieces: known, options: own = [], joins = false }) {
  pieces = known
  if (options.help) {
    const width = Math.max(...Object.keys(known).map((name) => name.length))
    const lines = Object.entries(known).map(([name, { seconds, about }]) => `  ${name.padEnd(width)}  ${String(seconds).padStart(4)} s  ${about}`)
    console.log([text, '', `node ${relative(root, process.argv[1])} [options]`, '', 'Pieces, and how long they take on one H200:', ...lines, '', 'Options:', ...own, OPTIONS].join('\n'))
    process.exit(0)
  }
  if (options.piece !== undefined) {
    chosen = options.piece.split(',')
    const unknown = chosen.filter((name) => !Object.hasOwn(known, name))
    if (unknown.length > 0) {
      console.error(`${program} has no piece ${unknown.join(', ')}; it has ${Object.keys(known).join(', ')}`)
      process.exit(2)
    }
  }
  mkdirSync(outFolder, { recursive: true })
  reportPath = join(outFolder, `${[program, ...(joins ? [] : (chosen ?? []))].join('-')}.json`)
  if (joins && existsSync(reportPath)) earlier = JSON.parse(readFileSync(reportPath, 'utf8')).checks
  watch()
}

const beginsWith = (name, starts) => (typeof starts === 'string' ? starts.split(',') : starts).some((start) => name.startsWith(start))
const isWanted = (name) =>
  (chosen === undefined || chosen.some((piece) => beginsWith(name, pieces[piece].checks))) && (options.only === undefined || beginsWith(name, options.only))
/** Whether a check of that name is to run: for what several checks need. */
export { isWanted }

const checks = []
const startedAt = new Date()
let current
let ended
let known
function save() {
  const report = {
    program,
    pieces: chosen,
    date: startedAt.toISOString(),
    seconds: round((Date.now() - startedAt) / 1000),
    // Of a program that was ended: by what. Its last check says so, too.
    ended,
    command: ['node', ...process.argv.slice(1).map((argument) => argument.replace(`${root}/`, ''))].join(' '),
    machine: known,
    checks: [...earlier.filter(({ name }) => checks.every((check) => check.name !== name)), ...checks],
  }
  // In one step, as the end may come while it is written.
  writeFileSync(`${reportPath}.tmp`, `${JSON.stringify(report, null, 1)}\n`)
  renameSync(`${reportPath}.tmp`, reportPath)
}

/** Aborts when the program is told to end: for child processes and builds. */
const stopping = new AbortController()
export const stopSignal = stopping.signal

function stop(reason, signal) {
  ended = reason
  if (current !== undefined) Object.assign(current.entry, { error: `ended by ${reason}`, ms: Math.round(performance.now() - current.started) })
  save()
  console.log(`# ended by ${reason}${current === undefined ? '' : ` in "${current.entry.name}"`}`)
  stopping.abort(new Error(reason))
  // By the signal itself, without exit handlers: a build that is under way would hold them up for as long as its step takes.
  process.removeAllListeners(signal)
  process.kill(process.pid, signal)
  setTimeout(() => process.kill(process.pid, 'SIGKILL'), 500)
}

function watch() {
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.once(signal, () => stop(signal, signal))
  if (options.limit === undefined) return
  const milliseconds = Number(options.limit) * 1000 - performance.now()
  setTimeout(() => stop(`--limit ${options.limit}`, 'SIGTERM'), Math.max(0, milliseconds)).unref()
  // A thread that blocks for good hears neither timers nor signals.
  const last = `setTimeout(() => process.kill(${process.pid}, 'SIGKILL'), ${Math.max(0, milliseconds) + 4000})`
  new Worker(last, { eval: true }).unref()
}

/**
 * Runs a check unless --piece or --only leaves it out. What it returns goes into the report; what it throws fails it, and the next one runs.
 *
 * @returns what the check returned, undefined where it failed or was left out
 */
export async function check(name, body, { timeoutMs = 120_000 } = {}) {
  if (!isWanted(name)) return undefined
  known ??= await machine()
  const entry = { name, passed: false, ms: 0, figures: {} }
  checks.push(entry)
  const started = performance.now()
  current = { entry, started }
  let timer
  try {
    // A promise that hangs must not hang the program.
    const overdue = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${name} took more than ${timeoutMs} ms`)), timeoutMs)
    })
    const figures = await Promise.race([body(entry.figures), overdue])
    if (figures !== undefined) Object.assign(entry.figures, figures)
    entry.passed = true
  } catch (error) {
    entry.error = describe(error)
    process.exitCode = 1
  } finally {
    clearTimeout(timer)
    current = undefined
    entry.ms = Math.round(performance.now() - started)
  }
  console.log(`${entry.passed ? 'ok    ' : 'FAILED'} ${program}: ${name} (${seconds(entry.ms)} of ${seconds(performance.now())}) ${JSON.stringify(entry.figures).slice(0, 600)}`)
  if (!entry.passed) console.log(entry.error)
  save()
  return entry.passed ? entry.figures : undefined
}

/** To be called at the end: what is still open must not keep the process alive, which the report says. */
export async function finish() {
  if (checks.length === 0) {
    console.error(`${program}: no check has such a name`)
    process.exitCode = 2
  }
  save()
  const resources = process.getActiveResourcesInfo().filter((kind) => !['TTYWrap', 'PipeWrap', 'FSReqCallback', 'SignalWrap'].includes(kind))
  if (resources.length > 0) console.log(`# still active at the end: ${resources.join(', ')}`)
  setTimeout(() => {
    console.log('# the process did not end by itself')
    process.exit(3)
  }, 5000).unref()
}

export function describe(error) {
  const cause = error?.cause === undefined ? '' : `\n  cause: ${error.cause?.message ?? error.cause}`
  return `${error?.code ?? ''} ${String(error?.stack ?? error).slice(0, 1500)}${cause}`
}

export function quantile(sorted, q) {
  return sorted[Math.min(sorted.length - 1, Math.floor(q * (sorted.length - 1) + 0.5))]
}

export function summary(milliseconds) {
  const sorted = Float64Array.from(milliseconds).sort()
  const of = (q) => round(quantile(sorted, q), 5)
  return { p50: of(0.5), p90: of(0.9), p99: of(0.99), max: round(sorted.at(-1), 5), count: sorted.length }
}
