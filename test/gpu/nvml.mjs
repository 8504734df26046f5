/**
 * The GPUs' figures by NVML, on a real driver: against what the runtime and CUDA say of the same memory, against nvidia-smi where it is
 * there, and under load. The metrics of the server are these figures.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { record, verify } from './support/report.mjs'
import { loadLLM, onCpu, precisions, root, skip as noGpu } from './support/target.mjs'

const require = createRequire(join(root, 'package.json'))
const { gpuUsage } = require(join(root, 'dist', 'native'))
const { Runtime } = require(join(root, 'dist'))
const { createTelemetry } = require(join(root, 'dist', 'server'))

const MIB = 2 ** 20
/** What NVML calls used holds the driver's own part too, which CUDA leaves out of the total. */
const MOST_DRIVER_BYTES = 2048 * MIB
/** Others may come and go on a shared machine, and the driver counts in blocks. */
const SLACK_BYTES = 128 * MIB
const skip = noGpu !== false ? noGpu : onCpu ? 'NVML tells of GPUs, and this runs on the CPU' : false

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/** The GPU that CUDA calls 0: of one only, or the one whose memory changes with ours. */
async function ours(gpus, runtime) {
  if (gpus.length === 1) return gpus[0]
  const probe = await runtime.allocateDevice(1024 * MIB, { pooled: false })
  const then = await gpuUsage()
  await probe.close()
  const grown = then.filter((gpu, i) => gpu.memoryUsedBytes - gpus[i].memoryUsedBytes > 512 * MIB)
  assert.equal(grown.length, 1, `${grown.length} GPUs grew by what this process allocated`)
  return gpus.find(({ index }) => index === grown[0].index)
}

verify('every GPU tells who it is, and figures within their bounds', { skip }, async () => {
  const gpus = await gpuUsage()
  assert.ok(gpus !== undefined && gpus.length > 0, 'NVML tells of no GPU, and CUDA does')
  record('gpus', gpus)
  for (const gpu of gpus) {
    assert.match(gpu.uuid, /^GPU-[0-9a-f-]{36}$/)
    assert.match(gpu.pciBusId, /^[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-9A-F]$/i)
    assert.ok(gpu.name.length > 0)
    assert.ok(gpu.memoryTotalBytes > 1024 * MIB, `${gpu.memoryTotalBytes} bytes in all`)
    assert.ok(gpu.memoryUsedBytes >= 0 && gpu.memoryUsedBytes <= gpu.memoryTotalBytes, `${gpu.memoryUsedBytes} bytes used`)
    // A partitioned GPU tells none.
    if (gpu.utilisation !== undefined) assert.ok(gpu.utilisation >= 0 && gpu.utilisation <= 1, `utilisation ${gpu.utilisation}`)
    if (gpu.temperatureCelsius !== undefined) assert.ok(gpu.temperatureCelsius > 5 && gpu.temperatureCelsius < 120, `${gpu.temperatureCelsius} degrees`)
    if (gpu.powerWatts !== undefined) assert.ok(gpu.powerWatts > 1 && gpu.powerWatts < 2000, `${gpu.powerWatts} W`)
  }
})

verify("memory is what CUDA says, and grows and shrinks by what the runtime allocates", { skip }, async () => {
  const runtime = await Runtime.create()
  try {
    const gpu = await ours(await gpuUsage(), runtime)
    const read = async () => (await gpuUsage()).find(({ uuid }) => uuid === gpu.uuid)
    const before = await read()
    const cuda = runtime.memory()
    const cudaUsed = cuda.totalBytes - cuda.freeBytes
    record('memory', { nvmlUsed: before.memoryUsedBytes, nvmlTotal: before.memoryTotalBytes, cudaUsed, cudaTotal: cuda.totalBytes })
    assert.ok(Math.abs(before.memoryTotalBytes - cuda.totalBytes) <= MOST_DRIVER_BYTES, `in all ${before.memoryTotalBytes}, by CUDA ${cuda.totalBytes}`)
    assert.ok(Math.abs(before.memoryUsedBytes - cudaUsed) <= MOST_DRIVER_BYTES, `used ${before.memoryUsedBytes}, by CUDA ${cudaUsed}`)

    const bytes = Math.min(4096, Math.floor(cuda.freeBytes / 2 / MIB)) * MIB
    const buffer = await runtime.allocateDevice(bytes, { pooled: false })
    const held = runtime.memory().deviceBytes - cuda.deviceBytes
    const during = await read()
    await buffer.close()
    const after = await read()
    const [grown, left] = [during.memoryUsedBytes - before.memoryUsedBytes, after.memoryUsedBytes - before.memoryUsedBytes]
    record('allocation', { bytes, held, grown, left })
    assert.equal(held, bytes)
    assert.ok(Math.abs(grown - bytes) <= SLACK_BYTES, `${bytes} bytes were allocated, NVML saw ${grown}`)
    assert.ok(Math.abs(left) <= SLACK_BYTES, `${left} bytes are left`)
  } finally {
    await runtime.close()
  }
})

