/** Sessions on the CPU, with the real onnxruntime in its worker thread. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import * as onnx from 'onnxruntime-node'
import { afterEach, describe, expect, it } from 'vitest'
import { Tensor } from '../../../../lib/runtime'
import { OnnxRuntimeBackend } from '../../../../lib/runtime/session/onnxruntime_session'
import type { SessionWarning } from '../../../../lib/runtime/session/options'
import { Session } from '../../../../lib/runtime/session/session'
import type { SessionLoadOptions } from '../../../../lib/runtime/session/load_session'
import { TurnCounter } from '../../../support/patience'
import { affineModel, range } from './gpu_double'
import { closeAll, codeOf, open } from './open_session'

const fixtures = join(__dirname, '..', '..', '..', 'fixtures', 'onnx')
const model = (name: string): string => join(fixtures, `${name}.onnx`)

const sessions: Session[] = []

async function load(source: string, options: SessionLoadOptions = {}): Promise<Session> {
  const session = await Session.load(source, { backend: 'onnxruntime', ...options })
  sessions.push(session)
  return session
}

afterEach(async () => {
  await Promise.all(sessions.splice(0).map((session) => session.close()))
  await closeAll()
})

function rows(count: number, seed = 1): Tensor<'float32'> {
  return Tensor.float32(
    Float32Array.from({ length: count * 16 }, (_, i) => Math.sin(seed + i)),
    [count, 16],
  )
}

/** What onnxruntime itself gives for `mlp`. */
async function reference(x: Tensor<'float32'>): Promise<number[]> {
  const session = await onnx.InferenceSession.create(model('mlp'))
  const { y } = await session.run({ x: new onnx.Tensor('float32', x.data, [...x.shape]) })
  return Array.from(y!.data as Float32Array)
}

