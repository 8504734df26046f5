/** From a model folder to an engine folder and its load, through the real addon; the GPU's part is the stand-in's. */
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { buildLLMEngine, type BuildProgress, LLM, type LLMWarning } from '../../../lib'
import { loadAddon } from '../../../lib/native'
import { defaultHeadProfiles, defaultProfiles, sha256File } from '../../../lib/runtime'
import '../matchers'
import { compileStandIn, demoModel, failure, interruptOnceThereIs, runCli as run, temporaryFolder, useModule } from './fixtures'

const folder = temporaryFolder()
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
const leftovers = (): string[] => (existsSync(join(folder, 'out')) ? readdirSync(join(folder, 'out')).filter((name) => name.startsWith('.')) : [])

describe('buildLLMEngine', () => {
  it('makes a folder that says what it was built from', async () => {
    const path = newPath()
    const seen: BuildProgress[] = []
    const built = await buildLLMEngine(demoModel, path, { maxStepTokens: 512, onProgress: (progress) => seen.push(progress) })
    expect(built.path).toBe(path)
    expect(JSON.parse(readFileSync(join(path, 'engine.json'), 'utf8'))).toEqual(built.manifest)
    expect(built.manifest).toMatchObject({
      format: 1,
      family: 'llama',
      precision: 'bf16',
      tensorrtVersion: '10.6.0',
      cuda: { driver: '13.0', required: '13.0' },
      gpu: { name: 'Stand-in GPU', computeCapability: '9.0', memoryBytes: 100 * 2 ** 30 },
      weights: {
        absolute: demoModel,
        files: [{ name: 'model.safetensors', bytes: 6892304, sha256: await sha256File(join(demoModel, 'model.safetensors')) }],
      },
      build: { optimizationLevel: -1, parts: [{ name: 'layer', planBytes: 3, seconds: 0.5 }, { name: 'head' }] },
      profiles: { layer: defaultProfiles(512), head: defaultHeadProfiles(512) },
    })
    expect(readFileSync(join(path, 'plan'), 'utf8')).toMatch(
      /^plan of type 2 for \d+ bytes of graph 1-8-8 9-16-16 17-32-32 33-64-64 65-128-128 129-256-256 257-512-512$/,
    )
    expect(readdirSync(path)).toEqual(expect.arrayContaining(['config.json', 'tokenizer.json', 'graph.json']))
    expect(seen.length).toBeGreaterThan(0)
    expect(seen[0]).toMatchObject({ parts: 2, phase: 'stand-in phase', steps: 3 })
    expect(leftovers()).toEqual([])
  })

  it('keeps the timing cache', async () => {
    const timingCache = join(folder, 'timings')
    await buildLLMEngine(demoModel, newPath(), { timingCache })
    await buildLLMEngine(demoModel, newPath(), { timingCache, precision: 'fp32' })
    expect(readFileSync(timingCache, 'utf8')).toBe('..')
  })

  it('leaves nothing behind when TensorRT fails, or on an abort', async () => {
    const path = newPath()
    expect(await failure(buildLLMEngine(demoModel, path, { optimizationLevel: 5 }))).toHaveCode('ERR_BUILD_FAILED', /level 5/)
    vi.stubEnv('STAND_IN_STEPS', '100000')
    const controller = new AbortController()
    const build = buildLLMEngine(demoModel, path, { signal: controller.signal, onProgress: () => controller.abort('enough') })
    expect(await failure(build)).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR', cause: 'enough' })
    expect(await failure(buildLLMEngine(demoModel, path, { signal: AbortSignal.abort('early') }))).toMatchObject({ cause: 'early' })
    expect(existsSync(path)).toBe(false)
    expect(leftovers()).toEqual([])
  })

  it('goes on where its listener throws, or rejects', async () => {
    const warnings: string[] = []
    const onWarning = (warning: Error): void => void warnings.push(warning.message)
    process.on('warning', onWarning)
    const wrong = new Error('wrong')
    for (const onProgress of [() => { throw wrong }, () => Promise.reject(wrong)] as (() => never)[]) {
      const path = newPath()
      expect(await buildLLMEngine(demoModel, path, { maxStepTokens: 512, onProgress })).toMatchObject({ path })
      await expect.poll(() => warnings.length).toBeGreaterThan(0)
      expect(new Set(warnings.splice(0))).toEqual(new Set(['onProgress threw: wrong']))
    }
    process.off('warning', onWarning)
  })

  it('asks before it works', async () => {
    const path = newPath()
    await buildLLMEngine(demoModel, path)
    vi.stubEnv('STAND_IN_STEPS', '100000')
    expect(await failure(buildLLMEngine(demoModel, path))).toHaveCode('ERR_INVALID_ARGUMENT', /exists/)
    expect(await failure(buildLLMEngine(demoModel, demoModel, { force: true }))).toHaveCode('ERR_INVALID_ARGUMENT', /no engine folder/)
    expect(await failure(buildLLMEngine(path, newPath()))).toHaveCode('ERR_INVALID_ARGUMENT', /engine folder already/)
    expect(await failure(buildLLMEngine(demoModel, newPath(), { device: 1 }))).toHaveCode('ERR_INVALID_ARGUMENT', /"device" is 1/)
    expect(await failure(buildLLMEngine(demoModel, ''))).toHaveCode('ERR_INVALID_ARGUMENT', /outFolder/)
    expect(await failure(buildLLMEngine('no/such/model', newPath()))).toHaveCode('ERR_MODEL_NOT_FOUND')
    expect(await failure(buildLLMEngine(demoModel, newPath(), { precision: 'int8' as never }))).toHaveCode('ERR_INVALID_ARGUMENT', /precision/)
    expect(await failure(buildLLMEngine(demoModel, newPath(), { profiles: { layer: [] } }))).toHaveCode('ERR_INVALID_ARGUMENT', /profiles\.layer/)
    expect(await failure(buildLLMEngine(demoModel, newPath(), { maxStepTokens: 8, profiles: { layer: [] } }))).toHaveCode('ERR_INVALID_ARGUMENT')
  })

  it('ends with its Worker', async () => {
    const code = `
      const { workerData, parentPort } = require('node:worker_threads')
      const addon = { exports: {} }
      process.dlopen(addon, workerData.addon)
      const profiles = Int32Array.of(1, 8, 8)
      addon.exports.buildEngine({ modulePath: workerData.modulePath, libraryPath: '', graph: '{}', device: 0, precision: 'bf16',
        layerProfiles: profiles, headProfiles: profiles, optimizationLevel: -1, workspaceBytes: 0, timingCache: Buffer.alloc(0) },
        () => parentPort.postMessage('building'))`
    vi.stubEnv('STAND_IN_STEPS', '100000')
    for (let i = 0; i < 5; i++) {
      const worker = new Worker(code, { eval: true, workerData: { addon: loadAddon().path, modulePath: standIn } })
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
      expect(await worker.terminate()).toBe(1)
    }
  })
})

