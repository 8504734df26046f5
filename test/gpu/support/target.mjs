/**
 * What a verification program runs on: engines of the demo model at each precision, or, for trying the programs themselves where there
 * is no GPU, the CPU backend. Plain JavaScript over dist/ and the package's own dependencies, for a GPU machine that has nothing else.
 *
 *   --backend tensorrt|cpu      default tensorrt
 *   --precisions fp32,bf16,...  default all three
 *   --engines DIR               engine folders fp32/, bf16/, fp16/; what is missing is built. Default: build/engines
 *   --out DIR                   default: the environment's OUT, else build/gpu-report
 *   --require                   an unusable GPU is a failure instead of a reason to skip
 */
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'

export const root = resolve(import.meta.dirname, '..', '..', '..')
const require = createRequire(join(root, 'package.json'))
const room = (name) => require(join(root, 'dist', name))
export const { AbortError, buildLLMEngine, LLM, StepFlag, TensorRTError, version } = room('index.js')
const { graphFromConfig } = room('models')
const { createTensorRTBackend, CpuBackend, probeTensorRT } = room('native')
const { readEngineFolder, readPlan } = room('runtime')

export const { values: options } = parseArgs({
  allowPositionals: true,
  options: {
    backend: { type: 'string', default: 'tensorrt' },
    precisions: { type: 'string', default: 'fp32,bf16,fp16' },
    engines: { type: 'string', default: join(root, 'build', 'engines') },
    out: { type: 'string', default: process.env.OUT || join(root, 'build', 'gpu-report') },
    require: { type: 'boolean', default: false },
    child: { type: 'string' },
  },
})
if (!['cpu', 'tensorrt'].includes(options.backend)) throw new Error(`--backend ${options.backend}: there are tensorrt and cpu`)
export const onCpu = options.backend === 'cpu'
export const enginesFolder = resolve(options.engines)
export const outFolder = resolve(options.out)
mkdirSync(outFolder, { recursive: true })

export const modelFolder = join(root, 'models', 'tiny-storyteller')
const weights = join(modelFolder, 'model.safetensors')
const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'))
export const PAGE_SIZE = 16
const MAX_STEP_TOKENS = 1024

/** The CPU backend computes in float32. */
export const precisions = onCpu ? ['fp32'] : options.precisions.split(',')

/** Facts of the machine, and why it cannot run these programs; `skip` is what node:test takes. */
export const { facts, skip } = await look()

async function look() {
  if (onCpu) return { facts: { backend: 'cpu' }, skip: false }
  let facts
  let reason
  try {
    facts = await probeTensorRT()
    reason = facts.driver?.message ?? facts.library?.message
  } catch (error) {
    reason = error.message
  }
  if (reason !== undefined && options.require) throw new Error(`No usable GPU: ${reason}`)
  return { facts, skip: reason === undefined ? false : `no usable GPU: ${reason}` }
}

/** The engine folder of a precision, built if it is not there. */
export async function engineFolder(precision) {
  const folder = join(enginesFolder, precision)
  if (!existsSync(join(folder, 'engine.json'))) {
    mkdirSync(enginesFolder, { recursive: true })
    const timingCache = join(enginesFolder, 'timing-cache')
    await buildLLMEngine(modelFolder, folder, { precision, maxStepTokens: MAX_STEP_TOKENS, timingCache })
  }
  return folder
}

const sizes = ({ numPages = 512, maxSlots = 128, maxStepTokens = MAX_STEP_TOKENS, ...more }) => ({
  files: [weights],
  pageSize: PAGE_SIZE,
  numPages,
  maxSlots,
  maxStepTokens,
  ...more,
})

/** The CPU's {@link Executor} for the demo model, whatever the target. */
export function createCpuExecutor(given = {}) {
  return CpuBackend.create({ graph: graphFromConfig(readJson(join(modelFolder, 'config.json'))), threads: 0, simd: '', ...sizes(given) })
}

/** An {@link Executor} for the demo model. */
export async function createExecutor(precision, given = {}) {
  if (onCpu) return createCpuExecutor(given)
  const engine = await readEngineFolder(await engineFolder(precision))
  return createTensorRTBackend({
    graph: engine.graph,
    plan: await readPlan(engine),
    libraryPath: '',
    device: 0,
    kvCacheFraction: 0.9,
    cudaGraphs: true,
    plainKernels: false,
    faultAtStep: 0,
    ...sizes(given),
  })
}

/** The demo model as a caller loads it. `more`: LLMOptions. */
export async function loadLLM(precision, more = {}) {
  const common = { numPages: 2048, maxStepTokens: MAX_STEP_TOKENS, ...more }
  if (onCpu) return LLM.load(modelFolder, { backend: 'cpu', ...common })
  return LLM.load(await engineFolder(precision), { backend: 'tensorrt', weights: modelFolder, ...common })
}

/** The demo model on the CPU, whatever the target. */
export const loadCpu = (more = {}) => LLM.load(modelFolder, { backend: 'cpu', ...more })
