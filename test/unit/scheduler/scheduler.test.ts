import { describe, expect, it } from 'vitest'
import { TensorRTError } from '../../../lib/errors'
import {
  type GenerationRequest,
  LAST_SAMPLED_TOKEN,
  NOTHING_ALLOWED,
  Scheduler,
  type StepResult,
  type TokenConstraint,
} from '../../../lib/scheduler'
import { siblingSeed } from '../../../lib/scheduler/sequence'
import { Constraint, Driver, GREEDY, oddThenEven, randomPrompt, randomSource, request, soloText } from './drive'

const prompt = (length: number, seed = 1): Int32Array => randomPrompt(randomSource(seed), length)
const EXACT = { eosTokenIds: new Int32Array(0) }

function codeOf(call: () => unknown): string {
  try {
    call()
  } catch (error) {
    return (error as TensorRTError).code
  }
  return 'nothing thrown'
}

describe('add', () => {
  const driver = new Driver({ maxPositions: 32, pageSize: 4, numPages: 6 }, { maxQueue: 4 })
  const { scheduler } = driver
  const code = (of: Parameters<typeof request>): string => codeOf(() => scheduler.add(request(...of), 0))

  it('refuses what can never run, and stays unchanged', () => {
    expect(code(['a', []])).toBe('ERR_INVALID_ARGUMENT')
    expect(code(['a', [1, -1]])).toBe('ERR_INVALID_TOKEN')
    expect(code(['a', [97]])).toBe('ERR_INVALID_TOKEN')
    expect(code(['a', prompt(32)])).toBe('ERR_PROMPT_TOO_LONG')
    expect(code(['a', prompt(320)])).toBe('ERR_PROMPT_TOO_LONG')
    expect(code(['a', prompt(20), { maxTokens: 6 }])).toBe('ERR_REQUEST_TOO_LARGE')
    for (const n of [0, -1, 1.5, NaN, 2 ** 31]) expect(code(['a', [1], { n }])).toBe('ERR_INVALID_ARGUMENT')
    for (const maxTokens of [-1, 1.5, NaN]) expect(code(['a', [1], { maxTokens }])).toBe('ERR_INVALID_ARGUMENT')
    for (const timeoutMs of [0, -1, NaN, Infinity]) expect(code(['a', [1], { timeoutMs }])).toBe('ERR_INVALID_ARGUMENT')
    expect(code(['a', [1], { priority: 0.5 }])).toBe('ERR_INVALID_ARGUMENT')
    expect(code(['a', [1], { deadline: NaN }])).toBe('ERR_INVALID_ARGUMENT')
    expect(code(['a', [1], { deadline: 0 }])).toBe('ERR_DEADLINE_EXCEEDED')
    expect(code(['a', [1], { n: 5 }])).toBe('ERR_QUEUE_FULL')
    expect(scheduler.hasWork).toBe(false)
  })

  it('takes what just fits', () => {
    driver.add(request('fits', prompt(20), { maxTokens: 5, ...EXACT }))
    expect(code(['fits', [1]])).toBe('ERR_INVALID_ARGUMENT')
    driver.add(request('more', [1], { n: 3 }))
    expect(code(['full', [1]])).toBe('ERR_QUEUE_FULL')
    driver.runToEnd()
  })

  it('refuses new requests while it drains, and finishes the old', () => {
    const d = new Driver()
    const [seq] = d.add(request('old', prompt(5)))
    d.scheduler.drain()
    expect(codeOf(() => d.scheduler.add(request('new', [1]), 0))).toBe('ERR_DISPOSED')
    d.runToEnd()
    expect(d.of(seq!).finish).not.toBeNull()
  })
})

