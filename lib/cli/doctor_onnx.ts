/** What `doctor` says of ONNX models, their engine folders, and plans of unknown origin. */
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { TensorRTError } from '../errors'
import type { TensorRTProbe } from '../native'
import {
  inspectOnnxModel,
  type OnnxEngineManifest,
  type OnnxModelInfo,
  readEngineManifest,
  readOnnxModel,
  requireExternalFiles,
  requireFit,
  requireUsable,
  sha256File,
  tryEngine,
  verifyPlan,
} from '../runtime'
import { type Check, failed } from './check'
import type { GpuOptions } from './doctor_tensorrt'
import { formatBytes } from './output'

export interface DoctorGpuOptions extends GpuOptions {
  /** Load the engine, in a process of its own. */
  try?: boolean
}

/** Problems that only say that this machine has nothing to check with. */
const NO_GPU_CODES = [
  'ERR_TENSORRT_MODULE_NOT_FOUND',
  'ERR_TENSORRT_MODULE_LOAD_FAILED',
  'ERR_DRIVER_NOT_FOUND',
  'ERR_DRIVER_TOO_OLD',
  'ERR_NO_GPU',
  'ERR_TENSORRT_NOT_FOUND',
]

/** '' stands for the places that the library looks at by itself. */
function placeOf({ device, libraryPath }: GpuOptions): { device: number; libraryPath?: string } {
  return libraryPath === '' ? { device } : { device, libraryPath }
}

function withoutGpu(error: unknown): boolean {
  return error instanceof TensorRTError && NO_GPU_CODES.includes(error.code)
}

/** An ONNX model: what it says of itself, and what of it TensorRT does not support. */
export async function checkOnnx(path: string, { device, libraryPath }: DoctorGpuOptions): Promise<Check[]> {
  const name = `ONNX model ${path}`
  const checks: Check[] = []
  try {
    const model = await readOnnxModel(resolve(path))
    await requireExternalFiles(model, path)
    checks.push({ name, ok: true, detail: describeModel(model) }, ...describeOperators(model))
  } catch (error) {
    return [failed(name, error)]
  }
  const support = 'TensorRT support'
  try {
    const found = await inspectOnnxModel(path, placeOf({ device, libraryPath }))
    if (found.supported) return [...checks, { name: support, ok: true, detail: 'TensorRT takes all of its nodes' }]
    const nodes = found.unsupported.map(({ index, name: node, op }) => `${node === '' ? `node ${index}` : node} (${op})`)
    checks.push({
      name: support,
      ok: false,
      code: 'ERR_ONNX_UNSUPPORTED',
      detail: nodes.length === 0 ? 'TensorRT does not support this model' : `TensorRT does not support ${nodes.join(', ')}`,
    })
    for (const { node, index, op, message, where, code } of found.problems) {
      const which = node === '' ? (index === undefined ? 'model' : `node ${index}`) : node
      checks.push({ name: `  ${which}${op === '' ? '' : ` (${op})`}`, ok: false, code, detail: where === '' ? message : `${message} [${where}]` })
    }
    return checks
  } catch (error) {
    const check = failed(support, error)
    if (!withoutGpu(error)) return [...checks, check]
    return [...checks, { ...check, optional: true, detail: `not checked, as that needs a GPU: ${check.detail}` }]
  }
}

function describeModel({ opsets, producer, nodes, initializers, inputs, outputs, bytes, externalFiles, quantization }: OnnxModelInfo): string {
  const tensors = (list: OnnxModelInfo['inputs']): string =>
    list
      .map(({ name, dtype, shape, dimensionNames }) => {
        const extents = shape?.map((extent, axis) => (extent === -1 ? dimensionNames[axis] || '?' : extent)).join('x')
        return `${name} ${dtype}[${extents ?? 'any rank'}]`
      })
      .join(', ')
  const weights = externalFiles.length === 0 ? '' : `, weights in ${externalFiles.map((file) => file.name).join(', ')}`
  const quantized = quantization.int8 + quantization.float8 + quantization.other
  const kind = quantization.float8 > 0 ? 'fp8' : quantization.int8 > 0 ? 'int8' : 'another type'
  return (
    `opset ${opsets[''] ?? 'unknown'}${producer === '' ? '' : ` by ${producer}`}, ${nodes.length} nodes, ${initializers} weights, ` +
    `${formatBytes(bytes)}${weights}; ${tensors(inputs)} -> ${tensors(outputs)}; ` +
    (quantized === 0 ? 'no Q/DQ nodes' : `${quantized} Q/DQ nodes of ${kind}`)
  )
}

