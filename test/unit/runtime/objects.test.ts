/** What lib/runtime itself does: waits and their ends, what comes too late, captures, checks of arguments. */
import { getEventListeners } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import { TensorRTError } from '../../../lib/errors'
import { buildLLMEngine } from '../../../lib/llm'
import type { TensorRTProbe } from '../../../lib/native'
import { buildEngine, Engine, type ExecutionContext, gpus, inspectOnnxModel, KvCache, Runtime, type Stream, Tensor, type WaitOptions } from '../../../lib/runtime'
import { shareRuntime } from '../../../lib/runtime/shared_runtime'
import '../matchers'
import { demoModel, root, temporaryFolder } from '../tensorrt/fixtures'
import { NativeDouble } from './native_double'

const { current } = vi.hoisted(() => ({ current: {} as { native: NativeDouble; creations: number; probe: () => Promise<TensorRTProbe> } }))
vi.mock('../../../lib/native', async (original) => ({
  ...(await original<object>()),
  createNativeRuntime: async ({ device }: { device: number }) => {
    current.creations++
    return current.native.runtime(device)
  },
  probeTensorRT: () => current.probe(),
  inspectOnnx: () => current.probe(),
}))

const temporary = temporaryFolder()
const onnx = join(root, 'test', 'fixtures', 'onnx', 'mlp.onnx')
let native: NativeDouble
let runtime: Runtime
let stream: Stream
beforeEach(async () => {
  native = current.native = new NativeDouble()
  runtime = await Runtime.create()
  stream = await runtime.createStream()
  current.creations = 0
})

const failure = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    () => {
      throw new Error('nothing failed')
    },
    (error: Error) => error,
  )
const turn = (): Promise<void> => new Promise((done) => void setImmediate(done))