describe('the end of a sequence', () => {
  it('is the token limit, or the context, or the pool', () => {
    const d = new Driver({ maxPositions: 24, numPages: 5, pageSize: 4 })
    const [limit] = d.add(request('limit', prompt(5), { maxTokens: 3, ...EXACT }))
    const [pool] = d.add(request('pool', prompt(5), { maxTokens: undefined, ...EXACT }))
    d.runToEnd()
    expect(d.of(limit!)).toMatchObject({ finish: 'length', tokens: soloText(prompt(5), 3) })
    expect(d.of(pool!)).toMatchObject({ finish: 'length', tokens: soloText(prompt(5), 16) })

    const wide = new Driver({ maxPositions: 24 })
    const [context] = wide.add(request('context', prompt(5), { maxTokens: 1000, ...EXACT }))
    wide.runToEnd()
    expect(wide.of(context!).tokens).toEqual(soloText(prompt(5), 19))
  })

  it('is a stop token, unless ignored or before minTokens', () => {
    const text = soloText(prompt(5), 12)
    const eosTokenIds = Int32Array.of(text[4]!)
    const first = text.indexOf(text[4]!)
    const d = new Driver()
    const [stops] = d.add(request('stops', prompt(5), { maxTokens: 12, eosTokenIds }))
    const [ignores] = d.add(request('ignores', prompt(5), { maxTokens: 12, eosTokenIds, ignoreEos: true }))
    const [own] = d.add(
      request('own', prompt(5), { maxTokens: 12, eosTokenIds, ignoreEos: true, stopTokenIds: eosTokenIds }),
    )
    const sampling = { ...GREEDY, minTokens: 9 }
    const [later] = d.add(request('later', prompt(5), { maxTokens: 12, eosTokenIds, sampling }))
    d.runToEnd()
    expect(d.of(stops!)).toMatchObject({ finish: 'stop', tokens: text.slice(0, first + 1) })
    expect(d.of(ignores!)).toMatchObject({ finish: 'length', tokens: text })
    expect(d.of(own!)).toMatchObject({ finish: 'stop', tokens: text.slice(0, first + 1) })
    expect(d.of(later!).tokens.slice(0, 9)).not.toContain(text[4])
    expect(d.of(later!).tokens.length).toBeGreaterThan(9)
  })

  it('comes at once for maxTokens 0, with the log-probabilities of the prompt', () => {
    const d = new Driver({ maxStepTokens: 4 })
    const sampling = { ...GREEDY, promptLogprobs: 1 }
    const [seq] = d.add(request('score', prompt(10), { maxTokens: 0, sampling }))
    d.runToEnd()
    expect(d.of(seq!)).toMatchObject({ finish: 'length', tokens: [] })
    expect(d.of(seq!).promptLogprobs.map((row) => row.position)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9])
  })

  it('is the caller: finish() keeps the siblings, drops tokens in flight, and happens once', () => {
    const d = new Driver()
    const [a, b] = d.add(request('r', prompt(9), { n: 2, maxTokens: 12, ...EXACT }))
    while (d.of(a!).tokens.length < 3) d.step()
    d.submitAll()
    expect(d.scheduler.finish('r', 'stop', 0)).toBe(true)
    expect(d.scheduler.finish('r', 'stop', 0)).toBe(false)
    expect(d.scheduler.finish('r', 'stop', 7)).toBe(false)
    d.scheduler.check()
    d.runToEnd()
    expect(d.of(a!).tokens.length).toBe(3)
    expect(d.of(b!).tokens).toEqual(soloText(prompt(9), 12))
  })
})

describe('a step', () => {
  it('takes decode rows first, then cuts prompts to the token budget', () => {
    const d = new Driver({ maxStepTokens: 8 })
    const [a] = d.add(request('a', prompt(4, 1), { maxTokens: 20, ...EXACT }))
    d.step()
    const [b] = d.add(request('b', prompt(19, 2), { maxTokens: 20, ...EXACT }))
    d.runToEnd()
    const shapes = d.executor.submitted.map((step) => step.sequences.map(({ slot, tokens }) => [slot, tokens.length]))
    expect(shapes[0]).toEqual([[0, 4]])
    expect(shapes.slice(2, 5)).toEqual([
      [
        [0, 1],
        [1, 7],
      ],
      [
        [0, 1],
        [1, 7],
      ],
      [
        [0, 1],
        [1, 5],
      ],
    ])
    expect(d.of(a!).tokens).toEqual(soloText(prompt(4, 1), 20))
    expect(d.of(b!).tokens).toEqual(soloText(prompt(19, 2), 20))
  })

  it('admits no more than the token budget lets decode', () => {
    const d = new Driver({ maxStepTokens: 3, maxSlots: 8 })
    const sequences = Array.from(
      { length: 8 },
      (_, i) => d.add(request(i, prompt(3, i), { maxTokens: 10, ...EXACT }))[0]!,
    )
    d.runToEnd()
    for (const [i, seq] of sequences.entries()) expect(d.of(seq).tokens).toEqual(soloText(prompt(3, i), 10))
    for (const { tokens } of d.planned) expect(tokens).toBeLessThanOrEqual(3)
  })

  for (const runAhead of [0, 1, 3]) {
    it(`is planned up to ${runAhead} ahead of the results`, () => {
      const d = new Driver({}, { runAhead })
      d.add(request('a', prompt(4), { maxTokens: 20, ...EXACT }))
      expect(d.submitAll()).toBe(runAhead + 1)
      expect(d.scheduler.stats().stepsInFlight).toBe(runAhead + 1)
      const ahead = d.executor.submitted.slice(1).map((step) => [...step.sequences[0]!.tokens])
      expect(ahead).toEqual(Array.from({ length: runAhead }, () => [LAST_SAMPLED_TOKEN]))
      d.runToEnd()
      // The end by length is known in advance, so no row is wasted on it.
      expect(d.scheduler.stats().wastedRows).toBe(0)
      expect(d.scheduler.stats().decodeTokens).toBe(19)
    })
  }

  it('wastes one row on a sequence that turns out to have ended, and holds its pages until that step is over', () => {
    const text = soloText(prompt(4), 12)
    const d = new Driver({ numPages: 16 })
    d.add(request('a', prompt(4), { maxTokens: 12, eosTokenIds: Int32Array.of(text[0]!) }))
    d.step()
    expect(d.scheduler.stats()).toMatchObject({ sequencesFinished: 1, stepsInFlight: 1, pagesUsed: 2 })
    expect(d.scheduler.hasWork).toBe(true)
    d.runToEnd()
    expect(d.scheduler.stats()).toMatchObject({ wastedRows: 1, pagesUsed: 0 })
    expect(d.scheduler.takeClosedSlots()).toEqual([0])
    expect(d.scheduler.takeClosedSlots()).toEqual([])
  })

})

