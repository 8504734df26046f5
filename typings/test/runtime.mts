// The runtime API as an importing program sees it: types follow from data types. Checked by `tsc -p typings`, never run.
import { expectTypeOf } from 'expect-type'
import {
  type AnyTensor,
  type CudaGraph,
  type DataType,
  type DeviceBuffer,
  Engine,
  type Event,
  type ExecutionContext,
  gpus,
  KvCache,
  type LogLine,
  type OutputMap,
  type OutputView,
  type PinnedBuffer,
  Runtime,
  type RunOptions,
  Session,
  setLogger,
  type Stream,
  Tensor,
  type TensorData,
  type TensorInfo,
} from 'node-tensorrt'

// A tensor's data follows from its type.
expectTypeOf(Tensor.float32([1, 2]).data).toEqualTypeOf<Float32Array>()
expectTypeOf(Tensor.float16(new Float32Array(2)).data).toEqualTypeOf<Uint16Array>()
expectTypeOf(Tensor.int64([1n], [1, 1]).data).toEqualTypeOf<BigInt64Array>()
expectTypeOf(Tensor.bool([true]).data).toEqualTypeOf<Uint8Array>()
expectTypeOf(Tensor.from('int8', [1]).data).toEqualTypeOf<Int8Array>()
expectTypeOf(Tensor.zeros('bfloat16', [2, 3])).toEqualTypeOf<Tensor<'bfloat16'>>()
expectTypeOf<TensorData<'int32'>>().toEqualTypeOf<Int32Array>()
expectTypeOf(Tensor.int32([1]).reshape([1, 1])).toEqualTypeOf<Tensor<'int32'>>()
expectTypeOf(Tensor.int32([1]).toFloat32()).toMatchTypeOf<Float32Array>()

// Looking at the type narrows the data.
declare const any: AnyTensor
if (any.dtype === 'int64') expectTypeOf(any.data).toEqualTypeOf<BigInt64Array>()
else if (any.dtype === 'float32') expectTypeOf(any.data).toEqualTypeOf<Float32Array>()
const general: Tensor = Tensor.int64([1])
expectTypeOf(general.dtype).toEqualTypeOf<DataType>()

// @ts-expect-error bits of another type
Tensor.float16(new Uint8Array(2))
// @ts-expect-error bigints are for int64
Tensor.int32([1n])
// @ts-expect-error no such type
Tensor.zeros('float64', [1])
// @ts-expect-error the constructor is not public
new Tensor('float32', new Float32Array(1), [1])
// @ts-expect-error a tensor of another type
const wrong: Tensor<'float32'> = Tensor.int32([1])
void wrong

const runtime = await Runtime.create({ device: 0, libraryPath: undefined, signal: new AbortController().signal })
expectTypeOf(runtime).toEqualTypeOf<Runtime>()
expectTypeOf(runtime.info.computeCapability).toBeString()
// @ts-expect-error the constructor is not public
new Runtime()
// @ts-expect-error what is native stays inside
void runtime.native

const engine = await Engine.load('model.plan', { runtime })
expectTypeOf(engine.inputs).toEqualTypeOf<readonly TensorInfo[]>()
expectTypeOf(engine.profiles[0]!.inputs.x!.max).toEqualTypeOf<readonly number[]>()
const context = await engine.createContext({ memory: 'user' })
expectTypeOf(context).toEqualTypeOf<ExecutionContext>()
expectTypeOf(context.output('y')).toEqualTypeOf<OutputView>()
// @ts-expect-error no such kind of memory
void engine.createContext({ memory: 'shared' })

const device = await runtime.allocateDevice({ dtype: 'float32', shape: [1, 4] })
const pinned = await runtime.allocatePinned(16)
expectTypeOf(device).toEqualTypeOf<DeviceBuffer>()
expectTypeOf(pinned).toEqualTypeOf<PinnedBuffer>()
expectTypeOf(pinned.view('float16')).toEqualTypeOf<Uint16Array>()
expectTypeOf(pinned.view('int64', 8, 1)).toEqualTypeOf<BigInt64Array>()
expectTypeOf(pinned.read('float32', [4])).toEqualTypeOf<Tensor<'float32'>>()

const stream = await runtime.createStream({ priority: 1 })
const event = await runtime.createEvent({ timing: true })
expectTypeOf(event).toEqualTypeOf<Event>()
expectTypeOf(stream.copy(device, pinned, { bytes: 4 })).toBeVoid()
expectTypeOf(stream.capture(() => stream.enqueue(context))).resolves.toEqualTypeOf<CudaGraph>()
expectTypeOf(stream).toEqualTypeOf<Stream>()
expectTypeOf(stream.synchronize({ signal: AbortSignal.timeout(10) })).resolves.toBeVoid()
// @ts-expect-error there is nothing to copy of a typed array
stream.copy(device, new Float32Array(4))

const cache = await KvCache.create(runtime, { layers: 2, pages: 8, kvHeads: 1, headDim: 64, dtype: 'float16' })
expectTypeOf(cache.readPage(0)).resolves.toEqualTypeOf<Tensor<'float16'>>()
expectTypeOf(cache.pageTables([cache.allocate()]).indptr).toMatchTypeOf<Int32Array>()
// @ts-expect-error a page of another type
void cache.writePage(0, Tensor.float32([1]))
// @ts-expect-error keys are no booleans
void KvCache.create(runtime, { layers: 2, pages: 8, kvHeads: 1, headDim: 64, dtype: 'bool' })

setLogger((line) => expectTypeOf(line).toEqualTypeOf<LogLine>(), { level: 'info' })
setLogger(null)
expectTypeOf((await gpus())[0]!.memoryBytes).toBeNumber()
for (const closable of [runtime, engine, context, stream, event, device, pinned, cache]) {
  expectTypeOf(closable.close()).resolves.toBeVoid()
  expectTypeOf(closable[Symbol.asyncDispose]()).resolves.toBeVoid()
}

// A session's outputs: narrowed by their type; by the names that were asked for they are there.
const session = await Session.load('model.onnx', { batching: { maxBatch: 8 } })
const inputs: Record<string, Tensor> = { ids: Tensor.int64([1, 2], [1, 2]), mask: Tensor.bool([true, false], [1, 2]) }
const { logits, hidden } = await session.run(inputs, { outputs: ['logits', 'hidden'], timeoutMs: 100 })
expectTypeOf(logits).toEqualTypeOf<AnyTensor>()
if (logits.dtype === 'float32') expectTypeOf(logits.data).toEqualTypeOf<Float32Array>()
expectTypeOf(hidden.shape).toEqualTypeOf<readonly number[]>()
const all = await session.run(inputs)
expectTypeOf(all).toEqualTypeOf<OutputMap>()
for (const tensor of Object.values(all)) if (tensor.dtype === 'int64') expectTypeOf(tensor.data).toEqualTypeOf<BigInt64Array>()
// What came out goes in.
await session.run(all)
const names: readonly string[] = ['logits']
const options: RunOptions = { outputs: names, priority: 1 }
expectTypeOf(await session.run(inputs, options)).toEqualTypeOf<OutputMap>()
// @ts-expect-error it was not asked for
void (await session.run(inputs, { outputs: ['logits'] })).hidden