verify('nvidia-smi says the same', { skip }, async () => {
  let text
  try {
    text = execFileSync('nvidia-smi', ['--query-gpu=uuid,memory.total', '--format=csv,noheader,nounits'], { encoding: 'utf8' })
  } catch (error) {
    record('nvidia-smi', `not there: ${error.code ?? error.message}`)
    return
  }
  const told = text.trim().split('\n').map((line) => line.split(', '))
  const gpus = await gpuUsage()
  assert.deepEqual(gpus.map(({ uuid }) => uuid).sort(), told.map(([uuid]) => uuid).sort())
  for (const [uuid, totalMib] of told) {
    const gpu = gpus.find((one) => one.uuid === uuid)
    assert.ok(Math.abs(gpu.memoryTotalBytes / MIB - Number(totalMib)) <= MOST_DRIVER_BYTES / MIB, `${uuid}: ${gpu.memoryTotalBytes} bytes, ${totalMib} MiB`)
  }
})

verify('a model under load shows in the metrics: its memory, and a GPU that is busy', { skip }, async () => {
  const before = await gpuUsage()
  const llm = await loadLLM(precisions.includes('bf16') ? 'bf16' : precisions[0], { maxSequences: 128, numPages: 16_384 })
  const telemetry = createTelemetry(llm, { model: 'tiny-storyteller' })
  try {
    const { kvCacheBytes, weightBytes, workspaceBytes = 0 } = llm.info
    const loaded = await gpuUsage()
    // The GPU that has grown is the one that the model is on.
    const at = loaded.map((gpu, i) => gpu.memoryUsedBytes - before[i].memoryUsedBytes)
    const index = at.indexOf(Math.max(...at))
    record('model', { kvCacheBytes, weightBytes, workspaceBytes, grown: at[index] })
    assert.ok(at[index] >= kvCacheBytes + weightBytes - SLACK_BYTES, `${at[index]} bytes more, of which the cache has ${kvCacheBytes}`)

    const over = new AbortController()
    const request = () => llm.generate({ tokens: [0, 2, 204, 7], maxTokens: 400, ignoreEos: true, temperature: 0 }).result()
    const load = Array.from({ length: 64 }, async () => {
      while (!over.signal.aborted) await request()
    })
    const seen = []
    // NVML's sample period is up to a second, and metrics are read once a second at most.
    for (let i = 0; i < 6; i++) {
      await pause(1100)
      const { body } = await telemetry.metrics()
      const value = (name) => {
        const line = body.split('\n').find((one) => one.startsWith(`${name}{`) && one.includes(loaded[index].uuid))
        return line === undefined ? undefined : Number(line.slice(line.lastIndexOf(' ') + 1))
      }
      seen.push({
        utilisation: value('node_tensorrt_gpu_utilization_ratio'),
        used: value('node_tensorrt_gpu_memory_used_bytes'),
        total: value('node_tensorrt_gpu_memory_total_bytes'),
        watts: value('node_tensorrt_gpu_power_watts'),
      })
    }
    over.abort()
    await Promise.all(load)
    record('under load', seen)
    for (const { used, total } of seen) assert.ok(used >= kvCacheBytes + weightBytes && used <= total, `${used} of ${total} bytes`)
    const busiest = Math.max(...seen.map(({ utilisation }) => utilisation ?? NaN))
    if (Number.isNaN(busiest)) record('utilisation', 'not told: the GPU is partitioned')
    else assert.ok(busiest > 0.2, `a utilisation of ${busiest} at most`)
  } finally {
    await telemetry.close()
    await llm.close()
  }
})