describe('constrained sequences', () => {
  const constrained = (id: string, constraint: TokenConstraint, rest: Partial<GenerationRequest> = {}): GenerationRequest =>
    request(id, prompt(4), { maxTokens: 6, constrain: () => constraint, ...EXACT, ...rest })

  it('tell their constraint each token before the next step, which has its mask, while others run ahead', () => {
    const d = new Driver()
    const constraint = new Constraint(oddThenEven)
    const [seq] = d.add(constrained('grammar', constraint))
    const [other] = d.add(request('other', prompt(5, 2), { maxTokens: 12, ...EXACT }))
    d.runToEnd()
    const solo = soloText(prompt(4), 6, [], oddThenEven)
    expect(d.of(seq!).tokens).toEqual(solo)
    expect(solo).not.toEqual(soloText(prompt(4), 6))
    // The token that ends the sequence is nobody's prefix.
    expect(constraint.accepted).toEqual(solo.slice(0, -1))
    expect(d.of(other!).tokens).toEqual(soloText(prompt(5, 2), 12))
    const tokensOf = (first: Int32Array): Int32Array[] =>
      d.executor.submitted.flatMap(({ sequences }) => sequences.filter(({ slot }) => slot === slotOf(first)).map(({ tokens }) => tokens))
    const slotOf = (first: Int32Array): number => d.opened.find((init) => init.prompt === first)!.slot
    expect(tokensOf(seq!.request.prompt).some((tokens) => tokens.includes(LAST_SAMPLED_TOKEN))).toBe(false)
    // All but its prompt, and with no pause.
    expect(tokensOf(other!.request.prompt).filter((tokens) => tokens[0] === LAST_SAMPLED_TOKEN).length).toBe(11)
    expect(d.planned.every(({ masks }) => masks.length <= 1)).toBe(true)
    expect(d.planned.filter(({ masks }) => masks.length === 1).length).toBe(6)
  })

  it('run every other step beside others, and every step alone', () => {
    const steps = (beside: boolean): number => {
      const d = new Driver()
      const [seq] = d.add(constrained('grammar', new Constraint()))
      if (beside) d.add(request('other', prompt(5, 2), { maxTokens: 60, ...EXACT }))
      while (!seq!.finished) d.step()
      return d.planned.length
    }
    expect(steps(false)).toBe(6)
    expect(steps(true)).toBe(12)
  })

  it('come together where nothing else runs, instead of taking turns', () => {
    const d = new Driver()
    const [first] = d.add(constrained('first', new Constraint()))
    d.submitAll()
    const [second] = d.add(constrained('second', new Constraint(oddThenEven)))
    while (!first!.finished || !second!.finished) d.step()
    // A step for each prompt, which samples the first token, and then five for both.
    expect(d.planned.map(({ masks }) => masks.length)).toEqual([1, 1, 2, 2, 2, 2, 2])
    expect(d.of(second!).tokens).toEqual(soloText(prompt(4), 6, [], oddThenEven))
  })

  it('go on while others under grammars come, one a step, and come together when no more do', () => {
    const d = new Driver({ maxStepTokens: 48, maxSlots: 24, numPages: 512 })
    const [first] = d.add(constrained('first', new Constraint(), { maxTokens: 30 }))
    d.step()
    for (let i = 0; i < 20; i++) {
      d.add(request(`newcomer ${i}`, prompt(48, i), { maxTokens: 30, constrain: () => new Constraint(), ...EXACT }))
      d.step()
    }
    // A step that has the prompt of a newcomer takes along who can go on: at least every other step has the first one.
    expect(d.of(first!).tokens.length).toBeGreaterThanOrEqual(10)
    const arrived = d.planned.length
    d.runToEnd()
    // Taking turns, the last one's tokens would take twice as many.
    expect(d.planned.length - arrived).toBeLessThan(38)
  })

  it('end with a stop token that the mask forces, whatever minTokens says', () => {
    const d = new Driver()
    const [seq] = d.add(
      constrained('done', new Constraint((tokens, token) => (tokens.length < 2 ? token !== 7 : token === 7)), {
        sampling: { ...GREEDY, minTokens: 5 },
        stopTokenIds: Int32Array.of(7),
      }),
    )
    d.runToEnd()
    expect(d.of(seq!)).toMatchObject({ finish: 'stop', error: null })
    expect(d.of(seq!).tokens.length).toBe(3)
  })

  it('fail alone: by what they throw, by a mask that allows nothing or is none, and where sampling found nothing', () => {
    const broken: Record<string, TokenConstraint> = {
      throws: { mask: () => null, accept: () => { throw new RangeError('no such rule') } },
      typed: { mask: () => null, accept: () => { throw new TensorRTError('ERR_INVALID_TOKEN', 'not in the grammar') } },
      empty: new Constraint((tokens) => tokens.length < 1),
      long: emptyAfterFirst(new Int32Array(5).fill(-1)),
      array: emptyAfterFirst([1] as unknown as Int32Array),
    }
    const d = new Driver()
    const bad = Object.entries(broken).map(([id, constraint]) => d.add(constrained(id, constraint))[0]!)
    const [good] = d.add(constrained('good', new Constraint(oddThenEven)))
    const [free] = d.add(request('free', prompt(5, 2), { maxTokens: 9, ...EXACT }))
    d.runToEnd()
    expect(bad.map((seq) => [seq.id, d.of(seq).error])).toEqual([
      ['throws', 'ERR_INVALID_ARGUMENT'],
      ['typed', 'ERR_INVALID_TOKEN'],
      ['empty', 'ERR_INVALID_ARGUMENT'],
      ['long', 'ERR_INVALID_ARGUMENT'],
      ['array', 'ERR_INVALID_ARGUMENT'],
    ])
    expect(d.of(good!).tokens).toEqual(soloText(prompt(4), 6, [], oddThenEven))
    expect(d.of(free!).tokens).toEqual(soloText(prompt(5, 2), 9))
  })

  it('fail alone where the executor found nothing that their mask leaves; others never may', () => {
    const d = new Driver()
    const [masked] = d.add(constrained('masked', new Constraint()))
    const [free] = d.add(request('free', prompt(5, 2), { ...EXACT }))
    d.submitAll()
    d.executor.pump()
    d.patchNextResult((result) => ({ ...result, tokens: result.tokens.with(0, NOTHING_ALLOWED) as Int32Array }))
    d.runToEnd()
    expect(d.of(masked!)).toMatchObject({ tokens: [], error: 'ERR_INVALID_ARGUMENT' })
    expect(d.of(free!)).toMatchObject({ error: null, finish: 'length' })

    const [other] = d.add(request('other', prompt(5, 3), { ...EXACT }))
    d.submitAll()
    d.executor.pump()
    d.patchNextResult((result) => ({ ...result, tokens: result.tokens.with(0, NOTHING_ALLOWED) as Int32Array }))
    d.runToEnd()
    expect(d.of(other!).error).toBe('ERR_STEP_FAILED')
  })

  it('are refused with the error of their first mask, and by an executor that takes none', () => {
    const d = new Driver()
    expect(codeOf(() => d.add(constrained('a', new Constraint(() => false))))).toBe('ERR_INVALID_ARGUMENT')
    const none = new Scheduler({ ...d.executor.info, takesMasks: false })
    expect(codeOf(() => none.add(constrained('a', new Constraint()), 0))).toBe('ERR_INVALID_ARGUMENT')
    expect(d.scheduler.hasWork || none.hasWork).toBe(false)
  })

  it('each have their own constraint', () => {
    const d = new Driver()
    const made: Constraint[] = []
    const constrain = (index: number): Constraint => (made[index] = new Constraint(index === 0 ? oddThenEven : undefined))
    const sequences = d.add(request('n', prompt(4), { n: 3, maxTokens: 6, constrain, ...EXACT }))
    d.runToEnd()
    expect(made.length).toBe(3)
    sequences.forEach((seq, i) => {
      expect(d.of(seq).tokens).toEqual(soloText(prompt(4), 6, [], i === 0 ? oddThenEven : undefined))
    })
  })
})

