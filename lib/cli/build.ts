import { statSync } from 'node:fs'
import { Command, Option } from 'commander'
import { buildLLMEngine, type BuildEngineOptions, type BuildProgress } from '../llm'
import { buildOnnx, type OnnxCliOptions, parseLayer, parseProfile } from './build_onnx'
import { formatBytes, runLong } from './output'
import { parseBytes, parseInteger, resolveModel } from './options'

interface LLMCliOptions {
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

/** Options of one kind of model; the other kind refuses them. */
const LLM_ONLY = ['maxStepTokens']
const ONNX_ONLY = [
  'layer',
  'profile',
  'maxAuxStreams',
  'strip',
  'refit',
  'versionCompatible',
  'excludeLeanRuntime',
  'hardwareCompatibility',
  'ioType',
  'cacheDir',
  'cache',
]
const LLM_PRECISIONS = ['bf16', 'fp16', 'fp32']

export function buildCommand(): Command {
  return new Command('build')
    .description('Build an engine of a model for the GPU of this machine.')
    .argument('<model>', 'model folder in Hugging Face layout, or a .onnx file')
    .option('-o, --output <folder>', 'the engine folder to make; of an ONNX model default: one in the cache')
    .addOption(
      new Option(
        '-p, --precision <type>',
        "what it computes in (default: the checkpoint's 16-bit type, else bf16; ONNX: fp32); tf32, int8, fp8 and strongly-typed (the model's own types) are for ONNX, int8 and fp8 for models with Q/DQ nodes",
      ).choices(['bf16', 'fp16', 'fp32', 'tf32', 'int8', 'fp8', 'strongly-typed']),
    )
    .option('--max-step-tokens <n>', 'model folders: most tokens in one step (default: 8192)', parseInteger(1, 1_048_576))
    .option('--profile <shapes>', "ONNX: shapes from min over opt to max, such as 'input:1x128..8x128..32x128'; may be given again", parseProfile)
    .option('--layer <pattern=type>', "ONNX: hold layers to fp32, fp16 or bf16, such as 'encoder*=fp32'; may be given again", parseLayer)
    .option('--optimization-level <n>', "how long TensorRT looks for fast kernels (default: TensorRT's own)", parseInteger(0, 5))
    .option('--workspace <bytes>', 'most scratch memory for one kernel, such as 512M', parseBytes)
    .option('--timing-cache <file>', "keep kernels' timings there: the next build is faster (ONNX default: a file in the cache)")
    .option('--max-aux-streams <n>', "ONNX: streams beside the engine's own (default: TensorRT's choice)", parseInteger(0, 128))
    .option('--strip', 'ONNX: leave weights out of the plan; a refit supplies them')
    .addOption(new Option('--refit <kind>', 'ONNX: which weights a refit may set').choices(['none', 'identical', 'any']))
    .option('--version-compatible', 'ONNX: a plan for later TensorRT versions of the same major too')
    .option('--exclude-lean-runtime', 'ONNX: a version-compatible plan without code of its own')
    .addOption(
      new Option('--hardware-compatibility <level>', 'ONNX: GPUs beside this one').choices(['none', 'ampere+', 'same-compute-capability']),
    )
    .addOption(new Option('--io-type <type>', 'ONNX: type of float inputs and outputs').choices(['model', 'fp16', 'bf16']))
    .option('--cache-dir <folder>', 'ONNX: where built engines are kept (default: XDG_CACHE_HOME/node-tensorrt)')
    .option('--no-cache', 'ONNX: neither take nor keep a built engine')
    .option('--device <n>', 'number of the GPU', parseInteger(0, 1023))
    .option('--library-path <path>', 'libnvinfer, or the folder that has it')
    .option('-f, --force', 'replace an engine folder that is there')
    .option('--json', 'one JSON object on stdout')
    .action(build)
}

function isOnnx(model: string): boolean {
  return model.endsWith('.onnx') || statSync(model, { throwIfNoEntry: false })?.isFile() === true
}

async function build(model: string, options: LLMCliOptions & OnnxCliOptions, command: Command): Promise<void> {
  if (model === '') command.error("error: argument 'model' is empty")
  const onnx = isOnnx(model)
  const foreign = (onnx ? LLM_ONLY : ONNX_ONLY).find((name) => command.getOptionValueSource(name) === 'cli')
  if (foreign !== undefined) {
    const flags = command.options.find((option) => option.attributeName() === foreign)!.flags
    command.error(`error: option '${flags}' is for ${onnx ? 'model folders' : 'ONNX models'}`)
  }
  if (onnx) {
    requireTogether(options, command)
    return buildOnnx(model, options)
  }
  if (options.output === undefined) command.error("error: required option '-o, --output <folder>' not specified")
  if (options.precision !== undefined && !LLM_PRECISIONS.includes(options.precision)) {
    command.error(`error: option '-p, --precision <type>' of a model folder must be bf16, fp16 or fp32`)
  }
  const { cache: _, ...rest } = options
  return buildModelFolder(model, rest)
}

/** What buildEngine() would refuse too, but by the names of its own options. */
function requireTogether({ cache, cacheDir, output, excludeLeanRuntime, versionCompatible }: OnnxCliOptions, command: Command): void {
  if (!cache && output === undefined) command.error("error: option '--no-cache' needs '-o, --output <folder>', as the engine must go somewhere")
  if (!cache && cacheDir !== undefined) command.error("error: option '--cache-dir <folder>' cannot be used with '--no-cache'")
  if (excludeLeanRuntime === true && versionCompatible !== true) command.error("error: option '--exclude-lean-runtime' needs '--version-compatible'")
}

function buildModelFolder(model: string, options: LLMCliOptions): Promise<void> {
  const { output, json, workspace, ...rest } = options
  let latest: BuildProgress | undefined
  const status = (seconds: string): string => {
    if (latest === undefined) return `preparing ... ${seconds}`
    return `building engine ${latest.part + 1} of ${latest.parts} ... ${seconds}  ${describe(latest)}`
  }
  return runLong(json === true, status, async (signal) => {
    const build: BuildEngineOptions = { ...rest, signal, onProgress: (now) => (latest = now) }
    if (workspace !== undefined) build.workspaceBytes = workspace
    const { path, manifest } = await buildLLMEngine(resolveModel(model), output, build)
    if (json === true) return `${JSON.stringify({ path, manifest })}\n`
    const { gpu, tensorrtVersion, precision, plan, build: figures } = manifest
    const parts = figures.parts.map((part) => `${part.name} ${part.seconds.toFixed(1)} s`).join(', ')
    return (
      `${path}\n  ${precision}, TensorRT ${tensorrtVersion}, ${gpu.name} (compute capability ${gpu.computeCapability})\n` +
      `  plan ${formatBytes(plan.bytes)}, built in ${figures.seconds.toFixed(1)} s (${parts})\n`
    )
  })
}

function describe({ phase, step, steps }: BuildProgress): string {
  return steps > 0 ? `${phase} ${step}/${steps}` : phase
}
