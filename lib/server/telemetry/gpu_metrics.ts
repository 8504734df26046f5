/** GPUs of the machine, read when metrics are, but not more often than once a second. */
import type { GpuUsage } from '../../native'
import type { MetricSet } from './series'

/** @returns undefined where there is nothing to read */
export type ReadGpus = () => Promise<readonly GpuUsage[] | undefined>

const CACHE_MS = 1000
/** A driver that hangs must not keep the other metrics from being read: the last figures stay. */
const WAIT_MS = 500
const LABELS = ['gpu', 'uuid', 'name']

export function collectGpus(set: MetricSet, read: ReadGpus, onWarning: (message: string) => void): void {
  const gauge = (name: string, help: string) => set.gauge(`node_tensorrt_gpu_${name}`, help, LABELS)
  const utilisation = gauge('utilization_ratio', 'Share of the last sample period in which a kernel ran, 0 to 1')
  const used = gauge('memory_used_bytes', 'Memory in use, by all processes')
  const total = gauge('memory_total_bytes', 'Memory')
  const temperature = gauge('temperature_celsius', 'Temperature')
  const power = gauge('power_watts', 'Power draw')
  const failures = set.counter('node_tensorrt_gpu_read_failures_total', "Readings of the GPUs' figures that failed").series()
  const figures = [
    [utilisation, 'utilisation'],
    [used, 'memoryUsedBytes'],
    [total, 'memoryTotalBytes'],
    [temperature, 'temperatureCelsius'],
    [power, 'powerWatts'],
  ] as const

  const show = (gpus: readonly GpuUsage[]): void => {
    for (const [family, name] of figures) {
      family.clear()
      for (const gpu of gpus) {
        const value = gpu[name]
        if (value !== undefined) family.series(String(gpu.index), gpu.uuid ?? '', gpu.name ?? '').set(value)
      }
    }
  }
  const refresh = async (): Promise<void> => {
    try {
      show((await read()) ?? [])
    } catch (error) {
      show([])
      failures.inc()
      onWarning(`The GPUs' figures cannot be read: ${(error as Error).message}`)
    }
  }
  let readAt = -Infinity
  let reading: Promise<void> | undefined
  set.onCollect(async () => {
    if (reading === undefined && performance.now() - readAt >= CACHE_MS) {
      reading = refresh().finally(() => {
        readAt = performance.now()
        reading = undefined
      })
    }
    if (reading === undefined) return
    let timer: NodeJS.Timeout | undefined
    await Promise.race([reading, new Promise((resolve) => (timer = setTimeout(resolve, WAIT_MS)))])
    clearTimeout(timer)
  })
}
