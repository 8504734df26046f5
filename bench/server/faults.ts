/**
 * Ten minutes of load on a server whose steps fail, whose backend dies in every way and comes back, and whose clients read slowly or leave:
 * how many requests are answered with exactly what the same prompt gives alone, without faults, and what becomes of pages and memory.
 *
 *     npx tsx bench/server/faults.ts [--seconds 600] [--streams 16] [--retryable 4] [--fatal 240] [--death 15] [--seed 1] [--json <file>]
 *
 * `--retryable`, `--fatal`, `--death`: seconds from one to the next, on average. What is well-formed is all but the requests whose client leaves.
 * A step that fails for good ends the requests in it with 500, by contract, so up to `--streams` of them each time. The server is this process,
 * the clients have one of their own. Writes docs/benchmarks/server-faults.json, or --json.
 */
import { fork } from 'node:child_process'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { type FaultCounts, type FaultLoad, runFaultLoad } from '../../test/fault/fault_load'
import { knownOutputs, startFaultyServer } from '../../test/fault/faulty_server'
import { commandOf, describeMachine, writeReport } from '../machine'
import { quantile } from './simulation'

const { values: flags } = parseArgs({
  options: {
    seconds: { type: 'string', default: '600' },
    streams: { type: 'string', default: '16' },
    retryable: { type: 'string', default: '4' },
    fatal: { type: 'string', default: '240' },
    death: { type: 'string', default: '15' },
    seed: { type: 'string', default: '1' },
    json: { type: 'string', default: join(__dirname, '..', '..', 'docs', 'benchmarks', 'server-faults.json') },
    client: { type: 'boolean' },
  },
})

const SAMPLE_MS = 5000
/** Far more than a step of this model takes on a busy machine. */
const STEP_TIMEOUT_MS = 2000
const MIB = 2 ** 20

/** As it is sent to the process of the clients. */
type Load = Omit<FaultLoad, 'more'> & { seconds: number }

function drive(load: Load): Promise<FaultCounts> {
  return new Promise((resolve, reject) => {
    const child = fork(__filename, ['--client'], { execArgv: process.execArgv })
    child.once('message', (counts) => resolve(counts as FaultCounts))
    child.once('error', reject)
    child.once('exit', (code) => reject(new Error(`The clients ended with ${code}`)))
    child.send(load)
  })
}

/** Medians of the quarters of the run; what is loaded, compiled and pooled comes in the first. */
function quarters(samples: readonly number[]): number[] {
  const size = Math.floor(samples.length / 4)
  return [0, 1, 2, 3].map((quarter) => Math.round(quantile(samples.slice(quarter * size, (quarter + 1) * size), 0.5)))
}

async function main(): Promise<void> {
  if (flags.client === true) {
    process.once('message', ({ seconds, ...load }: Load) => {
      const end = performance.now() + seconds * 1000
      void runFaultLoad({ ...load, more: () => performance.now() < end }).then((counts) => process.send!(counts, () => process.exit(0)))
    })
    return
  }
  const [seconds, streams, retryable, fatal, death, seed] = [flags.seconds, flags.streams, flags.retryable, flags.fatal, flags.death, flags.seed].map(Number) as [
    number, number, number, number, number, number,
  ]
  const known = await knownOutputs(64, seed)
  const faulty = await startFaultyServer({ unit: 'seconds', retryable, fatal, death }, { maxSlots: streams }, STEP_TIMEOUT_MS)
  const { llm, injected } = faulty
  const rssMiB: number[] = []
  const sampler = setInterval(() => rssMiB.push(process.memoryUsage.rss() / MIB), SAMPLE_MS)
  const delay = monitorEventLoopDelay({ resolution: 10 })
  delay.enable()
  const progress = setInterval(() => process.stderr.write(`${JSON.stringify({ ...injected, rssMiB: Math.round(rssMiB.at(-1) ?? 0) })}\n`), 30_000)
  const counts = await drive({ url: faulty.url, seconds, streams, seed, known })
  delay.disable()
  clearInterval(sampler)
  clearInterval(progress)
  // Who left last may still be in a step.
  for (let i = 0; i < 100 && llm.stats().kv.usedPages > 0; i++) await new Promise((resolve) => setTimeout(resolve, 50))
  let pages = 'all accounted for'
  try {
    llm.check()
  } catch (error) {
    pages = String(error)
  }
  const stats = llm.stats()
  const warned: Record<string, number> = {}
  for (const code of faulty.warnings) warned[code] = (warned[code] ?? 0) + 1
  const share = (part: number): number => Math.round((part / counts.wellFormed) * 1e6) / 1e6
  const report = {
    command: `${commandOf(__filename)} --seconds ${seconds} --streams ${streams} --retryable ${retryable} --fatal ${fatal} --death ${death} --seed ${seed}`,
    machine: describeMachine(),
    ...counts,
    shareCorrect: share(counts.correct),
    shareCorrectAfterRetries: share(counts.correctAfterRetries),
    injected,
    engine: {
      failovers: stats.failovers,
      restarts: stats.restarts,
      stepFailures: stats.steps.failed,
      retries: stats.retries,
      generatedTokens: stats.tokens.generated,
      warned,
    },
    serverFailures: faulty.failures.length,
    afterwards: { usedPages: stats.kv.usedPages, running: stats.running, waiting: stats.waiting, pending: faulty.server.pending, pages },
    rssMiBByQuarter: quarters(rssMiB),
    eventLoopDelayMs: { p99: delay.percentile(99) / 1e6, max: delay.max / 1e6 },
  }
  await faulty.close()
  writeReport(flags.json, report)
  console.table({ wellFormed: counts.wellFormed, correct: counts.correct, shareCorrect: report.shareCorrect, afterRetries: report.shareCorrectAfterRetries, left: counts.left, slow: counts.slow })
  console.log(JSON.stringify({ otherwise: counts.otherwise, injected, rssMiBByQuarter: report.rssMiBByQuarter }))
  process.exitCode = report.shareCorrect >= 0.999 && stats.kv.usedPages === 0 ? 0 : 1
}

void main()
