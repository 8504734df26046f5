/** Plans from files, folders and bytes: read once, checked before TensorRT sees them. */
import { createHash } from 'node:crypto'
import { mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { Engine, Runtime, Tensor } from '../../../lib/runtime'
import { sha256Memory } from '../../../lib/runtime/file_hash'
import { readPrivately } from '../../../lib/runtime/private_file'
import fc from '../../support/fast_check'
import { PATIENTLY } from '../../support/patience'
import '../matchers'
import { failure, temporaryFolder } from '../tensorrt/fixtures'
import { NativeDouble } from './native_double'

const { current } = vi.hoisted(() => ({ current: {} as { native: NativeDouble } }))
vi.mock('../../../lib/native', async (original) => ({
  ...(await original<object>()),
  createNativeRuntime: async ({ device }: { device: number }) => current.native.runtime(device),
}))

const folder = temporaryFolder()
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
/** Of more than one hash step, so that threads and pieces are in play. */
const plan = Buffer.alloc((5 << 20) + 7, 'a plan of many pages, ')
let file: string
let runtime: Runtime
let native: NativeDouble
let count = 0

beforeAll(() => {
  file = join(folder, 'model.plan')
  writeFileSync(file, plan)
})
beforeEach(async () => {
  native = current.native = new NativeDouble()
  runtime = await Runtime.create()
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** What the native side got. */
const deserialized = (): Buffer[] => native.called('deserialize').map(([, , bytes]) => bytes as Buffer)

function engineFolder(edit: (manifest: Record<string, unknown>) => void = () => {}): string {
  const path = join(folder, `engine-${count++}`)
  mkdirSync(path)
  const manifest = {
    format: 1,
    kind: 'onnx',
    packageVersion: '0.1.0',
    createdAt: '2026-01-01T00:00:00.000Z',
    precision: 'fp16',
    layers: [],
    profiles: [{ input: { min: [1, 4], opt: [2, 4], max: [8, 4] } }],
    tensors: [{ name: 'input', mode: 'input', dtype: 'float32', shape: [-1, 4] }],
    onnx: { relative: '', absolute: '', sha256: sha256(Buffer.from('model')), bytes: 5, externalFiles: [], opset: 17, producer: 'test' },
    plan: { bytes: plan.length, sha256: sha256(plan) },
    tensorrtVersion: '10.6.0',
    cuda: { driver: '13.0', required: '13.0' },
    gpu: { name: 'Double', computeCapability: '9.0', memoryBytes: 2 ** 30 },
    build: {
      workspaceBytes: 0,
      optimizationLevel: -1,
      maxAuxStreams: -1,
      strip: false,
      refit: 'none',
      versionCompatible: false,
      excludeLeanRuntime: false,
      hardwareCompatibility: 'none',
      profilingVerbosity: 'detailed',
      directIo: false,
      ioType: 'model',
      sparseWeights: false,
      seconds: 1,
      parseSeconds: 1,
      layers: 3,
      constrainedLayers: 0,
      log: [],
    },
    cacheKey: sha256(Buffer.from('key')),
  }
  edit(manifest)
  writeFileSync(join(path, 'engine.json'), JSON.stringify(manifest))
  writeFileSync(join(path, 'plan'), plan)
  return path
}

describe('a file', () => {
  it('runs as it is, with or without a hash', async () => {
    const engine = await Engine.load(file, { runtime })
    expect(engine).toMatchObject({ path: file, manifest: undefined })
    await Engine.load(file, { runtime, sha256: sha256(plan).toUpperCase() })
    for (const bytes of deserialized()) expect(bytes.equals(plan)).toBe(true)
    expect(deserialized()).toHaveLength(2)
  })

  const wrong: [what: string, path: () => string, code: string, message: RegExp][] = [
    ['that is missing', () => join(folder, 'nowhere'), 'ERR_ENGINE_INVALID', /There is no engine at .*nowhere/],
    ['that is empty', () => (writeFileSync(join(folder, 'empty'), ''), join(folder, 'empty')), 'ERR_ENGINE_INVALID', /empty is empty/],
    ['that is an ONNX model', () => (writeFileSync(join(folder, 'a.onnx'), 'x'), join(folder, 'a.onnx')), 'ERR_ENGINE_INVALID', /is an ONNX file.*node-tensorrt build/],
    ['that cannot be reached', () => join(file, 'below'), 'ERR_IO', /ENOTDIR/],
    ['that is a link to itself', () => (symlinkSync('loop', join(folder, 'loop')), join(folder, 'loop')), 'ERR_IO', /ELOOP/],
    ['without a name', () => '', 'ERR_INVALID_ARGUMENT', /"source" must be the path of a plan/],
    ['that is a number', () => 5 as never, 'ERR_INVALID_ARGUMENT', /not 5/],
  ]
  it.each(wrong)('%s is refused', async (_, path, code, message) => {
    expect(await failure(Engine.load(path(), { runtime }))).toHaveCode(code, message)
    expect(deserialized()).toEqual([])
  })

  it('of another hash is refused', async () => {
    expect(await failure(Engine.load(file, { runtime, sha256: '0'.repeat(64) }))).toHaveCode('ERR_ENGINE_INVALID', /model.plan has SHA-256 [0-9a-f]{64}, expected is 0000/)
    expect(await failure(Engine.load(file, { runtime, sha256: 'abc' }))).toHaveCode('ERR_INVALID_ARGUMENT', /"sha256" must be a SHA-256/)
    expect(deserialized()).toEqual([])
  })

  it('that becomes shorter while it is read is an error', async () => {
    const path = join(folder, 'shrinking')
    writeFileSync(path, plan)
    expect(await failure(readPrivately(path, { checkSize: () => truncateSync(path, 100) }))).toHaveCode('ERR_IO', /became shorter while it was read: 100 of/)
  })
})

describe('a folder', () => {
  it('is checked by its manifest, and runs', async () => {
    const path = engineFolder()
    const engine = await Engine.load(path, { runtime })
    expect(engine).toMatchObject({ path, manifest: { kind: 'onnx', precision: 'fp16' } })
    expect(deserialized()[0]!.equals(plan)).toBe(true)
  })

  it('of a stripped plan runs once every weight was given', async () => {
    const engine = await Engine.load(engineFolder(({ build }) => Object.assign(build as object, { strip: true, refit: 'any' })), { runtime })
    const lacking = expect.objectContaining({ code: 'ERR_WEIGHTS_MISSING', message: expect.stringContaining('encoder.bias') as string }) as unknown
    await expect(engine.createContext()).rejects.toEqual(lacking)
    await expect(engine.createSession()).rejects.toEqual(lacking)
    await expect(engine.refit({ 'encoder.weight': Tensor.float16([1, 2]) })).rejects.toEqual(lacking)
    await engine.refit({ 'encoder.bias': Tensor.float16([1, 2]) })
    await (await engine.createContext()).close()
  })

  it('of a stripped plan has its weights once a refit that nobody waits for is done', async () => {
    const engine = await Engine.load(engineFolder(({ build }) => Object.assign(build as object, { strip: true, refit: 'any' })), { runtime })
    native.held.add('refit')
    const controller = new AbortController()
    const both = { 'encoder.weight': Tensor.float16([1, 2]), 'encoder.bias': Tensor.float16([1, 2]) }
    const waiting = failure(engine.refit(both, { signal: controller.signal }))
    await expect.poll(() => native.called('refit')).toHaveLength(1)
    controller.abort()
    expect(await waiting).toHaveCode('ABORT_ERR')
    await expect(engine.createContext()).rejects.toHaveCode('ERR_WEIGHTS_MISSING')
    native.release('refit')
    await engine.refit({})
    await (await engine.createContext()).close()
  })

  it('of a stripped plan is closed where its load is aborted while its weights are looked up', async () => {
    const before = native.open.size
    native.held.add('refittableWeights')
    const controller = new AbortController()
    const path = engineFolder(({ build }) => Object.assign(build as object, { strip: true, refit: 'any' }))
    const waiting = failure(Engine.load(path, { runtime, signal: controller.signal }))
    await expect.poll(() => [...native.open].some((id) => id.startsWith('engine'))).toBe(true)
    controller.abort()
    expect(await waiting).toHaveCode('ABORT_ERR')
    await expect.poll(() => native.open.size).toBe(before)
  })

  const wrong: [what: string, make: () => string, code: string, message: RegExp][] = [
    ['without a manifest', () => (mkdirSync(join(folder, 'bare')), join(folder, 'bare')), 'ERR_ENGINE_INVALID', /has no engine.json/],
    ['of another format', () => engineFolder((manifest) => (manifest.format = 99)), 'ERR_VERSION_MISMATCH', /format 99/],
    ['of another TensorRT', () => engineFolder((manifest) => (manifest.tensorrtVersion = '10.7.0')), 'ERR_ENGINE_INCOMPATIBLE', /by TensorRT 10.7.0.*is 10.6.0/],
    ['of another GPU', () => engineFolder((manifest) => (manifest.gpu = { name: 'A100', computeCapability: '8.0', memoryBytes: 1 })), 'ERR_ENGINE_INCOMPATIBLE', /8.0 \(A100\).*has 9.0/],
    [
      'with a plan cut short',
      () => {
        const path = engineFolder()
        truncateSync(join(path, 'plan'), 1000)
        return path
      },
      'ERR_ENGINE_INVALID',
      /has 1000 bytes, expected is/,
    ],
    [
      'without its plan',
      () => {
        const path = engineFolder()
        rmSync(join(path, 'plan'))
        return path
      },
      'ERR_ENGINE_INVALID',
      /plan is not there/,
    ],
  ]
  it.each(wrong)('%s is refused', async (_, make, code, message) => {
    expect(await failure(Engine.load(make(), { runtime }))).toHaveCode(code, message)
    expect(deserialized()).toEqual([])
  })

  it('whose plan was changed by any byte is refused', async () => {
    const path = engineFolder()
    await fc.assert(
      fc.asyncProperty(fc.nat(plan.length - 1), fc.integer({ min: 1, max: 255 }), async (at, by) => {
        const changed = Buffer.from(plan)
        changed[at]! ^= by
        writeFileSync(join(path, 'plan'), changed)
        expect(await failure(Engine.load(path, { runtime }))).toHaveCode('ERR_ENGINE_INVALID', /SHA-256/)
      }),
      { numRuns: 20 },
    )
    expect(deserialized()).toEqual([])
  })
})

describe('bytes', () => {
  it('are copied at the call', async () => {
    const bytes = Buffer.from(plan)
    const loading = Engine.load(bytes, { runtime, sha256: sha256(plan) })
    bytes.fill(0)
    await loading
    expect(deserialized()[0]!.equals(plan)).toBe(true)
    // And stay the caller's.
    expect(bytes.buffer.byteLength).toBeGreaterThan(0)
  })

  it('may be a part of a larger buffer, or an ArrayBuffer', async () => {
    await Engine.load(plan.subarray(10, 20), { runtime })
    const whole = new Uint8Array([1, 2, 3]).buffer
    await Engine.load(whole, { runtime })
    expect(whole.byteLength).toBe(3)
    expect(deserialized().map((bytes) => bytes.length)).toEqual([10, 3])
    expect(await failure(Engine.load(new Uint8Array(0), { runtime }))).toHaveCode('ERR_ENGINE_INVALID', /The plan is empty/)
  })
})

describe('an abort', () => {
  it('while the plan is hashed ends the load, and gives the runtime back', async () => {
    const controller = new AbortController()
    // Emitted once the thread that hashes has been made, before anything of it can have arrived.
    process.once('worker', () => controller.abort())
    expect(await failure(Engine.load(file, { device: 7, sha256: sha256(plan), signal: controller.signal }))).toHaveCode('ABORT_ERR')
    expect(deserialized()).toEqual([])
    await vi.waitFor(() => expect([...native.open].filter((id) => id.startsWith('runtime'))).toHaveLength(1), PATIENTLY)
  })
})

it.each([0, 1, 1 << 20, (1 << 20) + 1, (4 << 20) + 1, 8 << 20])('memory of %d bytes is hashed without a copy', async (size) => {
  const bytes = Buffer.alloc(size, 'text ')
  const given = new Uint8Array(bytes).buffer
  const { memory, sha256: hash } = await sha256Memory(given)
  expect(hash).toBe(sha256(bytes))
  expect(memory.byteLength).toBe(size)
  expect(size <= 1 << 20 ? memory === given : given.byteLength === 0).toBe(true)
})

it('options exclude each other', async () => {
  expect(await failure(Engine.load(file, { runtime, device: 0 }))).toHaveCode('ERR_INVALID_ARGUMENT', /"runtime" or "device", not both/)
  expect(await failure(Engine.load(file, { runtime: {} as never }))).toHaveCode('ERR_INVALID_ARGUMENT', /"runtime" must be a Runtime/)
  expect(await failure(Engine.load(file, { hash: 'x' } as never))).toHaveCode('ERR_INVALID_ARGUMENT', /no option "hash"/)
})
