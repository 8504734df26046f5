/** From an ONNX model to an engine folder, through the real addon; the GPU's part is the stand-in's. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { buildEngine, inspectOnnxModel, LLM, type OnnxBuildOptions, type OnnxBuildProgress } from '../../../lib'
import { readEngineManifest, sha256File, verifyPlan } from '../../../lib/runtime'
import { copyEngine } from '../../../lib/runtime/build_cache'
import '../matchers'
import { compileStandIn, failure, root, temporaryFolder, useModule } from '../tensorrt/fixtures'

const folder = temporaryFolder()
const cacheDir = join(folder, 'cache')
const fixture = (name: string): string => join(root, 'test', 'fixtures', 'onnx', `${name}.onnx`)
const profiles = [{ x: { min: [1, 16], opt: [8, 16], max: [32, 16] } }]
let standIn: string
beforeAll(() => {
  standIn = compileStandIn(folder)
})
beforeEach(() => useModule(standIn))
afterEach(() => {
  vi.unstubAllEnvs()
})
let count = 0
const newPath = (): string => join(folder, 'out', `engine-${count++}`)
const newCache = (): string => join(folder, `cache-${count++}`)
const leftovers = (at: string): string[] => (existsSync(at) ? readdirSync(at).filter((name) => name.startsWith('.')) : [])
const plan = (path: string): string => readFileSync(join(path, 'plan'), 'utf8')

describe('buildEngine', () => {
  it('makes a folder that says what it was built from', async () => {
    const out = newPath()
    const seen: OnnxBuildProgress[] = []
    const built = await buildEngine({
      onnx: fixture('mlp'),
      out,
      cache: false,
      precision: 'fp16',
      layers: { 'encoder/*': 'fp32', '*': 'fp16' },
      profiles: [...profiles, { x: { min: [32, 16], opt: [64, 16], max: [64, 16] } }],
      optimizationLevel: 2,
      onProgress: (progress) => seen.push(progress),
    })
    expect(built).toMatchObject({ path: out, cached: false })
    expect(JSON.parse(readFileSync(join(out, 'engine.json'), 'utf8'))).toEqual(built.manifest)
    expect(await readEngineManifest(out)).toEqual(built.manifest)
    expect(readdirSync(out).sort()).toEqual(['engine.json', 'plan'])
    expect(built.manifest).toMatchObject({
      format: 1,
      kind: 'onnx',
      precision: 'fp16',
      layers: [
        { pattern: 'encoder/*', precision: 'fp32' },
        { pattern: '*', precision: 'fp16' },
      ],
      tensors: [
        { name: 'x', mode: 'input', dtype: 'float32', shape: [-1, 16] },
        { name: 'y', mode: 'output', dtype: 'float32', shape: [-1, 8] },
      ],
      onnx: { absolute: fixture('mlp'), sha256: await sha256File(fixture('mlp')), bytes: 3477, opset: 17, externalFiles: [] },
      plan: { bytes: statSync(join(out, 'plan')).size, sha256: await sha256File(join(out, 'plan')) },
      tensorrtVersion: '10.6.0',
      cuda: { driver: '13.0', required: '13.0' },
      gpu: { name: 'Stand-in GPU', computeCapability: '9.0', memoryBytes: 100 * 2 ** 30 },
      build: { optimizationLevel: 2, workspaceBytes: 0, strip: false, refit: 'none', layers: 3, log: ['a line of the stand-in'] },
    })
    expect(plan(out)).toBe(
      `plan of ${fixture('mlp')} in precision 2 encoder/*=0 *=2 profile x:1,16,:8,16,:32,16, profile x:32,16,:64,16,:64,16,`,
    )
    expect(seen[0]).toEqual({ phase: 'Hashing the model', fraction: 0 })
    expect(seen.slice(1).every(({ phase, fraction }) => phase === 'stand-in phase' && fraction > 0 && fraction <= 1)).toBe(true)
    expect(seen.length).toBeGreaterThan(1)
    expect(leftovers(join(folder, 'out'))).toEqual([])
  })

  it('takes bytes, and names no file then', async () => {
    const out = newPath()
    const { manifest } = await buildEngine({ onnx: readFileSync(fixture('mlp_static')), out, cache: false })
    expect(manifest.onnx).toMatchObject({ relative: '', absolute: '', sha256: await sha256File(fixture('mlp_static')) })
    expect(plan(out)).toBe('plan of bytes in precision 0')
  })

  it('leaves all types to the model where it is told to', async () => {
    const out = newPath()
    const { manifest } = await buildEngine({ onnx: fixture('mlp_static'), out, cache: false, precision: 'strongly-typed' })
    expect(manifest.precision).toBe('strongly-typed')
    expect(plan(out)).toBe(`plan of ${fixture('mlp_static')} in precision 6`)
  })

  it('finds what was built before by all that decided it', async () => {
    const cacheDir = newCache()
    const same: OnnxBuildOptions = { onnx: fixture('mlp'), profiles, precision: 'fp16', cacheDir }
    const first = await buildEngine(same)
    expect(first).toMatchObject({ path: join(cacheDir, 'engines', first.manifest.cacheKey), cached: false })
    const started = join(folder, 'started-by-the-cache')
    vi.stubEnv('STAND_IN_STARTED', started)
    expect(await buildEngine(same)).toEqual({ ...first, cached: true })
    // A copy of the model is the same model, wherever it lies.
    const copy = join(folder, 'copy.onnx')
    copyFileSync(fixture('mlp'), copy)
    const out = newPath()
    const copied = await buildEngine({ ...same, onnx: copy, out })
    expect(copied).toMatchObject({ path: out, cached: true, manifest: { cacheKey: first.manifest.cacheKey, onnx: { absolute: copy, relative: '../../copy.onnx' } } })
    expect(plan(out)).toBe(plan(first.path))
    expect(existsSync(started)).toBe(false)
    const others: Partial<OnnxBuildOptions>[] = [
      { precision: 'fp32' },
      { layers: { 'head/*': 'fp32' } },
      { profiles: [{ x: { min: [1, 16], opt: [8, 16], max: [33, 16] } }] },
      { workspaceBytes: 1 << 20 },
      { strip: true },
      { versionCompatible: true },
      { onnx: fixture('wrong_shapes') },
    ]
    const keys = new Set([first.manifest.cacheKey])
    for (const other of others) {
      const built = await buildEngine({ ...same, ...other })
      expect(built.cached, JSON.stringify(other)).toBe(false)
      keys.add(built.manifest.cacheKey)
    }
    expect(keys.size).toBe(others.length + 1)
    expect(readdirSync(join(cacheDir, 'engines')).length).toBe(keys.size)
  })

  it('builds again where the cached engine is damaged', async () => {
    const cacheDir = newCache()
    const first = await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir })
    for (const damage of [
      () => writeFileSync(join(first.path, 'plan'), plan(first.path).replace('plan', 'PLAN')),
      () => writeFileSync(join(first.path, 'engine.json'), '{'),
    ]) {
      damage()
      expect(await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir })).toMatchObject({ path: first.path, cached: false })
      await verifyPlan(first.path, first.manifest)
    }
  })

  it('external data is part of the model', async () => {
    const cacheDir = newCache()
    const onnx = join(folder, 'mlp_external.onnx')
    copyFileSync(fixture('mlp_external'), onnx)
    const data = join(folder, 'mlp_external.data')
    const bytes = readFileSync(join(root, 'test', 'fixtures', 'onnx', 'mlp_external.data'))
    writeFileSync(data, bytes)
    const first = await buildEngine({ onnx, profiles, cacheDir })
    expect(first.manifest.onnx.externalFiles).toEqual([{ name: 'mlp_external.data', bytes: 3232, sha256: await sha256File(data) }])
    bytes[0]! ^= 1
    writeFileSync(data, bytes)
    expect((await buildEngine({ onnx, profiles, cacheDir })).cached).toBe(false)
  })

  it('keeps timings for each GPU and version, or where it is told', async () => {
    const cacheDir = newCache()
    await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir })
    const file = join(cacheDir, 'timings', 'Stand-in-GPU-9.0-trt10.6.0.bin')
    expect(readFileSync(file, 'utf8')).toBe('.')
    const named = join(folder, 'timings')
    await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir, precision: 'tf32', timingCache: named })
    await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir, precision: 'bf16', timingCache: false })
    expect([readFileSync(file, 'utf8'), readFileSync(named, 'utf8')]).toEqual(['.', '.'])
  })

  it('two builds of the same at once are one engine', async () => {
    const cacheDir = newCache()
    const builds = await Promise.all([1, 2, 3].map(() => buildEngine({ onnx: fixture('mlp'), profiles, cacheDir })))
    expect(new Set(builds.map(({ path }) => path)).size).toBe(1)
    await verifyPlan(builds[0]!.path, await readEngineManifest(builds[0]!.path))
    expect(leftovers(join(cacheDir, 'engines'))).toEqual([])
  })

  it('leaves nothing behind when TensorRT fails, or on an abort', async () => {
    const out = newPath()
    const options = { onnx: fixture('mlp'), profiles, out, cache: false }
    expect(await failure(buildEngine({ ...options, optimizationLevel: 5 }))).toHaveCode('ERR_BUILD_FAILED', /level 5/)
    vi.stubEnv('STAND_IN_STEPS', '100000')
    const controller = new AbortController()
    const onProgress = ({ phase }: OnnxBuildProgress): void => {
      if (phase === 'stand-in phase') controller.abort('enough')
    }
    expect(await failure(buildEngine({ ...options, signal: controller.signal, onProgress }))).toMatchObject({ name: 'AbortError', cause: 'enough' })
    expect(await failure(buildEngine({ ...options, signal: AbortSignal.abort('early') }))).toMatchObject({ name: 'AbortError', cause: 'early' })
    expect(existsSync(out)).toBe(false)
    expect(leftovers(join(folder, 'out'))).toEqual([])
  })

  it('leaves nothing of a copy out of the cache whose wait was aborted', async () => {
    const { path, manifest } = await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir: newCache() })
    const copy = { to: newPath(), onnxPath: fixture('mlp'), force: false }
    expect(await failure(copyEngine(path, manifest, { ...copy, signal: AbortSignal.abort('late') }))).toMatchObject({ name: 'AbortError', cause: 'late' })
    expect(existsSync(copy.to)).toBe(false)
    expect(leftovers(join(folder, 'out'))).toEqual([])
    await copyEngine(path, manifest, { ...copy, signal: undefined })
    expect(plan(copy.to)).toBe(plan(path))
  })

  it('goes on where its listener throws, or rejects', async () => {
    const warnings: string[] = []
    const onWarning = (warning: Error): void => void warnings.push(warning.message)
    process.on('warning', onWarning)
    const wrong = new Error('wrong')
    for (const onProgress of [() => { throw wrong }, () => Promise.reject(wrong)] as (() => never)[]) {
      expect(await buildEngine({ onnx: fixture('mlp'), profiles, out: newPath(), cache: false, onProgress })).toMatchObject({ cached: false })
      await expect.poll(() => warnings.length).toBeGreaterThan(1)
      expect(new Set(warnings.splice(0))).toEqual(new Set(['onProgress threw: wrong']))
    }
    process.off('warning', onWarning)
  })

  it('overwrites engine folders when it may, and nothing else ever', async () => {
    const out = newPath()
    const options = { onnx: fixture('mlp'), profiles, out, cache: false }
    await buildEngine(options)
    expect(await failure(buildEngine(options))).toHaveCode('ERR_INVALID_ARGUMENT', /exists/)
    await buildEngine({ ...options, precision: 'fp16', force: true })
    expect(plan(out)).toMatch(/precision 2/)
    const other = join(folder, 'other')
    mkdirSync(other)
    writeFileSync(join(other, 'mine'), '')
    expect(await failure(buildEngine({ ...options, out: other, force: true }))).toHaveCode('ERR_INVALID_ARGUMENT', /no engine folder/)
    expect(readdirSync(other)).toEqual(['mine'])
  })

  it('says so when the model changes under it', async () => {
    const onnx = join(folder, 'changing.onnx')
    copyFileSync(fixture('mlp'), onnx)
    const onProgress = ({ phase }: OnnxBuildProgress): void => {
      if (phase === 'stand-in phase') utimesSync(onnx, 1, 1)
    }
    expect(await failure(buildEngine({ onnx, profiles, cacheDir, onProgress }))).toHaveCode('ERR_ONNX_INVALID', /changed while/)
  })
})

describe('before a GPU is touched', () => {
  // There is no module, so anything that reached for the GPU would say that instead.
  beforeEach(() => useModule(join(folder, 'nowhere.so')))

  it.each<[string, Partial<OnnxBuildOptions>, string, RegExp]>([
    ['int8 without Q/DQ nodes', { precision: 'int8' }, 'ERR_INVALID_ARGUMENT', /no Q\/DQ nodes.*\(quantize the model first/],
    ['fp8 without Q/DQ nodes', { precision: 'fp8' }, 'ERR_INVALID_ARGUMENT', /no Q\/DQ nodes of 8-bit floats/],
    ['fp8 of an int8 model', { onnx: fixture('qdq_int8'), precision: 'fp8' }, 'ERR_INVALID_ARGUMENT', /quantized to int8.*ask for precision 'int8'/],
    ['int8 of an fp8 model', { onnx: fixture('qdq_fp8'), precision: 'int8' }, 'ERR_INVALID_ARGUMENT', /quantized to fp8/],
    ['fp16 of a quantized model', { onnx: fixture('qdq_int8'), precision: 'fp16' }, 'ERR_INVALID_ARGUMENT', /it has Q\/DQ nodes.*'int8'/],
    ['no profile', { profiles: [] }, 'ERR_INVALID_ARGUMENT', /"x" float32 \[batch, 16\]/],
    ['an input that is not there', { profiles: [{ y: profiles[0]!.x }] }, 'ERR_INVALID_ARGUMENT', /names input "y"/],
    ['a profile that is no object', { profiles: [[1]] as never }, 'ERR_INVALID_ARGUMENT', /"profiles\[0\]" must be an object/],
    ['a shape that is no shape', { profiles: [{ x: { min: [1.5, 16], opt: [1, 16], max: [1, 16] } }] }, 'ERR_INVALID_ARGUMENT', /"profiles\[0\]\["x"\]\.min" must be/],
    ['a layer type that there is not', { layers: { '*': 'int8' as never } }, 'ERR_INVALID_ARGUMENT', /'fp32', 'fp16' or 'bf16', not "int8"/],
    ['two 16-bit types', { precision: 'fp16', layers: { '*': 'bf16' } }, 'ERR_INVALID_ARGUMENT', /one 16-bit type/],
    ['strongly typed with layer types', { precision: 'strongly-typed', layers: { '*': 'fp32' } }, 'ERR_INVALID_ARGUMENT', /'strongly-typed' engine.*"layers" cannot/],
    ['strongly typed with another type of I/O', { precision: 'strongly-typed', ioType: 'fp16' }, 'ERR_INVALID_ARGUMENT', /'strongly-typed' engine.*"ioType" cannot be 'fp16'/],
    ['fp8 with layer types', { precision: 'fp8', layers: { '*': 'fp32' } }, 'ERR_INVALID_ARGUMENT', /"layers" cannot/],
    ['16-bit outputs of an fp32 engine', { ioType: 'fp16' }, 'ERR_INVALID_ARGUMENT', /"ioType" 'fp16' needs/],
    ['a lean runtime to leave out of nothing', { excludeLeanRuntime: true }, 'ERR_INVALID_ARGUMENT', /goes with "versionCompatible"/],
    ['strip without refit', { strip: true, refit: 'none' }, 'ERR_INVALID_ARGUMENT', /"strip"/],
    ['another option', { presicion: 'fp16' } as never, 'ERR_INVALID_ARGUMENT', /did you mean "precision"/],
    ['nowhere to write', { cache: false }, 'ERR_INVALID_ARGUMENT', /Give "out"/],
    ['a level that there is not', { optimizationLevel: 6 }, 'ERR_INVALID_ARGUMENT', /"optimizationLevel" must be an integer from 0 to 5/],
    ['no model', { onnx: join(folder, 'nowhere.onnx') }, 'ERR_MODEL_NOT_FOUND', /nowhere\.onnx/],
    ['a damaged model', { onnx: fixture('truncated') }, 'ERR_ONNX_INVALID', /at byte/],
    ['bytes whose weights are elsewhere', { onnx: readFileSync(fixture('mlp_external')) }, 'ERR_ONNX_INVALID', /mlp_external\.data/],
    ['empty bytes', { onnx: new Uint8Array(0) }, 'ERR_ONNX_INVALID', /empty/],
    ['an option of another type', { onnx: 7 as never }, 'ERR_INVALID_ARGUMENT', /"onnx" must be the path/],
  ])('%s', async (_, options, code, message) => {
    const { onnx } = options
    const quantized = onnx === fixture('qdq_int8') || onnx === fixture('qdq_fp8')
    const x = { min: [1, 32], opt: [1, 32], max: [1, 32] }
    const build = buildEngine({ onnx: fixture('mlp'), profiles: quantized ? [{ x }] : profiles, cacheDir, ...options })
    expect(await failure(build)).toHaveCode(code, message)
  })

  it('a quantized model is for a strongly typed engine, too', async () => {
    const x = { min: [1, 32], opt: [1, 32], max: [1, 32] }
    for (const name of ['qdq_int8', 'qdq_fp8']) {
      const build = buildEngine({ onnx: fixture(name), profiles: [{ x }], precision: 'strongly-typed', cacheDir })
      expect(await failure(build)).toHaveCode('ERR_TENSORRT_MODULE_NOT_FOUND')
    }
  })

  it('a model in order gets as far as the module', async () => {
    expect(await failure(buildEngine({ onnx: fixture('mlp'), profiles, cacheDir }))).toHaveCode('ERR_TENSORRT_MODULE_NOT_FOUND')
  })
})

describe('engine folders of two kinds', () => {
  it('a language model does not come of an ONNX engine', async () => {
    const { path } = await buildEngine({ onnx: fixture('mlp'), profiles, cacheDir })
    expect(await failure(LLM.load(path))).toHaveCode('ERR_INVALID_ARGUMENT', /ONNX model.*Engine\.load\(\)/)
  })
})

describe('inspectOnnxModel', () => {
  it("joins the parser's words with the model's names", async () => {
    expect(await inspectOnnxModel(fixture('unsupported'))).toMatchObject({
      supported: false,
      libraryVersion: 100600,
      unsupported: [{ index: 1, name: 'middle/frobnicate', op: 'Frobnicate' }],
      problems: [
        { code: 'ERR_ONNX_UNSUPPORTED', index: 1, node: 'middle/frobnicate', op: 'Frobnicate', where: 'parse, line 7' },
        { code: 'ERR_ONNX_UNSUPPORTED', index: undefined, node: 'then/Exp', op: 'Exp', where: 'parse, line 8' },
      ],
    })
  })
})
