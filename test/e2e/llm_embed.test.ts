/** `LLM.embed` with the demo model: its hidden states must make the logits that transformers computed. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import '../unit/matchers'
import { HashExecutor } from '../../examples/custom-executor/hash_executor'
import { LLM, StepFlag } from '../../lib'
import { CpuBackend } from '../../lib/native'
import { GatedExecutor } from '../support/gated_executor'
import { PATIENTLY } from '../support/patience'
import { demoOptions, modelFolder } from '../unit/native/demo_backend'

interface Golden {
  name: string
  ids: number[]
  top20: [token: number, logit: number][]
}
const goldens = join(__dirname, '..', 'fixtures', 'tiny-storyteller-goldens', 'goldens.json')
const { prompts } = JSON.parse(readFileSync(goldens, 'utf8')) as { prompts: Golden[] }
const WIDTH = 192
const RAW = { normalize: false }

/** `[vocab, WIDTH]`: the model's embedding, which is its vocabulary's matrix, too. */
function readHead(): (token: number, at: number) => number {
  const file = readFileSync(join(modelFolder, 'model.safetensors'))
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + length)) as Record<string, { dtype: string; data_offsets: number[] }>
  const { dtype, data_offsets: [begin] } = header['model.embed_tokens.weight']!
  expect(dtype).toBe('BF16')
  const bits = new DataView(new ArrayBuffer(4))
  return (token, at) => {
    bits.setUint32(0, file.readUInt16LE(8 + length + begin! + 2 * (token * WIDTH + at)) << 16)
    return bits.getFloat32(0)
  }
}

let llm: LLM
beforeAll(async () => {
  llm = await LLM.load(modelFolder, { backend: 'cpu', embedding: { matryoshkaDimensions: [64, 128] } })
})
afterAll(() => llm.close())

/** Steps in flight hold their pages until they have ended. */
const expectIdle = (served: LLM): Promise<void> =>
  vi.waitFor(() => {
    expect(served.stats()).toMatchObject({ running: 0, waiting: 0, steps: { inFlight: 0 }, kv: { usedPages: 0 } })
    served.check()
  }, PATIENTLY)

const norm = (x: Float32Array): number => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0))

