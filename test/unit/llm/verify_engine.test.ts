/** Verification of engines: the CPU backend beside itself, beside other weights, and beside executors that err. */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { type EngineVerification, LLM, saveReferences, verifyEngine, type VerifyOptions, type VerifyProgress } from '../../../lib'
import { createCpu } from '../../../lib/llm/backend'
import { type TargetFactory, verifyTarget } from '../../../lib/llm/verify_engine'
import { readEngineFolder } from '../../../lib/runtime'
import type { Executor, StepResult } from '../../../lib/scheduler'
import { PATIENTLY } from '../../support/patience'
import { WrappedExecutor } from '../../support/wrapped_executor'
import '../matchers'
import { compileStandIn, demoModel, failure, temporaryFolder, useModule, writeDemoEngine } from '../tensorrt/fixtures'

const folder = temporaryFolder()
let standIn: string
beforeAll(() => {
  standIn = compileStandIn(folder)
})
let count = 0
let path: string
let weights: string
beforeEach(async () => {
  const parent = join(folder, String(count++))
  mkdirSync(parent)
  ;({ path, weights } = await writeDemoEngine(parent))
})
afterEach(() => {
  vi.unstubAllEnvs()
})

const manifestText = (): string => readFileSync(join(path, 'engine.json'), 'utf8')
const kept = async (): Promise<EngineVerification | undefined> => (await readEngineFolder(path)).manifest.verification

class ChangingExecutor extends WrappedExecutor {
  steps = 0
  constructor(
    inner: Executor,
    private readonly change: (result: StepResult, step: number) => StepResult,
  ) {
    super(inner)
  }
  override start(onResult: (result: StepResult) => void): void {
    super.start((result) => onResult(this.change(result, this.steps++)))
  }
}

const made: ChangingExecutor[] = []
const changing =
  (change: (result: StepResult, step: number) => StepResult): TargetFactory =>
  async (model, options) => {
    const executor = new ChangingExecutor(await createCpu(model, options), change)
    made.push(executor)
    return executor
  }
/** Moves each logit by a fixed pseudo-random amount. */
const noisy = (amplitude: number): TargetFactory =>
  changing((result) => ({ ...result, logits: result.logits.map((logit, i) => logit + amplitude * Math.sin(i * 12.9898 + 78.233)) }))
const same: TargetFactory = createCpu
const SMALL: VerifyOptions = { maxTokens: 4 }

