import { expect, it, vi } from 'vitest'
import { Session } from '../../../../lib/runtime'

vi.mock('node:module', async (original) => {
  const module = await original<typeof import('node:module')>()
  const createRequire: typeof module.createRequire = (path) => {
    const require = module.createRequire(path)
    const resolve = (name: string): string => require.resolve(name === 'onnxruntime-node' ? 'onnxruntime-node-that-is-not-there' : name)
    return Object.assign((name: string) => require(name) as unknown, require, { resolve }) as unknown as NodeJS.Require
  }
  return { ...module, default: { ...module, createRequire }, createRequire }
})

it('says how to get onnxruntime where it is missing', async () => {
  await expect(Session.load('model.onnx', { backend: 'onnxruntime' })).rejects.toMatchObject({
    code: 'ERR_ONNXRUNTIME_NOT_FOUND',
    hint: 'npm install onnxruntime-node',
  })
})