/** Allows everything first, then gives `mask`. */
function emptyAfterFirst(mask: Int32Array): TokenConstraint {
  let first = true
  return {
    mask: () => {
      if (!first) return mask
      first = false
      return null
    },
    accept: () => {},
  }
}

describe('the prefix cache', () => {
  it('serves equal prefixes, under equal salts, also of generated text', () => {
    const d = new Driver({ pageSize: 4 })
    const [seq] = d.add(request('first', prompt(12), { maxTokens: 9, ...EXACT }))
    d.runToEnd()
    const turn = Int32Array.from([...prompt(12), ...d.of(seq!).tokens, 1, 2])
    const hits = (id: string, salt?: string): number => {
      const before = d.scheduler.stats().prefixHitTokens
      const [again] = d.add(request(id, turn, { cacheSalt: salt, ...EXACT }))
      d.runToEnd()
      expect(d.of(again!).tokens).toEqual(soloText(turn, 8))
      expect(again!.cachedTokens).toBe(d.scheduler.stats().prefixHitTokens - before)
      return d.scheduler.stats().prefixHitTokens - before
    }
    expect(hits('other salt', 'secret')).toBe(0)
    // 20 positions were computed, the last one with the last token: five full pages of four.
    expect(hits('same salt')).toBe(20)
  })

  it('lets a burst of equal prompts compute their prefix once', () => {
    const d = new Driver({ pageSize: 4, maxStepTokens: 512, numPages: 512 })
    const system = [...prompt(40)]
    for (let i = 0; i < 10; i++) d.add(request(i, [...system, i], EXACT))
    d.runToEnd()
    expect(d.scheduler.stats().prefillTokens).toBeLessThan(41 + 9 * 2)
  })

  for (const prefixCache of [true, false]) {
    it(`shares the prompt among siblings with the cache ${prefixCache ? 'on' : 'off'}`, () => {
      const d = new Driver({ pageSize: 4, numPages: 64 }, { prefixCache })
      const siblings = d.add(request('r', prompt(21), { n: 4, maxTokens: 6, ...EXACT }))
      d.submitAll()
      expect(d.executor.submitted.map((step) => step.sequences.length)).toEqual([1, 4])
      const shared = d.executor.submitted[1]!.sequences.slice(1).map(({ cached, pages }) => [
        cached,
        ...pages.subarray(0, 5),
      ])
      const leader = d.executor.submitted[0]!.sequences[0]!
      for (const row of shared) expect(row).toEqual([20, ...leader.pages.subarray(0, 5)])
      d.runToEnd()
      for (const seq of siblings) expect(d.of(seq).tokens).toEqual(soloText(prompt(21), 6))
      expect(d.scheduler.stats().pagesCached > 0).toBe(prefixCache)

      const before = d.scheduler.stats().prefixHitTokens
      d.add(request('again', prompt(21), EXACT))
      d.runToEnd()
      expect(d.scheduler.stats().prefixHitTokens - before).toBe(prefixCache ? 20 : 0)
    })
  }

  it('keeps a slot for a sibling that waits for the prompt', () => {
    const d = new Driver({ pageSize: 4, maxSlots: 2 })
    d.add(request('r', prompt(21), { n: 2, ...EXACT }))
    d.add(request('newcomer', prompt(5, 2), EXACT))
    d.runToEnd()
    expect(d.opened.map((init) => init.prompt.length)).toEqual([21, 21, 5])
  })

  it('gives up the end of a prefix before its beginning', () => {
    const d = new Driver({ pageSize: 4, numPages: 4 })
    const [first] = d.add(request('first', prompt(13), { maxTokens: 1, ...EXACT }))
    d.runToEnd()
    d.add(request('other', prompt(5, 2), { maxTokens: 1, ...EXACT }))
    d.runToEnd()
    const [again] = d.add(request('again', prompt(13), { maxTokens: 1, ...EXACT }))
    d.runToEnd()
    expect(again!.cachedTokens).toBe(8)
    expect(d.of(again!).tokens).toEqual(d.of(first!).tokens)
  })

  it('gives siblings seeds of their own, the first one the request’s', () => {
    const d = new Driver()
    d.add(request('r', prompt(9), { n: 3, sampling: { ...GREEDY, temperature: 1, seed: 2 ** 53 - 1 } }))
    d.runToEnd()
    const seeds = d.opened.map((init) => init.sampling.seed)
    expect(seeds).toEqual([2 ** 53 - 1, siblingSeed(2 ** 53 - 1, 1), siblingSeed(2 ** 53 - 1, 2)])
    expect(new Set(seeds).size).toBe(3)
    for (const seed of seeds) expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true)
  })

  it('is not read where prompt log-probabilities are asked for', () => {
    const d = new Driver({ pageSize: 2, numPages: 12 })
    d.add(request('first', prompt(10), EXACT))
    d.runToEnd()
    const sampling = { ...GREEDY, promptLogprobs: 0, logprobs: 0 }
    const [seq] = d.add(request('second', prompt(10), { sampling, ...EXACT }))
    d.runToEnd()
    const { promptLogprobs, logprobs, tokens } = d.of(seq!)
    expect(promptLogprobs.map(({ position, token }) => [position, token])).toEqual(
      [...prompt(10)].map((token, i) => [i, token]).slice(1),
    )
    expect(logprobs.map((row) => [row!.position, row!.token])).toEqual(tokens.map((token, i) => [10 + i, token]))
  })

  it('reports each prompt log-probability once, whatever is preempted or fails', () => {
    const d = new Driver({ pageSize: 2, numPages: 14, maxStepTokens: 5 }, { maxRetries: 100 })
    let count = 0
    d.executor.fault = () =>
      ++count % 4 === 0 ? { code: 'ERR_CUDA', message: 'injected', retryable: true } : undefined
    const sampling = { ...GREEDY, promptLogprobs: 0 }
    const sequences = [1, 2, 3, 4].map(
      (i) => d.add(request(i, prompt(10, i), { sampling, maxTokens: 8, ...EXACT }))[0]!,
    )
    d.runToEnd()
    for (const seq of sequences)
      expect(d.of(seq).promptLogprobs.map((row) => row.position)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9])
    expect(d.scheduler.stats().retries).toBeGreaterThan(0)
  })
})

