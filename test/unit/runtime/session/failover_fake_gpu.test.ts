/** The GPU of this file's process dies: real module and addon on host memory, and the real onnxruntime that takes over. */
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { Session, type SessionWarning, Tensor } from '../../../../lib/runtime'
import { fakeGpu, type FakePlan, makePlan } from '../../../support/fake_gpu'

const onnx = join(__dirname, '..', '..', '..', 'fixtures', 'onnx', 'mlp.onnx')
/** Inputs and outputs of mlp.onnx; a value above 100 kills the device. */
const plan: FakePlan = {
  tensors: [
    { name: 'x', mode: 'input', shape: [-1, 16] },
    { name: 'y', mode: 'output', shape: [-1, 16] },
  ],
  profiles: [{ x: { min: [1, 16], opt: [1, 16], max: [8, 16] } }],
  layers: [
    { op: 'assert', inputs: ['x'], max: 100 },
    { op: 'identity', inputs: ['x'], output: 'y' },
  ],
}

it.skipIf(!fakeGpu.available)('onnxruntime takes over from a device that dies long after the signal of the creation has aborted', async () => {
  fakeGpu.use()
  const creation = new AbortController()
  const warnings: SessionWarning[] = []
  const session = await Session.load(makePlan(plan), { onnx, signal: creation.signal, onWarning: (warning) => warnings.push(warning) })
  expect(session.info.backend).toBe('tensorrt')
  creation.abort()
  const { y } = await session.run({ x: Tensor.float32(new Float32Array(16).fill(101), [1, 16]) })
  expect(y!.shape).toEqual([1, 8])
  expect(session.info.backend).toBe('onnxruntime')
  expect(warnings).toMatchObject([{ code: 'SESSION_FAILED_OVER', cause: { code: 'ERR_BACKEND_DEAD' } }])
  await session.close()
})
