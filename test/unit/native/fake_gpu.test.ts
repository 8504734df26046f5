/** The real module, addon and API on the fake GPU of test/native/fake_gpu. */
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { Engine, type PinnedBuffer, Runtime, Tensor } from '../../../lib'
import { type FakePlan, fakeGpu, makePlan, runOnFakeGpu, scalePlan } from '../../support/fake_gpu'

// Its build is what `npm test` does first; by hand see test/native/fake_gpu/README.md.
describe.skipIf(!fakeGpu.available)('an engine on the fake GPU', () => {
  beforeAll(() => fakeGpu.use())

  /** Runs `input` of shape [rows, 4] through a plan with input 0 and output 0 of float32. */
  async function run(runtime: Runtime, plan: FakePlan, input: number[]): Promise<number[]> {
    const rows = input.length / 4
    await using engine = await Engine.load(makePlan(plan), { runtime })
    await using context = await engine.createContext()
    await using stream = await runtime.createStream()
    await using pinned = await runtime.allocatePinned({ dtype: 'float32', shape: [rows, 4] })
    await using device = await runtime.allocateDevice({ dtype: 'float32', shape: [rows, 4] })
    pinned.write(Tensor.float32(input, [rows, 4]))
    context.setInputShape('x', [rows, 4])
    context.setTensor('x', device)
    context.allocateOutput('y')
    stream.copy(device, pinned)
    stream.enqueue(context)
    await stream.synchronize()
    const output = context.output('y')
    const bytes = output.shape.reduce((count, extent) => count * extent, 4)
    await using result: PinnedBuffer = await runtime.allocatePinned(bytes)
    if (output.buffer == null) throw new Error('the context was to allocate y')
    stream.copy(result, output.buffer, { bytes })
    await stream.synchronize()
    return [...(result.view('float32') as Float32Array)]
  }

  it('computes', async () => {
    await using runtime = await Runtime.create()
    expect(runtime.info).toMatchObject({ name: 'Fake GPU', computeCapability: '9.0', libraryVersion: 100600 })
    expect(await run(runtime, scalePlan({ a: 3, b: -1 }), [1, 2, 3, 4, 5, 6, 7, 8])).toEqual([2, 5, 8, 11, 14, 17, 20, 23])
  })

  it('refuses damaged plans and says of which version others are', async () => {
    await using runtime = await Runtime.create()
    const plan = makePlan(scalePlan())
    const flipped = plan.slice()
    flipped[100]! ^= 4
    await expect(Engine.load(flipped, { runtime })).rejects.toMatchObject({ code: 'ERR_ENGINE_INVALID' })
    await expect(Engine.load(plan.subarray(0, 50), { runtime })).rejects.toMatchObject({ code: 'ERR_ENGINE_INVALID' })
    await expect(Engine.load(makePlan({ ...scalePlan(), tensorrt: '10.5.0' }), { runtime })).rejects.toMatchObject({
      code: 'ERR_ENGINE_INCOMPATIBLE',
      message: expect.stringContaining('got 10.5.0') as string,
    })
  })

  it('a process with a device that dies ends in order and leaves nothing behind', async () => {
    const plan = makePlan({
      tensors: [
        { name: 'x', mode: 'input', shape: [1, 4] },
        { name: 'y', mode: 'output', shape: [1, 4] },
      ],
      layers: [
        { op: 'assert', inputs: ['x'], max: 10 },
        { op: 'identity', inputs: ['x'], output: 'y' },
      ],
    })
    const child = await runOnFakeGpu(join(__dirname, 'fake_gpu_child.cjs'), [Buffer.from(plan).toString('base64')])
    expect(child.stderr).toBe('')
    expect(JSON.parse(child.stdout)).toEqual({ before: [3, 3, 3, 3], code: 'ERR_BACKEND_DEAD', after: 'ERR_BACKEND_DEAD' })
    expect(child).toMatchObject({ code: 0, report: { violations: 0, deviceBlocks: 0, pinnedBlocks: 0, events: 0, graphs: 0 } })
  })
})
