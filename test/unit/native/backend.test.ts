import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { TensorRTError } from '../../../lib/errors'
import { CpuBackend, loadAddon, type NativeBackend } from '../../../lib/native'
import { fromNativeError } from '../../../lib/native/backend'
import type { SlotInit } from '../../../lib/scheduler/executor'
import { inOneOf, timeOf, TurnCounter } from '../../support/patience'
import { decodeGreedily, demoOptions, greedySlot, packStep, startCollecting } from './demo_backend'

interface Golden {
  name: string
  ids: number[]
  greedy: { ids: number[]; stable_len: number }
}

const goldens = (
  JSON.parse(
    readFileSync(resolve(__dirname, '../../fixtures/tiny-storyteller-goldens/goldens.json'), 'utf8'),
  ) as { prompts: Golden[] }
).prompts

const open: CpuBackend[] = []
async function create(overrides = {}): Promise<CpuBackend> {
  const backend = await CpuBackend.create(demoOptions(overrides))
  open.push(backend)
  return backend
}
afterEach(async () => {
  await Promise.all(open.splice(0).map((backend) => backend.close()))
})

/** The native object itself, below CpuBackend. */
async function createNative(): Promise<NativeBackend> {
  const { graph, ...options } = demoOptions()
  return loadAddon().addon.createCpuBackend({ ...options, graph: JSON.stringify(graph) })
}

const thrown = (call: () => unknown): TensorRTError => {
  try {
    call()
  } catch (error) {
    return error as TensorRTError
  }
  throw new Error('nothing was thrown')
}

describe('CpuBackend', () => {
  it('decodes what transformers decodes', async () => {
    const golden = goldens.find(({ ids, greedy }) => ids.length > 4 && greedy.stable_len >= 16)!
    const backend = await create()
    const tokens = await decodeGreedily(backend, golden.ids, golden.greedy.stable_len)
    expect(tokens).toEqual(golden.greedy.ids.slice(0, golden.greedy.stable_len))
  })

  it('describes itself, and nobody can change that', async () => {
    const { info } = await create({ numPages: 32, maxSlots: 3 })
    expect(info).toMatchObject({ name: 'cpu', vocabSize: 4096, pageSize: 16, numPages: 32, maxSlots: 3, batchInvariant: true })
    expect(Object.isFrozen(info)).toBe(true)
  })

  it('delivers results in order of submission, never from within submit', async () => {
    const backend = await create()
    const results = startCollecting(backend)
    backend.openSlot(greedySlot(0, [1, 5, 9]))
    backend.submit(packStep(0, 0, 0, [1, 5, 9], [0, 1, 2]))
    for (let i = 1; i <= 20; i++) backend.submit(packStep(i, 0, 2 + i, [-1], [0, 1, 2]))
    expect(results.arrived).toEqual([])
    for (let i = 0; i <= 20; i++) expect((await results.next()).stepId).toBe(i)
  })

  it('reports queued steps as disposed before close() settles', async () => {
    const prompt = Array.from({ length: 900 }, (_, i) => 1 + i)
    const pages = Array.from({ length: 63 }, (_, i) => i)
    // Where this thread is held up before it closes, all of them may have run.
    await inOneOf(20, async () => {
      const backend = await create({ maxStepTokens: 1024 })
      const results = startCollecting(backend)
      backend.openSlot(greedySlot(0, prompt))
      for (let i = 0; i < 50; i++) backend.submit(packStep(i, 0, i === 0 ? 0 : 899 + i, i === 0 ? prompt : [-1], pages))
      await backend.close()
      expect(results.arrived.map(({ stepId }) => stepId)).toEqual(Array.from({ length: 50 }, (_, i) => i))
      const codes = results.arrived.map(({ error }) => error?.code)
      const ended = codes.indexOf('ERR_DISPOSED')
      expect(codes.slice(ended < 0 ? 50 : ended).every((code) => code === 'ERR_DISPOSED')).toBe(true)
      expect(results.arrived.slice(0, ended < 0 ? 50 : ended).every(({ tokens }) => tokens.length === 1)).toBe(true)
      expect(ended).toBeGreaterThanOrEqual(0)
    })
  })

  it('closes once, whatever happened before', async () => {
    const backend = await create()
    const first = backend.close()
    expect(backend.close()).toBe(first)
    await first
    expect(backend.close()).toBe(first)
    for (const call of [
      () => backend.start(() => {}),
      () => backend.openSlot(greedySlot(0, [1])),
      () => backend.closeSlot(0),
      () => backend.submit(packStep(0, 0, 0, [1], [0])),
    ]) {
      expect(thrown(call)).toMatchObject({ name: 'TensorRTError', code: 'ERR_DISPOSED' })
    }
  })

  it('does not block the event loop while it loads or runs', async () => {
    const loading = create({ maxStepTokens: 1024 })
    const load = new TurnCounter()
    const backend = await loading
    // One or two, had it been done at the call.
    expect(load.stop()).toBeGreaterThan(20)
    const results = startCollecting(backend)
    const prompt = Array.from({ length: 1000 }, (_, i) => 1 + (i % 4000))
    let steps = 0
    await inOneOf(10, async () => {
      backend.openSlot(greedySlot(0, prompt))
      const step = packStep(steps++, 0, 0, prompt, Array.from({ length: 63 }, (_, i) => i))
      const submitMs = timeOf(() => backend.submit(step))
      const run = new TurnCounter()
      const { timings } = await results.next()
      backend.closeSlot(0)
      expect(run.stop()).toBeGreaterThan(20)
      expect(submitMs).toBeLessThan(timings.runUs / 1000 / 4)
    })
  })

  it('leaves the array to the caller: it is copied', async () => {
    const golden = goldens.find(({ ids }) => ids.length > 4)!
    const backend = await create()
    const results = startCollecting(backend)
    backend.openSlot(greedySlot(0, golden.ids))
    const step = packStep(7, 0, 0, golden.ids, [0, 1, 2, 3])
    backend.submit(step)
    step.fill(-12345)
    expect(await results.next()).toMatchObject({ stepId: 7, tokens: Int32Array.of(golden.greedy.ids[0]!) })
  })
})

