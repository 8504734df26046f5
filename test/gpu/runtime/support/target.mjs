/**
 * What the programs of this folder share: the built package, the options, and a harness that runs named checks one after the other and
 * writes what they measured to `<out>/<program>.json` after each of them, so that a crash loses nothing. Plain JavaScript over dist/, for a
 * GPU machine that has nothing else.
 *
 *   --models DIR    what bench/gpu/models/export.py wrote. Default: build/models
 *   --engines DIR   engine folders; what is missing is built. Default: build/engines-onnx
 *   --out DIR       default: the environment's OUT, else build/gpu-report
 *   --only NAMES    checks whose names begin like this, with commas between
 *   --fake          small plans of test/native/fake_gpu in place of engines, to try the programs without a GPU
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { cpus } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'

export const root = resolve(import.meta.dirname, '..', '..', '..', '..')
const require = createRequire(join(root, 'package.json'))
export const lib = require(join(root, 'dist', 'index.js'))
export const { injectNativeFaults, probeTensorRT } = require(join(root, 'dist', 'native'))

export const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    models: { type: 'string', default: join(root, 'build', 'models') },
    engines: { type: 'string', default: join(root, 'build', 'engines-onnx') },
    out: { type: 'string', default: process.env.OUT || join(root, 'build', 'gpu-report') },
    only: { type: 'string' },
    fake: { type: 'boolean', default: false },
    // Of single programs.
    bare: { type: 'string' },
    torch: { type: 'string' },
    lean: { type: 'string' },
    seconds: { type: 'string', default: '3' },
    spin: { type: 'string', default: '2000' },
    'max-batch': { type: 'string', default: '128' },
    'max-delay-ms': { type: 'string', default: '2' },
  },
})
export const modelsFolder = resolve(options.models)
export const enginesFolder = resolve(options.engines)
const outFolder = resolve(options.out)
mkdirSync(outFolder, { recursive: true })

export const round = (value, digits = 4) => Number(value.toPrecision(digits))
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
    fake: options.fake || undefined,
  }
}

const program = basename(process.argv[1], '.mjs')
const checks = []
const startedAt = new Date()
const save = async () => {
  const report = {
    program,
    date: startedAt.toISOString(),
    seconds: round((Date.now() - startedAt) / 1000),
    command: ['node', ...process.argv.slice(1).map((argument) => argument.replace(`${root}/`, ''))].join(' '),
    machine: await machineOnce(),
    checks,
  }
  writeFileSync(join(outFolder, `${program}.json`), `${JSON.stringify(report, null, 1)}\n`)
}
let known
const machineOnce = () => (known ??= machine())

/**
 * Runs a check unless --only leaves it out. What it returns goes into the report; what it throws fails it, and the next one runs.
 *
 * @returns what the check returned, undefined where it failed or was left out
 */
export async function check(name, body, { timeoutMs = 120_000 } = {}) {
  if (options.only !== undefined && !options.only.split(',').some((start) => name.startsWith(start))) return undefined
  const entry = { name, passed: false, ms: 0, figures: {} }
  checks.push(entry)
  const started = performance.now()
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
    entry.ms = Math.round(performance.now() - started)
  }
  console.log(`${entry.passed ? 'ok    ' : 'FAILED'} ${program}: ${name} (${entry.ms} ms) ${JSON.stringify(entry.figures).slice(0, 600)}`)
  if (!entry.passed) console.log(entry.error)
  await save()
  return entry.passed ? entry.figures : undefined
}

/** To be called at the end: what is still open must not keep the process alive, which the report says. */
export async function finish() {
  await save()
  const resources = process.getActiveResourcesInfo().filter((kind) => !['TTYWrap', 'PipeWrap', 'FSReqCallback'].includes(kind))
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
