/** The demo model through the whole library, against values of transformers in float32. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ChatMessage, LLM, StepFlag, STEP_VERSION, type StepResult } from '../../lib'
import { CpuBackend } from '../../lib/native'
import { demoOptions, greedySlot, modelFolder } from '../unit/native/demo_backend'

interface Golden {
  name: string
  kind: 'raw' | 'chat' | 'ids'
  text?: string
  messages?: ChatMessage[]
  ids: number[]
  prompt_logprobs: (number | null)[]
  top20: [token: number, logit: number][]
  greedy: {
    ids: number[]
    logprobs: number[]
    stable_len: number
    first_eos: number | null
    text: string
    text_until_eos: string
  }
}

const fixtures = join(__dirname, '..', 'fixtures', 'tiny-storyteller-goldens')
const { prompts } = JSON.parse(readFileSync(join(fixtures, 'goldens.json'), 'utf8')) as { prompts: Golden[] }
const TOLERANCE = 1e-3

let llm: LLM
beforeAll(async () => {
  llm = await LLM.load(modelFolder, { backend: 'cpu' })
})
afterAll(() => llm.close())

/** Largest distance between two lists of equal length. */
function distance(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length)
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0)
}

describe.each(prompts)('$name', (golden) => {
  const { ids, greedy } = golden
  const stable = greedy.ids.slice(0, greedy.stable_len)

  it('has the reference log-probabilities of its prompt', async () => {
    const result = await llm.generate({ tokens: ids, maxTokens: 0, promptLogprobs: 0 }).result()
    expect(result.promptLogprobs![0]).toBeNull()
    expect(result.promptLogprobs!.slice(1).map((entry) => entry!.token)).toEqual(ids.slice(1))
    const reference = golden.prompt_logprobs.slice(1) as number[]
    expect(
      distance(
        result.promptLogprobs!.slice(1).map((entry) => entry!.logprob),
        reference,
      ),
    ).toBeLessThan(TOLERANCE)
  })

  it('has the twenty most probable tokens of the reference, and its greedy log-probabilities', async () => {
    const result = await llm
      .generate({ tokens: ids, maxTokens: stable.length, temperature: 0, ignoreEos: true, logprobs: 20 })
      .result()
    const { top } = result.logprobs![0]!
    expect(top).toHaveLength(20)
    // Log-probabilities are logits less one number, so distances from the best are the same.
    const reference = new Map(golden.top20)
    const best = golden.top20[0]!
    expect(top[0]!.token).toBe(best[0])
    for (const { token, logprob } of top) {
      const logit = reference.get(token)
      // A tie at the twentieth place may fall the other way.
      if (logit === undefined) expect(logprob - top[0]!.logprob).toBeCloseTo(golden.top20[19]![1] - best[1], 2)
      else expect(Math.abs(logprob - top[0]!.logprob - (logit - best[1])), `token ${token}`).toBeLessThan(TOLERANCE)
    }
    expect(
      distance(
        result.logprobs!.map((entry) => entry.logprob),
        greedy.logprobs.slice(0, stable.length),
      ),
    ).toBeLessThan(TOLERANCE)
  })

  it('goes on as the reference does, beside all others, and ends where it ends', async () => {
    const others = prompts.filter((other) => other !== golden && other.ids.length < 100)
    const neighbours = others.map((other) =>
      llm.generate({ tokens: other.ids, maxTokens: 40, temperature: 1 }).result(),
    )
    const request = { tokens: ids, maxTokens: stable.length, temperature: 0 }
    const [past, until] = await Promise.all([
      llm.generate({ ...request, ignoreEos: true, skipSpecialTokens: false }).result(),
      llm.generate(request).result(),
    ])
    expect(past.tokens).toEqual(stable)
    if (stable.length === greedy.ids.length) expect(past.text).toBe(greedy.text)
    if (greedy.first_eos === null) {
      expect(until).toMatchObject({ tokens: stable, finishReason: 'length' })
    } else {
      const ended = greedy.ids.slice(0, greedy.first_eos + 1)
      expect(until).toMatchObject({
        tokens: ended,
        text: greedy.text_until_eos,
        finishReason: 'stop',
        stop: ended.at(-1),
      })
    }
    await Promise.all(neighbours)
  })

  it('streams the same text', async () => {
    let text = ''
    for await (const chunk of llm.generate({ tokens: ids, maxTokens: stable.length, temperature: 0 })) {
      expect(chunk.text).not.toMatch(/\p{Surrogate}/u)
      text += chunk.text
    }
    expect(text).toBe(greedy.text_until_eos)
  })

  it.runIf(golden.kind !== 'ids')('is encoded as the reference encodes it', async () => {
    const input = golden.kind === 'chat' ? { messages: golden.messages! } : { prompt: golden.text! }
    const result = await llm.generate({ ...input, maxTokens: 0, promptLogprobs: 0 }).result()
    expect(result.promptLogprobs!.slice(1).map((entry) => entry!.token)).toEqual(ids.slice(1))
    if (golden.kind === 'chat')
      expect(llm.applyChatTemplate(golden.messages!)).toEqual({ text: golden.text, tokens: ids })
    else expect(llm.tokenize(golden.text!)).toEqual(ids)
  })
})

describe('raw logits', () => {
  it('are those of the reference, whole rows and top twenty', async () => {
    const backend = await CpuBackend.create(demoOptions({ maxStepTokens: 1024 }))
    try {
      const results: ((result: StepResult) => void)[] = []
      backend.start((result) => results.shift()!(result))
      const whole = readSafetensors(join(fixtures, 'goldens.safetensors'))
      for (const [step, { name, ids, top20 }] of prompts.entries()) {
        const pages = Array.from({ length: Math.ceil(ids.length / 16) }, (_, i) => i)
        backend.openSlot(greedySlot(0, ids))
        const header = [STEP_VERSION, step, 1, ids.length, pages.length, 0]
        const sequence = [0, ids.length, 0, pages.length, StepFlag.SAMPLE | StepFlag.LOGITS]
        const result = new Promise<StepResult>((resolve) => results.push(resolve))
        backend.submit(Int32Array.from([...header, ...sequence, ...pages, ...ids]))
        const { logits, error } = await result
        backend.closeSlot(0)
        expect(error).toBeUndefined()
        expect(logits).toHaveLength(4096)
        expect(
          distance(
            top20.map(([token]) => logits[token]!),
            top20.map(([, logit]) => logit),
          ),
          name,
        ).toBeLessThan(TOLERANCE)
        const reference = whole.get(name)
        if (reference !== undefined) expect(distance([...logits], [...reference]), name).toBeLessThan(TOLERANCE)
      }
      expect(whole.size).toBe(6)
    } finally {
      await backend.close()
    }
  })
})

/** float32 tensors of a safetensors file. */
function readSafetensors(path: string): Map<string, Float32Array> {
  const file = readFileSync(path)
  const start = 8 + Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, start)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >
  const tensors = new Map<string, Float32Array>()
  for (const [
    name,
    {
      dtype,
      data_offsets: [from, to],
    },
  ] of Object.entries(header).filter(([name]) => name !== '__metadata__')) {
    expect(dtype).toBe('F32')
    tensors.set(name, new Float32Array(Uint8Array.from(file.subarray(start + from, start + to)).buffer))
  }
  return tensors
}