describe('a session of onnxruntime', () => {
  it('gives what onnxruntime gives, and says what runs', async () => {
    const session = await load(model('mlp'))
    expect(session.info).toEqual({
      backend: 'onnxruntime',
      device: 'CPU',
      lanes: 1,
      batched: false,
      inputs: [{ name: 'x', dtype: 'float32', shape: [-1, 16] }],
      outputs: [{ name: 'y', dtype: 'float32', shape: [-1, 8] }],
    })
    for (const count of [1, 5]) {
      const { y } = await session.run({ x: rows(count) })
      expect(y).toMatchObject({ dtype: 'float32', shape: [count, 8] })
      expect(Array.from(y!.data as Float32Array)).toEqual(await reference(rows(count)))
    }
    expect(session.stats()).toMatchObject({ backend: 'onnxruntime', completed: 2, deviceAllocations: 0 })
  })

  it('batches, and a batch is what it is by hand, bit for bit', async () => {
    const session = await load(model('mlp'), { batching: { maxBatch: 8, maxDelayMs: 20 } })
    const outs = await Promise.all([1, 2, 3].map((seed) => session.run({ x: rows(2, seed) })))
    expect(session.stats()).toMatchObject({ batches: 1, batchSizes: { 6: 1 } })
    const joined = Tensor.float32(Float32Array.from([1, 2, 3].flatMap((seed) => Array.from(rows(2, seed).data))), [6, 16])
    expect(outs.flatMap(({ y }) => Array.from(y!.data as Float32Array))).toEqual(await reference(joined))
  })

  it('takes a model as bytes, and one whose weights lie beside it', async () => {
    const bytes = await load('mlp', { onnx: readFileSync(model('mlp')) })
    const external = await load(model('mlp_external'))
    const [a, b] = await Promise.all([bytes.run({ x: rows(1) }), external.run({ x: rows(1) })])
    expect(a.y!.shape).toEqual([1, 8])
    expect(b.y!.shape).toEqual([1, 8])
  })

  it('takes other types, and outputs as large as the data makes them', async () => {
    const session = await load(model('nonzero'))
    const { indices } = await session.run({ x: Tensor.float32([0, 1, 0, 2, 3, 0, 0, 0], [2, 4]) })
    expect(indices).toMatchObject({ dtype: 'int64', shape: [2, 3] })
    expect(Array.from(indices!.data as BigInt64Array)).toEqual([0n, 0n, 1n, 1n, 3n, 0n])
    const none = await session.run({ x: Tensor.zeros('float32', [1, 4]) })
    expect(none.indices!.shape).toEqual([2, 0])
    const reshape = await load(model('reshape'))
    const { y } = await reshape.run({ x: Tensor.float32([1, 2, 3, 4, 5, 6]), shape: Tensor.int64([3n, 2n]) })
    expect(y!.shape).toEqual([3, 2])
  })

  it('checks requests as a GPU session does', async () => {
    const session = await load(model('mlp'))
    await expect(session.run({ x: Tensor.zeros('float32', [1, 15]) })).rejects.toMatchObject({ code: 'ERR_INVALID_TENSOR', message: expect.stringContaining('[?, 16], not [1, 15]') as string })
    await expect(session.run({ x: Tensor.zeros('int32', [1, 16]) })).rejects.toMatchObject({ code: 'ERR_INVALID_TENSOR' })
    await expect(session.run({})).rejects.toMatchObject({ code: 'ERR_INVALID_TENSOR' })
  })

  it('says which request failed, and goes on', async () => {
    const session = await load(model('reshape'))
    await expect(session.run({ x: Tensor.float32([1, 2, 3]), shape: Tensor.int64([2n, 2n]) })).rejects.toMatchObject({
      code: 'ERR_EXECUTION_FAILED',
      message: expect.stringContaining('onnxruntime failed') as string,
    })
    const { y } = await session.run({ x: Tensor.float32([1, 2]), shape: Tensor.int64([2n, 1n]) })
    expect(y!.shape).toEqual([2, 1])
  })

  it('does not block the event loop while it runs', async () => {
    const session = await load(model('mlp'))
    const x = rows(512)
    const counter = new TurnCounter()
    await Promise.all(Array.from({ length: 50 }, () => session.run({ x })))
    // Runs on this thread would leave a few turns each.
    expect(counter.stop()).toBeGreaterThan(50 * 10)
  })

  it('is aborted, refuses, and ends like any other', async () => {
    const session = await load(model('mlp'), { maxQueue: 1 })
    const abort = new AbortController()
    const running = session.run({ x: rows(2000) }, { signal: abort.signal })
    const behind = session.run({ x: rows(1) })
    const queued = session.run({ x: rows(1) })
    expect(await codeOf(session.run({ x: rows(1) }))).toBe('ERR_QUEUE_FULL')
    abort.abort()
    expect(await codeOf(running)).toBe('ABORT_ERR')
    expect((await behind).y!.shape).toEqual([1, 8])
    expect((await queued).y!.shape).toEqual([1, 8])
    const late = codeOf(session.run({ x: rows(2000) }))
    await session.close()
    expect(await late).toBe('ERR_DISPOSED')
  })
})

describe('models that cannot be loaded', () => {
  it.each([
    ['nowhere', 'ERR_MODEL_NOT_FOUND'],
    ['truncated', 'ERR_ONNX_INVALID'],
    ['no_model', 'ERR_ONNX_INVALID'],
    ['unsupported', 'ERR_ONNX_UNSUPPORTED'],
  ])('%s: %s', async (name, code) => {
    expect(await codeOf(load(model(name)))).toBe(code)
  })

  it('names the file, and takes no folder', async () => {
    await expect(load(model('truncated'))).rejects.toThrow(`onnxruntime does not take ${model('truncated')}: `)
    await expect(load('onnx', { onnx: fixtures })).rejects.toMatchObject({ code: 'ERR_ONNX_INVALID', message: `${fixtures} is no file` })
    await expect(load(model('mlp'), { warmUp: [{ x: [2, 5] }] })).rejects.toThrow('Input "x" has the shape [2, 5], and the model takes [?, 16]')
  })

  it('ends the wait when it is aborted', async () => {
    const abort = new AbortController()
    const loading = load(model('mlp'), { signal: abort.signal })
    abort.abort()
    expect(await codeOf(loading)).toBe('ABORT_ERR')
  })
})

