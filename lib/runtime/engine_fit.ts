/** Whether an engine runs on a machine. */
import { TensorRTError } from '../errors'
import { type EngineManifest, formatLibraryVersion } from './manifest'

/** What an engine is compared with. */
export interface Machine {
  device: number
  gpuName: string
  /** '9.0' */
  computeCapability: string
  /** 10000 * major + 100 * minor + patch */
  libraryVersion: number
  libraryPath: string
}

function parseVersion(text: string): number {
  const [major = 0, minor = 0, patch = 0] = text.split('.').map(Number)
  return 10_000 * major + 100 * minor + patch
}

/**
 * Throws unless the engine runs there. TensorRT's plans are bound to its version and to a compute capability, unless they were built to be
 * compatible: with later versions of the same major, or with all GPUs from compute capability 8.0.
 *
 * @throws ERR_ENGINE_INCOMPATIBLE, naming both sides
 */
export function requireEngineFit(manifest: EngineManifest, machine: Machine): void {
  const incompatible = (built: string, here: string): TensorRTError =>
    new TensorRTError('ERR_ENGINE_INCOMPATIBLE', `The engine was built ${built}; ${here}`, { hint: 'build the engine on this machine' })
  const { tensorrtVersion, gpu } = manifest
  const flags = manifest.kind === 'onnx' ? manifest.build : undefined
  const version = formatLibraryVersion(machine.libraryVersion)
  const built = parseVersion(tensorrtVersion)
  const laterOfMajor = Math.trunc(built / 10_000) === Math.trunc(machine.libraryVersion / 10_000) && machine.libraryVersion >= built
  if (tensorrtVersion !== version && !(flags?.versionCompatible === true && laterOfMajor)) {
    throw incompatible(`by TensorRT ${tensorrtVersion}`, `${machine.libraryPath} is ${version}`)
  }
  const ampere = flags?.hardwareCompatibility === 'ampere+' && Number.parseInt(machine.computeCapability, 10) >= 8
  if (gpu.computeCapability !== machine.computeCapability && !ampere) {
    throw incompatible(
      `for compute capability ${gpu.computeCapability} (${gpu.name})`,
      `device ${machine.device}, ${machine.gpuName}, has ${machine.computeCapability}`,
    )
  }
}
