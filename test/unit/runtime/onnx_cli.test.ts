/** The commands `build` and `doctor` for ONNX models, their engines and plans: real processes; the GPU's part is the stand-in's, or missing. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { OnnxEngineManifest } from '../../../lib'
import { compileStandIn, interruptOnceThereIs, root, runCli, temporaryFolder } from '../tensorrt/fixtures'

interface Check {
  name: string
  ok: boolean
  optional?: boolean
  detail: string
  code?: string
}

const folder = temporaryFolder()
const fixture = (name: string): string => join(root, 'test', 'fixtures', 'onnx', `${name}.onnx`)
const PROFILE = ['--profile', 'x:1x16..8x16..32x16']
let standIn: string
beforeAll(() => {
  standIn = compileStandIn(folder)
})
let count = 0
const newPath = (): string => join(folder, `engine-${count++}`)

const run: typeof runCli = (args, env, onStart) => runCli(args, { NODE_TENSORRT_MODULE: standIn, XDG_CACHE_HOME: join(folder, 'cache'), ...env }, onStart)

async function doctor(args: string[], env: NodeJS.ProcessEnv = {}): Promise<{ code: number | null; check: (name: string) => Check | undefined }> {
  const { code, stdout } = await run(['doctor', ...args, '--json'], env)
  const { checks } = JSON.parse(stdout) as { checks: Check[] }
  return { code, check: (name) => checks.find((entry) => entry.name.startsWith(name)) }
}

const withoutGpu = { NODE_TENSORRT_MODULE: join(folder, 'absent.so') }

describe('build', () => {
  it('makes an engine folder, and finds it again in the cache', async () => {
    const out = newPath()
    const args = ['build', fixture('mlp'), '-o', out, '-p', 'fp16', '--layer', 'head/*=fp32', ...PROFILE]
    const built = await run([...args, '--json'])
    expect(built).toMatchObject({ code: 0, stderr: '' })
    const { path, manifest, cached } = JSON.parse(built.stdout) as { path: string; manifest: OnnxEngineManifest; cached: boolean }
    expect({ path, cached }).toEqual({ path: out, cached: false })
    expect(manifest).toMatchObject({
      kind: 'onnx',
      precision: 'fp16',
      layers: [{ pattern: 'head/*', precision: 'fp32' }],
      profiles: [{ x: { min: [1, 16], opt: [8, 16], max: [32, 16] } }],
    })
    expect(readdirSync(join(folder, 'cache', 'node-tensorrt', 'engines'))).toContain(manifest.cacheKey)
    expect(await run(args)).toMatchObject({ code: 1, stderr: expect.stringContaining('--force') as string })
    const again = await run([...args, '--force'])
    expect(again).toMatchObject({ code: 0, stdout: expect.stringContaining('taken from the cache') as string })
  })

  it('tells progress in plain lines where there is no terminal', async () => {
    const { code, stderr } = await run(['build', fixture('mlp'), '--no-cache', '-o', newPath(), ...PROFILE], { STAND_IN_STEPS: '400' })
    expect(code).toBe(0)
    expect(stderr.split('\n').filter(Boolean).length).toBeGreaterThan(2)
    expect(stderr).toMatch(/^\d0% stand-in phase$/m)
  })

  it('ends on Ctrl-C with 130 and leaves nothing behind', async () => {
    const out = newPath()
    const started = join(folder, 'started')
    const env = { STAND_IN_STEPS: '100000', STAND_IN_STARTED: started }
    const outcome = await run(['build', fixture('mlp'), '--no-cache', '-o', out, ...PROFILE], env, interruptOnceThereIs(started))
    expect(outcome).toMatchObject({ code: 130, stdout: '' })
    expect(existsSync(out)).toBe(false)
  })

  it('tells usage errors from failures', async () => {
    const usage = [
      ['build', fixture('mlp'), '--profile', 'x'],
      ['build', fixture('mlp'), '--profile', 'x:1x16..8x16'],
      ['build', fixture('mlp'), '--layer', 'fp32'],
      ['build', fixture('mlp'), '--max-step-tokens', '8'],
      ['build', root, '-o', newPath(), '--strip'],
      ['build', fixture('mlp'), '--profile', 'x:1x16,x:8x16'],
      ['build', fixture('mlp'), '--no-cache'],
      ['build', fixture('mlp'), '--no-cache', '-o', newPath(), '--cache-dir', folder],
      ['build', fixture('mlp'), '--exclude-lean-runtime'],
      ['build', ''],
      ['doctor', ''],
    ]
    const outcomes = await Promise.all(usage.map((args) => run([...args, '--json'])))
    expect(outcomes.map(({ code }) => code)).toEqual(usage.map(() => 2))
    for (const { stdout, stderr } of outcomes) {
      const { error } = JSON.parse(stdout) as { error: { code: string; message: string } }
      expect(error.code).toBe('ERR_INVALID_ARGUMENT')
      expect(stderr).toContain(error.message)
    }
    expect(outcomes[5]!.stderr).toContain("names input 'x' twice")
    const failed = await run(['build', fixture('mlp'), '-p', 'int8', '--json', ...PROFILE], withoutGpu)
    expect(failed).toMatchObject({ code: 1 })
    expect(JSON.parse(failed.stdout)).toMatchObject({ error: { code: 'ERR_INVALID_ARGUMENT', hint: expect.stringContaining('quantize') as string } })
  })
})

describe('doctor', () => {
  it('says without a GPU what can be said of a model', async () => {
    const good = await doctor([fixture('qdq_int8')], withoutGpu)
    expect(good.code).toBe(0)
    expect(good.check('ONNX model')).toMatchObject({ ok: true, detail: expect.stringMatching(/opset 17.*x float32\[batchx32\].*4 Q\/DQ nodes of int8/) as string })
    expect(good.check('TensorRT support')).toMatchObject({ ok: false, optional: true, code: 'ERR_TENSORRT_MODULE_NOT_FOUND', detail: expect.stringContaining('needs a GPU') as string })
    const foreign = await doctor([fixture('unsupported')], withoutGpu)
    expect(foreign.check('Operators')).toMatchObject({ ok: false, optional: true, detail: expect.stringContaining('com.example::Frobnicate') as string })
    const broken = await doctor([fixture('truncated')], withoutGpu)
    expect(broken.code).toBe(1)
    expect(broken.check('ONNX model')).toMatchObject({ ok: false, code: 'ERR_ONNX_INVALID' })
  })

  it('lists the nodes that TensorRT does not support, and fails', async () => {
    const { code, check } = await doctor([fixture('unsupported')])
    expect(code).toBe(1)
    expect(check('TensorRT support')).toMatchObject({ ok: false, code: 'ERR_ONNX_UNSUPPORTED', detail: 'TensorRT does not support middle/frobnicate (Frobnicate)' })
    expect(check('  middle/frobnicate')).toMatchObject({ ok: false, detail: 'the stand-in knows no such op [parse, line 7]' })
  })

  it('checks an engine folder: plan, model, versions, GPU', async () => {
    const out = newPath()
    expect((await run(['build', fixture('mlp'), '--no-cache', '-o', out, ...PROFILE])).code).toBe(0)
    const whole = await doctor([out])
    expect(whole.code).toBe(0)
    expect(whole.check('Engine on GPU 0')).toMatchObject({ ok: true })
    expect(whole.check('ONNX model of the engine')).toMatchObject({ ok: true, detail: expect.stringContaining('as it was') as string })

    const file = join(out, 'engine.json')
    const manifest = JSON.parse(readFileSync(file, 'utf8')) as OnnxEngineManifest
    const refit = async (changes: object): Promise<Check | undefined> => {
      writeFileSync(file, JSON.stringify({ ...manifest, ...changes }))
      return (await doctor([out])).check('Engine on GPU 0')
    }
    const versionCompatible = { ...manifest.build, versionCompatible: true }
    const ampere = { ...manifest.build, hardwareCompatibility: 'ampere+' }
    const older = { ...manifest.gpu, computeCapability: '8.0' }
    expect(await refit({ tensorrtVersion: '10.3.0' })).toMatchObject({ ok: false, code: 'ERR_ENGINE_INCOMPATIBLE', detail: expect.stringMatching(/10\.3\.0.*10\.6\.0/) as string })
    expect(await refit({ tensorrtVersion: '10.3.0', build: versionCompatible })).toMatchObject({ ok: true })
    expect(await refit({ tensorrtVersion: '10.9.0', build: versionCompatible })).toMatchObject({ ok: false })
    expect(await refit({ gpu: older })).toMatchObject({ ok: false, detail: expect.stringMatching(/8\.0.*9\.0/) as string })
    expect(await refit({ gpu: older, build: ampere })).toMatchObject({ ok: true })

    writeFileSync(join(out, 'plan'), 'other')
    const damaged = await doctor([out])
    expect(damaged.code).toBe(1)
    expect(damaged.check('Engine ')).toMatchObject({ ok: false, code: 'ERR_ENGINE_INVALID' })
  })

  it('tries a plan of unknown origin in a process of its own', async () => {
    const plan = join(folder, 'some.plan')
    writeFileSync(plan, 'no plan at all')
    const untried = await doctor([plan])
    expect(untried.code).toBe(0)
    expect(untried.check('Origin')).toMatchObject({ ok: false, optional: true })
    const crashed = await doctor([plan, '--try'], { STAND_IN_RUNTIME: 'crash' })
    expect(crashed.code).toBe(1)
    expect(crashed.check('Trial')).toMatchObject({ ok: false, code: 'ERR_ENGINE_INVALID', detail: expect.stringContaining('SIGSEGV') as string })
    const refused = await doctor([plan, '--try'])
    expect(refused).toMatchObject({ code: 0 })
    expect(refused.check('Trial')).toMatchObject({ ok: false, optional: true, code: 'ERR_NO_GPU' })
  })
})
