/** What `doctor` says of the GPU: module, driver, GPUs, library, builder; and whether an engine folder runs here. */
import { TensorRTError } from '../errors'
import { type NativeProblem, probeTensorRT, type TensorRTProbe } from '../native'
import { excesses, formatCudaVersion, formatLibraryVersion, isEngineFolder, type LLMEngineManifest, readEngineFolder, readPlan, requireFit } from '../runtime'
import { type Check, failed } from './check'
import { formatBytes } from './output'

export interface GpuOptions {
  device: number
  /** '' = the places that the library looks at by itself. */
  libraryPath: string
}

/** None of it is needed to run on the CPU. */
export async function checkTensorRT({ libraryPath }: GpuOptions): Promise<{ checks: Check[]; facts: TensorRTProbe | undefined }> {
  let facts: TensorRTProbe
  try {
    facts = await probeTensorRT(libraryPath)
  } catch (error) {
    return { checks: [{ ...failed('TensorRT module', error), optional: true }], facts: undefined }
  }
  const { driverCuda, requiredCuda, driverPath, gpus, libraryVersion } = facts
  const version = libraryVersion === 0 ? '' : `${formatLibraryVersion(libraryVersion)} from `
  const library = check('TensorRT library', facts.library, `${version}${facts.libraryPath}`)
  if (facts.library !== null) library.places = facts.placesLooked
  const cuda = `serves CUDA ${formatCudaVersion(driverCuda)}, ${formatCudaVersion(requiredCuda)} is needed`
  const checks = [
    check('TensorRT module', null, facts.modulePath),
    check('NVIDIA driver', facts.driver, `${driverPath}, ${cuda}`),
    ...gpus.map((gpu, i) => {
      const detail = `${gpu.name}, compute capability ${gpu.computeMajor}.${gpu.computeMinor}, ${formatBytes(gpu.memoryBytes)}`
      return check(`GPU ${i}`, null, detail)
    }),
    library,
  ]
  // Without the library it has nothing of its own to say.
  if (facts.library === null) checks.push(check('TensorRT builder', facts.builderResource, facts.builderResourcePath))
  return { checks, facts }
}

function check(name: string, problem: NativeProblem | null, detail: string): Check {
  if (problem === null) return { name, ok: true, optional: true, detail }
  const { code, message, hint } = problem
  return { name, ok: false, optional: true, code, detail: message, hint: hint === '' ? undefined : hint }
}

/**
 * Whether an engine folder is whole, and whether this machine's GPU runs it; nothing for a folder without an engine. That there is no GPU
 * is no failure, as the CPU runs the folder too; a GPU that the engine was not built for is one.
 */
export async function checkEngine(folder: string, facts: TensorRTProbe | undefined, device: number): Promise<Check[]> {
  if (!(await isEngineFolder(folder))) return []
  const name = `Engine ${folder}`
  try {
    const engine = await readEngineFolder(folder)
    await readPlan(engine)
    const { manifest } = engine
    const built =
      `${manifest.precision}, plan ${formatBytes(manifest.plan.bytes)}, steps of up to ${manifest.profiles.layer.at(-1)!.max} tokens, ` +
      `built by TensorRT ${manifest.tensorrtVersion} for compute capability ${manifest.gpu.computeCapability}`
    const checks: Check[] = [{ name, ok: true, detail: built }, checkVerification(folder, manifest)]
    if (facts === undefined) return checks
    try {
      requireFit(manifest, facts, device)
      return [...checks, { name: `Engine on GPU ${device}`, ok: true, optional: true, detail: 'fits' }]
    } catch (error) {
      const unfit = error instanceof TensorRTError && error.code === 'ERR_ENGINE_INCOMPATIBLE'
      return [...checks, { ...failed(`Engine on GPU ${device}`, error), optional: !unfit }]
    }
  } catch (error) {
    return [failed(name, error)]
  }
}

/** What `verify` found the last time; an engine that was never verified is no failure. */
function checkVerification(folder: string, { verification }: LLMEngineManifest): Check {
  const name = 'Engine verified'
  if (verification === undefined) {
    return { name, ok: false, optional: true, detail: 'never', hint: `node-tensorrt verify ${folder} compares it with the CPU backend.` }
  }
  const { at, against, positions, meanDifference, maxDifference, fit } = verification
  if (!fit) {
    const detail = `unfit on ${at}: ${excesses(verification).join('; ')}`
    return { name, ok: false, detail, code: 'ERR_ENGINE_INCOMPATIBLE', hint: 'Build the engine again, or verify it again.' }
  }
  const figures = `mean ${meanDifference.toPrecision(3)}, largest ${maxDifference.toPrecision(3)} of ${positions} log-probabilities`
  return { name, ok: true, detail: `fit on ${at}, against ${against === 'cpu' ? 'the CPU backend' : 'stored references'}: ${figures}` }
}
