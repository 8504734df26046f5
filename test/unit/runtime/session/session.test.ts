import { afterEach, describe, expect, it, vi } from 'vitest'
import '../../matchers'
import { Tensor } from '../../../../lib/runtime'
import { checkSessionOptions, defaultSpinUs, type SessionOptions, type SessionWarning, type TensorMap } from '../../../../lib/runtime/session/options'
import { Session } from '../../../../lib/runtime/session/session'
import { TensorRTBackend } from '../../../../lib/runtime/session/tensorrt_session'
import { affineModel, GpuDouble, type ModelDouble, nativeError, range, tensor } from './gpu_double'
import { closeAll, codeOf, dynamic, numbers, open, row } from './open_session'

afterEach(closeAll)

it.each<unknown[]>([[], ['model.onnx'], [{ onnx: 'model.onnx' }], [null], [Symbol('Session')]])('made with new, it names what makes one: %s', (...given) => {
  const make = Session as unknown as new (...given: unknown[]) => Session
  expect(() => new make(...given)).toThrowCode('ERR_INVALID_ARGUMENT', /Session\.load\(.*engine\.createSession\(\)/)
})

describe('a request', () => {
  it('gets typed outputs of its own', async () => {
    const { session } = await open(dynamic)
    const out = await session.run(row(1, 2, 3, 4))
    expect(out.y).toBeInstanceOf(Tensor)
    expect(out.y).toMatchObject({ dtype: 'float32', shape: [1, 4] })
    expect(numbers(out.y)).toEqual([3, 5, 7, 9])
    expect(numbers(out.sum)).toEqual([10])
    const again = await session.run(row(0, 0, 0, 0))
    expect(numbers(out.y)).toEqual([3, 5, 7, 9])
    expect(numbers(again.y)).toEqual([1, 1, 1, 1])
  })

  it('gets the outputs that it asks for', async () => {
    const { session } = await open(dynamic)
    expect(Object.keys(await session.run(row(1, 2, 3, 4), { outputs: ['sum'] }))).toEqual(['sum'])
    await expect(session.run(row(1, 2, 3, 4), { outputs: ['z'] })).rejects.toThrow('no output "z"')
  })

  it('is checked before it is queued', async () => {
    const { session } = await open(dynamic)
    const wrong: [TensorMap, string, RegExp][] = [
      [{}, 'ERR_INVALID_TENSOR', /Input "x" must be a float32 tensor of shape \[\?, 4\], not undefined/],
      [{ ...row(1, 2, 3, 4), z: Tensor.float32([1]) }, 'ERR_INVALID_ARGUMENT', /no input "z".*it takes x/],
      [{ x: Tensor.int32([1, 2, 3, 4], [1, 4]) }, 'ERR_INVALID_TENSOR', /must be float32, not int32/],
      [{ x: Tensor.float32([1, 2, 3], [1, 3]) }, 'ERR_INVALID_TENSOR', /\[\?, 4\], not \[1, 3\]/],
      [{ x: Tensor.float32([1, 2, 3, 4]) }, 'ERR_INVALID_TENSOR', /\[\?, 4\], not \[4\]/],
      [{ x: Tensor.zeros('float32', [9, 4]) }, 'ERR_INVALID_TENSOR', /\[9, 4\], and the profiles take \[1\.\.8, 4\]/],
      [{ x: [1, 2, 3, 4] as unknown as Tensor }, 'ERR_INVALID_TENSOR', /not an array of 4/],
      [null as unknown as TensorMap, 'ERR_INVALID_ARGUMENT', /takes an object of tensors/],
    ]
    for (const [inputs, code, message] of wrong) {
      await expect(session.run(inputs)).rejects.toMatchObject({ code, message: expect.stringMatching(message) as string })
    }
    await expect(session.run(row(1, 2, 3, 4), { priority: 1.5 })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    await expect(session.run(row(1, 2, 3, 4), { deadline: 'soon' as never })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    // A time from now given as a moment.
    await expect(session.run(row(1, 2, 3, 4), { deadline: 500 })).rejects.toMatchObject({
      code: 'ERR_DEADLINE_EXCEEDED',
      message: expect.stringMatching(/^The deadline passed \d+\.\d ms before the call .*timeoutMs/) as string,
    })
    expect(session.stats()).toMatchObject({ refused: wrong.length + 3, completed: 0, batches: 0 })
    expect(numbers((await session.run(row(1, 1, 1, 1))).sum)).toEqual([4])
  })

  it('whose buffer was transferred away gets an error, and nobody else', async () => {
    const { gpu, session } = await open(dynamic, { batching: { maxBatch: 8 } })
    gpu.pause()
    const first = session.run(row(9, 9, 9, 9))
    await Promise.resolve()
    const [gone, kept] = [row(1, 1, 1, 1), row(2, 2, 2, 2)]
    const results = [session.run(gone), session.run(kept)]
    structuredClone(gone.x!.data.buffer, { transfer: [gone.x!.data.buffer as ArrayBuffer] })
    gpu.resume()
    await first
    expect(await codeOf(results[0]!)).toBe('ERR_INVALID_TENSOR')
    expect(numbers((await results[1]!).y)).toEqual([5, 5, 5, 5])
    expect(await codeOf(session.run(gone))).toBe('ERR_INVALID_TENSOR')
  })
})

describe('options', () => {
  it.each<[SessionOptions, RegExp]>([
    [{ batching: { preferredSizes: [4, 2] } }, /"batching.preferredSizes" must be an array of integers from 1, ascending, not \[4, 2\]/],
    [{ batching: { runSizes: [] } }, /"batching.runSizes" must be .* not an array of 0/],
    [{ warmUp: [{ x: [1, 4], z: [1] }] }, /"warmUp" names the input "z", which the model does not have \(it takes x\)/],
  ])('%j are refused', async (options, message) => {
    await expect(open(dynamic, options)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(message) as string })
  })
})

describe('batching', () => {
  it('puts requests together that come together, and hands each its rows', async () => {
    const { gpu, session } = await open(dynamic, { batching: { maxBatch: 8, runSizes: 'exact' } })
    const before = gpu.enqueued.length
    const outs = await Promise.all([session.run(row(1, 1, 1, 1)), session.run(row(2, 2, 2, 2, 3, 3, 3, 3)), session.run(row(4, 4, 4, 4))])
    expect(gpu.enqueued.slice(before).map(({ shapes }) => shapes)).toEqual([[[4, 4]]])
    expect(outs.map(({ y }) => numbers(y))).toEqual([[3, 3, 3, 3], [5, 5, 5, 5, 7, 7, 7, 7], [9, 9, 9, 9]])
    expect(outs.map(({ sum }) => sum!.shape)).toEqual([[1, 1], [2, 1], [1, 1]])
    expect(session.stats()).toMatchObject({ batches: 1, rows: 4, paddedRows: 0, batchSizes: { 4: 1 }, completed: 3 })
  })

  it('fills a batch up to a size that is run', async () => {
    const { gpu, session } = await open(dynamic, { batching: { maxBatch: 8, runSizes: [1, 8] } })
    const before = gpu.enqueued.length
    const outs = await Promise.all([1, 2, 3].map((value) => session.run(row(value, value, value, value))))
    expect(gpu.enqueued.slice(before).map(({ shapes }) => shapes)).toEqual([[[8, 4]]])
    expect(outs.map(({ y }) => numbers(y)[0])).toEqual([3, 5, 7])
    expect(session.stats()).toMatchObject({ rows: 3, paddedRows: 5, batchSizes: { 3: 1 } })
  })

  it('waits for others, but not too long', async () => {
    const { session } = await open(dynamic, { batching: { maxBatch: 8, maxDelayMs: 40, runSizes: 'exact' } })
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    try {
      const first = session.run(row(1, 1, 1, 1))
      await vi.advanceTimersByTimeAsync(39)
      const second = session.run(row(2, 2, 2, 2))
      await vi.advanceTimersByTimeAsync(0)
      expect(session.stats()).toMatchObject({ queued: 2, running: 0 })
      await vi.advanceTimersByTimeAsync(1)
      await Promise.all([first, second])
    } finally {
      vi.useRealTimers()
    }
    expect(session.stats()).toMatchObject({ batches: 1, batchSizes: { 2: 1 } })
  })

  it('is what the same batch is by hand, bit for bit', async () => {
    const { session } = await open(dynamic, { batching: { maxBatch: 8, runSizes: 'exact' } })
    const values = Array.from({ length: 8 }, (_, i) => [i / 3, Math.PI * i, -i, 1e-30 * i])
    const outs = await Promise.all(values.map((four) => session.run(row(...four))))
    const byHand = await session.run(row(...values.flat()))
    const joined = Float32Array.from(outs.flatMap(({ y }) => numbers(y)))
    expect(Buffer.from(joined.buffer).equals(Buffer.from((byHand.y!.data as Float32Array).slice().buffer))).toBe(true)
  })

  it('refuses a request with more rows than a batch has', async () => {
    const { session } = await open(dynamic, { batching: { maxBatch: 2 } })
    await expect(session.run({ x: Tensor.zeros('float32', [3, 4]) })).rejects.toMatchObject({ code: 'ERR_INVALID_TENSOR', message: expect.stringContaining('split') as string })
  })

  it('takes a model of a fixed batch, and fills it up', async () => {
    const fixed = affineModel([range([4, 4], [4, 4], [4, 4])], [4, 4])
    const { session } = await open(fixed, { batching: true })
    const outs = await Promise.all([session.run(row(1, 1, 1, 1)), session.run(row(2, 2, 2, 2))])
    expect(outs.map(({ y }) => numbers(y)[0])).toEqual([3, 5])
    expect(session.stats()).toMatchObject({ batches: 1, paddedRows: 2 })
  })

  it('fills ragged inputs up to a bucket, and cuts the outputs', async () => {
    const ragged = affineModel([range([1, 1], [4, 4], [8, 16])], [-1, -1])
    const { gpu, session } = await open(ragged, {
      batching: { maxBatch: 8, runSizes: 'exact', padding: [{ inputs: { x: { axis: 1, value: 100 } }, outputs: { y: 1 }, buckets: [4, 8, 16] }] },
    })
    const before = gpu.enqueued.length
    const outs = await Promise.all([
      session.run({ x: Tensor.float32([1, 2, 3], [1, 3]) }),
      session.run({ x: Tensor.float32([4, 5, 6, 7], [2, 2]) }),
      session.run({ x: Tensor.float32([1, 2, 3, 4, 5], [1, 5]) }),
    ])
    expect(gpu.enqueued.slice(before).map(({ shapes }) => shapes)).toEqual([[[3, 4]], [[1, 8]]])
    expect(outs.map(({ y }) => [y!.shape, numbers(y)])).toEqual([
      [[1, 3], [3, 5, 7]],
      [[2, 2], [9, 11, 13, 15]],
      [[1, 5], [3, 5, 7, 9, 11]],
    ])
    // The sum sees what was filled in.
    expect(numbers(outs[0]!.sum)).toEqual([106])
    expect(await codeOf(session.run({ x: Tensor.zeros('float32', [1, 17]) }))).toBe('ERR_INVALID_TENSOR')
  })

  it('says why a model cannot be batched', async () => {
    const constant: ModelDouble = { ...dynamic, tensors: [...dynamic.tensors, tensor({ name: 'one', shape: [1], profiles: [range([1], [1], [1])] })] }
    await expect(open(constant, { batching: true })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('input "one"') as string })
    await expect(open(dynamic, { batching: { padding: [{ inputs: { x: { axis: 1 } } }] } })).rejects.toThrow('not dynamic')
    await expect(open(dynamic, { batching: { padding: [{ inputs: { q: { axis: 1 } } }] } })).rejects.toThrow('"q"')
    await expect(open(dynamic, { batching: { maxBatch: 4, runSizes: [8] } })).rejects.toThrow('goes up to 8')
  })
})

describe('profiles', () => {
  it('batches where an output looks fixed, as it is under the first profile', async () => {
    const model = affineModel([range([1, 4], [1, 4], [1, 4]), range([2, 4], [8, 4], [8, 4])])
    const output = (name: string, width: number): ModelDouble['tensors'][number] => tensor({ name, mode: 'output', shape: [1, width] })
    const { gpu, session } = await open({ ...model, tensors: [model.tensors[0]!, output('y', 4), output('sum', 1)] }, { batching: { maxBatch: 8, runSizes: [1, 8] } })
    expect(session.info.outputs.map(({ shape }) => shape)).toEqual([[-1, 4], [-1, 1]])
    const outs = await Promise.all([1, 2, 3].map((value) => session.run({ x: Tensor.float32([value, 0, 0, 0], [1, 4]) })))
    expect(outs.map(({ sum }) => numbers(sum))).toEqual([[1], [2], [3]])
    expect(gpu.enqueued.at(-1)).toMatchObject({ profile: 1, shapes: [[8, 4]] })
  })

  it('runs a batch under the profile whose OPT is nearest', async () => {
    const model = affineModel([range([1, 4], [1, 4], [8, 4]), range([2, 4], [16, 4], [32, 4])])
    const { gpu, session } = await open(model)
    const profileOf = async (rows: number): Promise<number> => {
      await session.run({ x: Tensor.zeros('float32', [rows, 4]) })
      return gpu.enqueued.at(-1)!.profile
    }
    expect([await profileOf(1), await profileOf(2), await profileOf(8), await profileOf(32)]).toEqual([0, 0, 1, 1])
  })

  it('uses one profile alone where it is told to', async () => {
    const model = affineModel([range([1, 4], [1, 4], [8, 4]), range([2, 4], [16, 4], [32, 4])])
    const { gpu, session } = await open(model, { profile: 0 })
    await session.run({ x: Tensor.zeros('float32', [8, 4]) })
    expect(new Set(gpu.enqueued.map(({ profile }) => profile))).toEqual(new Set([0]))
    expect(await codeOf(session.run({ x: Tensor.zeros('float32', [9, 4]) }))).toBe('ERR_INVALID_TENSOR')
    await expect(open(model, { profile: 2 })).rejects.toThrow('numbered 0 to 1')
  })

  it('fills a batch up to the least that a profile takes', async () => {
    const model = affineModel([range([4, 4], [8, 4], [8, 4])])
    const { session } = await open(model, { batching: { runSizes: 'exact' } })
    expect(numbers((await session.run(row(1, 1, 1, 1))).y)).toEqual([3, 3, 3, 3])
    expect(session.stats()).toMatchObject({ rows: 1, paddedRows: 3 })
  })
})

describe('CUDA graphs and warm-up', () => {
  it('has every declared size captured on every lane before it is ready', async () => {
    const { gpu, session } = await open(dynamic, { contexts: 2, batching: { runSizes: [1, 4, 8] } })
    const { enqueued, graphLaunches } = gpu
    const [runs, launches] = [enqueued.length, graphLaunches]
    const allocations = gpu.counters.deviceAllocations
    for (let i = 0; i < 20; i++) await Promise.all(Array.from({ length: 1 + (i % 9) }, () => session.run(row(i, i, i, i))))
    const stats = session.stats()
    expect(stats.completed).toBe(93)
    expect(gpu.graphLaunches - launches).toBe(stats.batches)
    expect(gpu.enqueued.length - runs).toBe(stats.batches)
    expect(gpu.counters.deviceAllocations).toBe(allocations)
    expect(stats.deviceAllocations).toBe(0)
    expect(stats.lanes.map(({ graphLaunches }) => graphLaunches).reduce((a, b) => a + b)).toBe(stats.batches)
  })

  it('captures a shape that turns out to come often, and keeps as many as it may', async () => {
    const { gpu, session } = await open(dynamic, { cudaGraphs: 2, warmUp: false })
    const send = async (rows: number): Promise<void> => {
      const out = await session.run({ x: Tensor.float32(Array.from({ length: rows * 4 }, (_, i) => i), [rows, 4]) })
      expect(numbers(out.y)).toEqual(Array.from({ length: rows * 4 }, (_, i) => 2 * i + 1))
    }
    for (let round = 0; round < 3; round++) for (let rows = 1; rows <= 8; rows++) for (let i = 0; i < 8; i++) await send(rows)
    expect(gpu.graphLaunches).toBeGreaterThan(0)
    await new Promise((resolve) => setTimeout(resolve, 1))
    // Two slots each.
    expect(gpu.open.get('graph')).toBe(4)
  })

  it('captures no more than it may in the warm-up, the smallest first', async () => {
    const { gpu, session } = await open(dynamic, { cudaGraphs: 1, batching: { runSizes: [1, 4, 8] } })
    expect(gpu.open.get('graph')).toBe(2)
    const launches = gpu.graphLaunches
    await session.run(row(1, 1, 1, 1))
    expect(gpu.graphLaunches).toBe(launches + 1)
    expect(numbers((await session.run({ x: Tensor.zeros('float32', [4, 4]) })).y)).toEqual(Array.from({ length: 16 }, () => 1))
    expect(gpu.graphLaunches).toBe(launches + 1)
  })

  it('runs plain commands where a capture fails, and says so once', async () => {
    const warnings: SessionWarning[] = []
    const gpu = new GpuDouble(dynamic)
    for (let i = 0; i < 10; i++) gpu.failures.push({ method: 'endCapture', error: nativeError('ERR_EXECUTION_FAILED', 'cannot be captured') })
    const { session } = await open(gpu, { onWarning: (warning) => warnings.push(warning) })
    expect(warnings.map(({ code }) => code)).toEqual(['GRAPH_CAPTURE_FAILED'])
    expect(warnings[0]!.message).toContain('cannot be captured')
    expect(numbers((await session.run(row(1, 1, 1, 1))).y)).toEqual([3, 3, 3, 3])
    expect(gpu.graphLaunches).toBe(0)
  })

  it('captures nothing where it is not to', async () => {
    const { gpu, session } = await open(dynamic, { cudaGraphs: false })
    await session.run(row(1, 1, 1, 1))
    expect(gpu.graphLaunches).toBe(0)
    expect(session.stats().lanes[0]!.enqueues).toBe(1)
  })

  it('sends requests until the way of one is compiled, and few where each takes long', async () => {
    const requests = async (runMs: number): Promise<number> => {
      const gpu = new GpuDouble(dynamic)
      gpu.runMs = runMs
      await open(gpu, { batching: { runSizes: [8] } })
      // Beside three runs in each of two slots.
      return gpu.graphLaunches - 6
    }
    expect(await requests(0)).toBeGreaterThan(10)
    expect(await requests(80)).toBe(3)
    // The process has compiled it by now, or does so here.
    expect(await requests(0)).toBeGreaterThan(10)
  })

  it('warms up shapes that the caller names', async () => {
    const model = affineModel([range([1, 1], [4, 4], [8, 16])], [-1, -1])
    const { gpu } = await open(model, { warmUp: [{ x: [3, 7] }] })
    expect(gpu.enqueued.map(({ shapes }) => shapes[0]!.join())).toContain('3,7')
    await expect(open(model, { warmUp: [{ x: [3, 99] }] })).rejects.toMatchObject({ code: 'ERR_INVALID_TENSOR' })
  })

  it('is aborted by its signal, and leaves nothing behind', async () => {
    const gpu = new GpuDouble(dynamic)
    gpu.pause()
    const abort = new AbortController()
    const checked = checkSessionOptions({ signal: abort.signal }, 'createSession()')
    gpu.resume()
    const backend = await TensorRTBackend.create(gpu.engine(), checked)
    const opening = Session.open(backend, checked)
    abort.abort(new Error('enough'))
    await expect(opening).rejects.toMatchObject({ code: 'ABORT_ERR' })
    for (const kind of ['stream', 'context', 'graph', 'device', 'pinned']) expect(gpu.leaks).not.toHaveProperty(kind)
  })
})

describe('outputs whose size depends on the data', () => {
  /** The values above 0 of all rows, and how many there are. */
  const positive: ModelDouble = {
    tensors: [tensor({ name: 'x', profiles: [range([1, 4], [4, 4], [8, 4])] }), tensor({ name: 'found', mode: 'output', shape: [-1] })],
    profiles: 1,
    infer: () => [[-1]],
    compute: ([x]) => {
      const found = (x!.data as Float32Array).filter((value) => value > 0)
      return [{ data: found, shape: [found.length] }]
    },
  }

  it('are as large as they turn out to be', async () => {
    const { gpu, session } = await open(positive)
    const outs = await Promise.all([row(1, -1, 2, -2), row(-1, -1, -1, -1), row(1, 2, 3, 4)].map((inputs) => session.run(inputs)))
    expect(outs.map(({ found }) => [found!.shape, numbers(found)])).toEqual([
      [[2], [1, 2]],
      [[0], []],
      [[4], [1, 2, 3, 4]],
    ])
    expect(gpu.graphLaunches).toBe(0)
  })

  it('cannot be batched', async () => {
    await expect(open(positive, { batching: true })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('"found" depends on the data') as string })
  })
})