describe('without a GPU', () => {
  const without = (): (() => void) => {
    const before = process.env.NODE_TENSORRT_MODULE
    process.env.NODE_TENSORRT_MODULE = '/nowhere/nt-tensorrt.so'
    return () => {
      if (before === undefined) delete process.env.NODE_TENSORRT_MODULE
      else process.env.NODE_TENSORRT_MODULE = before
    }
  }

  it('auto runs the ONNX file, and warns once', async () => {
    const restore = without()
    try {
      const warnings: SessionWarning[] = []
      const session = await load(Buffer.from('a plan') as never, { backend: 'auto', onnx: model('mlp'), onWarning: (warning) => warnings.push(warning) })
      expect(session.info.backend).toBe('onnxruntime')
      expect((await session.run({ x: rows(1) })).y!.shape).toEqual([1, 8])
      expect(warnings).toMatchObject([{ code: 'ONNXRUNTIME_FALLBACK', cause: { code: 'ERR_TENSORRT_MODULE_NOT_FOUND' } }])
    } finally {
      restore()
    }
  })

  it('tensorrt does not fall back, and auto has nothing to fall back to without "onnx"', async () => {
    const restore = without()
    try {
      const plan = Buffer.from('a plan') as never
      expect(await codeOf(load(plan, { backend: 'tensorrt', onnx: model('mlp') }))).toBe('ERR_TENSORRT_MODULE_NOT_FOUND')
      expect(await codeOf(load(plan, { backend: 'auto' }))).toBe('ERR_TENSORRT_MODULE_NOT_FOUND')
      const warnings: SessionWarning[] = []
      await expect(load(plan, { backend: 'auto', onnx: model('nowhere'), onWarning: (warning) => warnings.push(warning) })).rejects.toMatchObject({
        code: 'ERR_MODEL_NOT_FOUND',
        cause: expect.any(AggregateError) as AggregateError,
      })
      expect(warnings).toEqual([])
    } finally {
      restore()
    }
  })

  it('minds what it is given', async () => {
    const wrong: [unknown, SessionLoadOptions][] = [
      ['engine', { backend: 'onnxruntime' }],
      ['engine', { backend: 'tensorrt', failover: true }],
      [7, { backend: 'tensorrt' }],
      [model('mlp'), { backend: 'cuda' as never }],
      [model('mlp'), { batch: 3 } as never],
    ]
    for (const [source, options] of wrong) expect(await codeOf(load(source as string, options))).toBe('ERR_INVALID_ARGUMENT')
  })
})

it('takes over from a GPU that dies', async () => {
  const shaped = affineModel([range([1, 16], [4, 16], [8, 16])], [-1, 16])
  const gpuModel = { ...shaped, tensors: shaped.tensors.map((info) => ({ ...info })) }
  const warnings: SessionWarning[] = []
  const { gpu, session } = await open(gpuModel, { onWarning: (warning) => warnings.push(warning) }, () =>
    OnnxRuntimeBackend.create({ onnx: model('mlp'), threads: 0, signal: undefined }),
  )
  gpu.pause()
  const pending = [1, 2, 3, 4].map((seed) => session.run({ x: rows(1, seed) }, { outputs: ['y'] }))
  gpu.kill()
  const outs = await Promise.all(pending)
  expect(Array.from(outs[2]!.y!.data as Float32Array)).toEqual(await reference(rows(1, 3)))
  expect(session.info.backend).toBe('onnxruntime')
  expect(session.stats()).toMatchObject({ failedOver: 4, completed: 4, backend: 'onnxruntime' })
  expect(warnings.map(({ code }) => code)).toEqual(['SESSION_FAILED_OVER'])
})
