/** GPUs' figures, from a stand-in of NVIDIA's library through the real addon to the metrics. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Registry } from 'prom-client'
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { gpuUsage, loadAddon } from '../../../../lib/native'
import { collectGpus } from '../../../../lib/server/telemetry/gpu_metrics'
import { MetricSet } from '../../../../lib/server/telemetry/series'
import '../../matchers'
import { compileCpp, failure, root, temporaryFolder } from '../../tensorrt/fixtures'
import { TurnCounter } from '../../../support/patience'
import { Exposition } from './exposition'

const folder = temporaryFolder()
afterEach(() => {
  vi.unstubAllEnvs()
  vi.useRealTimers()
})

describe.skipIf(process.platform !== 'linux')('gpuUsage', () => {
  let library: string
  beforeAll(() => {
    library = compileCpp(join(folder, 'libfake-nvml.so'), join(root, 'test', 'native', 'nvml', 'fake_nvml.cpp'))
  })

  it('is undefined where there is no library', async () => {
    expect(await gpuUsage(join(folder, 'nowhere.so'))).toBeUndefined()
  })

  it.skipIf(existsSync('/dev/nvidiactl'))('is undefined on a machine without a driver', async () => {
    expect(await gpuUsage()).toBeUndefined()
  })

  it('tells the figures of each GPU', async () => {
    const gpus = await gpuUsage(library)
    expect(gpus).toHaveLength(2)
    expect(gpus![1]).toEqual({
      index: 1,
      name: 'Fake GPU 1',
      uuid: 'GPU-00000000-0000-0000-0000-000000000001',
      pciBusId: '00000000:1C:00.0',
      utilisation: expect.closeTo(0.11, 2) as number,
      memoryUsedBytes: 40 * 2 ** 30,
      memoryTotalBytes: 150 * 2 ** 30,
      temperatureCelsius: 41,
      powerWatts: 123.456,
    })
  })

  it('leaves out what a GPU does not tell', async () => {
    vi.stubEnv('FAKE_NVML_FAIL', ',nvmlDeviceGetUtilizationRates=3,nvmlDeviceGetUUID@0=3,')
    const [first, second] = (await gpuUsage(library))!
    expect(first).toMatchObject({ utilisation: undefined, uuid: undefined, powerWatts: 123.456 })
    expect(second).toMatchObject({ utilisation: undefined, uuid: expect.stringContaining('GPU-') as string })
  })

  it('rejects in the words of the library', async () => {
    vi.stubEnv('FAKE_NVML_FAIL', ',nvmlDeviceGetCount_v2=999,')
    expect(await failure(gpuUsage(library))).toHaveCode('ERR_CUDA', /nvmlDeviceGetCount_v2: Unknown Error/)
  })

  it('does not keep the event loop waiting', async () => {
    vi.stubEnv('FAKE_NVML_SLEEP_MS', '300')
    const counter = new TurnCounter()
    await gpuUsage(library)
    // A call that blocks lets one or two pass, before it and after it.
    expect(counter.stop()).toBeGreaterThan(5)
  })

  it('takes a path, and nothing else', async () => {
    for (const path of [undefined, 5, null, 'a\0b']) {
      expect(await failure(loadAddon().addon.gpuUsage(path as never))).toHaveCode('ERR_INVALID_ARGUMENT')
    }
  })
})

describe('the metrics of GPUs', () => {
  const gpu = { index: 0, name: 'A', uuid: 'GPU-a', pciBusId: 'x', utilisation: 0.5, memoryUsedBytes: 1, memoryTotalBytes: 2, temperatureCelsius: 30, powerWatts: 100 }

  const read = async (set: MetricSet): Promise<Exposition> => new Exposition((await set.render()).body)

  it('are read at most once a second', async () => {
    vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] })
    const set = new MetricSet(new Registry())
    let readings = 0
    collectGpus(set, () => Promise.resolve([{ ...gpu, utilisation: ++readings / 10 }]), () => {})
    const utilisation = async (): Promise<number> => (await read(set)).value('node_tensorrt_gpu_utilization_ratio', { gpu: '0', uuid: 'GPU-a', name: 'A' })
    expect(await utilisation()).toBe(0.1)
    expect(await utilisation()).toBe(0.1)
    vi.advanceTimersByTime(999)
    expect(await utilisation()).toBe(0.1)
    vi.advanceTimersByTime(1)
    expect(await utilisation()).toBe(0.2)
  })

  it('do not wait for a driver that hangs: the last figures stay, and no second call is made', async () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    const set = new MetricSet(new Registry())
    let readings = 0
    collectGpus(set, () => (++readings === 1 ? Promise.resolve([gpu]) : new Promise(() => {})), () => {})
    await set.render()
    vi.advanceTimersByTime(2000)
    const [first, second] = await Promise.all([read(set), read(set)])
    expect(first.value('node_tensorrt_gpu_power_watts')).toBe(100)
    expect(second.value('node_tensorrt_gpu_power_watts')).toBe(100)
    expect(readings).toBe(2)
  })

  it('are left out where there is nothing to tell, and failures are counted', async () => {
    const set = new MetricSet(new Registry())
    const warnings: string[] = []
    const answers = [
      () => Promise.resolve([gpu, { ...gpu, index: 1, uuid: undefined, utilisation: undefined }]),
      () => Promise.resolve(undefined),
      () => Promise.reject(new Error('broken')),
    ]
    collectGpus(set, () => answers.shift()!(), (message) => warnings.push(message))
    vi.useFakeTimers({ toFake: ['performance'] })
    const first = await read(set)
    expect(first.family('node_tensorrt_gpu_utilization_ratio').samples).toHaveLength(1)
    expect(first.family('node_tensorrt_gpu_memory_used_bytes').samples).toHaveLength(2)
    for (const failures of [0, 1]) {
      vi.advanceTimersByTime(1001)
      const next = await read(set)
      expect(next.family('node_tensorrt_gpu_memory_used_bytes').samples).toHaveLength(0)
      expect(next.value('node_tensorrt_gpu_read_failures_total')).toBe(failures)
    }
    expect(warnings).toEqual(["The GPUs' figures cannot be read: broken"])
  })
})