describe('order of service', () => {
  /** Ids in the order in which they were admitted, one at a time. */
  function served(d: Driver, ids: (string | number)[]): (string | number)[] {
    const sequences = [...d.outcomes.keys()]
    d.runToEnd()
    const bySlot = d.opened.map((init) => sequences.find((seq) => seq.request.prompt === init.prompt)!.id)
    return bySlot.filter((id) => ids.includes(id))
  }

  it('is by priority, then by deadline, then by arrival', () => {
    const d = new Driver({ maxSlots: 1 })
    d.add(request('late', prompt(3, 1), { deadline: 9000 }))
    d.add(request('none', prompt(3, 2)))
    d.add(request('early', prompt(3, 3), { deadline: 8000 }))
    d.add(request('none too', prompt(3, 4)))
    d.add(request('urgent', prompt(3, 5), { priority: -1 }))
    d.add(request('idle', prompt(3, 6), { priority: 2, deadline: 1000 }))
    expect(
      served(
        d,
        [...d.outcomes.keys()].map((seq) => seq.id),
      ),
    ).toEqual(['urgent', 'early', 'late', 'none', 'none too', 'idle'])
  })

  it('lets nothing starve: a waiting request gains a level per agingMs', () => {
    const d = new Driver({ maxSlots: 1 }, { agingMs: 100, maxQueue: 10_000 })
    const [poor] = d.add(request('poor', prompt(3), { priority: 5, maxTokens: 2 }))
    let admittedAt: number | null = null
    for (let i = 0; admittedAt === null && i < 5000; i++) {
      // Twice as many urgent requests arrive as can be served.
      d.add(request(i, prompt(3, i), { priority: 0, maxTokens: 2, ...EXACT }))
      d.step()
      if (d.of(poor!).tokens.length > 0) admittedAt = d.now
    }
    expect(admittedAt).not.toBeNull()
    // At (5 - 0 + 1) * 100 ms it passed all that arrive; those before it were at most as many as had come by then.
    expect(admittedAt!).toBeGreaterThan(400)
    const overtakers = [...d.outcomes.keys()].filter((seq) => seq.arrival > 600 && d.of(seq).finish !== null)
    expect(overtakers).toEqual([])
  })

  it('admits a newcomer only while a page remains for each that runs', () => {
    const d = new Driver({ pageSize: 4, numPages: 4 })
    d.add(request('runs', prompt(6, 1), { maxTokens: 3, ...EXACT }))
    d.submitAll()
    d.add(request('waits', prompt(6, 2), { maxTokens: 3, ...EXACT }))
    d.step()
    expect(d.scheduler.stats()).toMatchObject({ running: 1, waiting: 1, pagesFree: 2 })
    d.runToEnd()
    expect(d.scheduler.stats().preemptions).toBe(0)
  })

  it('preempts the least urgent, of those the latest, and keeps its output', () => {
    const d = new Driver({ pageSize: 2, numPages: 12, maxSlots: 4 })
    const of = [0, 0, 1].map(
      (priority, i) => d.add(request(i, prompt(3, i), { priority, maxTokens: 10, ...EXACT }))[0]!,
    )
    d.runToEnd()
    expect(d.scheduler.stats().preemptions).toBeGreaterThan(0)
    const reopened = d.opened.filter((init) => init.output.length > 0)
    expect(reopened[0]!.prompt).toEqual(prompt(3, 2))
    for (const init of d.opened) expect(init.prompt).not.toEqual(init.output.length > 0 ? prompt(3, 0) : null)
    of.forEach((seq, i) => expect(d.of(seq).tokens).toEqual(soloText(prompt(3, i), 10)))
  })
})

