import { accessSync, constants, existsSync, statSync, writeFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { Command, InvalidArgumentError, Option } from 'commander'
import { TensorRTError } from '../errors'
import { version } from '../version'
import { apiBase, firstModel, type ServeTarget } from './bench_serve_client'
import { type GoodputBounds, runServeLoad, type ServeLoadOptions, type ServeLoadReport } from './bench_serve_load'
import { type Arrivals, type LengthDistribution, parseLengths } from './bench_serve_plan'
import { overviewOf, pictureOf, tableOf } from './bench_serve_report'
import { Interrupt, Progress, reportFailure } from './output'
import { parseInteger, parseNumber } from './options'

interface BenchServeOptions {
  url: URL
  model?: string
  endpoint: 'completions' | 'chat'
  requests?: number
  duration?: number
  concurrency: number[]
  rate?: number[]
  arrivals: 'poisson' | 'constant' | 'gamma'
  burstiness?: number
  input: LengthDistribution
  output: LengthDistribution
  sharedPrefix: number
  tokenIds: { min: number; max: number }
  exactLengths: boolean
  temperature: number
  body: Record<string, unknown>
  goodput?: GoodputBounds
  apiKey?: string
  header: Record<string, string>
  timeout: number
  seed: number
  warmup: number
  json?: boolean
  save?: string
  svg?: string
}

const DEFAULT_REQUESTS = 100

function parseUrl(text: string): URL {
  const url = apiBase(text)
  if (url === undefined) throw new InvalidArgumentError('expected an address such as http://localhost:8000.')
  return url
}

/** '1,2,4': numbers of a kind. */
function parseList(parse: (text: string) => number): (text: string) => number[] {
  return (text) => text.split(',').map((part) => parse(part.trim()))
}

function parseTokenIds(text: string): { min: number; max: number } {
  const match = /^(\d{1,9})-(\d{1,9})$/.exec(text.trim())
  const [min, max] = [Number(match?.[1]), Number(match?.[2])]
  if (match === null || max < min) throw new InvalidArgumentError('expected a range such as 100-999.')
  return { min, max }
}

/** 'ttft:500', one of several. */
export function parseBound(text: string, before: GoodputBounds = {}): GoodputBounds {
  const match = /^(ttft|tpot|itl|e2e):(\d+(?:\.\d+)?)$/.exec(text.trim())
  if (match === null) throw new InvalidArgumentError('expected bounds in ms such as ttft:500 itl:50 e2e:10000 tpot:40.')
  return { ...before, [match[1]!]: Number(match[2]) }
}

function parseHeader(text: string, before: Record<string, string> = {}): Record<string, string> {
  const match = /^([!#$%&'*+.^_`|~\w-]+)\s*:\s*([\t\x20-\x7e]*)$/.exec(text)
  if (match === null) throw new InvalidArgumentError("expected a header such as 'x-priority: 1'.")
  return { ...before, [match[1]!.toLowerCase()]: match[2]! }
}

function parseBody(text: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    value = undefined
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new InvalidArgumentError('expected a JSON object, such as \'{"top_p": 0.9}\'.')
  }
  return value as Record<string, unknown>
}

export function benchServeCommand(): Command {
  return new Command('serve')
    .description('Load an OpenAI-compatible server (of this package, vLLM or another) and print throughput and latencies as its users see them.')
    .requiredOption('-u, --url <url>', 'address of the server, with or without /v1', parseUrl)
    .option('-m, --model <name>', 'model to ask for (default: the first of /v1/models)')
    .addOption(
      new Option('-e, --endpoint <name>', 'completions takes prompts as token ids, of exact lengths; chat takes words, about one a token')
        .choices(['completions', 'chat'])
        .default('completions'),
    )
    .option('-r, --requests <n>', `requests of each load (default: ${DEFAULT_REQUESTS}, or as many as --duration allows)`, parseInteger(1, 10_000_000))
    .option('-d, --duration <s>', 'seconds in which requests are sent; those in flight then end', parseNumber(0.001, 86_400))
    .addOption(
      new Option('-c, --concurrency <n,...>', 'closed loop: requests in flight; several make one load each')
        .argParser(parseList(parseInteger(1, 20_000)))
        .default([16], '16'),
    )
    .option('--rate <r,...>', 'open loop: requests a second, whatever is in flight; several make one load each', parseList(parseNumber(0.001, 1e6)))
    .addOption(new Option('--arrivals <kind>', 'open loop: how requests follow each other').choices(['poisson', 'constant', 'gamma']).default('poisson'))
    .option('--burstiness <k>', 'shape of gamma arrivals: 1 is Poisson, smaller ones come in bursts (default: 0.25)', parseNumber(0.001, 1000))
    .addOption(
      new Option('-i, --input <tokens>', "prompt length: 128, a range 16-512, sharegpt, or lognormal:MEDIAN:SIGMA:MAX")
        .argParser(parseLengths('input'))
        .default({ kind: 'uniform', min: 128, max: 128 }, '128'),
    )
    .addOption(
      new Option('-o, --output <tokens>', 'output length, in the same forms')
        .argParser(parseLengths('output'))
        .default({ kind: 'uniform', min: 64, max: 64 }, '64'),
    )
    .option('--shared-prefix <share>', 'part of each prompt that is the same in all, 0 to 1', parseNumber(0, 1), 0)
    .addOption(
      new Option('--token-ids <a-b>', 'ids that prompts of completions are made of; without special tokens, below the size of the vocabulary')
        .argParser(parseTokenIds)
        .default({ min: 100, max: 999 }, '100-999'),
    )
    .option('--no-exact-lengths', 'leave ignore_eos and min_tokens out, which OpenAI itself refuses: outputs may end earlier')
    .option('-t, --temperature <t>', 'of the sampling', parseNumber(0, 100), 0)
    .option('--body <json>', 'further fields of the requests, as a JSON object', parseBody, {})
    .option('--goodput <name:ms...>', 'bounds that a good request keeps: ttft, tpot, e2e, and itl (for 99% of its gaps)', parseBound)
    .option('--api-key <key>', 'sent as a bearer token (default: OPENAI_API_KEY, where that is set)')
    .option('--header <name:value>', 'a further header; may be given again', parseHeader, {})
    .option('--timeout <s>', 'seconds for one request, after which it has failed', parseNumber(0.001, 86_400), 600)
    .option('--seed <n>', 'of prompts, lengths and arrivals', parseInteger(0, 0xffffffff), 1)
    .option('--warmup <n>', 'requests before the first measurement', parseInteger(0, 100_000), 4)
    .option('--save <file>', 'write the report as JSON')
    .option('--svg <file>', 'write a picture: distributions of one load, or curves over several')
    .option('--json', 'the report as JSON on stdout')
    .addHelpText(
      'after',
      `
TTFT is the time to the first chunk with text, ITL the time between chunks, TPOT the time after the first token by the number of
tokens after it, E2E the time to the end of the stream. Nothing is retried; failed requests are counted by kind, apart from latencies.
Ctrl-C prints what was measured until then.

Examples:
  $ node-tensorrt bench serve --url http://localhost:8000 --concurrency 1,4,16,64 --svg load.svg
  $ node-tensorrt bench serve --url http://localhost:8000 --rate 2,4,8 --duration 60 --input sharegpt --output sharegpt
  $ node-tensorrt bench serve --url http://localhost:8000 --rate 8 --goodput ttft:500 itl:50 --save report.json

Exit codes: 0 success, 1 a request failed or nothing could be measured, 2 usage, 130 interrupted.`,
    )
    .action(benchServe)
}

function arrivalsOf({ arrivals, burstiness, rate }: BenchServeOptions): Arrivals {
  const usage = (message: string): TensorRTError => new TensorRTError('ERR_INVALID_ARGUMENT', message)
  if (burstiness !== undefined && arrivals !== 'gamma') throw usage('--burstiness goes with --arrivals gamma only')
  if (arrivals !== 'poisson' && rate === undefined) throw usage('--arrivals goes with --rate only')
  if (arrivals === 'constant') return { kind: 'constant' }
  return { kind: 'gamma', shape: arrivals === 'poisson' ? 1 : (burstiness ?? 0.25) }
}

async function benchServe(options: BenchServeOptions): Promise<void> {
  const interrupt = new Interrupt()
  const progress = new Progress()
  const json = options.json === true
  try {
    const arrivals = arrivalsOf(options)
    // Now, and not when a load of an hour has been measured.
    for (const file of [options.save, options.svg]) if (file !== undefined) assertWritable(file)
    const goodput = options.goodput ?? {}
    const apiKey = options.apiKey ?? process.env['OPENAI_API_KEY']
    const headers = { ...(apiKey === undefined || apiKey === '' ? {} : { authorization: `Bearer ${apiKey}` }), ...options.header }
    const target: ServeTarget = {
      base: options.url,
      endpoint: options.endpoint,
      model: options.model ?? (await firstModel(options.url, headers, interrupt.signal)),
      headers,
      exactLengths: options.exactLengths,
      temperature: options.temperature,
      extraBody: options.body,
      timeoutMs: options.timeout * 1000,
    }
    const load: Omit<ServeLoadOptions, 'rate' | 'concurrency'> = {
      target,
      seed: options.seed,
      input: options.input,
      output: options.output,
      sharedPrefix: options.sharedPrefix,
      tokenIds: options.tokenIds,
      arrivals,
      requests: options.requests ?? (options.duration === undefined ? DEFAULT_REQUESTS : undefined),
      durationSeconds: options.duration,
      goodput,
      signal: interrupt.signal,
    }
    if (options.warmup > 0) {
      progress.update('warming up ...', true)
      const concurrency = Math.min(options.warmup, 16)
      await runServeLoad({ ...load, seed: options.seed ^ 0xffff, requests: options.warmup, durationSeconds: undefined, concurrency })
    }
    const loads = options.rate === undefined ? options.concurrency.map((concurrency) => ({ concurrency })) : options.rate.map((rate) => ({ rate, concurrency: 0 }))
    const reports: ServeLoadReport[] = []
    for (const [index, each] of loads.entries()) {
      if (interrupt.signal.aborted) break
      const started = Date.now()
      const name = 'rate' in each ? `${each.rate} requests/s` : `${each.concurrency} in flight`
      const report = await runServeLoad({
        ...load,
        ...each,
        load: index,
        onProgress: ({ done, active, outputTokens, errors }) => {
          const seconds = Math.max((Date.now() - started) / 1000, 0.001)
          progress.update(
            `${name}: ${done}${load.requests === undefined ? '' : `/${load.requests}`} requests, ${active} in flight, ` +
              `${Math.round(outputTokens / seconds)} tokens/s${errors > 0 ? `, ${errors} failed` : ''}`,
          )
        },
      })
      reports.push(report)
      progress.clear()
      if (!json) process.stdout.write(`${reports.length > 1 ? '\n' : ''}${tableOf(report, goodput)}`)
    }
    progress.clear()
    if (!json && reports.length > 1) process.stdout.write(`\n${overviewOf(reports)}`)
    finish(options, target, goodput, reports)
    if (interrupt.signal.aborted) process.exitCode = interrupt.exitCode
    else if (reports.some((report) => report.failed > 0)) process.exitCode = 1
  } catch (error) {
    progress.clear()
    if (interrupt.signal.aborted) process.exitCode = interrupt.exitCode
    else reportFailure(error, json)
  } finally {
    interrupt.dispose()
  }
}

/** @throws ERR_IO */
function assertWritable(file: string): void {
  try {
    const there = existsSync(file)
    if (there && statSync(file).isDirectory()) throw new Error('it is a folder')
    accessSync(there ? file : dirname(resolve(file)), constants.W_OK)
  } catch (cause) {
    throw unwritable(file, cause)
  }
}

function unwritable(file: string, cause: unknown): TensorRTError {
  return new TensorRTError('ERR_IO', `Cannot write ${file}: ${(cause as Error).message}`, { cause })
}

function finish(options: BenchServeOptions, target: ServeTarget, goodput: GoodputBounds, reports: ServeLoadReport[]): void {
  const whole = {
    version,
    node: process.version,
    date: new Date().toISOString(),
    url: target.base.href,
    model: target.model,
    endpoint: target.endpoint,
    input: options.input,
    output: options.output,
    sharedPrefix: options.sharedPrefix,
    exactLengths: options.exactLengths,
    temperature: options.temperature,
    body: options.body,
    arrivals: options.rate === undefined ? undefined : options.arrivals,
    burstiness: options.arrivals === 'gamma' ? (options.burstiness ?? 0.25) : undefined,
    seed: options.seed,
    goodputBoundsMs: goodput,
    loads: reports.map((report) => ({ ...report, samples: undefined })),
  }
  const text = `${JSON.stringify(whole, null, 2)}\n`
  if (options.json === true) process.stdout.write(text)
  const write = (file: string | undefined, content: () => string): void => {
    if (file === undefined) return
    try {
      writeFileSync(file, content())
    } catch (cause) {
      throw unwritable(file, cause)
    }
  }
  write(options.save, () => text)
  write(options.svg, () => pictureOf(reports, goodput, `${target.model} at ${target.base.host}`))
}
