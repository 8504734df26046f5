import { Command, Option } from 'commander'
import { TensorRTError } from '../errors'
import type { LLM, LLMProfile } from '../llm'
import { version } from '../version'
import { benchServeCommand } from './bench_serve'
import { type LoadReport, type Quantiles, runLoad } from './load_generator'
import { Interrupt, Progress, reportFailure } from './output'
import { addModelOptions, loadModel, type ModelOptions, parseInteger, parseNumber, parseRange } from './options'

interface BenchOptions extends ModelOptions {
  requests: number
  concurrency: number
  rate?: number
  input: { min: number; max: number }
  output: { min: number; max: number }
  sharedPrefix: number
  seed: number
  warmup: number
  profile?: boolean
}

export function benchCommand(): Command {
  const command = new Command('bench')
    .description('Load the model in this process, or a server, with reproducible requests and print throughput and latencies.')
    // An option behind `serve` is that command's.
    .enablePositionalOptions()
    .option('-r, --requests <n>', 'requests in all', parseInteger(1, 10_000_000), 64)
    .option('-c, --concurrency <n>', 'requests in flight', parseInteger(1, 100_000), 16)
    .option('--rate <r>', 'requests a second, Poisson arrivals, instead of --concurrency', parseNumber(0.001))
    .addOption(
      new Option('-i, --input <tokens>', 'prompt length, or a range such as 16-512')
        .argParser(parseRange)
        .default({ min: 128, max: 128 }, '128'),
    )
    .addOption(
      new Option('-o, --output <tokens>', 'output length, or a range').argParser(parseRange).default({ min: 64, max: 64 }, '64'),
    )
    .option('--shared-prefix <share>', 'part of each prompt that is the same in all, 0 to 1', parseNumber(0, 1), 0)
    .option('--seed <n>', 'of the random prompts and lengths', parseInteger(0), 1)
    .option('--warmup <n>', 'requests before the measurement', parseInteger(0), 4)
    .option('--profile', 'also print where the time of the steps went')
    .option('--json', 'the report as JSON on stdout')
  return addModelOptions(command).action(bench).addCommand(benchServeCommand())
}

async function bench(options: BenchOptions): Promise<void> {
  const interrupt = new Interrupt()
  const progress = new Progress()
  const json = options.json === true
  try {
    const llm = await loadModel(options, interrupt.signal)
    try {
      requireRoom(llm, options)
      const load = {
        requests: options.requests,
        concurrency: options.concurrency,
        ...(options.rate === undefined ? {} : { rate: options.rate }),
        inputTokens: options.input,
        outputTokens: options.output,
        sharedPrefix: options.sharedPrefix,
        seed: options.seed,
        signal: interrupt.signal,
      }
      if (options.warmup > 0) {
        const { rate: _, ...closed } = load
        await runLoad(llm, { ...closed, requests: options.warmup, seed: options.seed + 1 })
      }
      const started = Date.now()
      const running = runLoad(llm, {
        ...load,
        onProgress: (done, tokens) => {
          const seconds = (Date.now() - started) / 1000
          progress.update(`${done}/${options.requests} requests, ${Math.round(tokens / Math.max(seconds, 0.001))} tokens/s`)
        },
      })
      // An engine that ended has told its requests; their failures are the report.
      const profiling = options.profile === true ? llm.profile({ until: running }).catch(() => undefined) : undefined
      const report = await running
      const profile = await profiling
      progress.clear()
      const setting = {
        version,
        node: process.version,
        model: options.model,
        backend: llm.backend,
        device: llm.info.device,
        date: new Date().toISOString(),
        concurrency: options.rate === undefined ? options.concurrency : undefined,
        rate: options.rate,
        inputTokens: options.input,
        outputTokens: options.output,
        sharedPrefix: options.sharedPrefix,
        prefixCache: options.prefixCache,
        seed: options.seed,
      }
      if (json) process.stdout.write(`${JSON.stringify({ ...setting, ...report, profile }, null, 2)}\n`)
      else {
        print(report, `${setting.backend}: ${setting.device}`)
        if (profile !== undefined) printProfile(profile)
      }
      if (report.failed > 0) process.exitCode = 1
    } finally {
      await llm.close()
    }
  } catch (error) {
    progress.clear()
    if (interrupt.signal.aborted) process.exitCode = interrupt.exitCode
    else reportFailure(error, json)
  } finally {
    interrupt.dispose()
  }
}

