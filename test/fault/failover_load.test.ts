/**
 * What LLM.load makes of a GPU that dies. There need not be one here: in its place runs a CPU backend that dies at a step,
 * with the sizes that the load options ask of a GPU.
 */
import { join, resolve } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import '../unit/matchers'
import { LLM, type LLMOptions, type LLMWarning, TensorRTError } from '../../lib'
import type { ModelFolder } from '../../lib/llm/model_folder'
import { CpuBackend } from '../../lib/native'
import { PATIENTLY } from '../support/patience'
import { DyingExecutor } from './dying_executor'

const folder = resolve(__dirname, '..', '..', 'models', 'tiny-storyteller')
const GPU_PAGES = 100

const gpu = vi.hoisted(() => ({ create: undefined as ((model: unknown) => Promise<unknown>) | undefined }))
vi.mock('../../lib/llm/tensorrt_backend', () => ({ createTensorRT: (model: unknown) => gpu.create!(model) }))

const made = vi.spyOn(CpuBackend, 'create')
const open: LLM[] = []
let first: DyingExecutor

beforeEach(() => {
  gpu.create = async (model) => {
    const { graph, weightFiles: files } = model as ModelFolder
    const sizes = { pageSize: 16, numPages: GPU_PAGES, maxSlots: 64, maxStepTokens: 2048, threads: 0, simd: '' }
    first = new DyingExecutor(await CpuBackend.create({ graph, files, ...sizes }), 10)
    made.mockClear()
    return first
  }
})
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})

async function load(options: LLMOptions): Promise<{ llm: LLM; warnings: LLMWarning[] }> {
  const warnings: LLMWarning[] = []
  const llm = await LLM.load(folder, { onWarning: (warning) => void warnings.push(warning), ...options })
  open.push(llm)
  return { llm, warnings }
}
const request = { prompt: 'Once upon a time', maxTokens: 40, temperature: 0, ignoreEos: true } as const

describe('a GPU that dies', () => {
  it.each<LLMOptions>([{}, { backend: 'auto', failover: true }, { backend: 'tensorrt', failover: true }])(
    'the CPU takes over, and is loaded only then: %j',
    async (options) => {
      const { llm, warnings } = await load(options)
      expect(made).not.toHaveBeenCalled()
      expect(llm.backend).toBe('mortal')
      const { tokens } = await llm.generate(request).result()
      expect(made).toHaveBeenCalledTimes(1)
      expect(llm.backend).toBe('cpu')
      expect(llm.info).toMatchObject({ model: folder, family: 'llama' })
      expect(warnings.map(({ code }) => code)).toEqual(['BACKEND_FAILED_OVER'])
      const { llm: cpu } = await load({ backend: 'cpu' })
      expect(tokens).toEqual((await cpu.generate(request).result()).tokens)
    },
  )

  it('the CPU stands by, and takes over without loading anything', async () => {
    const { llm } = await load({ failover: 'standby' })
    expect(made).toHaveBeenCalledTimes(1)
    await llm.generate(request).result()
    expect(made).toHaveBeenCalledTimes(1)
    expect(llm).toMatchObject({ backend: 'cpu' })
  })

  it('one that stood by in vain is closed', async () => {
    const { llm } = await load({ failover: 'standby' })
    const standby = (await made.mock.results[0]!.value) as CpuBackend
    const close = vi.spyOn(standby, 'close')
    await llm.close()
    expect(close).toHaveBeenCalledTimes(1)
    expect(first.closed).toBe(1)
  })

  it('one that cannot stand by is an error of loading, and the GPU is given back', async () => {
    const failing = gpu.create!
    gpu.create = async (model) => {
      const executor = await failing(model)
      made.mockRejectedValueOnce(new TensorRTError('ERR_OUT_OF_MEMORY', 'no memory left'))
      return executor
    }
    await expect(load({ failover: 'standby' })).rejects.toHaveCode('ERR_OUT_OF_MEMORY')
    expect(first.closed).toBe(1)
  })

  const alone: LLMOptions[] = [{ backend: 'tensorrt' }, { failover: false }]
  it.each(alone)('nothing takes over with %j and no restart', async (options) => {
    const { llm, warnings } = await load({ ...options, restart: false })
    await expect(llm.generate(request).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
    expect(made).not.toHaveBeenCalled()
    expect(warnings).toEqual([])
    expect(llm.health()).toMatchObject({ state: 'dead', restartable: false })
  })

  it.each(alone)('it is loaded again with %j, and serves', async (options) => {
    const { llm, warnings } = await load({ ...options, restart: { initialDelayMs: 0 } })
    await expect(llm.generate(request).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
    await vi.waitFor(() => expect(llm.health().state).toBe('ready'), PATIENTLY)
    expect(first.closed).toBe(0)
    // The new one dies at its step 10, as the first did: it has run one to show that it works.
    expect((await llm.generate({ ...request, maxTokens: 5 }).result()).tokens).toHaveLength(5)
    expect(warnings.map(({ code }) => code)).toEqual(['BACKEND_DOWN', 'BACKEND_RESTARTED'])
    expect(made).not.toHaveBeenCalled()
  })

  it('after its return another CPU stands by', async () => {
    const { llm } = await load({ failover: 'standby', restart: { initialDelayMs: 0 } })
    const { tokens } = await llm.generate({ ...request, maxTokens: 12 }).result()
    expect(tokens).toHaveLength(12)
    await vi.waitFor(() => expect(llm.health()).toMatchObject({ state: 'ready', restarts: 1 }), PATIENTLY)
    // Since the GPU was made for the second time.
    await vi.waitFor(() => expect(made).toHaveBeenCalledTimes(1), PATIENTLY)
    const standby = (await made.mock.results[0]!.value) as CpuBackend
    const starts = vi.spyOn(standby, 'start')
    await llm.generate({ ...request, maxTokens: 12 }).result()
    expect(llm.stats().failovers).toBe(2)
    expect(starts).toHaveBeenCalledTimes(1)
  })

  it('what fitted into its KV cache fits into the next, which is sized for the machine, not by what the GPU was given', async () => {
    const { llm } = await load({ numPages: GPU_PAGES })
    const whole = llm.generate({ tokens: [7], maxTokens: llm.info.maxPositions - 1, ignoreEos: true, temperature: 0 })
    expect((await whole.result()).tokens).toHaveLength(llm.info.maxPositions - 1)
    expect(llm.info.numPages).toBeLessThanOrEqual(GPU_PAGES)
    expect(llm.info.numPages * llm.info.pageSize).toBeGreaterThanOrEqual(llm.info.maxPositions)
    const { llm: other } = await load({ kvCacheMemory: 2 ** 50 })
    await other.generate(request).result()
    expect(other.info.numPages).toBeLessThanOrEqual(GPU_PAGES)
  })
})

it('the option is checked', async () => {
  await expect(LLM.load(folder, { failover: 'later' as never })).rejects.toHaveCode('ERR_INVALID_ARGUMENT', /failover/)
  await expect(LLM.load(folder, { restart: { maxAttempts: 0 } })).rejects.toHaveCode('ERR_INVALID_ARGUMENT', /maxAttempts/)
  await expect(LLM.load(folder, { restart: 'soon' as never })).rejects.toHaveCode('ERR_INVALID_ARGUMENT')
  await expect(LLM.load(join(folder, 'none'), { failover: 'standby' })).rejects.toHaveCode('ERR_MODEL_NOT_FOUND')
})
