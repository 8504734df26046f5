import { afterEach, describe, expect, it, vi } from 'vitest'
import { AbortError, TensorRTError } from '../../../lib/errors'
import { createNativeRuntime, injectNativeFaults, native, nativeAsync, type NativeLogLine, setNativeLogListener } from '../../../lib/native'
import { fakeGpu } from '../../support/fake_gpu'
import { PATIENTLY } from '../../support/patience'

const named = process.env.NODE_TENSORRT_MODULE
afterEach(() => {
  if (named === undefined) delete process.env.NODE_TENSORRT_MODULE
  else process.env.NODE_TENSORRT_MODULE = named
})

describe('native', () => {
  const failing = Object.assign(new Error('no memory'), { code: 'ERR_OUT_OF_DEVICE_MEMORY', hint: 'take less' })
  const aborted = Object.assign(new Error('aborted'), { code: 'ABORT_ERR' })
  const throwIt = (error: unknown) => (): never => {
    throw error
  }

  it('converts what is thrown', () => {
    expect(native(() => 1)).toBe(1)
    expect(throwIt(failing)).toThrow(failing)
    expect(() => native(throwIt(failing))).toThrow(TensorRTError)
    expect(() => native(throwIt(aborted))).toThrow(AbortError)
  })

  it('converts rejections, and what is thrown in place of one', async () => {
    expect(await nativeAsync(() => Promise.resolve(1))).toBe(1)
    const wanted = { name: 'TensorRTError', code: 'ERR_OUT_OF_DEVICE_MEMORY', hint: 'take less', cause: failing }
    await expect(nativeAsync(() => Promise.reject(failing))).rejects.toMatchObject(wanted)
    await expect(nativeAsync(throwIt(failing))).rejects.toMatchObject(wanted)
    await expect(nativeAsync(() => Promise.reject(aborted))).rejects.toBeInstanceOf(AbortError)
  })
})

describe('without a module', () => {
  it('every call says so', async () => {
    process.env.NODE_TENSORRT_MODULE = '/nowhere/nt-tensorrt.so'
    const wanted = { name: 'TensorRTError', code: 'ERR_TENSORRT_MODULE_NOT_FOUND' }
    await expect(createNativeRuntime({ libraryPath: '', device: 0 })).rejects.toMatchObject(wanted)
    expect(() => setNativeLogListener('info', () => {})).toThrow(expect.objectContaining(wanted) as Error)
    expect(() => injectNativeFaults({})).toThrow(expect.objectContaining(wanted) as Error)
  })

  it('a file that is none is a load error with its reason', async () => {
    process.env.NODE_TENSORRT_MODULE = __filename
    const wanted = { name: 'TensorRTError', code: 'ERR_TENSORRT_MODULE_LOAD_FAILED' }
    await expect(createNativeRuntime({ libraryPath: '', device: 0 })).rejects.toMatchObject(wanted)
    expect(() => injectNativeFaults({})).toThrow(expect.objectContaining(wanted) as Error)
  })
})

describe.skipIf(!fakeGpu.available)('with the fake GPU', () => {
  const create = (device = 0) => createNativeRuntime({ libraryPath: fakeGpu.native.libraryPath, device })

  it('makes a runtime, and reports a device that is not there', async () => {
    fakeGpu.use()
    const runtime = await create()
    expect(JSON.parse(runtime.info)).toMatchObject({ device: 0, libraryVersion: 100600 })
    await runtime.close()
    await expect(create(9)).rejects.toMatchObject({ name: 'TensorRTError', code: 'ERR_INVALID_ARGUMENT' })
  })

  it('fails the call that it is told to', async () => {
    fakeGpu.use()
    const runtime = await create()
    injectNativeFaults({ failDeviceAllocation: 2 })
    const first = await runtime.allocate('device', 16, false)
    await expect(nativeAsync(() => runtime.allocate('device', 16, false))).rejects.toMatchObject({
      name: 'TensorRTError',
      code: 'ERR_OUT_OF_DEVICE_MEMORY',
    })
    const third = await runtime.allocate('device', 16, false)
    await Promise.all([first.close(), third.close(), runtime.close()])
  })

  it('hears TensorRT', async () => {
    fakeGpu.use()
    const runtime = await create()
    const heard: NativeLogLine[] = []
    setNativeLogListener('verbose', (lines) => heard.push(...lines))
    await runtime.deserialize(new ArrayBuffer(64), false).catch(() => {})
    await vi.waitFor(() => expect(heard.length).toBeGreaterThan(0), PATIENTLY)
    setNativeLogListener('verbose', null)
    await runtime.close()
  })
})
