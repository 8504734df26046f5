/** The GPUs of this machine. */
import { problemError, probeTensorRT } from '../native'
import { readWaitOptions, untilAborted, type WaitOptions } from './handle'

export interface GpuInfo {
  /** The number to give as `device`. */
  device: number
  name: string
  /** '9.0' */
  computeCapability: string
  memoryBytes: number
}

/**
 * The GPUs that the driver offers, by their number. Empty where there is no driver or no GPU. The driver may take a second to wake up.
 *
 * @throws (as a rejection) the addon's load errors, ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED,
 * ERR_VERSION_MISMATCH; ERR_DRIVER_TOO_OLD, ERR_CUDA for a driver that is there and does not serve; AbortError
 */
export async function gpus(options: WaitOptions = {}): Promise<GpuInfo[]> {
  const signal = readWaitOptions(options, 'gpus()')
  const { driver, gpus: found } = await untilAborted(probeTensorRT(), signal, () => {})
  if (driver !== null && driver.code !== 'ERR_DRIVER_NOT_FOUND' && driver.code !== 'ERR_NO_GPU') throw problemError(driver)
  return found.map(({ name, computeMajor, computeMinor, memoryBytes }, device) => ({
    device,
    name,
    computeCapability: `${computeMajor}.${computeMinor}`,
    memoryBytes,
  }))
}