describe('load errors', () => {
  it.each([
    [{ files: [] }, 'ERR_INVALID_ARGUMENT'],
    [{ files: ['/nowhere/model.safetensors'] }, 'ERR_IO'],
    [{ files: [__filename] }, 'ERR_WEIGHTS_INVALID'],
    [{ files: ['/a\0b'] }, 'ERR_INVALID_ARGUMENT'],
    [{ files: 'model.safetensors' }, 'ERR_INVALID_ARGUMENT'],
    [{ files: [1] }, 'ERR_INVALID_ARGUMENT'],
    [{ graph: { version: 1 } }, 'ERR_GRAPH_INVALID'],
    [{ numPages: 0 }, 'ERR_INVALID_ARGUMENT'],
    [{ numPages: 1.5 }, 'ERR_INVALID_ARGUMENT'],
    [{ numPages: Number.NaN }, 'ERR_INVALID_ARGUMENT'],
    [{ maxSlots: 2 ** 31 }, 'ERR_INVALID_ARGUMENT'],
    [{ maxSlots: -1 }, 'ERR_INVALID_ARGUMENT'],
    [{ pageSize: 0 }, 'ERR_INVALID_ARGUMENT'],
    [{ maxStepTokens: '256' }, 'ERR_INVALID_ARGUMENT'],
    [{ threads: -2 }, 'ERR_INVALID_ARGUMENT'],
    [{ simd: 'sse9' }, 'ERR_INVALID_ARGUMENT'],
    [{ numPages: 2 ** 31 - 1 }, 'ERR_OUT_OF_MEMORY'],
  ])('%j rejects with %s', async (overrides, code) => {
    const error = await CpuBackend.create({ ...demoOptions(), ...(overrides as object) }).then(
      () => undefined,
      (reason: unknown) => reason,
    )
    expect(error).toBeInstanceOf(TensorRTError)
    expect((error as TensorRTError).code).toBe(code)
  })

  it('an exception of a getter comes through as it is', async () => {
    const options = Object.defineProperty({ graph: '{}' }, 'files', {
      get() {
        throw new RangeError('of the caller')
      },
    })
    await expect(loadAddon().addon.createCpuBackend(options as never)).rejects.toThrow(RangeError)
  })
})

