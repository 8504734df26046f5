/**
 * Runs the programs of this folder, one process each, and joins their reports in `<out>/runtime.json`. A failing program stops none of the others;
 * the exit code is 1 if one failed.
 *
 *   node test/gpu/runtime/run.mjs [programs...] [options of support/target.mjs]
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'

const PROGRAMS = ['engines', 'outputs', 'api', 'build', 'overhead', 'bert', 'faults', 'loads']
const LIMIT_MS = 500_000
const { values, positionals } = parseArgs({ strict: false, allowPositionals: true, args: process.argv.slice(2), options: { out: { type: 'string' } } })
const named = positionals.filter((name) => PROGRAMS.includes(name))
const passedOn = process.argv.slice(2).filter((argument) => !named.includes(argument))
const out = resolve(values.out ?? (process.env.OUT || join(import.meta.dirname, '..', '..', '..', 'build', 'gpu-report')))
mkdirSync(out, { recursive: true })

const reports = []
for (const program of named.length > 0 ? named : PROGRAMS) {
  const file = join(import.meta.dirname, `${program}.mjs`)
  const path = join(out, `${program}.json`)
  rmSync(path, { force: true })
  const started = Date.now()
  const { status, signal } = spawnSync(process.execPath, ['--expose-gc', file, ...passedOn], { stdio: 'inherit', timeout: LIMIT_MS, killSignal: 'SIGKILL' })
  // A program that died has written what it had done until then.
  const report = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : { program, checks: [] }
  reports.push({ ...report, exitCode: status, signal, wallSeconds: (Date.now() - started) / 1000 })
  rmSync(path, { force: true })
  writeFileSync(join(out, 'runtime.json'), `${JSON.stringify({ date: new Date().toISOString(), machine: reports.find(({ machine }) => machine)?.machine, reports }, null, 1)}\n`)
}
for (const { program, exitCode, signal, checks = [], wallSeconds } of reports) {
  const failed = checks.filter(({ passed }) => !passed)
  console.log(`${program.padEnd(10)} exit ${exitCode}${signal ? `, killed by ${signal}` : ''}, ${checks.length - failed.length} passed, ${failed.length} failed, ${Math.round(wallSeconds)} s`)
  for (const { name, error } of failed) console.log(`  FAILED ${name}: ${error?.split('\n')[0]}`)
}
process.exitCode = reports.some(({ exitCode }) => exitCode !== 0) ? 1 : 0