describe('LLM.load', () => {
  let path: string
  beforeAll(async () => {
    useModule(standIn)
    path = newPath()
    await buildLLMEngine(demoModel, path, { maxStepTokens: 512 })
  })

  it('hands the checked plan to the module, with what the options say', async () => {
    const error = await failure(LLM.load(path, { backend: 'tensorrt' }))
    expect(error).toHaveCode('ERR_CUDA', /plan=plan of type 2 .*257-512-512; files=1; pages=0x16; fraction=0\.9; slots=256; tokens=512; graphs=1/)
    const sized = { kvCacheMemory: 2 ** 20, maxSequences: 7, maxStepTokens: 100, cudaGraphs: false, pageSize: 32 }
    // Two bytes an element: 6 layers x 2 x 32 tokens x 2 heads x 64 x 2 = 98,304 bytes a page.
    expect(await failure(LLM.load(path, { backend: 'tensorrt', ...sized }))).toHaveCode('ERR_CUDA', /pages=10x32; .*slots=7; tokens=100; graphs=0/)
  })

  it('does not fall back where the GPU is usable but fails', async () => {
    expect(await failure(LLM.load(path))).toHaveCode('ERR_CUDA')
  })

  it('refuses steps that the engine was not built for', async () => {
    const error = await failure(LLM.load(path, { backend: 'tensorrt', maxStepTokens: 513 }))
    expect(error).toHaveCode('ERR_INVALID_ARGUMENT', /"maxStepTokens" is 513, and the engine was built for steps of up to 512/)
  })

  it('checks the plan before the module sees it', async () => {
    const tampered = newPath()
    cpSync(path, tampered, { recursive: true })
    writeFileSync(join(tampered, 'plan'), readFileSync(join(path, 'plan')).reverse())
    expect(await failure(LLM.load(tampered, { backend: 'tensorrt' }))).toHaveCode('ERR_ENGINE_INVALID', /SHA-256/)
  })

  it('runs an engine folder on the CPU, as it runs the model folder', async () => {
    const texts: string[] = []
    for (const model of [path, demoModel]) {
      const llm = await LLM.load(model, { backend: 'cpu', numPages: 64, threads: 1 })
      texts.push((await llm.generate({ prompt: 'Once upon a time', maxTokens: 16, temperature: 0 }).result()).text)
      await llm.close()
    }
    expect(texts[0]).toBe(texts[1])
  })

  it('says how to build where there is no engine', async () => {
    const error = await failure(LLM.load(demoModel, { backend: 'tensorrt' }))
    expect(error).toHaveCode('ERR_ENGINE_REQUIRED')
    expect(error.hint).toContain(`npx node-tensorrt build ${demoModel} -o ${demoModel}-engine`)
    const warnings: LLMWarning[] = []
    const llm = await LLM.load(demoModel, { numPages: 64, onWarning: (warning) => warnings.push(warning) })
    expect(llm.backend).toBe('cpu')
    expect(warnings).toHaveLength(1)
    expect(warnings[0]).toMatchObject({ code: 'CPU_FALLBACK', message: expect.stringContaining('node-tensorrt build') as string })
    await llm.close()
  })

  it('falls back to the CPU, with one warning, where there is no module', async () => {
    useModule(join(folder, 'absent.so'))
    for (const model of [path, demoModel]) {
      const warnings: LLMWarning[] = []
      const llm = await LLM.load(model, { numPages: 64, onWarning: (warning) => warnings.push(warning) })
      expect(llm.backend).toBe('cpu')
      expect(warnings.map(({ cause }) => (cause as { code: string }).code)).toEqual(['ERR_TENSORRT_MODULE_NOT_FOUND'])
      await llm.close()
      expect(await failure(LLM.load(model, { backend: 'tensorrt' }))).toHaveCode('ERR_TENSORRT_MODULE_NOT_FOUND')
    }
  })

  it('takes "weights" with an engine folder only', async () => {
    expect(await failure(LLM.load(demoModel, { weights: folder }))).toHaveCode('ERR_INVALID_ARGUMENT', /"weights"/)
    expect(await failure(LLM.load(path, { weights: folder }))).toHaveCode('ERR_WEIGHTS_MISSING')
  })

  it.each([
    [{ numPages: 1, kvCacheFraction: 0.5 }, /"numPages" or "kvCacheFraction"/],
    [{ kvCacheFraction: 0 }, /"kvCacheFraction"/],
    [{ device: -1 }, /"device"/],
    [{ libraryPath: '' }, /"libraryPath"/],
  ])('refuses %j', async (options, message) => {
    expect(await failure(LLM.load(path, options))).toHaveCode('ERR_INVALID_ARGUMENT', message)
  })
})