describe('arguments are checked again in C++', () => {
  it('a foreign this is a TypeError', async () => {
    const native = await createNative()
    const other = loadAddon().addon
    for (const self of [undefined, null, 1, {}, Object.create(native), new Proxy(native, {}), other, new Int32Array(4)]) {
      for (const method of ['start', 'openSlot', 'closeSlot', 'submit', 'close'] as const) {
        expect(() => Reflect.apply(native[method], self, [0])).toThrow(TypeError)
      }
    }
    await native.close()
  })

  it('the class cannot be constructed from JavaScript', async () => {
    const native = await createNative()
    const constructor = native.constructor as new () => unknown
    expect(() => new constructor()).toThrow(TypeError)
    expect(() => Reflect.apply(constructor, native, [])).toThrow(TypeError)
    await native.close()
  })

  it.each([
    ['a list', [1, 2, 3]],
    ['a Float32Array', new Float32Array(11)],
    ['a Uint32Array', new Uint32Array(11)],
    ['a DataView', new DataView(new ArrayBuffer(44))],
    ['nothing', undefined],
    ['null', null],
    ['an empty array', new Int32Array(0)],
    ['a detached array', detached()],
    ['a cut step', packStep(0, 0, 0, [1], [0]).subarray(0, 9)],
  ])('submit refuses %s', async (_, step) => {
    const native = await createNative()
    native.start(() => {})
    native.openSlot(greedySlot(0, [1]))
    expect(thrown(() => native.submit(step as Int32Array))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    await native.close()
  })

  it.each([4096, -2, 2 ** 31 - 1, -(2 ** 31)])('submit refuses the token id %d', async (token) => {
    const backend = await create()
    const results = startCollecting(backend)
    backend.openSlot(greedySlot(0, [1]))
    expect(thrown(() => backend.submit(packStep(0, 0, 0, [token], [0])))).toMatchObject({ code: 'ERR_INVALID_TOKEN' })
    backend.submit(packStep(1, 0, 0, [1], [0]))
    expect(await results.next()).toMatchObject({ stepId: 1 })
  })

  it('start and submit keep their order', async () => {
    const native = await createNative()
    expect(thrown(() => native.submit(packStep(0, 0, 0, [1], [0])))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    expect(thrown(() => native.start({} as never))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    native.start(() => {})
    expect(thrown(() => native.start(() => {}))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    await native.close()
  })

  const valid = greedySlot(0, [1])
  const fields = Object.keys(valid.sampling) as (keyof SlotInit['sampling'])[]
  it.each(fields)('openSlot refuses a sampling.%s of the wrong type', async (field) => {
    const backend = await create()
    for (const value of [undefined, null, '0', Number.NaN, Number.POSITIVE_INFINITY, 1e300, {}, [1], 5n]) {
      const error = thrown(() => backend.openSlot({ ...valid, sampling: { ...valid.sampling, [field]: value } }))
      expect(error).toMatchObject({ name: 'TensorRTError', code: 'ERR_INVALID_ARGUMENT' })
      expect(error.message).toContain(field)
    }
    backend.openSlot(valid)
  })

  it.each([
    ['slot', [-1, 8, 0.5, '0', undefined, 2 ** 31]],
    ['prompt', [[1], undefined, new Float32Array(1), detached()]],
    ['output', [[], null, new BigInt64Array(1), detached()]],
    ['sampling', [undefined, null, 1, () => {}]],
  ])('openSlot refuses a bad %s', async (field, values) => {
    const backend = await create()
    for (const value of values) {
      expect(thrown(() => backend.openSlot({ ...valid, [field]: value } as SlotInit))).toMatchObject({
        code: 'ERR_INVALID_ARGUMENT',
      })
    }
    for (const slot of [undefined, '0', 0.5, 3, -1]) {
      expect(thrown(() => backend.closeSlot(slot as number))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    }
    backend.openSlot(valid)
    backend.closeSlot(0)
  })
})

describe('fromNativeError', () => {
  it('keeps code, hint and cause', () => {
    const native = Object.assign(new Error('no file'), { code: 'ERR_IO', hint: 'look again' })
    expect(fromNativeError(native)).toMatchObject({
      name: 'TensorRTError',
      code: 'ERR_IO',
      hint: 'look again',
      message: 'no file (look again)',
      cause: native,
    })
  })

  it('passes what is not the addon’s', () => {
    const foreign = new RangeError('x')
    expect(fromNativeError(foreign)).toBe(foreign)
  })
})

function detached(): Int32Array {
  const array = new Int32Array(8)
  structuredClone(array.buffer, { transfer: [array.buffer] })
  return array
}