describe('a wait', () => {
  it('ends at once when its signal aborts, and the object goes on', async () => {
    native.held.add('synchronize')
    const controller = new AbortController()
    const waiting = failure(stream.synchronize({ signal: controller.signal }))
    const reason = new Error('enough')
    controller.abort(reason)
    expect(await waiting).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR', cause: reason })
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
    native.release('synchronize')
    await stream.synchronize()
  })

  it('does not begin with a signal that has aborted', async () => {
    const signal = AbortSignal.abort()
    expect(await failure(stream.synchronize({ signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(runtime.allocateDevice(16, { signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(runtime.createEvent({ signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(runtime.createStream({ signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(runtime.trim({ signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(gpus({ signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(Runtime.create({ signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(Engine.load(Buffer.from('plan'), { signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(stream.capture(() => {}, { signal }))).toHaveCode('ABORT_ERR')
    const engine = await Engine.load(Buffer.from('plan'), { runtime })
    expect(await failure(engine.layers(0, { signal }))).toHaveCode('ABORT_ERR')
    expect(await failure(engine.refit({ 'encoder.bias': Tensor.float32([1]) }, { signal }))).toHaveCode('ABORT_ERR')
    for (const method of ['synchronize', 'allocate', 'beginCapture', 'refit']) expect(native.called(method)).toEqual([])
    expect([native.called('createStream'), native.called('deserialize')]).toMatchObject([{ length: 1 }, { length: 1 }])
  })

  it.each([
    ['trim', (_: Engine, options: WaitOptions) => runtime.trim(options)],
    ['layers', (engine: Engine, options: WaitOptions) => engine.layers(1, options)],
    ['refittableWeights', (engine: Engine, options: WaitOptions) => engine.refittableWeights(options)],
    ['serialize', (engine: Engine, options: WaitOptions) => engine.serialize(options)],
  ] as const)('for %s() ends at once, and the object goes on', async (method, call) => {
    const engine = await Engine.load(Buffer.from('plan'), { runtime })
    native.held.add(method)
    const controller = new AbortController()
    const waiting = failure(call(engine, { signal: controller.signal }))
    await turn()
    controller.abort('enough')
    expect(await waiting).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
    native.release(method)
    await call(engine, {})
  })

  it('for a driver that wakes up ends at once', async () => {
    let wake!: (probe: TensorRTProbe) => void
    const awake = new Promise<TensorRTProbe>((resolve) => (wake = resolve))
    let asked = 0
    current.probe = () => {
      asked++
      return awake
    }
    const controller = new AbortController()
    const { signal } = controller
    const out = join(temporary, 'engine')
    const waiting = [
      gpus({ signal }),
      buildEngine({ onnx, out, cache: false, profiles: [{ x: { min: [1, 16], opt: [8, 16], max: [32, 16] } }], signal }),
      buildLLMEngine(demoModel, out, { signal }),
      inspectOnnxModel(onnx, { signal }),
    ].map(failure)
    const patient = gpus()
    await expect.poll(() => asked).toBe(5)
    controller.abort('enough')
    for (const error of await Promise.all(waiting)) expect(error).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
    expect(existsSync(out)).toBe(false)
    wake({ driver: null, gpus: [] } as Partial<TensorRTProbe> as TensorRTProbe)
    expect(await patient).toEqual([])
  })

  it('leaves no listener behind when it ends by itself', async () => {
    const { signal } = new AbortController()
    await Promise.all(Array.from({ length: 50 }, () => stream.synchronize({ signal })))
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  it('is rejected when its object is closed, hundreds at a time', async () => {
    native.held.add('synchronize')
    const waits = Array.from({ length: 300 }, () => failure(stream.synchronize()))
    await stream.close()
    for (const error of await Promise.all(waits)) expect(error).toHaveCode('ERR_DISPOSED', /The Stream is closed/)
  })

  it('is rejected when the parent is closed', async () => {
    native.held.add('synchronize')
    const waiting = failure(stream.synchronize())
    await runtime.close()
    expect(await waiting).toHaveCode('ERR_DISPOSED')
  })

  it('passes on what the native side says, as a TensorRTError', async () => {
    native.failures.set('synchronize', Object.assign(new Error('no room'), { code: 'ERR_OUT_OF_DEVICE_MEMORY', hint: 'make some' }))
    const error = await failure(stream.synchronize())
    expect(error).toBeInstanceOf(TensorRTError)
    expect(error).toMatchObject({ code: 'ERR_OUT_OF_DEVICE_MEMORY', hint: 'make some' })
  })
})

describe('what comes too late is closed', () => {
  const makers: [method: string, make: (signal: AbortSignal) => Promise<unknown>][] = [
    ['allocate', (signal) => runtime.allocateDevice(16, { signal })],
    ['allocate', (signal) => runtime.allocatePinned(16, { signal })],
    ['createEvent', (signal) => runtime.createEvent({ signal })],
    ['createStream', (signal) => runtime.createStream({ signal })],
    ['createStream', (signal) => KvCache.create(runtime, { layers: 1, pages: 1, kvHeads: 1, headDim: 1, dtype: 'float16', signal })],
    ['deserialize', (signal) => Engine.load(Buffer.from('plan'), { runtime, signal })],
    ['endCapture', (signal) => stream.capture(() => {}, { signal })],
  ]
  it.each(makers)('%s after an abort', async (method, make) => {
    const before = native.open.size
    native.held.add(method)
    const controller = new AbortController()
    const waiting = failure(make(controller.signal))
    await turn()
    controller.abort()
    expect(await waiting).toHaveCode('ABORT_ERR')
    native.release(method)
    await turn()
    expect(native.open.size).toBe(before)
  })

  it.each(makers)('%s after the runtime was closed', async (method, make) => {
    native.held.add(method)
    const waiting = failure(make(new AbortController().signal))
    await turn()
    await runtime.close()
    expect(await waiting).toHaveCode('ERR_DISPOSED')
    native.release(method)
    await turn()
    expect([...native.open]).toEqual([])
  })

  it('a context, after its engine was closed', async () => {
    const engine = await Engine.load(Buffer.from('plan'), { runtime })
    native.held.add('createContext')
    const waiting = failure(engine.createContext())
    await engine.close()
    expect(await waiting).toHaveCode('ERR_DISPOSED')
    native.release('createContext')
    await turn()
    expect([...native.open].filter((id) => /context|engine/.test(id))).toEqual([])
  })

  it('an object whose runtime was closed between its arrival and its making', async () => {
    native.held.add('allocate')
    const waiting = failure(runtime.allocateDevice(16))
    native.release('allocate')
    void runtime.close()
    expect(await waiting).toHaveCode('ERR_DISPOSED')
    await turn()
    expect([...native.open]).toEqual([])
  })
})

describe('a capture', () => {
  it('that throws is ended, its graph closed, and the error passed on', async () => {
    const wrong = new Error('wrong')
    const before = native.open.size
    const error = await failure(
      stream.capture(() => {
        throw wrong
      }),
    )
    expect(error).toBe(wrong)
    await turn()
    expect(native.called('endCapture')).toHaveLength(1)
    expect(native.open.size).toBe(before)
    await (await stream.capture(() => {})).close()
  })

  it('of a function with a promise is refused', async () => {
    expect(await failure(stream.capture((async () => {}) as () => void))).toHaveCode('ERR_INVALID_ARGUMENT', /must not return a promise/)
    expect(await failure(stream.capture(1 as never))).toHaveCode('ERR_INVALID_ARGUMENT', /"commands" must be a function/)
    await stream.synchronize()
  })

  it('whose begin fails captures nothing', async () => {
    native.failures.set('beginCapture', Object.assign(new Error('busy'), { code: 'ERR_CUDA' }))
    const commands = vi.fn()
    expect(await failure(stream.capture(commands))).toHaveCode('ERR_CUDA')
    expect(commands).not.toHaveBeenCalled()
    await stream.synchronize()
  })

  it('in which the stream is closed rejects', async () => {
    const error = await failure(stream.capture(() => void stream.close()))
    expect(error).toHaveCode('ERR_DISPOSED')
    await turn()
    expect([...native.open].filter((id) => id.startsWith('graph'))).toEqual([])
  })
})

describe('a copy', () => {
  it('takes everything from the offset on unless told', async () => {
    const from = await runtime.allocatePinned(64)
    const to = await runtime.allocateDevice(100)
    stream.copy(to, from)
    stream.copy(to, from, { fromOffset: 16, toOffset: 8 })
    stream.copy(to, from, { bytes: 4 })
    expect(native.called('copy').map(([, , , toOffset, , fromOffset, bytes]) => [toOffset, fromOffset, bytes])).toEqual([
      [0, 0, 64],
      [8, 16, 48],
      [0, 0, 4],
    ])
  })

  it('refuses ranges outside', async () => {
    const small = await runtime.allocatePinned(16)
    const large = await runtime.allocateDevice(64)
    const refused: [() => void, RegExp][] = [
      [() => stream.copy(small, large), /"to" has 16 bytes, and 64 from byte 0 on end at 64/],
      [() => stream.copy(large, small, { fromOffset: 8, bytes: 9 }), /"from" has 16 bytes, and 9 from byte 8 on end at 17/],
      [() => stream.copy(large, small, { toOffset: 60 }), /"to" has 64 bytes/],
      [() => stream.copy(large, small, { toOffset: -1 }), /"toOffset" must be an integer from 0 to 64, not -1/],
      [() => stream.copy(large, small, { offset: 1 } as never), /copy\(\) has no option "offset"/],
      [() => stream.copy(large, new Uint8Array(4) as never), /"from" must be a DeviceBuffer or a PinnedBuffer, not an object of Uint8Array/],
      [() => stream.copyRows(large, small, { rows: 2, bytes: 8, toPitch: 4 }), /"toPitch" must be an integer from 8/],
      [() => stream.copyRows(large, small, { rows: 2, bytes: 8, fromPitch: 9 }), /"from" has 16 bytes, and 17/],
      [() => stream.copyRows(large, small, { rows: 2 } as never), /"bytes" must be given/],
      [() => stream.fill(small, 256), /"value" must be a byte/],
      [() => stream.fill(small, 0, { offset: 4, bytes: 13 }), /"buffer" has 16 bytes/],
    ]
    for (const [call, message] of refused) expect(call).toThrowCode('ERR_INVALID_ARGUMENT', message)
    expect(native.calls.filter(([, method]) => /copy|fill/.test(method))).toEqual([])
    stream.copyRows(large, small, { rows: 0, bytes: 100 })
    stream.copyRows(large, small, { rows: 2, bytes: 8, toPitch: 56 })
  })
})

describe('pinned memory', () => {
  it('is seen as typed arrays over the same bytes', async () => {
    const pinned = await runtime.allocatePinned({ dtype: 'float16', shape: [3, 2] })
    expect(pinned).toMatchObject({ bytes: 12, layout: { dtype: 'float16', shape: [3, 2] } })
    expect(pinned.view()).toBeInstanceOf(Uint16Array)
    expect(pinned.view()).toHaveLength(6)
    expect(pinned.view('float32')).toHaveLength(3)
    expect(pinned.view('uint8', 5)).toHaveLength(7)
    expect(pinned.view('int32', 4, 1).byteOffset).toBe(4)
    pinned.view('uint8')[0] = 9
    expect(pinned.view()[0]).toBe(9)
    expect(() => pinned.view('float32', 2)).toThrowCode('ERR_INVALID_ARGUMENT', /"byteOffset" must be a multiple of 4/)
    expect(() => pinned.view('int64', 0, 2)).toThrowCode('ERR_INVALID_ARGUMENT', /The buffer has 12 bytes, and 16/)
    expect(() => pinned.view('float64' as never)).toThrowCode('ERR_INVALID_TENSOR')
    expect((await runtime.allocatePinned(5)).view()).toStrictEqual(new Uint8Array(5))
  })

  it('takes tensors and gives them back, at any place', async () => {
    const pinned = await runtime.allocatePinned(40)
    pinned.write(Tensor.int64([1, -2], [2, 1]), 3)
    const back = pinned.read('int64', [1, 2], 3)
    expect(back).toMatchObject({ dtype: 'int64', shape: [1, 2], data: BigInt64Array.of(1n, -2n) })
    pinned.write(Tensor.int64([7], [1]), 3)
    expect(back.data[0]).toBe(1n)
    expect(() => pinned.write(Tensor.float32([1, 2]), 36)).toThrowCode('ERR_INVALID_TENSOR', /float32 and shape \[2\] has 8 bytes, and the PinnedBuffer of 40 has 4 from byte 36 on/)
    expect(() => pinned.write([1] as never)).toThrowCode('ERR_INVALID_TENSOR', /takes a Tensor, not an array of 1/)
    expect(() => pinned.read('float32', [11])).toThrowCode('ERR_INVALID_TENSOR', /A tensor of float32 and shape \[11\] has 44 bytes, and the PinnedBuffer of \d+ has/)
  })

  it.each<[unknown, string, RegExp]>([
    [0, 'ERR_INVALID_ARGUMENT', /"size" must be a number of bytes from 1/],
    [1.5, 'ERR_INVALID_ARGUMENT', /"size"/],
    ['16', 'ERR_INVALID_ARGUMENT', /not "16"/],
    [{ dtype: 'float32' }, 'ERR_INVALID_ARGUMENT', /"size"/],
    [{ dtype: 'double', shape: [1] }, 'ERR_INVALID_TENSOR', /no data type "double"/],
    [{ dtype: 'float32', shape: [-1] }, 'ERR_INVALID_TENSOR', /shape\[0\] is -1/],
  ])('is not allocated for %j', async (size, code, message) => {
    expect(await failure(runtime.allocatePinned(size as never))).toHaveCode(code, message)
    expect(native.called('allocate')).toEqual([])
  })
})

describe('a context', () => {
  let engine: Engine
  let context: ExecutionContext
  beforeEach(async () => {
    engine = await Engine.load(Buffer.from('plan'), { runtime })
    context = await engine.createContext()
  })

  const refused: [what: string, call: () => unknown, code: string, message: RegExp][] = [
    ['a name that is nearly right', () => context.setInputShape('inputs', [1, 4]), 'ERR_INVALID_TENSOR', /no input "inputs" \(did you mean "input"\?\)/],
    ['a name far off', () => context.setInputShape('x', [1, 4]), 'ERR_INVALID_TENSOR', /there are: input, fixed, size/],
    ['no name', () => context.allocateOutput(1 as never), 'ERR_INVALID_TENSOR', /no output 1/],
    ['an output as an input', () => context.setInputShape('output', [1, 3]), 'ERR_INVALID_TENSOR', /"output" is an output, no input/],
    ['an input as an output', () => context.output('input'), 'ERR_INVALID_TENSOR', /"input" is an input, no output/],
    ['another rank', () => context.setInputShape('input', [4]), 'ERR_INVALID_TENSOR', /"input" takes the shape \[1\.\.8, 4\] in profile 0, not \[4\]/],
    ['a size outside the profile', () => context.setInputShape('input', [9, 4]), 'ERR_INVALID_TENSOR', /\[1\.\.8, 4\] in profile 0, not \[9, 4\].*another profile/],
    ['a size that is fixed', () => context.setInputShape('input', [1, 5]), 'ERR_INVALID_TENSOR', /not \[1, 5\]/],
    ['a fixed shape', () => context.setInputShape('fixed', [3]), 'ERR_INVALID_TENSOR', /"fixed" takes the shape \[2\], not \[3\]/],
    ['a profile that is not there', () => context.setProfile(2), 'ERR_INVALID_ARGUMENT', /"profile" must be an integer from 0 to 1, a profile of the engine, not 2/],
    ['values of data', () => context.setShapeValues('input', [1]), 'ERR_INVALID_TENSOR', /no shape tensor.*setTensor/],
    ['too few values', () => context.setShapeValues('size', [1]), 'ERR_INVALID_TENSOR', /"size" takes 2 values in profile 0, not 1/],
    ['values outside the profile', () => context.setShapeValues('size', [1, 5]), 'ERR_INVALID_TENSOR', /values from \[1, 1\] to \[4, 4\] in profile 0, not \[1, 5\]/],
    ['values that are no integers', () => context.setShapeValues('size', [1, 0.5]), 'ERR_INVALID_TENSOR', /array of integers/],
    ['device memory of its own', () => context.setDeviceMemory({} as never), 'ERR_INVALID_ARGUMENT', /"buffer" must be a DeviceBuffer/],
    ['no buffer', () => context.setTensor('input', new Float32Array(4) as never), 'ERR_INVALID_ARGUMENT', /not an object of Float32Array/],
    ['profiling that is no boolean', () => context.setProfiling(1 as never), 'ERR_INVALID_ARGUMENT', /"on" must be true or false/],
    ['a stream that is none', () => context.resolveShapes({} as never), 'ERR_INVALID_ARGUMENT', /"stream"/],
  ]
  it.each(refused)('refuses %s', async (_, call, code, message) => {
    const error = await failure((async () => call())())
    expect(error).toHaveCode(code, message)
    expect(native.calls.filter(([object]) => object === 'context')).toEqual([])
  })

  it('refuses memory of another type, place or size', async () => {
    const half = await runtime.allocateDevice({ dtype: 'float16', shape: [8, 4] })
    expect(() => context.setTensor('input', half)).toThrowCode('ERR_INVALID_TENSOR', /"input" is float32, and the buffer was made for float16/)
    expect(() => context.setTensor('count', half)).toThrowCode('ERR_INVALID_TENSOR', /"count" lives on the host, and a DeviceBuffer was given.*PinnedBuffer/)
    expect(() => context.setTensor('size', half)).toThrowCode('ERR_INVALID_TENSOR', /setShapeValues/)
    expect(() => context.setDeviceMemory(half)).toThrowCode('ERR_INVALID_ARGUMENT', /memory of its own \('static'\)/)
    const users = await engine.createContext({ memory: 'user', profile: 1 })
    expect(() => users.setDeviceMemory(half)).toThrowCode('ERR_INVALID_ARGUMENT', /Profile 1 needs 2000 bytes of activation memory, and 64 were given/)
  })

  it('says before a run what it lacks, and runs then', async () => {
    const device = await runtime.allocateDevice(32)
    const lacks = (message: RegExp): void => {
      expect(() => stream.enqueue(context)).toThrowCode('ERR_INVALID_TENSOR', message)
    }
    lacks(/Input "input" of shape \[-1, 4\] has no shape for this run.*with \[1\.\.8, 4\]/)
    context.setInputShape('input', [4, 4])
    lacks(/Input "size" has no values.*setShapeValues\("size"/)
    context.setShapeValues('size', [2, 2])
    lacks(/Input "input" has no memory.*setTensor\("input"/)
    context.setTensor('input', device)
    lacks(/"input" of shape \[4, 4\] and type float32 takes 64 bytes, its buffer has 32/)
    context.setInputShape('input', [2, 4])
    lacks(/Input "fixed" has no memory/)
    context.setTensor('fixed', device)
    lacks(/Output "output" has no memory.*allocateOutput\("output"\)/)
    context.allocateOutput('output')
    lacks(/Output "count" has no memory/)
    context.setTensor('count', await runtime.allocatePinned(8))
    stream.enqueue(context)
    expect(native.called('enqueue')).toHaveLength(1)
    context.setProfile(1)
    lacks(/Input "input" of shape \[-1, 4\] has no shape.*\[1\.\.64, 4\]/)
    expect(context.profile).toBe(1)
  })

  it('tells shapes by name, and what an output was', async () => {
    context.setInputShape('input', [2, 4])
    context.setShapeValues('size', [2, 2])
    expect(await context.resolveShapes(stream)).toEqual({ input: [-1, 4], fixed: [2], size: [2], output: [-1, 3], count: [1] })
    const { shape, buffer } = context.output('output')
    expect(shape).toEqual([2, 3])
    expect(buffer).toMatchObject({ bytes: 24, layout: { dtype: 'float32', shape: [2, 3] } })
    expect(context.takeProfile()).toEqual([{ name: 'layer', ms: 0.5, runs: 1 }])
  })
})

describe('an engine', () => {
  it('describes itself, and nobody can change that', async () => {
    const engine = await Engine.load(Buffer.from('plan'), { runtime })
    expect(engine.inputs.map(({ name }) => name)).toEqual(['input', 'fixed', 'size'])
    expect(engine.outputs.map(({ name }) => name)).toEqual(['output', 'count'])
    expect(engine.tensor('size')).toMatchObject({ isShapeTensor: true, location: 'host' })
    expect(engine.profiles[1]).toMatchObject({ index: 1, deviceMemory: 2000, inputs: { input: { max: [64, 4] } }, values: { size: { max: [9, 9] } } })
    expect(engine.info).toMatchObject({ name: 'double', layers: 3, refittable: true })
    expect(() => engine.tensor('sizes')).toThrowCode('ERR_INVALID_TENSOR', /did you mean "size"/)
    expect(() => ((engine.inputs[0]!.shape as number[])[0] = 7)).toThrow(TypeError)
    expect(() => ((engine.info as { layers: number }).layers = 7)).toThrow(TypeError)
    expect(await engine.layers()).toEqual({ layers: ['layer of -1'], bindings: ['input'] })
    expect(await failure(engine.layers(5))).toHaveCode('ERR_INVALID_ARGUMENT')
  })

  it('is refitted by names that it has', async () => {
    const engine = await Engine.load(Buffer.from('plan'), { runtime })
    const weight = Tensor.float16([1, 2], [2, 1])
    await engine.refit({ 'encoder.weight': weight })
    expect(native.called('refit')).toEqual([['engine', 'refit', [{ name: 'encoder.weight', dtype: 'float16', values: weight.bytes, count: 2 }]]])
    expect(await failure(engine.refit({ 'encoder.weigth': weight }))).toHaveCode('ERR_INVALID_TENSOR', /did you mean "encoder.weight"/)
    expect(await failure(engine.refit({ 'encoder.bias': [1] as never }))).toHaveCode('ERR_INVALID_TENSOR', /must be a Tensor, not an array of 1/)
    expect(await failure(engine.refit([weight] as never))).toHaveCode('ERR_INVALID_ARGUMENT', /an object of tensors by name/)
    expect(native.called('refit')).toHaveLength(1)
  })

  describe('whose refit is aborted', () => {
    const weights = (value: number): Record<string, Tensor> => ({ 'encoder.bias': Tensor.float32([value]) })
    /** Values of the calls that have reached the native side. */
    const set = (): number[] => native.called('refit').map(([, , given]) => new Float32Array((given as { values: Uint8Array }[])[0]!.values.slice().buffer)[0]!)
    let engine: Engine
    let controller: AbortController
    beforeEach(async () => {
      engine = await Engine.load(Buffer.from('plan'), { runtime })
      controller = new AbortController()
    })

    it('before it has begun, sets nothing', async () => {
      native.held.add('refittableWeights')
      const waiting = failure(engine.refit(weights(1), { signal: controller.signal }))
      await turn()
      controller.abort('enough')
      expect(await waiting).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
      native.release('refittableWeights')
      await engine.refit(weights(2))
      expect(set()).toEqual([2])
    })

    it('while it waits for another, sets nothing, and those before and behind it do', async () => {
      native.held.add('refit')
      const first = engine.refit(weights(1))
      const second = failure(engine.refit(weights(2), { signal: controller.signal }))
      const third = engine.refit(weights(3))
      await turn()
      controller.abort('enough')
      expect(await second).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
      expect(set()).toEqual([1])
      native.release('refit')
      await Promise.all([first, third])
      expect(set()).toEqual([1, 3])
    })

    it('while it is at work, is not waited for, but the next one begins behind it', async () => {
      native.held.add('refit')
      const first = failure(engine.refit(weights(1), { signal: controller.signal }))
      await turn()
      expect(set()).toEqual([1])
      controller.abort('enough')
      expect(await first).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
      const second = engine.refit(weights(2))
      await turn()
      expect(set()).toEqual([1])
      native.release('refit')
      await second
      expect(set()).toEqual([1, 2])
    })

    it('goes on after one that fails', async () => {
      native.failures.set('refit', Object.assign(new Error('too few'), { code: 'ERR_WEIGHTS_INVALID' }))
      const [first, second] = [failure(engine.refit(weights(1))), engine.refit(weights(2))]
      expect(await first).toHaveCode('ERR_WEIGHTS_INVALID')
      await second
      expect(set()).toEqual([1, 2])
    })

    it('is nothing once the engine is closed', async () => {
      native.held.add('refit')
      const waiting = [failure(engine.refit(weights(1))), failure(engine.refit(weights(2)))]
      await turn()
      await engine.close()
      for (const error of await Promise.all(waiting)) expect(error).toHaveCode('ERR_DISPOSED')
      native.release('refit')
      await turn()
      expect(set()).toEqual([1])
    })
  })

  it('shares a runtime with others of its device and library, which the last one closes', async () => {
    const plan = Buffer.from('plan')
    const [a, b, other] = await Promise.all([Engine.load(plan), Engine.load(plan), Engine.load(plan, { device: 1 })])
    expect(current.creations).toBe(2)
    expect(a.runtime).toBe(b.runtime)
    expect(other.runtime).not.toBe(a.runtime)
    await a.close()
    expect(b.runtime.closed).toBe(false)
    await b.close()
    expect(b.runtime.closed).toBe(true)
    expect(other.runtime.closed).toBe(false)
    const c = await Engine.load(plan)
    expect(c.runtime.closed).toBe(false)
    await Promise.all([c.close(), other.close()])
  })

  it('gets a new runtime where the shared one was closed by hand', async () => {
    const a = await Engine.load(Buffer.from('plan'))
    await a.runtime.close()
    expect(a.closed).toBe(true)
    const b = await Engine.load(Buffer.from('plan'))
    expect(b.runtime).not.toBe(a.runtime)
    await a.close()
    expect(b.closed).toBe(false)
    await b.close()
    expect(b.runtime.closed).toBe(true)
  })

  it('that fails to load gives its share back', async () => {
    native.failures.set('deserialize', Object.assign(new Error('broken'), { code: 'ERR_ENGINE_INVALID' }))
    expect(await failure(Engine.load(Buffer.from('plan'), { device: 3 }))).toHaveCode('ERR_ENGINE_INVALID')
    expect([...native.open].filter((id) => id.startsWith('runtime'))).toHaveLength(1)
    const share = await shareRuntime(3, '')
    expect(current.creations).toBe(2)
    await share.release()
  })
})

describe('a KV cache', () => {
  const options = { layers: 3, pages: 5, kvHeads: 2, headDim: 4, dtype: 'float16' } as const
  /** 2 * 16 * 2 * 4 values of 2 bytes. */
  const pageBytes = 512

  it('is one pool, zero at first', async () => {
    const cache = await KvCache.create(runtime, options)
    expect(cache).toMatchObject({ bytes: 3 * 5 * pageBytes, layerPageBytes: pageBytes, geometry: { ...options, pageSize: 16 } })
    expect(native.called('fill').at(-1)!.slice(3)).toEqual([0, cache.bytes, 0])
    expect(cache.stats()).toMatchObject({ totalPages: 5, freePages: 5 })
    await cache.close()
    expect(cache.stream.closed).toBe(true)
  })

  it('copies a shared page of all layers before it is written to', async () => {
    const cache = await KvCache.create(runtime, { ...options, stream })
    const a = cache.allocate()
    cache.append(a, 20)
    const b = cache.fork(a)
    cache.append(b, 1)
    expect(cache.pageTable(b)).toEqual(Int32Array.of(0, 2))
    const [, , , toOffset, toPitch, , fromOffset, fromPitch, bytes, rows] = native.called('copyRows').at(-1)!
    expect({ toOffset, toPitch, fromOffset, fromPitch, bytes, rows }).toEqual({
      toOffset: 2 * pageBytes,
      toPitch: 5 * pageBytes,
      fromOffset: pageBytes,
      fromPitch: 5 * pageBytes,
      bytes: pageBytes,
      rows: 3,
    })
    cache.check()
    await cache.close()
    expect(stream.closed).toBe(false)
  })

  it('reads and writes pages, of all layers or of one', async () => {
    const cache = await KvCache.create(runtime, { ...options, stream })
    expect(await cache.readPage(4)).toMatchObject({ dtype: 'float16', shape: [3, 2, 16, 2, 4] })
    expect(await cache.readPage(4, { layer: 2 })).toMatchObject({ shape: [2, 16, 2, 4] })
    expect(native.called('copyRows').map((call) => call.slice(6, 10))).toEqual([
      [4 * pageBytes, 5 * pageBytes, pageBytes, 3],
      [(2 * 5 + 4) * pageBytes, 5 * pageBytes, pageBytes, 1],
    ])
    await cache.writePage(1, Tensor.zeros('float16', [2, 16, 2, 4]), { layer: 0 })
    expect(native.called('copyRows').at(-1)!.slice(3, 5)).toEqual([pageBytes, 5 * pageBytes])
    expect(await failure(cache.writePage(1, Tensor.zeros('float16', [2, 16, 2, 4])))).toHaveCode('ERR_INVALID_TENSOR', /takes a tensor of float16 and shape \[3, 2, 16, 2, 4\], not float16 \[2, 16, 2, 4\]/)
    expect(await failure(cache.writePage(1, Tensor.zeros('float32', [3, 2, 16, 2, 4]) as never))).toHaveCode('ERR_INVALID_TENSOR')
    expect(await failure(cache.readPage(5))).toHaveCode('ERR_INVALID_ARGUMENT', /"page" must be a page, an integer from 0 to 4, not 5/)
    expect(await failure(cache.readPage(0, { layer: 3 }))).toHaveCode('ERR_INVALID_ARGUMENT', /"layer"/)
    await turn()
    // The staging memory has gone back.
    expect([...native.open].filter((id) => id.startsWith('memory'))).toHaveLength(1)
  })

  it('that cannot be cleared leaves nothing behind', async () => {
    const before = native.open.size
    native.failures.set('synchronize', Object.assign(new Error('dead'), { code: 'ERR_BACKEND_DEAD' }))
    expect(await failure(KvCache.create(runtime, options))).toHaveCode('ERR_BACKEND_DEAD')
    expect(native.open.size).toBe(before)
  })

  it.each<[object, RegExp]>([
    [{ pages: 0 }, /"pages" must be an integer from 1/],
    [{ layers: undefined }, /"layers" must be given/],
    [{ dtype: 'int32' }, /"dtype" must be 'float32' or/],
    [{ dtype: undefined }, /"dtype" must be given/],
    [{ stream: {} }, /"stream" must be a Stream/],
    [{ page: 3 }, /no option "page" \(did you mean "pages"\?\)/],
    [{ layers: 2 ** 30, pages: 2 ** 30 }, /more than 2\^53 bytes/],
  ])('refuses %j', async (wrong, message) => {
    expect(await failure(KvCache.create(runtime, { ...options, ...wrong }))).toHaveCode('ERR_INVALID_ARGUMENT', message)
    expect(native.called('allocate')).toEqual([])
  })
})

it.each<[object, RegExp]>([
  [{ device: -1 }, /"device" must be an integer from 0/],
  [{ libraryPath: '' }, /"libraryPath" must be a path/],
  [{ gpu: 0 }, /no option "gpu"/],
])('a runtime is not made of %j', async (options, message) => {
  expect(await failure(Runtime.create(options))).toHaveCode('ERR_INVALID_ARGUMENT', message)
})

it('streams take the priorities of the device', async () => {
  expect(await failure(runtime.createStream({ priority: 6 }))).toHaveCode('ERR_INVALID_ARGUMENT', /"priority" must be an integer from 0 to 5/)
  await runtime.createStream({ priority: 5, spinUs: 0 })
  expect(native.called('createStream').at(-1)).toEqual(['runtime', 'createStream', { priority: 5, spinUs: 0 }])
})
