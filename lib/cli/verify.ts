import { readFile } from 'node:fs/promises'
import { Command } from 'commander'
import { TensorRTError } from '../errors'
import { saveReferences, type SaveReferencesOptions, type VerificationReport, verifyEngine, type VerifyOptions, type VerifyProgress } from '../llm'
import type { VerificationLimits } from '../runtime'
import { runLong } from './output'
import { parseInteger, parseNumber, resolveModel } from './options'

interface VerifyCliOptions {
  prompts?: string
  references?: string
  saveReferences?: string
  maxTokens?: number
  seed?: number
  limitMean?: number
  limitMax?: number
  limitLogits?: number
  limitTop1?: number
  dryRun?: boolean
  device?: number
  libraryPath?: string
  weights?: string
  threads?: number
  json?: boolean
}

export function verifyCommand(): Command {
  return new Command('verify')
    .description("Compare a built engine's logits with those of the CPU backend, and mark the engine as fit or unfit.")
    .argument('<engine>', 'engine folder; with --save-references also a model folder')
    .option('--prompts <file>', 'JSON Lines, each a text, {"prompt": text} or {"tokens": [...]} (default: random tokens)')
    .option('--references <file>', 'compare with stored references instead of the CPU backend')
    .option('--save-references <file>', 'only compute references on the CPU, and keep them there; needs no GPU')
    .option('-n, --max-tokens <n>', 'tokens that the reference generates after each prompt (default: 16)', parseInteger(1, 4096))
    .option('-s, --seed <n>', 'of the random prompts (default: 1)', parseInteger(0))
    .option('--limit-mean <d>', 'mean difference of log-probabilities (default: fp16 0.005, bf16 0.02)', parseNumber(0))
    .option('--limit-max <d>', 'largest difference of log-probabilities (default: fp16 0.1, bf16 0.5, fp32 0.002)', parseNumber(0))
    .option('--limit-logits <d>', 'largest difference of logits (default: fp32 0.001)', parseNumber(0))
    .option('--limit-top1 <share>', 'least share of positions with the same best token', parseNumber(0, 1))
    .option('--dry-run', 'leave engine.json as it is')
    .option('--device <n>', 'number of the GPU', parseInteger(0, 1023))
    .option('--library-path <path>', 'libnvinfer, or the folder that has it')
    .option('--weights <folder>', 'where the weights are (default: where the build found them)')
    .option('--threads <n>', 'CPU backend: threads (default: all that the process may use)', parseInteger(1, 1024))
    .option('--json', 'the report as JSON on stdout')
    .addHelpText('after', '\nExit code 0 when the engine is fit, 1 otherwise. An unfit engine is not loaded any more, unless --allow-unfit is given.')
    .action(verify)
}

async function verify(folder: string, options: VerifyCliOptions, command: Command): Promise<void> {
  const { saveReferences: file, references } = options
  if (file !== undefined && references !== undefined) command.error("error: option '--save-references' does not go with '--references'")
  const json = options.json === true
  let latest: VerifyProgress | undefined
  const status = (seconds: string): string => {
    if (latest === undefined || latest.phase === 'loading') return `loading ... ${seconds}`
    return `${latest.phase}, prompt ${latest.done + 1} of ${latest.prompts} ... ${seconds}`
  }
  await runLong(json, status, async (signal) => {
    const path = resolveModel(folder)
    const common: SaveReferencesOptions = { signal, onProgress: (now) => (latest = now) }
    if (options.prompts !== undefined) common.prompts = await readPrompts(options.prompts)
    for (const name of ['maxTokens', 'seed', 'threads'] as const) if (options[name] !== undefined) common[name] = options[name]
    if (options.weights !== undefined) common.weights = options.weights
    if (file !== undefined) {
      const prompts = await saveReferences(path, file, common)
      return json ? `${JSON.stringify({ file, prompts })}\n` : `${file}: references of ${prompts} prompts\n`
    }
    const report = await verifyEngine(path, { ...common, ...engineOptions(options) })
    if (!report.verification.fit) process.exitCode = 1
    return json ? `${JSON.stringify(report, null, 2)}\n` : describe(report)
  })
}

function engineOptions(options: VerifyCliOptions): VerifyOptions {
  const limits: VerificationLimits = {}
  if (options.limitMean !== undefined) limits.meanDifference = options.limitMean
  if (options.limitMax !== undefined) limits.maxDifference = options.limitMax
  if (options.limitLogits !== undefined) limits.maxLogitDifference = options.limitLogits
  if (options.limitTop1 !== undefined) limits.top1Agreement = options.limitTop1
  const engine: VerifyOptions = { limits, write: options.dryRun !== true }
  if (options.references !== undefined) engine.references = options.references
  if (options.device !== undefined) engine.device = options.device
  if (options.libraryPath !== undefined) engine.libraryPath = options.libraryPath
  return engine
}

/** @throws (as a rejection) ERR_IO; ERR_INVALID_ARGUMENT, naming the line */
async function readPrompts(file: string): Promise<(string | number[])[]> {
  const text = await readFile(file, 'utf8').catch((cause: Error) => {
    throw new TensorRTError('ERR_IO', `Reading ${file} failed: ${cause.message}`, { cause })
  })
  const prompts: (string | number[])[] = []
  for (const [i, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue
    prompts.push(toPrompt(line, `${file}, line ${i + 1}`))
  }
  if (prompts.length === 0) throw new TensorRTError('ERR_INVALID_ARGUMENT', `${file} holds no prompts`)
  return prompts
}

function toPrompt(line: string, where: string): string | number[] {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (cause) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} is no valid JSON: ${(cause as Error).message}`, { cause })
  }
  if (typeof value === 'string') return value
  const { prompt, tokens } = (value ?? {}) as { prompt?: unknown; tokens?: unknown }
  if (typeof prompt === 'string' && tokens === undefined) return prompt
  if (Array.isArray(tokens) && prompt === undefined) return tokens as number[]
  throw new TensorRTError('ERR_INVALID_ARGUMENT', `${where} must be a text, {"prompt": text} or {"tokens": [...]}`)
}

function describe(report: VerificationReport): string {
  const { verification, excesses, worst, failure } = report
  const { limits, prompts, positions, meanDifference, maxDifference, maxLogitDifference, top1Agreement, fit } = verification
  const number = (value: number): string => String(Number(value.toPrecision(3)))
  const limited = (value: number, limit: number | undefined): string => `${number(value)}${limit === undefined ? '' : ` (limit ${number(limit)})`}`
  const lines = [
    report.path,
    `  ${report.device}, against ${report.reference}`,
    `  ${prompts} prompts, ${positions} positions, ${report.seconds.toFixed(1)} s`,
    `  difference of log-probabilities: mean ${limited(meanDifference, limits.meanDifference)}, largest ${limited(maxDifference, limits.maxDifference)}`,
    `  difference of logits: largest ${limited(maxLogitDifference, limits.maxLogitDifference)}`,
    `  same best token: ${(top1Agreement * 100).toFixed(1)}%${limits.top1Agreement === undefined ? '' : ` (limit ${limits.top1Agreement * 100}%)`}`,
  ]
  if (worst !== undefined) {
    const at = `prompt ${worst.prompt}, position ${worst.position}, token ${worst.token}`
    lines.push(`  largest at ${at}: reference ${worst.reference.toFixed(4)}, engine ${worst.engine.toFixed(4)}`)
  }
  if (failure !== undefined) lines.push(`  a step failed: ${failure}`)
  lines.push(fit ? 'fit' : `UNFIT: ${excesses.join('; ')}`)
  return `${lines.join('\n')}\n`
}
