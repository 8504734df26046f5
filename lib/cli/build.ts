import { Command, Option } from 'commander'
import { buildLLMEngine, type BuildEngineOptions, type BuildProgress } from '../llm'
import { formatBytes, Interrupt, INTERRUPTED, Progress, reportFailure } from './output'
import { parseBytes, parseInteger, resolveModel } from './options'

interface BuildOptions {
  output: string
  precision?: 'bf16' | 'fp16' | 'fp32'
  maxStepTokens?: number
  optimizationLevel?: number
  workspace?: number
  timingCache?: string
  device?: number
  libraryPath?: string
  force?: boolean
  json?: boolean
}

export function buildCommand(): Command {
  return new Command('build')
    .description('Build an engine of a model for the GPU of this machine.')
    .argument('<model>', 'model folder in Hugging Face layout')
    .requiredOption('-o, --output <folder>', 'the engine folder to make; the weights stay where they are')
    .addOption(
      new Option('-p, --precision <type>', "what it computes in (default: the checkpoint's 16-bit type, else bf16)").choices([
        'bf16',
        'fp16',
        'fp32',
      ]),
    )
    .option('--max-step-tokens <n>', 'most tokens in one step (default: 8192)', parseInteger(1, 1_048_576))
    .option('--optimization-level <n>', "how long TensorRT looks for fast kernels (default: TensorRT's own)", parseInteger(0, 5))
    .option('--workspace <bytes>', 'most scratch memory for one kernel, such as 512M', parseBytes)
    .option('--timing-cache <file>', "keep kernels' timings there: the next build is faster")
    .option('--device <n>', 'number of the GPU', parseInteger(0, 1023))
    .option('--library-path <path>', 'libnvinfer, or the folder that has it')
    .option('-f, --force', 'replace an engine folder that is there')
    .option('--json', 'one JSON object on stdout')
    .action(build)
}

async function build(model: string, options: BuildOptions): Promise<void> {
  const interrupt = new Interrupt()
  const progress = new Progress()
  const json = options.json === true
  const started = Date.now()
  let latest: BuildProgress | undefined
  const draw = (): void => {
    const seconds = `${((Date.now() - started) / 1000).toFixed(0)} s`
    if (interrupt.signal.aborted) progress.update(`stopping ... ${seconds}`, true)
    else if (latest === undefined) progress.update(`preparing ... ${seconds}`)
    else progress.update(`building engine ${latest.part + 1} of ${latest.parts} ... ${seconds}  ${describe(latest)}`)
  }
  const timer = setInterval(draw, 250)
  try {
    const { output, json: _, workspace, ...rest } = options
    const build: BuildEngineOptions = { ...rest, signal: interrupt.signal, onProgress: (now) => (latest = now) }
    if (workspace !== undefined) build.workspaceBytes = workspace
    const { path, manifest } = await buildLLMEngine(resolveModel(model), output, build)
    progress.clear()
    if (json) {
      process.stdout.write(`${JSON.stringify({ path, manifest })}\n`)
      return
    }
    const { gpu, tensorrtVersion, precision, plan, build: figures } = manifest
    const parts = figures.parts.map((part) => `${part.name} ${part.seconds.toFixed(1)} s`).join(', ')
    process.stdout.write(
      `${path}\n  ${precision}, TensorRT ${tensorrtVersion}, ${gpu.name} (compute capability ${gpu.computeCapability})\n` +
        `  plan ${formatBytes(plan.bytes)}, built in ${figures.seconds.toFixed(1)} s (${parts})\n`,
    )
  } catch (error) {
    progress.clear()
    if (interrupt.signal.aborted) process.exitCode = INTERRUPTED
    else reportFailure(error, json)
  } finally {
    clearInterval(timer)
    progress.clear()
    interrupt.dispose()
  }
}

function describe({ phase, step, steps }: BuildProgress): string {
  return steps > 0 ? `${phase} ${step}/${steps}` : phase
}