describe('an engine that computes what its model does', () => {
  it('is fit, to the bit where the backend is the same, and its manifest says so', async () => {
    const seen: VerifyProgress[] = []
    const report = await verifyTarget(path, { onProgress: (progress) => seen.push(progress) }, same)
    expect(report).toMatchObject({ path, written: true, excesses: [], failure: undefined })
    expect(report.reference).toMatch(/^cpu \(/)
    const { verification } = report
    expect(verification).toMatchObject({
      against: 'cpu',
      prompts: 8,
      meanDifference: 0,
      maxDifference: 0,
      maxLogitDifference: 0,
      top1Agreement: 1,
      invalidPositions: 0,
      limits: { meanDifference: 0.02, maxDifference: 0.5 },
      fit: true,
    })
    // 8 prompts with 16 tokens each, and what of the prompts the model holds for likely.
    expect(verification.positions).toBeGreaterThanOrEqual(8 * 16)
    expect(verification.positions).toBeLessThan(8 * 16 + 281)
    expect(await kept()).toEqual(verification)
    expect(seen.map(({ phase }) => phase)).toEqual(['loading', 'reference', 'engine'])
    expect(readdirSync(path).filter((name) => name.startsWith('engine.json'))).toEqual(['engine.json'])
  })

  it('is verified to the end where its listener throws, or rejects', async () => {
    const warned = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    const wrong = new Error('wrong')
    for (const onProgress of [() => { throw wrong }, () => Promise.reject(wrong)] as (() => never)[]) {
      expect(await verifyTarget(path, { ...SMALL, onProgress }, same)).toMatchObject({ written: true, verification: { fit: true } })
      expect(warned.mock.calls).toEqual(Array.from({ length: 3 }, () => ['onProgress threw: wrong', 'NodeTensorRTWarning']))
      warned.mockClear()
    }
    warned.mockRestore()
  })

  it('is fit with small differences, and they are counted', async () => {
    const { verification, worst } = await verifyTarget(path, SMALL, noisy(0.01))
    expect(verification.maxLogitDifference).toBeCloseTo(0.01, 4)
    expect(verification.maxDifference).toBeGreaterThan(1e-4)
    expect(verification.maxDifference).toBeLessThan(0.02)
    expect(verification.meanDifference).toBeLessThan(verification.maxDifference)
    expect(verification.fit).toBe(true)
    expect(Math.abs(worst!.engine - worst!.reference)).toBe(verification.maxDifference)
  })

  it('keeps what it does not know of the manifest', async () => {
    writeFileSync(join(path, 'engine.json'), JSON.stringify({ ...(JSON.parse(manifestText()) as object), later: [1, 2] }))
    await verifyTarget(path, SMALL, same)
    expect(JSON.parse(manifestText())).toMatchObject({ later: [1, 2], verification: { fit: true } })
  })

  it('changes nothing when asked not to', async () => {
    const before = manifestText()
    expect((await verifyTarget(path, { ...SMALL, write: false }, same)).written).toBe(false)
    expect(manifestText()).toBe(before)
  })

  it.each([
    ['texts', ['Once upon a time', 'What is 7 plus 5?'], 2],
    ['token ids, also of one token', [[5], new Int32Array([1, 2, 3]), [7, 8, 9, 10]], 3],
    // Several steps of 256 rows, and several batches of 8.
    ['long and many', Array.from({ length: 19 }, (_, i) => Array.from({ length: 1 + ((i * 97) % 300) }, (_, j) => 5 + ((i + j) % 4000))), 19],
  ])('takes %s', async (_, prompts, expected) => {
    const { verification } = await verifyTarget(path, { ...SMALL, prompts }, same)
    expect(verification).toMatchObject({ prompts: expected, maxDifference: 0, maxLogitDifference: 0, fit: true })
    expect(verification.positions).toBeGreaterThanOrEqual(expected * 4)
  })

  it('has built-in prompts that depend on the seed alone', async () => {
    const run = async (seed: number): Promise<number> => (await verifyTarget(path, { ...SMALL, seed, write: false }, noisy(0.1))).verification.maxDifference
    const [first, again, other] = [await run(1), await run(1), await run(2)]
    expect(again).toBe(first)
    expect(other).not.toBe(first)
  })
})

describe('an engine that does not', () => {
  it('is unfit, is not loaded, and says both numbers', async () => {
    const report = await verifyTarget(path, SMALL, noisy(3))
    const { verification } = report
    expect(verification.fit).toBe(false)
    expect(verification.meanDifference).toBeGreaterThan(0.02)
    expect(report.excesses[0]).toMatch(/^mean difference of log-probabilities [\d.]+, the limit is 0\.02$/)
    expect(await kept()).toEqual(verification)

    useModule(standIn)
    const found = String(Number(verification.maxDifference.toPrecision(4))).replace('.', '\\.')
    const message = new RegExp(`largest difference of log-probabilities ${found}, the limit is 0\\.5`)
    for (const backend of ['tensorrt', 'auto'] as const) {
      expect(await failure(LLM.load(path, { backend }))).toHaveCode('ERR_ENGINE_INCOMPATIBLE', message)
    }
    // The stand-in says what it was asked to run.
    expect(await failure(LLM.load(path, { backend: 'tensorrt', allowUnfit: true }))).toHaveCode('ERR_CUDA', /plan=a plan that nothing runs/)
    // The CPU does not run the plan.
    await (await LLM.load(path, { backend: 'cpu' })).close()

    await verifyTarget(path, SMALL, same)
    expect(await failure(LLM.load(path, { backend: 'tensorrt' }))).toHaveCode('ERR_CUDA')
  })

  it('has other weights', async () => {
    const file = join(folder, `other-${count}.safetensors`)
    copyFileSync(join(demoModel, 'model.safetensors'), file)
    const bytes = readFileSync(file)
    const header = 8 + Number(bytes.readBigUInt64LE(0))
    const { 'model.layers.0.mlp.down_proj.weight': tensor } = JSON.parse(bytes.subarray(8, header).toString()) as Record<
      string,
      { data_offsets: [number, number] }
    >
    bytes.fill(0, header + tensor!.data_offsets[0], header + tensor!.data_offsets[1])
    writeFileSync(file, bytes)
    const { verification } = await verifyTarget(path, SMALL, (model, options) => createCpu({ ...model, weightFiles: [file] }, options))
    expect(verification).toMatchObject({ fit: false, invalidPositions: 0 })
    expect(verification.top1Agreement).toBeLessThan(1)
    expect(verification.maxDifference).toBeGreaterThan(0.5)
  })

  it('gives numbers that are not finite', async () => {
    const target = changing((result, step) => (step === 2 ? { ...result, logits: result.logits.fill(NaN, 0, 1) } : result))
    const { verification, excesses } = await verifyTarget(path, SMALL, target)
    expect(verification).toMatchObject({ fit: false, invalidPositions: 1, maxDifference: 0 })
    expect(excesses).toEqual(['positions without finite numbers 1, the limit is 0'])
    expect(await kept()).toEqual(verification)
  })

  it('fails a step for what it computed', async () => {
    const error = { code: 'ERR_STEP_FAILED' as const, message: 'The logits of sequence 0 (row 0) are not finite.', retryable: false }
    const { verification, failure: reason } = await verifyTarget(path, SMALL, changing((result, step) => (step === 1 ? { ...result, error } : result)))
    // The built-in prompts have 281 tokens, and a step 256: the last prompt ends in the second step, which fails.
    expect(verification).toMatchObject({ fit: false, invalidPositions: 8 * 4 - 7 })
    expect(reason).toMatch(/are not finite/)
  })

  it('is judged by the limits given', async () => {
    const limits = { maxLogitDifference: 0.001, meanDifference: 10 }
    const { verification, excesses } = await verifyTarget(path, { ...SMALL, limits }, noisy(0.01))
    expect(verification.limits).toEqual({ maxLogitDifference: 0.001, meanDifference: 10, maxDifference: 0.5 })
    expect(excesses).toEqual([expect.stringMatching(/^largest difference of logits 0\.01\d*, the limit is 0\.001$/) as string])
    expect((await verifyTarget(path, { ...SMALL, limits: { top1Agreement: 1 } }, noisy(3))).excesses.at(-1)).toMatch(/agreement on the best token/)
  })
})

describe('stored references', () => {
  it('stand in for the CPU backend', async () => {
    const file = join(folder, 'references.json')
    expect(await saveReferences(path, file, { maxTokens: 3, prompts: ['Once upon a time', 'The'] })).toBe(2)
    const { verification, reference } = await verifyTarget(path, { references: file }, same)
    expect(verification).toMatchObject({ against: 'references', prompts: 2, top1Agreement: 1, fit: true })
    expect(verification.maxDifference).toBeLessThan(1e-6)
    expect(verification.maxLogitDifference).toBeLessThan(1e-5)
    expect(reference).toMatch(/references\.json of cpu \(/)
    const noise = await verifyTarget(path, { references: file }, noisy(3))
    expect(noise.verification.fit).toBe(false)
    expect(noise.verification.maxLogitDifference).toBeGreaterThan(1)
  })

  it('may be of the model folder, but not of other weights', async () => {
    const file = join(folder, 'of-model.json')
    await saveReferences(weights, file, { maxTokens: 1 })
    expect((await verifyTarget(path, { references: file }, same)).verification.fit).toBe(true)
    const stored = JSON.parse(readFileSync(file, 'utf8')) as object
    writeFileSync(file, JSON.stringify({ ...stored, weights: { 'model.safetensors': 'f'.repeat(64) } }))
    expect(await failure(verifyTarget(path, { references: file }, same))).toHaveCode(
      'ERR_INVALID_ARGUMENT',
      /of-model\.json is of other weights: model\.safetensors has SHA-256 f{64}, and the engine was built with [0-9a-f]{64}/,
    )
  })

  it.each<[string, string | object, RegExp]>([
    ['no JSON', '{', /no valid JSON/],
    ['another format', { format: 7 }, /"format" is 7, not 1/],
    ['another vocabulary', { format: 1, vocabSize: 5 }, /"vocabSize" is 5, and the model's is 4096/],
    ['no prompts', { format: 1, vocabSize: 4096, prompts: [] }, /"prompts" must be/],
    ['a token that is none', { format: 1, vocabSize: 4096, prompts: [{ tokens: [4096], promptLogprobs: [], rows: [] }] }, /"prompts\[0\]\.tokens"/],
    ['no rows', { format: 1, vocabSize: 4096, prompts: [{ tokens: [1], promptLogprobs: [], rows: [] }] }, /"prompts\[0\]\.rows"/],
    [
      'logits of nothing',
      { format: 1, vocabSize: 4096, prompts: [{ tokens: [1], promptLogprobs: [], rows: [{ token: 1, logprob: 0, ids: [1], logits: [] }] }] },
      /as many "logits" as "ids"/,
    ],
  ])('with %s are refused', async (_, content, message) => {
    const file = join(folder, 'bad.json')
    writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content))
    const before = manifestText()
    expect(await failure(verifyTarget(path, { references: file }, same))).toHaveCode('ERR_INVALID_ARGUMENT', message)
    expect(manifestText()).toBe(before)
  })
})

describe('a verification that cannot be done', () => {
  it('says that there is no GPU, and changes nothing', async () => {
    const before = manifestText()
    useModule(join(folder, 'absent.so'))
    expect(await failure(verifyEngine(path))).toHaveCode('ERR_TENSORRT_MODULE_NOT_FOUND')
    expect(manifestText()).toBe(before)
  })

  it('says what failed when the engine does not load', async () => {
    useModule(standIn)
    expect(await failure(verifyEngine(path))).toHaveCode('ERR_CUDA', /slots=8;/)
    expect(await kept()).toBeUndefined()
  })

  it('needs an engine', async () => {
    expect(await failure(verifyEngine(demoModel))).toHaveCode('ERR_ENGINE_REQUIRED', /has no engine to verify/)
    expect(await failure(verifyEngine(join(folder, 'nothing')))).toHaveCode('ERR_MODEL_NOT_FOUND')
  })

  it('ends on an abort, at any time, and closes what it has', async () => {
    const before = manifestText()
    expect(await failure(verifyTarget(path, { signal: AbortSignal.abort('early') }, same))).toMatchObject({ code: 'ABORT_ERR', cause: 'early' })
    for (const when of ['loading', 'reference', 'engine'] as const) {
      made.length = 0
      const controller = new AbortController()
      const onProgress = ({ phase }: VerifyProgress): void => {
        if (phase === when) controller.abort(when)
      }
      expect(await failure(verifyTarget(path, { signal: controller.signal, onProgress }, noisy(1)))).toMatchObject({ code: 'ABORT_ERR', cause: when })
      await vi.waitFor(() => expect(made.map(({ closed }) => closed)).toEqual([1]), PATIENTLY)
    }
    expect(manifestText()).toBe(before)
  })

  it('passes on the death of an executor', async () => {
    const error = { code: 'ERR_BACKEND_DEAD' as const, message: 'the device fell off the bus', retryable: false }
    const target = changing((result) => ({ ...result, error }))
    expect(await failure(verifyTarget(path, SMALL, target))).toHaveCode('ERR_BACKEND_DEAD', /fell off the bus/)
    expect(await kept()).toBeUndefined()
  })

  it.each<[object, string, RegExp]>([
    [{ prompt: ['x'] }, 'ERR_INVALID_ARGUMENT', /did you mean "prompts"/],
    [{ prompts: [] }, 'ERR_INVALID_ARGUMENT', /"prompts" must be an array/],
    [{ prompts: [[]] }, 'ERR_INVALID_ARGUMENT', /"prompts\[0\]" has no tokens/],
    [{ prompts: [5] }, 'ERR_INVALID_ARGUMENT', /"prompts\[0\]" must be an array of token ids, not 5/],
    [{ prompts: [[1], [4096]] }, 'ERR_INVALID_TOKEN', /"prompts\[1\]\[0\]"/],
    [{ prompts: ['x'.repeat(5000)] }, 'ERR_PROMPT_TOO_LONG', /"prompts\[0\]" has \d+ tokens, which with 16 more/],
    [{ maxTokens: 0 }, 'ERR_INVALID_ARGUMENT', /"maxTokens" must be an integer from 1/],
    [{ limits: { mean: 1 } }, 'ERR_INVALID_ARGUMENT', /"limits" has no option "mean"/],
    [{ limits: { top1Agreement: 2 } }, 'ERR_INVALID_ARGUMENT', /"top1Agreement" must be a number from 0 to 1/],
    [{ references: 'x', seed: 1 }, 'ERR_INVALID_ARGUMENT', /brings its own prompts/],
    [{ references: join(folder, 'nowhere') }, 'ERR_IO', /nowhere failed/],
  ])('refuses %.100j', async (options, code, message) => {
    expect(await failure(verifyTarget(path, options, same))).toHaveCode(code, message)
  })

  it.each<[string, unknown, RegExp]>([
    ['fit', 'yes', /"fit" must be true or false/],
    ['positions', -1, /"positions" must be a count/],
    ['meanDifference', null, /"meanDifference" must be a number/],
    ['maxDifference', -1, /"maxDifference" must not be negative/],
    ['top1Agreement', 1.5, /"top1Agreement" must be from 0 to 1/],
    ['against', 'luck', /"against" must be "cpu" or "references"/],
    ['limits', { maxDifference: 'x' }, /limits: "maxDifference" must be a number/],
  ])('a manifest whose verification has a bad %s is refused', async (name, value, message) => {
    await verifyTarget(path, SMALL, same)
    const manifest = JSON.parse(manifestText()) as { verification: Record<string, unknown> }
    manifest.verification[name] = value
    writeFileSync(join(path, 'engine.json'), JSON.stringify(manifest))
    expect(await failure(readEngineFolder(path))).toHaveCode('ERR_ENGINE_INVALID', message)
  })
})
