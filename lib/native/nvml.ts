/** What the GPUs of this machine are doing, as NVIDIA's management library (NVML) tells. */
import type { NativeGpuUsage } from './addon'
import { fromNativeError } from './backend'
import { loadAddon } from './load'

/** Undefined: the GPU does not tell, such as the utilisation of one that is partitioned (MIG). */
export interface GpuUsage {
  /** By PCI bus, whatever CUDA_VISIBLE_DEVICES says. */
  index: number
  name: string | undefined
  /** 'GPU-...' */
  uuid: string | undefined
  /** '00000000:1B:00.0' */
  pciBusId: string | undefined
  /** Share of the last sample period, of up to a second, in which a kernel ran; 0 to 1. */
  utilisation: number | undefined
  /** Of all processes; what the driver keeps for itself counts as used. */
  memoryUsedBytes: number | undefined
  memoryTotalBytes: number | undefined
  temperatureCelsius: number | undefined
  powerWatts: number | undefined
}

/**
 * Reads them on a thread of its own: in milliseconds, but up to seconds the first time.
 *
 * @param libraryPath '' = libnvidia-ml.so.1, by the loader's search
 * @returns undefined where there is no NVML, or no NVIDIA driver runs
 * @throws TensorRTError (as a rejection) the addon's load errors, ERR_CUDA where NVML itself fails, such as after an update of
 * the driver that was not followed by a reboot
 */
export async function gpuUsage(libraryPath = ''): Promise<GpuUsage[] | undefined> {
  const { addon } = loadAddon()
  try {
    const { available, gpus } = await addon.gpuUsage(libraryPath)
    return available ? gpus.map(fromNative) : undefined
  } catch (error) {
    throw fromNativeError(error)
  }
}

function fromNative(gpu: NativeGpuUsage): GpuUsage {
  const figure = (value: number): number | undefined => (Number.isNaN(value) ? undefined : value)
  const text = (value: string): string | undefined => (value === '' ? undefined : value)
  return {
    index: gpu.index,
    name: text(gpu.name),
    uuid: text(gpu.uuid),
    pciBusId: text(gpu.pciBusId),
    utilisation: figure(gpu.utilisation),
    memoryUsedBytes: figure(gpu.memoryUsedBytes),
    memoryTotalBytes: figure(gpu.memoryTotalBytes),
    temperatureCelsius: figure(gpu.temperatureCelsius),
    powerWatts: figure(gpu.powerWatts),
  }
}
