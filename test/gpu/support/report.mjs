/** Named checks under node:test whose outcomes, and what they measured, end in `<out>/<program>.json`. */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import { facts, options, outFolder, skip, version } from './target.mjs'

const program = basename(process.argv[1], '.mjs')
const tests = []
const measurements = {}
const startedAt = new Date()

/** Notes a figure. Names that repeat overwrite. */
export function record(name, value) {
  measurements[name] = value
  console.log(`# ${name}: ${JSON.stringify(value)}`)
}

/** A test that is skipped, with the reason, where there is nothing to run on. Tests run one after another. */
export function verify(name, { skip: own = skip, timeout = 180_000 } = {}, body) {
  reportAtExit()
  test(name, { skip: own, timeout }, async (context) => {
    const started = performance.now()
    const entry = { name, passed: false, ms: 0 }
    tests.push(entry)
    try {
      await body(context)
      entry.passed = true
    } catch (error) {
      entry.error = String(error?.stack ?? error).slice(0, 2000)
      throw error
    } finally {
      entry.ms = Math.round(performance.now() - started)
    }
  })
  if (own !== false) tests.push({ name, skipped: own })
}

/** Of the first GPU that this process may use: others may be at work for somebody else. */
function nvidiaSmi(query) {
  const visible = process.env.CUDA_VISIBLE_DEVICES
  try {
    return execFileSync('nvidia-smi', [...(visible ? ['-i', visible.split(',')[0]] : []), `--query-gpu=${query}`, '--format=csv,noheader,nounits'], { encoding: 'utf8' }).trim()
  } catch {
    return undefined
  }
}

/** Device memory in use on it, in MiB; undefined where there is no GPU. */
export function deviceMemoryMiB() {
  const used = nvidiaSmi('memory.used')
  return used === undefined ? undefined : Number(used.split('\n')[0])
}

export function machine() {
  const [gpu, driver, memoryMiB] = nvidiaSmi('name,driver_version,memory.total')?.split(', ') ?? []
  return {
    gpu,
    driver,
    gpuMemoryMiB: memoryMiB && Number(memoryMiB),
    tensorrt: facts?.libraryVersion,
    cpu: cpus()[0]?.model,
    node: process.version,
    package: version,
  }
}

let reporting = options.child !== undefined
/** Writes the report when the process ends, however its tests went. */
function reportAtExit() {
  if (reporting) return
  reporting = true
  process.on('exit', (exitCode) => {
    const report = {
      program,
      date: startedAt.toISOString(),
      seconds: (Date.now() - startedAt) / 1000,
      command: ['node', ...process.argv.slice(1).map((argument) => argument.replace(`${process.cwd()}/`, ''))].join(' '),
      backend: options.backend,
      machine: machine(),
      exitCode,
      tests,
      measurements,
    }
    writeFileSync(join(outFolder, `${program}.json`), `${JSON.stringify(report, null, 1)}\n`)
  })
}
