/**
 * Runs the programs of this folder, one process each, and joins their reports in `<out>/runtime.json`, beside those of earlier calls for other
 * programs or pieces. A failing program stops none of the others; the exit code is 1 if one failed. Each program has its own --help.
 *
 *   node test/gpu/runtime/run.mjs [PROGRAM | PROGRAM:PIECE[,PIECE]]... [--at-once N] [options of the programs]
 *   node test/gpu/runtime/run.mjs build:flags-a build:flags-b build:caching faults:runs --at-once 4 --limit 200
 *
 * --at-once N runs N of them at the same time: for those that measure no speed. --limit is each program's own.
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'

const PROGRAMS = ['engines', 'outputs', 'api', 'build', 'overhead', 'bert', 'faults', 'loads', 'devices']
const { values, tokens } = parseArgs({ strict: false, allowPositionals: true, tokens: true, args: process.argv.slice(2), options: { out: { type: 'string' }, 'at-once': { type: 'string' } } })
const isJob = (text) => PROGRAMS.includes(text.split(':')[0])
const named = tokens.filter(({ kind, value }) => kind === 'positional' && isJob(value)).map(({ value }) => value)
const passedOn = process.argv.slice(2).filter((argument, i, all) => !named.includes(argument) && argument !== '--at-once' && all[i - 1] !== '--at-once')
const out = resolve(values.out ?? (process.env.OUT || join(import.meta.dirname, '..', '..', '..', 'build', 'gpu-report')))
mkdirSync(out, { recursive: true })

const jobs = (named.length > 0 ? named : PROGRAMS).map((job) => {
  const [program, pieces] = job.split(':')
  return { job, program, pieces, path: join(out, `${[program, ...(pieces?.split(',') ?? [])].join('-')}.json`) }
})
const joined = join(out, 'runtime.json')
// Of calls before this one for other jobs, which go on with the same report.
const earlier = existsSync(joined) ? JSON.parse(readFileSync(joined, 'utf8')).reports.filter(({ job }) => jobs.every((mine) => mine.job !== job)) : []
const reports = []
const children = new Set()
const waiting = [...jobs]
let ended = false
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) {
  process.once(signal, () => {
    ended = true
    waiting.length = 0
    for (const child of children) child.kill('SIGTERM')
  })
}

function run({ job, program, pieces, path }) {
  rmSync(path, { force: true })
  const started = Date.now()
  const args = ['--expose-gc', join(import.meta.dirname, `${program}.mjs`), ...(pieces === undefined ? [] : ['--piece', pieces]), ...passedOn]
  return new Promise((done) => {
    const child = spawn(process.execPath, args, { stdio: 'inherit' })
    children.add(child)
    child.once('close', (exitCode, signal) => {
      children.delete(child)
      // A program that died has written what it had done until then.
      const report = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : { program, checks: [] }
      reports.push({ ...report, job, exitCode, signal, wallSeconds: (Date.now() - started) / 1000 })
      const all = [...earlier, ...reports]
      const machine = all.findLast(({ machine }) => machine)?.machine
      writeFileSync(joined, `${JSON.stringify({ date: new Date().toISOString(), machine, reports: all }, null, 1)}\n`)
      done()
    })
  })
}

const worker = async () => {
  while (waiting.length > 0) await run(waiting.shift())
}
await Promise.all(Array.from({ length: Number(values['at-once'] ?? 1) }, worker))

for (const { job, exitCode, signal, checks = [], wallSeconds } of reports) {
  const failed = checks.filter(({ passed }) => !passed)
  console.log(`${job.padEnd(16)} exit ${exitCode}${signal ? `, killed by ${signal}` : ''}, ${checks.length - failed.length} passed, ${failed.length} failed, ${Math.round(wallSeconds)} s`)
  for (const { name, error } of failed) console.log(`  FAILED ${name}: ${error?.split('\n')[0]}`)
}
process.exitCode = ended || reports.some(({ exitCode }) => exitCode !== 0) ? 1 : 0