/** Operators outside of ONNX need a plugin; that is no verdict, as TensorRT's parser knows some. */
function describeOperators({ operators }: OnnxModelInfo): Check[] {
  const foreign = Object.keys(operators).filter((operator) => operator.includes('::'))
  if (foreign.length === 0) return []
  return [
    {
      name: 'Operators',
      ok: false,
      optional: true,
      detail: `not ONNX's own: ${foreign.join(', ')}`,
      hint: 'TensorRT takes them only where it has a plugin of that name.',
    },
  ]
}

/** The engine folder of an ONNX model: whether it is whole, and runs here. */
export async function checkOnnxEngine(folder: string, facts: TensorRTProbe | undefined, options: DoctorGpuOptions): Promise<Check[]> {
  const name = `Engine ${folder}`
  let manifest: OnnxEngineManifest
  try {
    const read = await readEngineManifest(folder)
    if (read.kind !== 'onnx') return []
    manifest = read
    await verifyPlan(folder, manifest)
  } catch (error) {
    return [failed(name, error)]
  }
  const { precision, plan, tensorrtVersion, gpu, cuda } = manifest
  const checks: Check[] = [
    {
      name,
      ok: true,
      detail:
        `${precision}, plan ${formatBytes(plan.bytes)}, SHA-256 as built, ${manifest.profiles.length} profile${manifest.profiles.length === 1 ? '' : 's'}, ` +
        `built by TensorRT ${tensorrtVersion} with CUDA ${cuda.required} for ${gpu.name}, compute capability ${gpu.computeCapability}`,
    },
    await checkReference(folder, manifest),
  ]
  if (facts !== undefined) {
    const fit = `Engine on GPU ${options.device}`
    try {
      requireUsable(facts, options.device)
      requireFit(manifest, facts, options.device)
      checks.push({ name: fit, ok: true, detail: 'fits' })
    } catch (error) {
      checks.push({ ...failed(fit, error), optional: withoutGpu(error) })
    }
  }
  if (options.try === true) checks.push(await checkTrial(folder, options))
  return checks
}

/** The model is needed to build again, or to run without a GPU: that it is gone is no failure of the engine. */
async function checkReference(folder: string, { onnx }: OnnxEngineManifest): Promise<Check> {
  const name = 'ONNX model of the engine'
  if (onnx.absolute === '') return { name, ok: true, optional: true, detail: 'came as bytes' }
  const places = [resolve(folder, onnx.relative), onnx.absolute]
  for (const place of new Set(places)) {
    if ((await stat(place).catch(() => undefined))?.isFile() !== true) continue
    try {
      if ((await sha256File(place)) === onnx.sha256) return { name, ok: true, optional: true, detail: `${place}, as it was` }
    } catch (error) {
      return { ...failed(name, error), optional: true }
    }
    return { name, ok: false, optional: true, detail: `${place} is another model than the one of the build`, hint: 'Build the engine again.' }
  }
  return { name, ok: false, optional: true, detail: 'is not there', places }
}

/** A plan without a manifest: nothing is known of it but what loading it tells. */
export async function checkPlan(path: string, options: DoctorGpuOptions): Promise<Check[]> {
  const name = `Plan ${path}`
  try {
    const { size } = await stat(path)
    if (size === 0) return [{ name, ok: false, code: 'ERR_ENGINE_INVALID', detail: 'is empty' }]
    const checks: Check[] = [{ name, ok: true, detail: `${formatBytes(size)}, SHA-256 ${await sha256File(resolve(path))}` }]
    if (options.try === true) return [...checks, await checkTrial(path, options)]
    checks.push({
      name: 'Origin',
      ok: false,
      optional: true,
      detail: 'unknown: a plan by itself does not say which TensorRT and GPU it is for',
      hint: 'A plan is code. --try loads it in a process of its own.',
    })
    return checks
  } catch (error) {
    return [failed(name, error)]
  }
}

async function checkTrial(path: string, { device, libraryPath }: DoctorGpuOptions): Promise<Check> {
  const name = 'Trial in a process of its own'
  try {
    const trial = await tryEngine(path, placeOf({ device, libraryPath }))
    if (trial.error !== undefined) return { ...failed(name, trial.error), optional: withoutGpu(trial.error) }
    const { inputs, outputs, profiles } = trial.engine!
    return {
      name,
      ok: true,
      detail: `loads in ${trial.milliseconds.toFixed(0)} ms; ${inputs.join(', ')} -> ${outputs.join(', ')}, ${profiles} profile${profiles === 1 ? '' : 's'}`,
    }
  } catch (error) {
    return { ...failed(name, error), optional: withoutGpu(error) }
  }
}
