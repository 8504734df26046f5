/** Engine folders: what is in them is what was built, and it runs here, or the error says which is not so. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeEach, describe, expect, it } from 'vitest'
import type { TensorRTFacts } from '../../../lib/native'
import { checkProfiles, defaultProfiles, locateWeights, readEngineFolder, readPlan, requireFit } from '../../../lib/runtime'
import fc from '../../support/fast_check'
import '../matchers'
import { failure, fittingFacts, temporaryFolder, writeDemoEngine } from './fixtures'

const folder = temporaryFolder()
let count = 0
let parent: string
let path: string
let weights: string
beforeEach(async () => {
  parent = join(folder, String(count++))
  mkdirSync(parent)
  ;({ path, weights } = await writeDemoEngine(parent))
})

/** Flips one bit in the middle of a file, whose length stays. Its date is another, however coarse the clock of the file system. */
function damage(file: string): void {
  const bytes = readFileSync(file)
  bytes[bytes.length >> 1]! ^= 1
  writeFileSync(file, bytes)
  utimesSync(file, new Date(), new Date(Date.now() + 60_000))
}

function editManifest(edit: (manifest: Record<string, never>) => void): void {
  const file = join(path, 'engine.json')
  const manifest = JSON.parse(readFileSync(file, 'utf8')) as Record<string, never>
  edit(manifest)
  writeFileSync(file, JSON.stringify(manifest))
}

describe('reading', () => {
  it('gives back what was written', async () => {
    const engine = await readEngineFolder(path)
    expect(engine.graph.vocabSize).toBe(4096)
    expect((await readPlan(engine)).toString()).toBe('a plan that nothing runs')
    expect(await locateWeights(engine)).toEqual([join(weights, 'model.safetensors')])
  })

  it.each(['engine.json', 'graph.json'])('misses %s', async (name) => {
    rmSync(join(path, name))
    expect(await failure(readEngineFolder(path))).toHaveCode('ERR_ENGINE_INVALID', new RegExp(`has no ${name}`))
  })

  it('misses the plan', async () => {
    const engine = await readEngineFolder(path)
    rmSync(join(path, 'plan'))
    expect(await failure(readPlan(engine))).toHaveCode('ERR_ENGINE_INVALID', /has no plan/)
  })

  it('refuses a graph that is not the one of the build', async () => {
    damage(join(path, 'graph.json'))
    expect(await failure(readEngineFolder(path))).toHaveCode('ERR_ENGINE_INVALID', /graph\.json has SHA-256 [0-9a-f]{64}, engine\.json says [0-9a-f]{64}/)
  })

  it('refuses a plan that was changed, by a bit or in length', async () => {
    const engine = await readEngineFolder(path)
    damage(join(path, 'plan'))
    expect(await failure(readPlan(engine))).toHaveCode('ERR_ENGINE_INVALID', /plan has SHA-256/)
    writeFileSync(join(path, 'plan'), 'short')
    expect(await failure(readPlan(engine))).toHaveCode('ERR_ENGINE_INVALID', /plan has 5 bytes, engine\.json says 24/)
  })

  it('refuses the format of another version', async () => {
    editManifest((manifest) => (manifest['format'] = 2 as never))
    expect(await failure(readEngineFolder(path))).toHaveCode('ERR_VERSION_MISMATCH', /format 2 of node-tensorrt 0\.0\.1, this version reads format 1/)
  })

  it.each<[string, (manifest: Record<string, never>) => void]>([
    ['"precision"', (manifest) => (manifest['precision'] = 8 as never)],
    ['precision "int8"', (manifest) => (manifest['precision'] = 'int8' as never)],
    ['"sha256"', (manifest) => (manifest['plan'] = { bytes: 1, sha256: 'x' } as never)],
    ['"plan"', (manifest) => delete manifest['plan']],
    ['profiles', (manifest) => (manifest['profiles'] = { layer: [], head: [] } as never)],
    [
      'safetensors',
      (manifest) => (manifest['weights'] = { relative: '', absolute: '', files: [{ name: '../../secret.safetensors' }] } as never),
    ],
  ])('refuses a manifest with a bad %s', async (what, edit) => {
    editManifest(edit)
    expect(await failure(readEngineFolder(path))).toHaveCode('ERR_ENGINE_INVALID', new RegExp(what))
  })

  it('refuses a manifest that is no JSON', async () => {
    writeFileSync(join(path, 'engine.json'), '{')
    expect(await failure(readEngineFolder(path))).toHaveCode('ERR_ENGINE_INVALID', /no valid JSON/)
  })
})