/** Longer requests would be refused, or cut short, and the figures be those of another load. */
function requireRoom(llm: LLM, { input, output }: BenchOptions): void {
  const { maxPositions, numPages, pageSize } = llm.info
  const room = Math.min(maxPositions, numPages * pageSize + 1)
  if (input.max + output.max <= room) return
  throw new TensorRTError(
    'ERR_INVALID_ARGUMENT',
    `Prompts of up to ${input.max} and outputs of up to ${output.max} tokens do not fit into ${room}, ` +
      (room === maxPositions ? "the model's context" : 'the whole KV cache'),
    { hint: 'lower --input or --output' },
  )
}

const HEADER = `${''.padEnd(22)}${['mean', 'P50', 'P90', 'P99', 'max'].map((h) => h.padStart(10)).join('')}`

function row(name: string, q: Quantiles, scale = 1, digits = 2): string {
  const values = [q.mean, q.p50, q.p90, q.p99, q.max]
  return `${name.padEnd(22)}${values.map((v) => (Number.isNaN(v) ? '-' : (v * scale).toFixed(digits)).padStart(10)).join('')}`
}

function printProfile(profile: LLMProfile): void {
  const { shares, perStep, decodeSteps, prefillSteps, eventLoop } = profile
  const percent = (share: number): string => `${(share * 100).toFixed(1)}%`
  process.stdout.write(
    [
      '',
      `${profile.steps} steps in ${(profile.workMs / 1000).toFixed(2)} s: ${percent(shares.run)} run, ${percent(shares.gap)} gaps; ` +
        `host ${percent(shares.host)}, of it the scheduler ${percent(shares.scheduler)}`,
      `event loop busy ${percent(eventLoop.utilisation)} of ${(profile.durationMs / 1000).toFixed(2)} s`,
      '',
      HEADER,
      row(`decode steps (${decodeSteps.steps}), ms`, decodeSteps.runUs, 1e-3),
      row(`prefill steps (${prefillSteps.steps}), ms`, prefillSteps.runUs, 1e-3),
      row('queue, ms', perStep.queueUs, 1e-3),
      row('gap, us', perStep.gapUs, 1, 1),
      row('plan, us', perStep.planUs, 1, 1),
      row('pack, us', perStep.packUs, 1, 1),
      row('submit, us', perStep.submitUs, 1, 1),
      row('account, us', perStep.completeUs, 1, 1),
      row('hand out, us', perStep.emitUs, 1, 1),
      row('prefill rows', perStep.prefillRows, 1, 1),
      row('decode rows', perStep.decodeRows, 1, 1),
      row('KV pages used, %', perStep.kvPagesUsed, 100, 1),
      row('event loop delay, ms', eventLoop.delayMs),
      '',
    ].join('\n'),
  )
}

function print(report: LoadReport, device: string): void {
  const cached = report.promptTokens > 0 ? (report.cachedTokens / report.promptTokens) * 100 : 0
  process.stdout.write(
    [
      device,
      `${report.requests} requests in ${report.seconds.toFixed(2)} s` + failures(report),
      `${report.promptTokens} prompt tokens (${cached.toFixed(1)}% from the prefix cache), ${report.outputTokens} output tokens`,
      `${report.outputTokensPerSecond.toFixed(0)} output tokens/s, ${report.totalTokensPerSecond.toFixed(0)} total tokens/s, ` +
        `${report.requestsPerSecond.toFixed(2)} requests/s`,
      '',
      HEADER,
      row('TTFT, ms', report.ttftMs),
      row('inter-token, ms', report.interTokenMs),
      row('request, ms', report.latencyMs),
      row('KV pages used, %', report.kvPagesUsed, 100, 1),
      row('KV utilisation, %', report.kvUtilisation, 100, 1),
      '',
    ].join('\n'),
  )
}

function failures({ failed, errors }: LoadReport): string {
  if (failed === 0) return ''
  const reasons = Object.entries(errors).map(([code, count]) => `${code} ${count}`)
  return `, ${failed} FAILED (${reasons.join(', ')})`
}