describe('command line', () => {
  it('builds, and doctor finds the engine whole and fitting', async () => {
    const path = newPath()
    const built = await run(['build', demoModel, '-o', path, '--precision', 'fp16', '--max-step-tokens', '64', '--json'])
    expect(built).toMatchObject({ code: 0, stderr: '' })
    expect(JSON.parse(built.stdout)).toMatchObject({ path, manifest: { precision: 'fp16', profiles: { layer: defaultProfiles(64) } } })
    expect(await run(['build', demoModel, '-o', path])).toMatchObject({ code: 1, stderr: expect.stringContaining('--force') as string })

    const report = await run(['doctor', path, '--json'])
    expect(report.code).toBe(0)
    const { checks } = JSON.parse(report.stdout) as { checks: { name: string; ok: boolean; detail: string }[] }
    const check = (name: string): unknown => checks.find((entry) => entry.name === name)
    expect(check('GPU 0')).toMatchObject({ ok: true, detail: expect.stringContaining('Stand-in GPU, compute capability 9.0, 100 GiB') as string })
    expect(check('TensorRT library')).toMatchObject({ ok: true, detail: '10.6.0 from /stand-in/libnvinfer.so.10' })
    expect(check(`Engine ${path}`)).toMatchObject({ ok: true, detail: expect.stringContaining('fp16') as string })
    expect(check('Engine on GPU 0')).toMatchObject({ ok: true })

    writeFileSync(join(path, 'plan'), 'other')
    const damaged = await run(['doctor', path])
    expect(damaged).toMatchObject({ code: 1, stdout: expect.stringMatching(/FAIL {2}?Engine .*ERR_ENGINE_INVALID/) as string })
  })

  it('ends a build on Ctrl-C with 130 and leaves nothing behind', async () => {
    const path = newPath()
    const started = join(folder, 'build-started')
    const env = { STAND_IN_STEPS: '100000', STAND_IN_STARTED: started }
    const outcome = await run(['build', demoModel, '-o', path], env, interruptOnceThereIs(started))
    expect(outcome).toMatchObject({ code: 130, stdout: '' })
    expect(existsSync(path)).toBe(false)
    expect(leftovers()).toEqual([])
  })

  it('tells usage errors from failures', async () => {
    expect((await run(['build', demoModel])).code).toBe(2)
    expect((await run(['build', demoModel, '-o', newPath(), '--precision', 'int8'])).code).toBe(2)
    expect((await run(['build', 'no/such/model', '-o', newPath(), '--json'])).stdout).toContain('ERR_MODEL_NOT_FOUND')
  })

  it('doctor says what is missing, and that it is optional', async () => {
    const report = await run(['doctor', '--json'], { NODE_TENSORRT_MODULE: join(folder, 'absent.so') })
    expect(report.code).toBe(0)
    const { checks } = JSON.parse(report.stdout) as { checks: unknown[] }
    expect(checks).toContainEqual(
      expect.objectContaining({ name: 'TensorRT module', ok: false, optional: true, code: 'ERR_TENSORRT_MODULE_NOT_FOUND', hint: expect.stringMatching(/\w/) as string }),
    )
  })
})
