/** Finding and opening nt-tensorrt.so, and what it says of a machine without a GPU. */
import { execFileSync } from 'node:child_process'
import { copyFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { LLM, type LLMWarning } from '../../../lib'
import type { Graph } from '../../../lib/models'
import { createTensorRTBackend, loadAddon, probeTensorRT } from '../../../lib/native'
import '../matchers'
import { compileC, compileStandIn, demoModel, failure, hasRealModule, realModule, root, temporaryFolder, useModule } from './fixtures'

const folder = temporaryFolder()
afterEach(() => vi.unstubAllEnvs())

describe('a module that is missing or broken', () => {
  const problems: [what: string, make: (file: string) => void, code: string, message: RegExp][] = [
    ['missing', () => {}, 'ERR_TENSORRT_MODULE_NOT_FOUND', /not installed; looked at/],
    ['a text file', (file) => writeFileSync(file, 'text'), 'ERR_TENSORRT_MODULE_LOAD_FAILED', /not a Linux binary/],
    ['some other library', (file) => compileC(file, 'int other;'), 'ERR_TENSORRT_MODULE_LOAD_FAILED', /does not export nt_tensorrt_module/],
    [
      'of another build',
      (file) => compileC(file, 'void* nt_tensorrt_module(unsigned abi) { return 0; }'),
      'ERR_VERSION_MISMATCH',
      /different builds/,
    ],
    [
      'in want of a library',
      (file) => compileC(file, 'extern int nowhere(void); int f(void) { return nowhere(); }'),
      'ERR_TENSORRT_MODULE_LOAD_FAILED',
      /nowhere/,
    ],
    [
      'cut short',
      (file) => {
        copyFileSync(loadAddon().path, file)
        truncateSync(file, statSync(file).size / 2)
      },
      'ERR_TENSORRT_MODULE_LOAD_FAILED',
      /cut short/,
    ],
  ]
  it.each(problems)('%s', async (what, make, code, message) => {
    const file = join(folder, `${what.replaceAll(' ', '-')}.so`)
    make(file)
    useModule(file)
    const error = await failure(probeTensorRT())
    expect(error).toHaveCode(code, message)
    expect(error.message).toContain(file)
    expect(error.hint).toMatch(/\w/)
  })
})

describe('arguments', () => {
  let modulePath: string
  beforeAll(() => (modulePath = compileStandIn(folder)))

  it.each([
    ['options', undefined],
    ['options.modulePath', { modulePath: 5, libraryPath: '' }],
    ['options.modulePath', { modulePath: 'a\0b', libraryPath: '' }],
    ['options.libraryPath', { modulePath: 'x' }],
  ])('a bad %s rejects', async (name, options) => {
    const error = await failure(loadAddon().addon.probeTensorRt(options as never))
    expect(error).toHaveCode('ERR_INVALID_ARGUMENT', new RegExp(name))
  })

  const build = (): Record<string, unknown> => ({
    modulePath,
    libraryPath: '',
    graph: '{}',
    device: 0,
    precision: 'bf16',
    layerProfiles: Int32Array.of(1, 8, 8),
    headProfiles: Int32Array.of(1, 8, 8),
    optimizationLevel: -1,
    workspaceBytes: 0,
    timingCache: Buffer.alloc(0),
  })
  it.each([
    ['precision', 'int8'],
    ['layerProfiles', Int32Array.of(1, 2)],
    ['layerProfiles', [1, 8, 8]],
    ['timingCache', 'text'],
    ['workspaceBytes', -1],
    ['device', 0.5],
  ])('a bad %s of buildEngine throws', (field, value) => {
    const call = (): unknown => loadAddon().addon.buildEngine({ ...build(), [field]: value } as never, undefined)
    expect(call).toThrowCode('ERR_INVALID_ARGUMENT', new RegExp(`options.${field}`))
  })

  it('a listener that is no function throws', () => {
    expect(() => loadAddon().addon.buildEngine(build() as never, 5 as never)).toThrowCode('ERR_INVALID_ARGUMENT', /onProgress/)
  })

  it('a getter that throws goes first', () => {
    const options = Object.defineProperty(build(), 'graph', {
      get() {
        throw new RangeError('mine')
      },
    })
    expect(() => loadAddon().addon.buildEngine(options as never, undefined)).toThrow(RangeError)
  })
})

// Where it was left out (NT_SKIP_TENSORRT=1), or is not built, `npm test` says so.
describe.skipIf(!hasRealModule)('the module', () => {
  const noGpu = (facts: { gpus: unknown[] }): boolean => facts.gpus.length === 0

  const library = (version: number): string => `int getInferLibVersion(void) { return ${version}; }`
  it.each([
    ['nothing', 'libnvinfer.so.9000', '', 'ERR_TENSORRT_NOT_FOUND', 0],
    ['a library of another make', 'libnvinfer.so.10', 'int other;', 'ERR_TENSORRT_NOT_FOUND', 0],
    ['TensorRT 11 by its name', 'libnvinfer.so.11', library(110200), 'ERR_VERSION_MISMATCH', 0],
    ['TensorRT 11 under the name of 10', 'libnvinfer.so.10', library(110200), 'ERR_VERSION_MISMATCH', 110200],
    ['TensorRT 8 under the name of 10', 'libnvinfer.so.10', library(80600), 'ERR_VERSION_MISMATCH', 80600],
    ['TensorRT 10.0', 'libnvinfer.so.10', library(100000), 'ERR_VERSION_MISMATCH', 100000],
  ])('%s in the folder', async (what, name, source, code, version) => {
    useModule(realModule)
    const where = join(folder, what.replaceAll(' ', '-'))
    compileC(join(where, name), source)
    for (const by of ['option', 'variable']) {
      if (by === 'variable') vi.stubEnv('TENSORRT_LIB_DIR', where)
      const facts = await probeTensorRT(by === 'option' ? where : '')
      expect(facts.library).toMatchObject({ code, message: expect.stringContaining(where) as string, hint: expect.stringMatching(/\w/) as string })
      expect(facts.libraryVersion).toBe(version)
      expect(facts.placesLooked.join()).toContain(where)
    }
  })

  it('lets a model fall back to the CPU with one warning, and says why TensorRT cannot run it', async () => {
    useModule(realModule)
    const { driver, library } = await probeTensorRT(folder)
    const { code } = (driver ?? library)!
    expect(await failure(LLM.load(demoModel, { backend: 'tensorrt', libraryPath: folder }))).toHaveCode(code)
    const warnings: LLMWarning[] = []
    const llm = await LLM.load(demoModel, { libraryPath: folder, numPages: 64, onWarning: (warning) => warnings.push(warning) })
    expect(llm.backend).toBe('cpu')
    expect(warnings).toMatchObject([{ code: 'CPU_FALLBACK', cause: { code } }])
    await llm.close()
  })

  it('loads on every system that the package promises', () => {
    const check = join(root, 'scripts', 'check-binary.mjs')
    expect(() => execFileSync(process.execPath, [check, realModule], { stdio: 'pipe' })).not.toThrow()
  })

  it('gives the reason that probing gives when it is to run an engine', async () => {
    useModule(realModule)
    const facts = await probeTensorRT(folder)
    const error = await failure(
      createTensorRTBackend({
        graph: {} as Graph,
        plan: Buffer.alloc(0),
        files: [],
        libraryPath: folder,
        device: 0,
        pageSize: 16,
        numPages: 0,
        kvCacheFraction: 0.9,
        maxSlots: 1,
        maxStepTokens: 8,
        cudaGraphs: true,
        plainKernels: false,
        faultAtStep: 0,
      }),
    )
    expect(error).toHaveCode((facts.driver ?? facts.library)!.code)
  })

  // Last: where TensorRT is installed this opens it, and a process has one.
  it('tells what the machine has', async () => {
    useModule(realModule)
    const facts = await probeTensorRT()
    expect(facts.modulePath).toBe(realModule)
    expect(facts.requiredCuda).toBeGreaterThanOrEqual(12000)
    if (noGpu(facts)) expect(facts.driver).toMatchObject({ code: expect.stringMatching(/^ERR_(DRIVER_|NO_GPU|CUDA)/) as string })
    else expect(facts).toMatchObject({ driver: null })
  })
})
