/**
 * Joins what test/gpu/runtime/*.mjs and torch_bert.py measured on one machine into `docs/benchmarks/runtime-NAME.json`, draws pictures, and
 * prints tables.
 *
 *   npx tsx bench/gpu/runtime_report.ts --name h200 [--out docs/benchmarks] FOLDER...
 *
 * A FOLDER holds the JSON files of a run, of which all are kept; pieces of a program (`bert-rate-4.json`) count as one. Tables and pictures are of the last run that has the program; a check counts as
 * it ended last.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Bar, writeBars } from '../picture'

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: { out: { type: 'string', default: join(__dirname, '..', '..', 'docs', 'benchmarks') }, name: { type: 'string', default: 'gpu' } },
})
const PROGRAMS = ['engines', 'outputs', 'api', 'build', 'overhead', 'bert', 'loads', 'faults', 'devices'] as const

interface Check {
  name: string
  passed: boolean
  ms: number
  error?: string
  figures: Record<string, unknown>
}
interface ProgramReport {
  program: string
  date: string
  machine: Record<string, unknown>
  checks: Check[]
}
interface Latency {
  p50: number
  p99: number
}
interface Load {
  best: { offered: number; p50: number; p99: number } | null
}
interface Torch {
  eager?: { latencyMs?: Latency; load?: Load }
  compiled?: { latencyMs?: Latency; load?: Load }
}

function read<T>(path: string): T | undefined {
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as T) : undefined
}

/** What a program wrote, whole and in pieces, oldest first. */
function readProgram(folder: string, program: string): ProgramReport[] {
  const names = readdirSync(folder).filter((name) => name === `${program}.json` || (name.startsWith(`${program}-`) && name.endsWith('.json')))
  return names.flatMap((name) => read<ProgramReport>(join(folder, name)) ?? []).sort((a, b) => a.date.localeCompare(b.date))
}

/** One report of several: of a check that ran twice, the last one counts. */
function joined(reports: ProgramReport[]): ProgramReport[] {
  const last = reports.at(-1)
  if (last === undefined) return []
  const checks = new Map(reports.flatMap((report) => report.checks.map((check) => [check.name, check] as const)))
  return [{ ...last, checks: [...checks.values()] }]
}

const runs = positionals.map((folder) => ({
  reports: PROGRAMS.flatMap((program) => joined(readProgram(folder, program))),
  torch: read<Torch>(join(folder, 'torch.json')),
}))
const lastWith = (program: string): (typeof runs)[number] | undefined => runs.findLast(({ reports }) => reports.some((report) => report.program === program))
/** Only what was measured in the same run compares. */
const torch = lastWith('bert')?.torch
const checksOf = (program: string): Check[] => lastWith(program)?.reports.find((report) => report.program === program)?.checks ?? []
const table = (head: string[], rows: (string | number)[][]): string =>
  [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')
const digits = (value: number, count = 3): string => value.toLocaleString('en-US', { maximumSignificantDigits: count })

function latencies(): { label: string; latency: Latency }[] {
  const ours = checksOf('bert').flatMap(({ name, figures }) => {
    const latency = figures.latencyMs as Latency | undefined
    return name.startsWith('latency') && latency !== undefined ? [{ label: name.replace(/^.*: /, ''), latency }] : []
  })
  const theirs = (['eager', 'compiled'] as const).flatMap((mode) => {
    const latency = torch?.[mode]?.latencyMs
    return latency === undefined ? [] : [{ label: `torch ${mode}`, latency }]
  })
  return [...ours, ...theirs]
}

function rates(): { label: string; best: NonNullable<Load['best']> }[] {
  const ours = checksOf('bert').flatMap(({ name, figures }) => {
    const { best } = figures as unknown as Load
    return name.startsWith('highest') && best != null ? [{ label: name.replace(/^.*: /, ''), best }] : []
  })
  const theirs = (['eager', 'compiled'] as const).flatMap((mode) => {
    const best = torch?.[mode]?.load?.best
    return best == null ? [] : [{ label: `torch ${mode}, batches up to 128`, best }]
  })
  return [...ours, ...theirs]
}

interface Overhead {
  bare: { p50: number; graphP50: number; perSecond: number }
  sessions: { spinUs: string; extraUs: number; throughputRatio: number }[]
}

async function main(): Promise<void> {
  const all = runs.flatMap(({ reports }) => reports)
  if (all.length === 0) throw new Error(`no reports in ${positionals.join(', ')}`)
  mkdirSync(args.out, { recursive: true })
  const { machine, date } = all.at(-1)!
  const day = date.slice(0, 10)
  writeFileSync(join(args.out, `runtime-${args.name}.json`), `${JSON.stringify({ machine, date, runs }, null, 1)}\n`)
  const subtitle = `${String(machine.gpu)}, ${day}`

  const latency = latencies()
  const rate = rates()
  if (latency.length > 0) {
    const bars = latency.flatMap(({ label, latency: { p50, p99 } }): Bar[] => [
      { panel: 'P50 at batch 1, ms', label, value: p50 },
      { panel: 'P99 at batch 1, ms', label, value: p99 },
    ])
    await writeBars(join(args.out, `runtime-${args.name}-latency.svg`), 'BERT-base shape, 128 tokens, float16: one request at a time', subtitle, bars)
    console.log(`${table(['', 'P50 ms', 'P99 ms', 'P99 / P50'], latency.map(({ label, latency: { p50, p99 } }) => [label, digits(p50), digits(p99), digits(p99 / p50)]))}\n`)
  }
  if (rate.length > 0) {
    const bars = rate.map(({ label, best }): Bar => ({ panel: 'highest rate of Poisson arrivals with P99 <= 100 ms, requests/s', label, value: best.offered }))
    await writeBars(join(args.out, `runtime-${args.name}-rate.svg`), 'BERT-base shape, 128 tokens, float16: load', subtitle, bars)
    console.log(`${table(['', 'requests/s', 'P50 ms', 'P99 ms'], rate.map(({ label, best }) => [label, digits(best.offered), digits(best.p50), digits(best.p99)]))}\n`)
  }
  const overheads = checksOf('overhead').filter(({ name, figures }) => name.includes('at most') && figures.bare !== undefined)
  const rows = overheads.flatMap(({ name, figures }) => {
    const { bare, sessions } = figures as unknown as Overhead
    return sessions.map(({ spinUs, extraUs, throughputRatio }) => [
      name.replace(/:.*/, ''), spinUs, digits(bare.p50 * 1000), digits(bare.graphP50 * 1000), digits(extraUs), digits(throughputRatio),
    ])
  })
  if (rows.length > 0) console.log(`${table(['plan', 'spinUs', 'bare loop P50 µs', 'as a graph µs', 'session: µs more', 'throughput, 8 in flight'], rows)}\n`)
  const last = new Map(all.flatMap(({ program, checks }) => checks.map((check) => [`${program}: ${check.name}`, check] as const)))
  const failed = [...last].filter(([, { passed }]) => !passed).map(([name, { error }]) => `${name}: ${error?.split('\n')[0] ?? ''}`)
  console.log(failed.length === 0 ? 'All checks passed.' : `Failed:\n${failed.join('\n')}`)
}

main().catch((error: unknown) => {
  console.error(error)
  process.exitCode = 1
})
