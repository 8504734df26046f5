/**
 * What every {@link Executor} owes the scheduler, as tests. Run it against an executor of your own:
 *
 * ```ts
 * describeExecutor('mine', () => new MyExecutor({ numPages: 64, maxSlots: 4, maxStepTokens: 64 }))
 * ```
 *
 * The factory is called once per test; the suite starts what it makes and closes it. It needs at least 4 slots, 32
 * pages, 32 positions (and 8 more than a page has), 32 tokens per step (the same) and a vocabulary of 16.
 */
import { afterEach, describe, expect, it } from 'vitest'
import { TensorRTError } from '../../lib/errors'
import {
  type Executor,
  GREEDY_SAMPLING,
  LAST_SAMPLED_TOKEN,
  type SlotSampling,
  STEP_HEADER_INTS,
  STEP_SEQUENCE_INTS,
  STEP_VERSION,
  StepFlag,
  type StepResult,
} from '../../lib/scheduler'

const { SAMPLE, PROMPT_LOGPROBS, LOGITS } = StepFlag

interface Row {
  slot: number
  tokens: number[]
  cached?: number
  pages: number[]
  flags?: number
}

/** Packs by the contract's table, on its own: the suite trusts no other code with it. */
function pack(stepId: number, rows: Row[]): Int32Array {
  const pages = rows.flatMap((row) => row.pages)
  const tokens = rows.flatMap((row) => row.tokens)
  const sequences = rows.flatMap(({ slot, tokens: { length }, cached = 0, pages: list, flags = SAMPLE }) => [
    slot,
    length,
    cached,
    list.length,
    flags,
  ])
  return Int32Array.from([
    STEP_VERSION,
    stepId,
    rows.length,
    tokens.length,
    pages.length,
    0,
    ...sequences,
    ...pages,
    ...tokens,
  ])
}

class Rig {
  readonly results: StepResult[] = []
  insideSubmit = false
  synchronousResults = 0
  private nextStep = 0
  private taken = 0
  private wake: () => void = () => undefined

  constructor(readonly executor: Executor) {
    executor.start((result) => {
      if (this.insideSubmit) this.synchronousResults++
      this.results.push(result)
      this.wake()
    })
  }

  get pageSize(): number {
    return this.executor.info.pageSize
  }

  /** `count` tokens of a prompt; equal for equal seeds. */
  prompt(count: number, seed = 1): number[] {
    const { vocabSize } = this.executor.info
    return Array.from({ length: count }, (_, i) => (Math.imul(i + 7 * seed, 2654435761) >>> 7) % vocabSize)
  }

  /** Enough pages for `tokens`, from page `first` on. */
  pages(tokens: number, first = 0): number[] {
    return Array.from({ length: Math.ceil(tokens / this.pageSize) }, (_, i) => first + i)
  }

  open(slot: number, prompt: number[], sampling: Partial<SlotSampling> = {}, output: number[] = []): void {
    this.executor.openSlot({
      slot,
      sampling: { ...GREEDY_SAMPLING, ...sampling },
      prompt: Int32Array.from(prompt),
      output: Int32Array.from(output),
    })
  }

  submit(...rows: Row[]): number {
    const stepId = this.nextStep++
    this.insideSubmit = true
    try {
      this.executor.submit(pack(stepId, rows))
    } finally {
      this.insideSubmit = false
    }
    return stepId
  }

  /** The next result, in order of arrival. */
  async take(): Promise<StepResult> {
    while (this.taken === this.results.length) await new Promise<void>((resolve) => (this.wake = resolve))
    return this.results[this.taken++]!
  }

  async run(...rows: Row[]): Promise<StepResult> {
    this.submit(...rows)
    const result = await this.take()
    expect(result.error).toBeUndefined()
    return result
  }

  /** Runs the prompt and then one row at a time, each step submitted when the one before has come back. */
  async generate(slot: number, prompt: number[], count: number, pages: number[]): Promise<number[]> {
    const output: number[] = []
    let cached = 0
    while (output.length < count) {
      const tokens = output.length === 0 ? prompt : [output.at(-1)!]
      output.push((await this.run({ slot, tokens, cached, pages })).tokens[0]!)
      cached += tokens.length
    }
    return output
  }
}