describe('embeddings', () => {
  it('are hidden states: with the vocabulary’s matrix they give the logits of transformers', async () => {
    expect(llm.info.hiddenSize).toBe(WIDTH)
    const head = readHead()
    const { embeddings, usage } = await llm.embed(prompts.map(({ ids }) => ids), RAW)
    expect(usage.promptTokens).toBe(prompts.reduce((sum, { ids }) => sum + ids.length, 0))
    prompts.forEach(({ top20 }, i) => {
      const hidden = embeddings[i]!
      expect(hidden.length).toBe(WIDTH)
      for (const [token, logit] of top20) {
        const own = hidden.reduce((sum, x, at) => sum + x * head(token, at), 0)
        expect(Math.abs(own - logit)).toBeLessThan(1e-3)
      }
    })
  })

  it('are the same bits in any company, any chunks, and with a cached prefix', async () => {
    const inputs = prompts.map(({ ids }) => ids)
    const { embeddings: expected } = await llm.embed(inputs, RAW)
    const small = await LLM.load(modelFolder, { backend: 'cpu', maxStepTokens: 7, maxSequences: 3, numPages: 96, prefixCache: false })
    try {
      const beside = small.generate({ tokens: inputs[0]!, maxTokens: 40, ignoreEos: true, temperature: 0 }).result()
      const alone = await llm.generate({ tokens: inputs[0]!, maxTokens: 40, ignoreEos: true, temperature: 0 }).result()
      const { embeddings } = await small.embed(inputs, RAW)
      expect(embeddings).toEqual(expected)
      expect((await beside).tokens).toEqual(alone.tokens)
    } finally {
      await small.close()
    }
    const again = await llm.embed(inputs, RAW)
    expect(again.embeddings).toEqual(expected)
    // Full pages come from the cache; what is left to compute holds the last token.
    expect(again.usage.cachedTokens).toBe(inputs.reduce((sum, { length }) => sum + Math.floor((length - 1) / 16) * 16, 0))
    llm.check()
  })

  it('have length 1, cut before that where asked', async () => {
    const inputs = ['Once upon a time', 'there was a dog']
    const { embeddings: raw } = await llm.embed(inputs, RAW)
    const { embeddings: unit } = await llm.embed(inputs)
    const { embeddings: cut } = await llm.embed(inputs, { dimensions: 64 })
    raw.forEach((hidden, i) => {
      expect(norm(hidden)).not.toBeCloseTo(1, 1)
      expect(norm(unit[i]!)).toBeCloseTo(1, 5)
      expect(cut[i]!.length).toBe(64)
      expect(norm(cut[i]!)).toBeCloseTo(1, 5)
      expect(unit[i]![5]! * norm(hidden)).toBeCloseTo(hidden[5]!, 4)
      expect(cut[i]![5]! * norm(hidden.slice(0, 64))).toBeCloseTo(hidden[5]!, 4)
    })
  })

  it('take texts as generate() does, but special tokens in them as text', async () => {
    const text = 'A cat<|end|> sat'
    const { embeddings, usage } = await llm.embed([text, llm.tokenize(text, { allowSpecial: false })], RAW)
    expect(embeddings[0]).toEqual(embeddings[1])
    const special = await llm.embed([text], { ...RAW, allowSpecial: true })
    expect(special.usage.promptTokens).toBeLessThan(usage.promptTokens / 2)
  })

  it('of many more inputs than fit at once do not fill the queue', async () => {
    const narrow = await LLM.load(modelFolder, { backend: 'cpu', maxSequences: 2, maxQueue: 3 })
    try {
      const inputs = Array.from({ length: 60 }, (_, i) => [5 + i, 6, 7])
      const embedding = narrow.embed(inputs, RAW)
      await new Promise((resolve) => setImmediate(resolve))
      expect(narrow.stats().waiting).toBeLessThanOrEqual(3)
      const { embeddings } = await embedding
      expect(embeddings.length).toBe(60)
      expect(embeddings[59]).toEqual((await narrow.embed([inputs[59]!], RAW)).embeddings[0])
    } finally {
      await narrow.close()
    }
  })

  it('reject with the input that is wrong, and leave nothing behind', async () => {
    const long = Array.from({ length: 1025 }, () => 9)
    for (const [inputs, code, text] of [
      [['fine', []], 'ERR_INVALID_ARGUMENT', 'inputs[1]'],
      [[[1], [1, 4096]], 'ERR_INVALID_TOKEN', 'inputs[1]'],
      [[[1], [2], long], 'ERR_PROMPT_TOO_LONG', 'inputs[2]'],
      [[[1], 7], 'ERR_INVALID_ARGUMENT', 'inputs[1]'],
      [[], 'ERR_INVALID_ARGUMENT', 'inputs'],
      ['a text', 'ERR_INVALID_ARGUMENT', 'inputs'],
      [undefined, 'ERR_INVALID_ARGUMENT', 'inputs'],
    ] as [string[], string, string][]) {
      await expect(llm.embed(inputs)).rejects.toMatchObject({ code, message: expect.stringContaining(text) as string })
    }
    for (const options of [
      { dimensions: 0 },
      { dimensions: WIDTH + 1 },
      { dimensions: 65 },
      { pooling: 'max' },
      { normalize: 1 },
      { priority: 0.5 },
      { timeoutMs: 0 },
      { signal: {} },
      { maxTokens: 4 },
      null,
    ]) {
      await expect(llm.embed(['x'], options as object)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    }
    await expectIdle(llm)
  })

  it('of the whole context fit', async () => {
    const whole = Array.from({ length: 1024 }, (_, i) => 10 + (i % 900))
    expect((await llm.embed([whole])).embeddings[0]!.length).toBe(WIDTH)
  })

  it('are refused by an executor that has no hidden states', async () => {
    const hash = LLM.fromExecutor(new HashExecutor())
    await expect(hash.embed([[1, 2]])).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    await hash.close()
  })
})

/** The mean of the prompt's rows, each computed as the last of a prompt of its own. */
async function meanOf(served: LLM, prompt: readonly number[]): Promise<Float32Array> {
  const prefixes = prompt.map((_, i) => prompt.slice(0, i + 1))
  const { embeddings } = await served.embed(prefixes, { ...RAW, pooling: 'last' })
  return Float32Array.from({ length: WIDTH }, (_, at) => embeddings.reduce((sum, row) => sum + row[at]!, 0) / prompt.length)
}

describe('pooling', () => {
  const inputs = prompts.slice(0, 4).map(({ ids }) => ids.slice(0, 50))
  const MEAN = { ...RAW, pooling: 'mean' } as const

  it('takes the mean of all rows, the same bits in any chunks and any company', async () => {
    const expected = await Promise.all(inputs.map((ids) => meanOf(llm, ids)))
    const { embeddings, usage } = await llm.embed(inputs, MEAN)
    expect(embeddings).toEqual(expected)
    // Rows of a cached prefix have no hidden states, so none is taken from the cache, full as it is.
    expect(usage).toEqual({ promptTokens: inputs.flat().length, cachedTokens: 0 })
    const small = await LLM.load(modelFolder, { backend: 'cpu', maxStepTokens: 7, maxSequences: 3, numPages: 96, embedding: { pooling: 'mean', normalize: false } })
    const beside = small.generate({ tokens: inputs[0]!, maxTokens: 40, ignoreEos: true, temperature: 0 }).result()
    expect((await small.embed(inputs)).embeddings).toEqual(expected)
    await beside
    await small.close()
  })

  it('leaves pages behind that later prompts find', async () => {
    const prompt = Array.from({ length: 40 }, (_, i) => 700 + i)
    await llm.embed([prompt], MEAN)
    expect((await llm.embed([prompt])).usage.cachedTokens).toBe(32)
  })

  it('takes the first row', async () => {
    const { embeddings, usage } = await llm.embed(inputs, { ...RAW, pooling: 'cls' })
    expect(embeddings).toEqual((await llm.embed(inputs.map((ids) => ids.slice(0, 1)), RAW)).embeddings)
    expect(usage.promptTokens).toBe(inputs.flat().length)
  })

  it('has an executor that reports one row a step run so, to the same end', async () => {
    const backend = await CpuBackend.create(demoOptions())
    const flags: [flags: number, tokens: number][] = []
    class RowByRow extends GatedExecutor {
      override get info() {
        return { ...super.info, hiddenRows: false }
      }
      override submit(step: Int32Array): void {
        for (let i = 0; i < step[2]!; i++) flags.push([step[6 + 5 * i + 4]!, step[6 + 5 * i + 1]!])
        super.submit(step)
      }
    }
    const executor = new RowByRow(backend)
    executor.open()
    const served = LLM.fromExecutor(executor)
    const { embeddings } = await served.embed(inputs, MEAN)
    expect(embeddings).toEqual((await llm.embed(inputs, MEAN)).embeddings)
    expect(flags).toHaveLength(inputs.flat().length)
    expect(flags.every(([flag, tokens]) => flag === StepFlag.HIDDEN && tokens === 1)).toBe(true)
    await served.close()
  })

  it('counts each row once where a failed step makes a prompt run again', async () => {
    const executor = new GatedExecutor(await CpuBackend.create(demoOptions()))
    const served = LLM.fromExecutor(executor, { maxStepTokens: 16 })
    let results = 0
    executor.change = (result) =>
      ++results === 3 ? { ...result, tokens: new Int32Array(0), error: { code: 'ERR_STEP_FAILED', message: 'once', retryable: true } } : result
    executor.open()
    const prompt = Array.from({ length: 60 }, (_, i) => 20 + 7 * i)
    expect((await served.embed([prompt], MEAN)).embeddings).toEqual([await meanOf(llm, prompt)])
    expect(served.stats().retries).toBe(1)
    await served.close()
  })
})

describe('embeddings as the model folder says', () => {
  const POOLING = '1_Pooling/config.json'
  const modules = (...kinds: [type: string, path: string][]) => kinds.map(([type, path], idx) => ({ idx, name: String(idx), path, type: `sentence_transformers.models.${type}` }))

  async function withFolder(files: Record<string, unknown>, use: (folder: string) => Promise<void>): Promise<void> {
    const folder = mkdtempSync(join(tmpdir(), 'embedding-model-'))
    try {
      cpSync(modelFolder, folder, { recursive: true })
      mkdirSync(join(folder, '1_Pooling'))
      for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), JSON.stringify(content))
      await use(folder)
    } finally {
      rmSync(folder, { recursive: true })
    }
  }

  it('are pooled and scaled as modules.json has it, unless the caller says otherwise', async () => {
    const files = { 'modules.json': modules(['Transformer', ''], ['Pooling', '1_Pooling']), [POOLING]: { pooling_mode_cls_token: false, pooling_mode_mean_tokens: true } }
    const prompt = prompts[0]!.ids.slice(0, 30)
    await withFolder(files, async (folder) => {
      const mean = await LLM.load(folder, { backend: 'cpu' })
      expect(mean.info.embedding).toEqual({ pooling: 'mean', normalize: false, matryoshkaDimensions: [], unsupported: undefined })
      expect((await mean.embed([prompt])).embeddings).toEqual([await meanOf(llm, prompt)])
      expect((await mean.embed([prompt], { pooling: 'last' })).embeddings).toEqual((await llm.embed([prompt], RAW)).embeddings)
      await expect(mean.embed([prompt], { dimensions: 64 })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('dimensions') as string })
      await mean.close()
      const last = await LLM.load(folder, { backend: 'cpu', embedding: { pooling: 'last', normalize: true } })
      expect((await last.embed([prompt])).embeddings).toEqual((await llm.embed([prompt])).embeddings)
      await last.close()
    })
  })

  it('are refused where the pooling cannot be computed, until the caller names another', async () => {
    await withFolder({ 'modules.json': modules(['Transformer', ''], ['Pooling', '1_Pooling']), [POOLING]: { pooling_mode_max_tokens: true } }, async (folder) => {
      const served = await LLM.load(folder, { backend: 'cpu' })
      await expect(served.embed([[1]])).rejects.toMatchObject({ code: 'ERR_MODEL_UNSUPPORTED', message: expect.stringContaining('max') as string })
      expect((await served.embed([[1]], { pooling: 'mean' })).embeddings).toHaveLength(1)
      expect((await served.generate({ tokens: [1], maxTokens: 2 }).result()).tokens.length).toBeGreaterThan(0)
      await served.close()
    })
  })
})

