/**
 * Runs the verification programs, one process each, and joins their reports in `<out>/report.json`. A failing program stops none of the
 * others; the exit code is 1 if one failed.
 *
 *   node test/gpu/run.mjs [programs...] [options of support/target.mjs]
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { machine } from './support/report.mjs'
import { facts, outFolder } from './support/target.mjs'

const PROGRAMS = ['conformance', 'logits', 'sampling', 'masks', 'streams', 'memory', 'nvml', 'fault', 'verify', 'profile']
const { positionals } = parseArgs({ strict: false, allowPositionals: true, args: process.argv.slice(2) })
const named = positionals.filter((name) => PROGRAMS.includes(name))
const passedOn = process.argv.slice(2).filter((argument) => !named.includes(argument))

const reports = []
for (const program of named.length > 0 ? named : PROGRAMS) {
  const file = join(import.meta.dirname, `${program}.mjs`)
  if (!existsSync(file)) {
    reports.push({ program, exitCode: null, skipped: `there is no ${program}.mjs; support/bundle_conformance.mjs makes it` })
    continue
  }
  const path = join(outFolder, `${program}.json`)
  rmSync(path, { force: true })
  const { status, signal } = spawnSync(process.execPath, [file, ...passedOn], { stdio: 'inherit', timeout: 400_000, killSignal: 'SIGKILL' })
  // A program that died has written none.
  reports.push(existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : { program, exitCode: status, signal, tests: [], measurements: {} })
  rmSync(path, { force: true })
}
const failed = reports.filter(({ exitCode }) => exitCode !== 0 && exitCode !== null)
writeFileSync(join(outFolder, 'report.json'), `${JSON.stringify({ machine: machine(), facts, reports }, null, 1)}\n`)
for (const { program, exitCode, signal, skipped, tests = [] } of reports) {
  const count = (passes) => tests.filter((test) => test.skipped === undefined && test.passed === passes).length
  const died = signal ? `, killed by ${signal}` : ''
  console.log(`${program.padEnd(12)} ${skipped ?? `exit ${exitCode}${died}, ${count(true)} passed, ${count(false)} failed`}`)
  for (const { name, passed, error } of tests) if (passed === false) console.log(`  FAILED ${name}: ${error?.split('\n')[0]}`)
}
process.exitCode = failed.length > 0 ? 1 : 0