describe('time', () => {
  it('fails what is not done within its timeout, and says when to look', () => {
    const d = new Driver({ maxSlots: 1 })
    const [runs] = d.add(request('runs', prompt(3, 1), { maxTokens: 100, timeoutMs: 20, ...EXACT }))
    const [waits] = d.add(request('waits', prompt(3, 2), { timeoutMs: 10 }))
    const [stays] = d.add(request('stays', prompt(3, 3)))
    expect(d.scheduler.nextWakeup(4)).toBe(6)
    expect(d.scheduler.nextWakeup(400)).toBe(0)
    d.runToEnd()
    expect(d.scheduler.nextWakeup(0)).toBeNull()
    expect(d.of(waits!)).toMatchObject({ error: 'ERR_TIMEOUT', tokens: [] })
    expect(d.of(runs!).error).toBe('ERR_TIMEOUT')
    expect(d.of(runs!).tokens.length).toBeGreaterThan(10)
    expect(d.of(stays!).error).toBeNull()
    expect(runs!.admittedAt).toBe(0)
    expect(waits!.admittedAt).toBeNaN()
    expect(stays!.admittedAt).toBeGreaterThanOrEqual(20)
  })

  it('fails what is running when its deadline passes', () => {
    const d = new Driver()
    const [seq] = d.add(request('a', prompt(3), { maxTokens: 100, deadline: 30, ...EXACT }))
    d.runToEnd()
    expect(d.of(seq!).error).toBe('ERR_DEADLINE_EXCEEDED')
    expect(d.of(seq!).tokens.length).toBeGreaterThan(20)
  })

  it('refuses a deadline that cannot be met, at once or as soon as that is clear, but none that can', () => {
    const d = new Driver({ maxSlots: 1, maxStepTokens: 64, maxPositions: 4096, numPages: 1024 })
    d.msPerStep = 10
    d.executor.runUs = (tokens) => 2000 + 100 * tokens
    for (let i = 0; i < 10; i++) d.add(request(`warm ${i}`, prompt(30 + i, 50 + i), { maxTokens: 4, ...EXACT }))
    d.runToEnd()
    const long = prompt(1000, 99)
    const { now } = d
    // By the model 16 steps of 2 ms and 1000 tokens of 0.1 ms: about 130 ms.
    expect(codeOf(() => d.scheduler.add(request('hopeless', long, { deadline: now + 50 }), now))).toBe(
      'ERR_DEADLINE_EXCEEDED',
    )
    d.add(request('blocks', prompt(3, 7), { maxTokens: 200, ...EXACT }))
    d.submitAll()
    const [queued] = d.add(request('queued', long, { deadline: now + 250 }))
    const wake = d.scheduler.nextWakeup(d.now)!
    expect(wake).toBeGreaterThan(100)
    expect(wake).toBeLessThan(200)
    while (d.of(queued!).error === null) d.step()
    expect(d.of(queued!).error).toBe('ERR_DEADLINE_EXCEEDED')
    expect(d.now).toBeLessThan(now + 220)
    d.runToEnd()

    const fine = new Driver({ maxPositions: 4096, numPages: 1024 })
    const [met] = fine.add(request('met', long, { maxTokens: 1, deadline: 200, ...EXACT }))
    fine.runToEnd()
    expect(fine.of(met!).error).toBeNull()
  })
})