describe('weights by reference', () => {
  const file = (): string => join(weights, 'model.safetensors')

  it('are found beside the engine after both have moved', async () => {
    const moved = `${parent}-moved`
    renameSync(parent, moved)
    expect(await locateWeights(await readEngineFolder(join(moved, 'engine')))).toEqual([join(moved, 'weights', 'model.safetensors')])
  })

  it('are found where they were after the engine alone has moved', async () => {
    const moved = join(folder, 'far', 'away', String(count))
    mkdirSync(join(moved, '..'), { recursive: true })
    renameSync(path, moved)
    expect(await locateWeights(await readEngineFolder(moved))).toEqual([file()])
  })

  it('are missing', async () => {
    const moved = join(parent, 'elsewhere')
    renameSync(weights, moved)
    const engine = await readEngineFolder(path)
    const error = await failure(locateWeights(engine))
    expect(error).toHaveCode('ERR_WEIGHTS_MISSING', new RegExp(`looked at ${weights} \\(no model\\.safetensors\\)`))
    expect(error.hint).toContain('weights')
    expect(await locateWeights(engine, { folder: moved })).toEqual([join(moved, 'model.safetensors')])
    expect(await failure(locateWeights(engine, { folder: parent }))).toHaveCode('ERR_WEIGHTS_MISSING')
  })

  it('may be copied or touched, but not changed', async () => {
    const engine = await readEngineFolder(path)
    copyFileSync(file(), `${file()}.copy`)
    renameSync(`${file()}.copy`, file())
    utimesSync(file(), new Date(), new Date(Date.now() + 30_000))
    expect(await locateWeights(engine)).toHaveLength(1)
    damage(file())
    expect(await failure(locateWeights(engine))).toHaveCode('ERR_WEIGHTS_INVALID', /has SHA-256 [0-9a-f]{64}, the engine was built with [0-9a-f]{64}/)
    expect(await locateWeights(engine, { verify: false })).toHaveLength(1)
  })

  it('that were changed behind the back of the clock are found when asked', async () => {
    const engine = await readEngineFolder(path)
    damage(file())
    utimesSync(file(), new Date(), engine.manifest.weights.files[0]!.mtimeMs / 1000)
    expect(await failure(locateWeights(engine, { verify: true }))).toHaveCode('ERR_WEIGHTS_INVALID')
  })

  it('of another size', async () => {
    const engine = await readEngineFolder(path)
    writeFileSync(file(), 'short')
    expect(await failure(locateWeights(engine))).toHaveCode('ERR_WEIGHTS_INVALID', /has 5 bytes, the engine was built with 6892304/)
  })

  it('stop being hashed on an abort', async () => {
    const engine = await readEngineFolder(path)
    const signal = AbortSignal.abort('enough')
    expect(await failure(locateWeights(engine, { verify: true, signal }))).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
  })
})