function expectCode(code: string | RegExp, call: () => void): void {
  let thrown: unknown
  try {
    call()
  } catch (error) {
    thrown = error
  }
  expect(thrown).toBeInstanceOf(TensorRTError)
  expect((thrown as TensorRTError).code).toMatch(code)
}

export function describeExecutor(name: string, factory: () => Executor | Promise<Executor>): void {
  describe(`Executor: ${name}`, () => {
    const rigs: Rig[] = []
    const rig = async (): Promise<Rig> => {
      const made = new Rig(await factory())
      rigs.push(made)
      return made
    }
    afterEach(async () => {
      const made = rigs.splice(0)
      await Promise.all(made.map(({ executor }) => executor.close()))
      for (const { synchronousResults } of made) expect(synchronousResults, 'results from within submit()').toBe(0)
    })

    it('describes itself', async () => {
      const { info } = (await rig()).executor
      expect(info.name).not.toBe('')
      expect(info.device).not.toBe('')
      const least = { maxSlots: 4, numPages: 32, maxPositions: 32, maxStepTokens: 32, vocabSize: 16, pageSize: 1 }
      for (const [field, value] of Object.entries(least))
        expect(info[field as keyof typeof least], field).toBeGreaterThanOrEqual(value)
    })

    it('returns one result per step, in order', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      const pages = r.pages(16)
      r.submit({ slot: 0, tokens: prompt, pages })
      for (let i = 0; i < 8; i++) r.submit({ slot: 0, tokens: [LAST_SAMPLED_TOKEN], cached: 5 + i, pages })
      for (let i = 0; i < 9; i++) {
        const result = await r.take()
        expect(result).toMatchObject({ stepId: i, logprobs: [] })
        expect(result.error).toBeUndefined()
        expect(result.tokens.length).toBe(1)
        expect(result.logits.length).toBe(0)
        expect(result.timings.runUs).toBeGreaterThanOrEqual(0)
      }
      await new Promise((resolve) => setTimeout(resolve, 5))
      expect(r.results.length).toBe(9)
    })

    it('samples only where asked', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt)
      r.open(1, prompt)
      const result = await r.run(
        { slot: 0, tokens: prompt.slice(0, 3), pages: r.pages(6), flags: 0 },
        { slot: 1, tokens: prompt, pages: r.pages(6, 16) },
      )
      expect(result.tokens.length).toBe(1)
      const next = await r.run({ slot: 0, tokens: prompt.slice(3), cached: 3, pages: r.pages(6) })
      expect(next.tokens).toEqual(result.tokens)
    })

    it('lets LAST_SAMPLED_TOKEN stand for what the slot sampled, before the host knows it', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      r.open(1, prompt)
      const expected = await r.generate(0, prompt, 8, r.pages(16))
      const pages = r.pages(16, 16)
      r.submit({ slot: 1, tokens: prompt, pages })
      for (let i = 0; i < 7; i++) r.submit({ slot: 1, tokens: [LAST_SAMPLED_TOKEN], cached: 5 + i, pages })
      const ahead: number[] = []
      for (let i = 0; i < 8; i++) ahead.push((await r.take()).tokens[0]!)
      expect(ahead).toEqual(expected)
    })

    it('keeps the last sampled token over steps that the slot sits out', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      for (const slot of [0, 1, 2]) r.open(slot, slot === 2 ? r.prompt(4, 2) : prompt)
      const [, expected] = await r.generate(0, prompt, 2, r.pages(8))
      r.submit({ slot: 1, tokens: prompt, pages: r.pages(8, 8) })
      r.submit({ slot: 2, tokens: r.prompt(4, 2), pages: r.pages(8, 16) })
      r.submit({ slot: 1, tokens: [LAST_SAMPLED_TOKEN], cached: 5, pages: r.pages(8, 8) })
      await r.take()
      await r.take()
      expect((await r.take()).tokens[0]).toBe(expected)
    })

    it('gives the same output for any cut of the prompt into chunks', async () => {
      const r = await rig()
      const prompt = r.prompt(13)
      for (const slot of [0, 1]) r.open(slot, prompt)
      const expected = await r.generate(0, prompt, 4, r.pages(20))
      // From the far end backwards: pages need not be contiguous, nor in order.
      const pages = r.pages(20).map((_, i) => 31 - i)
      let cached = 0
      for (const length of [1, 4, 2, 5]) {
        await r.run({ slot: 1, tokens: prompt.slice(cached, cached + length), cached, pages, flags: 0 })
        cached += length
      }
      const output = [...(await r.run({ slot: 1, tokens: prompt.slice(cached), cached, pages })).tokens]
      for (let i = 0; i < 3; i++)
        output.push((await r.run({ slot: 1, tokens: [output.at(-1)!], cached: 13 + i, pages })).tokens[0]!)
      expect(output).toEqual(expected)
    })

    it('reads pages that another slot wrote in an earlier step, also if that step still runs', async () => {
      const r = await rig()
      const shared = r.prompt(r.pageSize, 3)
      const prompt = [...shared, ...r.prompt(5, 4)]
      for (const slot of [0, 1, 2]) r.open(slot, prompt)
      const alone = await r.run({ slot: 0, tokens: prompt, pages: r.pages(prompt.length) })
      r.submit({ slot: 1, tokens: shared, pages: [20], flags: 0 })
      r.submit({ slot: 2, tokens: prompt.slice(r.pageSize), cached: r.pageSize, pages: [20, ...r.pages(5, 21)] })
      await r.take()
      expect((await r.take()).tokens).toEqual(alone.tokens)
    })

    it('continues a slot that is reopened with its output, greedy and seeded', async () => {
      const r = await rig()
      const greedy = Array.from({ length: 12 }, () => ({}))
      const seeded = greedy.map((_, i) => ({ temperature: 1, seed: 77 + i }))
      for (const samplings of [greedy, seeded]) {
        let agreeing = 0
        for (const [i, sampling] of samplings.entries()) {
          const prompt = r.prompt(5, i + 1)
          r.open(0, prompt, sampling)
          const expected = await r.generate(0, prompt, 8, r.pages(16))
          r.executor.closeSlot(0)
          r.open(0, prompt, sampling, expected.slice(0, 3))
          const rest = await r.generate(0, [...prompt, ...expected.slice(0, 3)], 5, r.pages(16, 16))
          if (r.executor.info.batchInvariant) expect(rest).toEqual(expected.slice(3))
          if (rest[0] === expected[3]) agreeing++
          r.executor.closeSlot(0)
        }
        // Another batch may move logits a little, so a near tie may fall the other way; a draw with another number would all but never agree.
        expect(agreeing).toBeGreaterThanOrEqual(samplings.length * 0.75)
      }
    })

    it('takes openSlot, closeSlot and submit in the order of the calls', async () => {
      const r = await rig()
      const [a, b] = [r.prompt(5, 1), r.prompt(6, 2)]
      r.open(1, a)
      r.open(2, b)
      const first = await r.run({ slot: 1, tokens: a, pages: r.pages(8) })
      const second = await r.run({ slot: 2, tokens: b, pages: r.pages(8) })
      r.open(0, a)
      r.submit({ slot: 0, tokens: a, pages: r.pages(8, 8) })
      r.executor.closeSlot(0)
      r.open(0, b)
      r.submit({ slot: 0, tokens: b, pages: r.pages(8, 16) })
      r.executor.closeSlot(0)
      expect((await r.take()).tokens).toEqual(first.tokens)
      expect((await r.take()).tokens).toEqual(second.tokens)
    })

    it('samples the same for the same seed, whatever else runs, and differently for others', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      const texts: string[] = []
      for (const seed of [5, 5, 6, 7, 8]) {
        r.open(0, prompt, { temperature: 1.5, seed })
        if (texts.length === 1) {
          r.open(1, r.prompt(3, 9), { temperature: 1, seed: 1 })
          await r.run({ slot: 1, tokens: r.prompt(3, 9), pages: r.pages(4, 16) })
        }
        texts.push((await r.generate(0, prompt, 8, r.pages(16))).join())
        r.executor.closeSlot(0)
      }
      expect(texts[1]).toBe(texts[0])
      expect(new Set(texts).size).toBeGreaterThan(1)
    })

    it('samples no banned token before minTokens', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      const [banned] = await r.generate(0, prompt, 1, r.pages(8))
      r.open(1, prompt, { minTokens: 1, bannedTokens: Int32Array.of(banned!) })
      expect(await r.generate(1, prompt, 1, r.pages(8, 8))).not.toEqual([banned])
      // With one token of output the ban is over.
      r.open(2, prompt.slice(0, -1), { minTokens: 1, bannedTokens: Int32Array.of(banned!) }, prompt.slice(-1))
      expect(await r.generate(2, prompt, 1, r.pages(8, 16))).toEqual([banned])
    })

    it('returns raw logits whose maximum is the greedy token', async () => {
      const r = await rig()
      const { vocabSize } = r.executor.info
      const prompts = [r.prompt(5, 1), r.prompt(4, 2), r.prompt(3, 3)]
      prompts.forEach((prompt, slot) => r.open(slot, prompt))
      const result = await r.run(
        { slot: 0, tokens: prompts[0]!, pages: r.pages(8), flags: SAMPLE | LOGITS },
        { slot: 1, tokens: prompts[1]!, pages: r.pages(8, 8) },
        { slot: 2, tokens: prompts[2]!, pages: r.pages(8, 16), flags: SAMPLE | LOGITS },
      )
      expect(result.logits.length).toBe(2 * vocabSize)
      const argmax = (row: Float32Array): number =>
        row.indexOf(row.reduce((best, value) => Math.max(best, value), -Infinity))
      expect(argmax(result.logits.subarray(0, vocabSize))).toBe(result.tokens[0])
      expect(argmax(result.logits.subarray(vocabSize))).toBe(result.tokens[2])
    })

    it('reports log-probabilities of prompt and output', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt, { logprobs: 3, promptLogprobs: 0 })
      r.open(1, prompt)
      const flags = SAMPLE | PROMPT_LOGPROBS | LOGITS
      const result = await r.run(
        { slot: 1, tokens: prompt, pages: r.pages(8, 8) },
        { slot: 0, tokens: prompt, pages: r.pages(8), flags },
      )
      expect(result.logprobs.map(({ sequence, position, token }) => [sequence, position, token])).toEqual([
        ...prompt.slice(1).map((token, i) => [1, i + 1, token]),
        [1, 6, result.tokens[1]],
      ])
      for (const row of result.logprobs) {
        expect(row.logprob).toBeLessThanOrEqual(0)
        expect(row.rank).toBeGreaterThanOrEqual(1)
        expect(row.topIds.length).toBe(row.position < 6 ? 0 : 3)
        expect(row.topLogprobs.length).toBe(row.topIds.length)
      }
      const sampled = result.logprobs.at(-1)!
      expect(sampled.rank).toBe(1)
      expect(sampled.topIds[0]).toBe(result.tokens[1])
      expect([...sampled.topLogprobs]).toEqual([...sampled.topLogprobs].sort((a, b) => b - a))
      expect(sampled.topLogprobs[0]).toBeCloseTo(sampled.logprob, 4)
      const logSum = Math.log(result.logits.reduce((sum, logit) => sum + Math.exp(logit), 0))
      expect(sampled.logprob).toBeCloseTo(result.logits[sampled.token]! - logSum, 3)
    })

    it('reports prompt log-probabilities across chunks', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt, { promptLogprobs: 0 })
      r.open(1, prompt, { promptLogprobs: 0 })
      const whole = await r.run({ slot: 0, tokens: prompt, pages: r.pages(8), flags: SAMPLE | PROMPT_LOGPROBS })
      const pages = r.pages(8, 8)
      const first = await r.run({ slot: 1, tokens: prompt.slice(0, 4), pages, flags: PROMPT_LOGPROBS })
      const second = await r.run({
        slot: 1,
        tokens: prompt.slice(4),
        cached: 4,
        pages,
        flags: SAMPLE | PROMPT_LOGPROBS,
      })
      const chunks = [...first.logprobs, ...second.logprobs]
      expect(chunks.map(({ position, token }) => [position, token])).toEqual(
        whole.logprobs.map(({ position, token }) => [position, token]),
      )
      chunks.forEach((row, i) => expect(row.logprob).toBeCloseTo(whole.logprobs[i]!.logprob, 3))
    })

    it('computes each row independently of its batch, if it claims to', async (context) => {
      const r = await rig()
      if (!r.executor.info.batchInvariant) return context.skip()
      const prompts = [7, 5, 1, 8].map((length, i) => r.prompt(length, i + 1))
      const rows = prompts.map((tokens, slot): Row => ({
        slot,
        tokens,
        pages: r.pages(8, slot * 8),
        flags: SAMPLE | LOGITS,
      }))
      const alone: Float32Array[] = []
      for (const [slot, row] of rows.entries()) {
        r.open(slot, row.tokens)
        alone.push((await r.run(row)).logits)
      }
      const together = await r.run(...rows.toReversed())
      const { vocabSize } = r.executor.info
      alone.forEach((logits, slot) => {
        const at = (rows.length - 1 - slot) * vocabSize
        expect(
          Buffer.from(together.logits.slice(at, at + vocabSize).buffer).equals(Buffer.from(logits.slice().buffer)),
        ).toBe(true)
      })
      return undefined
    })

    it('throws for a malformed step, and changes nothing', async () => {
      const r = await rig()
      const { info } = r.executor
      const prompt = r.prompt(5)
      for (const slot of [0, 1]) r.open(slot, prompt)
      const good = { slot: 0, tokens: prompt, pages: r.pages(8) }
      const ok = pack(0, [good])
      const at = STEP_HEADER_INTS
      const edited = (index: number, value: number): Int32Array => ok.with(index, value) as Int32Array
      const bad: [string, string, Int32Array][] = [
        ['empty', 'ERR_INVALID_ARGUMENT', new Int32Array(0)],
        ['a header only', 'ERR_INVALID_ARGUMENT', ok.slice(0, STEP_HEADER_INTS)],
        ['cut short', 'ERR_INVALID_ARGUMENT', ok.slice(0, -1)],
        ['too long', 'ERR_INVALID_ARGUMENT', Int32Array.from([...ok, 0])],
        ['another version', 'ERR_INVALID_ARGUMENT', edited(0, STEP_VERSION + 1)],
        ['sequences: 0', 'ERR_INVALID_ARGUMENT', edited(2, 0)],
        ['sequences: 2^31 - 1', 'ERR_INVALID_ARGUMENT', edited(2, 2 ** 31 - 1)],
        ['tokens: -1', 'ERR_INVALID_ARGUMENT', edited(3, -1)],
        ['pages: 2^31 - 1', 'ERR_INVALID_ARGUMENT', edited(4, 2 ** 31 - 1)],
        ['a slot that is not open', 'ERR_INVALID_ARGUMENT', edited(at, 2)],
        ['slot -1', 'ERR_INVALID_ARGUMENT', edited(at, -1)],
        ['slot maxSlots', 'ERR_INVALID_ARGUMENT', edited(at, info.maxSlots)],
        ['tokens of a sequence: 0', 'ERR_INVALID_ARGUMENT', edited(at + 1, 0)],
        ['cached: -1', 'ERR_INVALID_ARGUMENT', edited(at + 2, -1)],
        ['cached: 2^31 - 1', 'ERR_INVALID_ARGUMENT', edited(at + 2, 2 ** 31 - 1)],
        ['pages of a sequence: 0', 'ERR_INVALID_ARGUMENT', edited(at + 3, 0)],
        ['unknown flags', 'ERR_INVALID_ARGUMENT', edited(at + 4, 1 << 20)],
        ['page -1', 'ERR_INVALID_ARGUMENT', edited(at + STEP_SEQUENCE_INTS, -1)],
        ['page numPages', 'ERR_INVALID_ARGUMENT', edited(at + STEP_SEQUENCE_INTS, info.numPages)],
        ['token vocabSize', 'ERR_INVALID_TOKEN', edited(ok.length - 1, info.vocabSize)],
        ['token -2', 'ERR_INVALID_TOKEN', edited(ok.length - 1, -2)],
        ['LAST_SAMPLED_TOKEN among others', 'ERR_INVALID_TOKEN', edited(ok.length - 1, LAST_SAMPLED_TOKEN)],
        ['LAST_SAMPLED_TOKEN of a new slot', 'ERR_INVALID_TOKEN', pack(0, [{ ...good, tokens: [LAST_SAMPLED_TOKEN] }])],
        ['a slot twice', 'ERR_INVALID_ARGUMENT', pack(0, [good, { ...good, pages: r.pages(8, 8) }])],
        ['a page that two write', 'ERR_INVALID_ARGUMENT', pack(0, [good, { ...good, slot: 1 }])],
        [
          'a page read and written',
          'ERR_INVALID_ARGUMENT',
          pack(0, [good, { slot: 1, tokens: [1], cached: r.pageSize, pages: [0, 20] }]),
        ],
        ['too few pages', 'ERR_INVALID_ARGUMENT', pack(0, [{ slot: 0, tokens: r.prompt(r.pageSize + 1), pages: [0] }])],
      ]
      for (const [what, code, step] of bad) {
        try {
          expectCode(code, () => r.executor.submit(step))
        } catch (error) {
          throw new Error(`${what}: ${(error as Error).message}`, { cause: error })
        }
      }
      const before = await r.run({ slot: 1, tokens: prompt, pages: r.pages(8, 8) })
      const after = await r.run(good)
      expect(after.tokens).toEqual(before.tokens)
      expect(r.results.length).toBe(2)
    })

    it('throws for a malformed slot, and changes nothing', async () => {
      const r = await rig()
      const { info } = r.executor
      const prompt = r.prompt(4)
      r.open(0, prompt)
      expectCode('ERR_INVALID_ARGUMENT', () => r.open(0, prompt))
      for (const slot of [-1, info.maxSlots, 2 ** 31 - 1])
        expectCode('ERR_INVALID_ARGUMENT', () => r.open(slot, prompt))
      for (const slot of [1, -1, info.maxSlots]) expectCode('ERR_INVALID_ARGUMENT', () => r.executor.closeSlot(slot))
      expectCode('ERR_INVALID_ARGUMENT', () => r.open(1, []))
      expectCode('ERR_INVALID_ARGUMENT', () => r.open(1, r.prompt(info.maxPositions + 1)))
      for (const token of [-1, info.vocabSize]) {
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, [token]))
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, prompt, {}, [token]))
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, prompt, { bannedTokens: Int32Array.of(token) }))
      }
      const bad: Partial<SlotSampling>[] = [
        { temperature: -1 },
        { temperature: NaN },
        { temperature: Infinity },
        { topK: -1 },
        { topP: 0 },
        { topP: 1.5 },
        { topP: NaN },
        { minP: -0.5 },
        { minP: 2 },
        { repetitionPenalty: 0 },
        { repetitionPenalty: NaN },
        { presencePenalty: NaN },
        { frequencyPenalty: Infinity },
        { seed: -1 },
        { seed: 2 ** 53 },
        { logprobs: -2 },
        { promptLogprobs: info.vocabSize + 1 },
        { minTokens: -1 },
      ]
      for (const sampling of bad) {
        try {
          expectCode('ERR_INVALID_ARGUMENT', () => r.open(1, prompt, sampling))
        } catch (error) {
          throw new Error(`${JSON.stringify(sampling)}: ${(error as Error).message}`, { cause: error })
        }
      }
      r.open(1, prompt)
      const result = await r.run(
        { slot: 0, tokens: prompt, pages: r.pages(4) },
        { slot: 1, tokens: prompt, pages: r.pages(4, 16) },
      )
      expect(result.tokens[0]).toBe(result.tokens[1])
    })

    it('closes with work in flight: every step gets its result first', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      r.submit({ slot: 0, tokens: prompt, pages: r.pages(12) })
      for (let i = 0; i < 6; i++) r.submit({ slot: 0, tokens: [LAST_SAMPLED_TOKEN], cached: 5 + i, pages: r.pages(12) })
      const closing = [r.executor.close(), r.executor.close()]
      await Promise.all(closing)
      expect(r.results.map((result) => result.stepId)).toEqual([0, 1, 2, 3, 4, 5, 6])
      let failed = false
      for (const result of r.results) {
        if (result.error !== undefined) expect(result.error.code).toBe('ERR_DISPOSED')
        // What was queued behind a step that no longer ran did not run either.
        if (failed) expect(result.error).toBeDefined()
        failed = result.error !== undefined
      }
      expectCode('ERR_DISPOSED', () => r.submit({ slot: 0, tokens: prompt, pages: r.pages(12) }))
      expectCode('ERR_DISPOSED', () => r.open(1, prompt))
      expectCode('ERR_DISPOSED', () => r.executor.closeSlot(0))
    })
  })
}