describe('abort', () => {
  it('ends a request in every state', () => {
    const d = new Driver({ pageSize: 2, numPages: 12, maxSlots: 2 })
    const states: Record<string, (id: string) => void> = {
      'in the queue': () => undefined,
      'with a step in flight': () => void d.submitAll(),
      'while it decodes': () => [1, 2, 3, 4].forEach(() => d.step()),
    }
    for (const [state, reach] of Object.entries(states)) {
      const [seq] = d.add(request(state, prompt(5), { maxTokens: 10, n: 3, ...EXACT }))
      reach(state)
      const had = d.of(seq!).tokens.length
      expect(d.scheduler.abort(state), state).toBe(true)
      expect(d.scheduler.abort(state), state).toBe(false)
      d.scheduler.check()
      d.runToEnd()
      expect(d.of(seq!)).toMatchObject({ finish: null, error: null })
      expect(d.of(seq!).tokens.length).toBe(had)
    }
    expect(d.scheduler.stats().sequencesAborted).toBe(9)
  })

  it('ends a preempted request whose last step is still in flight', () => {
    const d = new Driver({ pageSize: 1, numPages: 14, maxSlots: 3 })
    const sequences = [1, 2, 3].map((i) => d.add(request(i, prompt(2, i), { maxTokens: 10, ...EXACT }))[0]!)
    while (d.scheduler.stats().preemptions === 0) d.step()
    for (const seq of sequences) if (seq.slot < 0) d.scheduler.abort(seq.id)
    d.scheduler.check()
    d.runToEnd()
    expect(d.scheduler.stats().sequencesAborted).toBeGreaterThan(0)
    for (const seq of sequences)
      expect(d.of(seq).tokens).toEqual(soloText(seq.request.prompt, 10).slice(0, d.of(seq).tokens.length))
  })

  it('clear() ends everything and names it', () => {
    const d = new Driver({ maxSlots: 2 })
    for (let i = 0; i < 4; i++) d.add(request(i, prompt(5, i)))
    d.step()
    expect(d.scheduler.clear().map((seq) => seq.id)).toEqual([0, 1, 2, 3])
    d.runToEnd()
  })
})