describe('this machine', () => {
  const cases: [what: string, change: (facts: TensorRTFacts) => void, device: number, code: string, message: RegExp][] = [
    [
      'has another TensorRT',
      (facts) => (facts.libraryVersion = 101300),
      0,
      'ERR_ENGINE_INCOMPATIBLE',
      /built by TensorRT 10\.6\.0; \/usr\/lib\/libnvinfer\.so\.10 is 10\.13\.0/,
    ],
    [
      'has another GPU',
      (facts) => (facts.gpus[0] = { name: 'NVIDIA L4', computeMajor: 8, computeMinor: 9, memoryBytes: 24e9 }),
      0,
      'ERR_ENGINE_INCOMPATIBLE',
      /for compute capability 9\.0 \(NVIDIA H200\); device 0, NVIDIA L4, has 8\.9/,
    ],
    ['has fewer GPUs', () => {}, 1, 'ERR_INVALID_ARGUMENT', /"device" is 1/],
    [
      'has no driver, which comes first',
      (facts) => {
        facts.driver = { code: 'ERR_DRIVER_NOT_FOUND', message: 'none', hint: 'install' }
        facts.library = { code: 'ERR_TENSORRT_NOT_FOUND', message: 'none', hint: '' }
        facts.gpus = []
      },
      0,
      'ERR_DRIVER_NOT_FOUND',
      /none \(install\)/,
    ],
    [
      'has no library',
      (facts) => (facts.library = { code: 'ERR_TENSORRT_NOT_FOUND', message: 'looked', hint: '' }),
      0,
      'ERR_TENSORRT_NOT_FOUND',
      /^looked$/,
    ],
  ]
  it.each(cases)('%s', async (_, change, device, code, message) => {
    const { manifest } = await readEngineFolder(path)
    const facts = fittingFacts()
    requireFit(manifest, facts, 0)
    change(facts)
    expect(() => requireFit(manifest, facts, device)).toThrowCode(code, message)
  })
})

describe('writing', () => {
  it('does not overwrite, unless forced, and never what is no engine', async () => {
    const before = readFileSync(join(path, 'engine.json'), 'utf8')
    expect(await failure(writeDemoEngine(parent))).toHaveCode('ERR_INVALID_ARGUMENT', /exists/)
    writeFileSync(join(path, 'stray'), '')
    await writeDemoEngine(parent, true)
    expect(existsSync(join(path, 'stray'))).toBe(false)
    expect(JSON.parse(readFileSync(join(path, 'engine.json'), 'utf8'))).toMatchObject({ graphSha256: (JSON.parse(before) as { graphSha256: string }).graphSha256 })
    rmSync(join(path, 'engine.json'))
    expect(await failure(writeDemoEngine(parent, true))).toHaveCode('ERR_INVALID_ARGUMENT', /no engine folder/)
    expect(readdirSync(parent).sort()).toEqual(['engine', 'weights'])
  })
})

describe('profiles', () => {
  it('leave no gap and end where asked', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100_000 }), (rows) => {
        const profiles = defaultProfiles(rows)
        checkProfiles('profiles', profiles)
        expect(profiles.at(-1)!.max).toBe(rows)
      }),
    )
  })

  it('give decode steps kernels of their own', () => {
    const profiles = defaultProfiles(8192)
    expect(profiles.map(({ max }) => max)).toEqual([8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192])
    for (const { opt, max } of profiles.slice(0, -1)) expect(opt).toBe(max)
    expect(profiles.at(-1)).toEqual({ min: 2049, opt: 4096, max: 8192 })
    expect(defaultProfiles(100).at(-1)).toEqual({ min: 65, opt: 100, max: 100 })
  })

  it.each([
    [[]],
    [[{ min: 2, opt: 2, max: 2 }]],
    [[{ min: 1, opt: 3, max: 2 }]],
    [[{ min: 1, opt: 1, max: 1.5 }]],
    [[null]],
    [[{ min: 1, opt: 1, max: 4 }, { min: 6, opt: 6, max: 8 }]],
    [[{ min: 1, opt: 1, max: 4 }, { min: 1, opt: 1, max: 4 }]],
  ])('%j is refused', (profiles) => {
    expect(() => checkProfiles('profiles.layer', profiles as never)).toThrowCode('ERR_INVALID_ARGUMENT', /profiles\.layer/)
  })
})