describe('an embedding call that ends early', () => {
  async function gated(): Promise<{ served: LLM; executor: GatedExecutor }> {
    const executor = new GatedExecutor(await CpuBackend.create(demoOptions()))
    return { served: LLM.fromExecutor(executor), executor }
  }

  it('by its signal, frees everything', async () => {
    const { served, executor } = await gated()
    const controller = new AbortController()
    const reason = new Error('enough')
    const call = served.embed(prompts.map(({ ids }) => ids.slice(0, 30)), { signal: controller.signal })
    await new Promise((resolve) => setImmediate(resolve))
    controller.abort(reason)
    await expect(call).rejects.toMatchObject({ code: 'ABORT_ERR', cause: reason })
    await expect(served.embed([[1]], { signal: controller.signal })).rejects.toMatchObject({ code: 'ABORT_ERR' })
    executor.open()
    await expectIdle(served)
    await served.close()
  })

  it('by its timeout', async () => {
    const { served } = await gated()
    await expect(served.embed([[1], [2]], { timeoutMs: 20 })).rejects.toMatchObject({ code: 'ERR_TIMEOUT' })
    await served.close()
  })

  it('by the end of the LLM; a drain lets all inputs through', async () => {
    const { served } = await gated()
    const cut = expect(served.embed([[1], [2]])).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await served.close()
    await cut
    await expect(served.embed([[1]])).rejects.toMatchObject({ code: 'ERR_DISPOSED' })

    const drained = await LLM.load(modelFolder, { backend: 'cpu', maxSequences: 1 })
    const call = drained.embed(Array.from({ length: 12 }, (_, i) => [i + 3, 4]))
    await drained.close({ drain: 60_000 })
    expect((await call).embeddings.length).toBe(12)
  })

  it('by a hidden state that is missing: the step is malformed', async () => {
    const { served, executor } = await gated()
    executor.change = (result) => ({ ...result, hidden: new Float32Array(3) })
    executor.open()
    await expect(served.embed([[1]])).rejects.toMatchObject({ code: 'ERR_STEP_FAILED' })
    await served.close()
  })

  it('asks for one hidden state an input, and samples nothing', async () => {
    const { served, executor } = await gated()
    const flags: number[] = []
    const { submit } = executor
    executor.submit = (step) => {
      for (let i = 0; i < step[2]!; i++) flags.push(step[6 + 5 * i + 4]!)
      submit.call(executor, step)
    }
    executor.open()
    await served.embed([prompts[0]!.ids.slice(0, 20), [1]], RAW)
    expect(flags).toEqual([StepFlag.HIDDEN, StepFlag.HIDDEN])
    await served.close()
  })
})
