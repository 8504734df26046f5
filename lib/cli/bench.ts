import { Command, Option } from 'commander'
import { TensorRTError } from '../errors'
import type { LLM } from '../llm'
import { version } from '../version'
import { type LoadReport, type Quantiles, runLoad } from './load_generator'
import { Interrupt, INTERRUPTED, Progress, reportFailure } from './output'
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
}

export function benchCommand(): Command {
  const command = new Command('bench')
    .description('Load the model in this process with reproducible requests and print throughput and latencies.')
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
    .option('--json', 'the report as JSON on stdout')
  return addModelOptions(command).action(bench)
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
      const report = await runLoad(llm, {
        ...load,
        onProgress: (done, tokens) => {
          const seconds = (Date.now() - started) / 1000
          progress.update(`${done}/${options.requests} requests, ${Math.round(tokens / Math.max(seconds, 0.001))} tokens/s`)
        },
      })
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
      if (json) process.stdout.write(`${JSON.stringify({ ...setting, ...report }, null, 2)}\n`)
      else print(report, `${setting.backend}: ${setting.device}`)
      if (report.failed > 0) process.exitCode = 1
    } finally {
      await llm.close()
    }
  } catch (error) {
    progress.clear()
    if (interrupt.signal.aborted) process.exitCode = INTERRUPTED
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

function print(report: LoadReport, device: string): void {
  const row = (name: string, q: Quantiles, scale = 1, digits = 2): string =>
    `${name.padEnd(22)}${[q.mean, q.p50, q.p90, q.p99, q.max].map((v) => (Number.isNaN(v) ? '-' : (v * scale).toFixed(digits)).padStart(10)).join('')}`
  const cached = report.promptTokens > 0 ? (report.cachedTokens / report.promptTokens) * 100 : 0
  process.stdout.write(
    [
      device,
      `${report.requests} requests in ${report.seconds.toFixed(2)} s` + failures(report),
      `${report.promptTokens} prompt tokens (${cached.toFixed(1)}% from the prefix cache), ${report.outputTokens} output tokens`,
      `${report.outputTokensPerSecond.toFixed(0)} output tokens/s, ${report.totalTokensPerSecond.toFixed(0)} total tokens/s, ` +
        `${report.requestsPerSecond.toFixed(2)} requests/s`,
      '',
      `${''.padEnd(22)}${['mean', 'P50', 'P90', 'P99', 'max'].map((h) => h.padStart(10)).join('')}`,
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