describe('a failed step', () => {
  const failing = (d: Driver, steps: number[], retryable = true): void => {
    d.executor.fault = (step) =>
      steps.includes(step.stepId) ? { code: 'ERR_CUDA', message: 'injected', retryable } : undefined
  }

  it('is retried once, keeping what was emitted', () => {
    const d = new Driver()
    failing(d, [3])
    const [seq] = d.add(request('a', prompt(5), { maxTokens: 10, ...EXACT }))
    d.runToEnd()
    expect(d.of(seq!)).toMatchObject({ finish: 'length', tokens: soloText(prompt(5), 10) })
    expect(d.opened.map((init) => init.output.length)).toEqual([0, 3])
    // The step ahead of it computed from what the failed one left: its row counts for nothing.
    expect(d.scheduler.stats()).toMatchObject({ retries: 1, stepFailures: 1, wastedRows: 1 })
  })

  it('fails its sequences after the last retry, or at once if it is not retryable, and only those', () => {
    for (const [steps, retryable] of [
      [[1, 4], true],
      [[1], false],
    ] as [number[], boolean][]) {
      const d = new Driver({ maxSlots: 1 })
      failing(d, steps, retryable)
      const [seq] = d.add(request('a', prompt(5), { maxTokens: 10, ...EXACT }))
      const [next] = d.add(request('b', prompt(6), { maxTokens: 10, ...EXACT }))
      d.runToEnd()
      expect(d.of(seq!).error).toBe('ERR_STEP_FAILED')
      expect(d.of(seq!).tokens).toEqual(soloText(prompt(5), 10).slice(0, d.of(seq!).tokens.length))
      expect(d.of(next!)).toMatchObject({ error: null, tokens: soloText(prompt(6), 10) })
    }
  })

  it('leaves nothing findable of what it wrote', () => {
    const d = new Driver({ pageSize: 4 })
    failing(d, [0], false)
    d.add(request('writes', prompt(17), EXACT))
    const sharing = d.submitAll()
    expect(sharing).toBe(2)
    d.runToEnd()
    const [seq] = d.add(request('reads', prompt(17), EXACT))
    d.runToEnd()
    expect(d.scheduler.stats().prefixHitTokens).toBe(0)
    expect(d.of(seq!).tokens).toEqual(soloText(prompt(17), 8))
  })

  it('takes those along who shared its pages in the step ahead, without counting it against them', () => {
    const d = new Driver({ pageSize: 4 }, { maxRetries: 0 })
    failing(d, [0])
    const [writer, reader] = d.add(request('r', prompt(17), { n: 2, ...EXACT }))
    d.runToEnd()
    expect(d.of(writer!).error).toBe('ERR_STEP_FAILED')
    expect(d.of(reader!)).toMatchObject({ error: null, tokens: soloText(prompt(17), 8) })
  })

  it('is what a result becomes that breaks the contract', () => {
    for (const tokens of [[], [1, 2], [97], [-1]]) {
      const d = new Driver()
      const [seq] = d.add(request('a', prompt(5)))
      const step = d.scheduler.plan(0)!
      const result: StepResult = {
        stepId: step.stepId,
        tokens: Int32Array.from(tokens),
        logprobs: [],
        logits: new Float32Array(0),
        timings: { queueUs: 0, runUs: 0 },
      }
      expect(codeOf(() => d.scheduler.complete({ ...result, stepId: 5 }, 0))).toBe('ERR_INTERNAL')
      const events = d.scheduler.complete(result, 0)
      expect([events.count, events.errors[0]?.code]).toEqual([1, 'ERR_STEP_FAILED'])
      expect(seq!.finished).toBe(true)
      expect(d.scheduler.stats().pagesUsed).toBe(0)
    }
  })
})

describe('an executor that reports no log-probabilities', () => {
  const timings = { queueUs: 0, runUs: 0 }
  const logits = new Float32Array(0)

  it.each([
    ['of tokens', { logprobs: 0 }],
    ['of the prompt', { promptLogprobs: 1 }],
  ])('fails the request that asks for them, %s, and no other', (_, asked) => {
    const d = new Driver({}, { runAhead: 0 })
    const [seq] = d.add(request('a', prompt(3), { sampling: { ...GREEDY, ...asked } }))
    const [other] = d.add(request('b', prompt(4)))
    const step = d.scheduler.plan(0)!
    const events = d.scheduler.complete({ stepId: step.stepId, tokens: Int32Array.of(9, 9), logprobs: [], logits, timings }, 0)
    expect([events.errors[0]?.code, events.errors[0]?.message]).toEqual(['ERR_STEP_FAILED', expect.stringContaining('no log-probabilities')])
    expect([seq!.finished, other!.finished, [...other!.output]]).toEqual([true, false, [9]])
  })
})

it('a stop token before minTokens does not stop', () => {
  const d = new Driver({}, { runAhead: 0 })
  const sampling = { ...GREEDY, minTokens: 1 }
  const [seq] = d.add(request('a', prompt(5), { sampling, stopTokenIds: Int32Array.of(9) }))
  for (const finish of [null, 'stop']) {
    const { stepId } = d.scheduler.plan(0)!
    const timings = { queueUs: 0, runUs: 0 }
    const events = d.scheduler.complete(
      { stepId, tokens: Int32Array.of(9), logprobs: [], logits: new Float32Array(0), timings },
      0,
    )
    expect(events.finish[0]).toBe(finish)
  }
  expect([...seq!.output]).toEqual([9, 9])
})

describe('stats', () => {
  it('tell how full the used pages are', () => {
    const d = new Driver({ pageSize: 4, numPages: 16 }, { runAhead: 0 })
    d.add(request('a', prompt(6), { maxTokens: 20, ...EXACT }))
    d.submitAll()
    expect(d.scheduler.stats()).toMatchObject({
      running: 1,
      waiting: 0,
      pagesUsed: 2,
      pagesFree: 14,
      pagesTotal: 16,
      kvUtilization: 0.75,
    })
    d.scheduler.abort('a')
    d.runToEnd()
    expect(d.scheduler.stats()).toMatchObject({ running: 0, kvUtilization: 0, prefillTokens: 6, steps: 1 })
  })
})