it('takes shape tensors by their values', async () => {
  /** The first `n` columns, `n` being a shape tensor. */
  const model: ModelDouble = {
    tensors: [
      tensor({ name: 'x', profiles: [range([1, 4], [1, 4], [8, 4])] }),
      tensor({ name: 'n', dtype: 'int64', shape: [1], location: 'host', isShapeTensor: true, profiles: [range([1], [1], [1])], values: [range([1], [2], [4])] }),
      tensor({ name: 'head', mode: 'output', shape: [-1, -1] }),
    ],
    profiles: 1,
    infer: ([x], [, n]) => [[x![0]!, n![0]!]],
    compute: ([x], [, n]) => {
      const [rows, columns] = [x!.shape[0]!, n![0]!]
      const data = Float32Array.from({ length: rows * columns }, (_, i) => (x!.data as Float32Array)[Math.floor(i / columns) * 4 + (i % columns)]!)
      return [{ data, shape: [rows, columns] }]
    },
  }
  const { session } = await open(model)
  for (const n of [1, 3, 2, 3]) {
    const { head } = await session.run({ ...row(1, 2, 3, 4), n: Tensor.int64([BigInt(n)]) })
    expect([head!.shape, numbers(head)]).toEqual([[1, n], [1, 2, 3, 4].slice(0, n)])
  }
})

describe('spinning', () => {
  it('is left to machines with processors enough for it', () => {
    expect([1, 2, 5].map((processors) => defaultSpinUs(1, processors))).toEqual([50, 50, 50])
    expect([6, 16].map((processors) => defaultSpinUs(1, processors))).toEqual([1000, 1000])
    expect([4, 6, 7].map((contexts) => defaultSpinUs(contexts, 16))).toEqual([1000, 1000, 50])
  })

  it('is as asked, where it is', () => {
    expect(checkSessionOptions({ spinUs: 0 }, 'createSession()').spinUs).toBe(0)
    expect(checkSessionOptions({ spinUs: 2000, contexts: 64 }, 'createSession()').spinUs).toBe(2000)
  })
})
