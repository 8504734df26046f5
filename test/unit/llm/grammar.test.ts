/** Outputs under grammars, on the CPU backend with the model of the repository. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import '../matchers'
import { type Executor, type GenerateOptions, type GenerationResult, type Grammar, LLM } from '../../../lib'
import { graphFromConfig } from '../../../lib/models'
import { CpuBackend } from '../../../lib/native'
import { PATIENTLY } from '../../support/patience'
import { runSchemas } from '../../support/structured_outputs'

const folder = resolve(__dirname, '..', '..', '..', 'models', 'tiny-storyteller')
const prompt = 'Once upon a time'
const PERSON: Grammar = {
  jsonSchema: {
    type: 'object',
    properties: { name: { type: 'string', maxLength: 20 }, age: { type: 'integer', minimum: 0, maximum: 120 } },
    required: ['name', 'age'],
  },
  whitespace: 2,
}

let llm: LLM
beforeAll(async () => {
  llm = await LLM.load(folder, { backend: 'cpu', maxSequences: 64 })
})
afterAll(() => llm.close())

const generate = (grammar: Grammar, options: Partial<GenerateOptions> = {}): Promise<GenerationResult> => {
  return llm.generate({ prompt, grammar, temperature: 1, seed: 1, maxTokens: 200, ...options } as GenerateOptions).result()
}

/** Everything has been given back. */
async function expectWhole(of: LLM = llm): Promise<void> {
  await vi.waitFor(() => expect(of.stats().kv.usedPages).toBe(0), PATIENTLY)
  of.check()
}

describe('an output', () => {
  it('is one of the choices', async () => {
    const choice = ['yes', 'no', 'maybe "so"', 'naïve 日本']
    const seen = new Set<string>()
    for (let seed = 0; seed < 12; seed++) {
      const { text, finishReason } = await generate({ choice }, { seed, temperature: 3 })
      expect(choice).toContain(text)
      expect(finishReason).toBe('stop')
      seen.add(text)
    }
    expect(seen.size).toBeGreaterThan(1)
  })

  it('matches a regular expression', async () => {
    for (const regex of ['[A-Z][a-z]{2,9} (likes|has) [0-9]{1,3} [a-z]{3,9}s\\.', '(a+)+b', '\\d{4}-\\d{2}-\\d{2}', '[^a-z]{3}']) {
      const { text, finishReason } = await generate({ regex })
      if (finishReason === 'stop') expect(text).toMatch(new RegExp(`^(?:${regex})$`, 'u'))
      else expect(regex).toBe('(a+)+b')
    }
  })

  it('follows a grammar in EBNF', async () => {
    const grammar = 'root ::= sum\nsum ::= number (" + " number)* " = " number\nnumber ::= [1-9] [0-9]{0,3}'
    expect((await generate({ grammar })).text).toMatch(/^[1-9]\d{0,3}( \+ [1-9]\d{0,3})* = [1-9]\d{0,3}$/)
  })

  it('is a JSON object, or the beginning of one', async () => {
    const { text, finishReason } = await generate({ json: true }, { maxTokens: 600, temperature: 0.7 })
    expect(text.trimStart().startsWith('{')).toBe(true)
    if (finishReason === 'stop') expect(typeof JSON.parse(text)).toBe('object')
  })

  it('has text and a part that follows a schema, by a structural tag', async () => {
    const content = { type: 'json_schema', json_schema: { type: 'array', items: { type: 'integer', minimum: 1, maximum: 6 }, minItems: 2, maxItems: 2 } }
    const { text } = await generate({ structuralTag: { type: 'tag', begin: '<dice>', content, end: '</dice>' } })
    const [, json] = /^<dice>(.*)<\/dice>$/s.exec(text)!
    expect(JSON.parse(json!)).toHaveLength(2)
  })

  it('streams the same text as it returns', async () => {
    const generation = llm.generate({ prompt, grammar: PERSON, temperature: 1, seed: 5, maxTokens: 200 })
    let streamed = ''
    let finish: string | undefined
    for await (const chunk of generation) {
      streamed += chunk.text
      finish = chunk.finishReason ?? finish
    }
    const { text } = await generation.result()
    expect(streamed).toBe(text)
    expect(finish).toBe('stop')
    expect(JSON.parse(text)).toMatchObject({ name: expect.any(String) as string })
  })

  it('is the same for the same seed, alone and among others, greedy or sampled', async () => {
    for (const temperature of [0, 1]) {
      const alone = await generate(PERSON, { seed: 9, temperature })
      const others = Array.from({ length: 20 }, (_, i) => generate(i % 2 === 0 ? { json: true } : PERSON, { seed: i, maxTokens: 60 }))
      const among = await generate(PERSON, { seed: 9, temperature })
      await Promise.all(others)
      expect(among.tokens).toEqual(alone.tokens)
    }
  })

  it('each choice of a request follows the grammar by itself', async () => {
    const { choices } = await generate(PERSON, { n: 6, logprobs: 1 })
    for (const { text, finishReason, tokens, logprobs } of choices) {
      expect(finishReason).toBe('stop')
      JSON.parse(text)
      expect(logprobs).toHaveLength(tokens.length)
    }
    expect(new Set(choices.map(({ text }) => text)).size).toBeGreaterThan(1)
    await expectWhole()
  })
})

describe('the end', () => {
  it('comes without a token for it where only the end is left, whatever else is asked', async () => {
    for (const options of [{}, { ignoreEos: true }, { minTokens: 50 }, { ignoreEos: true, minTokens: 50 }]) {
      const { text, finishReason, tokens } = await generate({ choice: ['yes', 'no'] }, options)
      expect(['yes', 'no']).toContain(text)
      expect(finishReason).toBe('stop')
      expect(tokens.length).toBeLessThan(5)
    }
  })

  it('minTokens and ignoreEos hold it off where the output may go on', async () => {
    const grammar: Grammar = { regex: '[a-z]+( [a-z]+)*' }
    const { tokens } = await generate(grammar, { minTokens: 40, maxTokens: 60 })
    expect(tokens.length).toBeGreaterThanOrEqual(40)
    const { finishReason, tokens: all } = await generate(grammar, { ignoreEos: true, maxTokens: 60 })
    expect(finishReason).toBe('length')
    expect(all).toHaveLength(60)
  })

  it('by maxTokens: a beginning', async () => {
    const { text, finishReason } = await generate({ regex: 'a{50}' }, { maxTokens: 3 })
    expect(finishReason).toBe('length')
    expect(text).toMatch(/^a+$/)
    expect((await generate({ regex: 'a{50}' }, { maxTokens: 0 })).text).toBe('')
  })

  it('by a stop string or a stop token within it', async () => {
    const stopped = await generate({ regex: 'one two three' }, { stop: 'two' })
    expect(stopped).toMatchObject({ text: 'one ', finishReason: 'stop' })
    const [token] = llm.tokenize(' two', { addSpecialTokens: false })
    expect(await generate({ regex: 'one two three' }, { stopTokenIds: [token!] })).toMatchObject({ finishReason: 'stop' })
    await expectWhole()
  })
})

describe('a bad grammar', () => {
  it.each<[name: string, grammar: Grammar, why: RegExp]>([
    ['EBNF that does not parse', { grammar: 'root ::= "a" |' }, /line 1/],
    ['EBNF without a root', { grammar: 'start ::= "a"' }, /root rule/],
    ['EBNF of nothing', { grammar: 'root ::= root' }, /No token/],
    ['a structural tag of an unknown kind', { structuralTag: { type: 'spell' } }, /not well-formed/],
    ['a regular expression that looks ahead', { regex: '(?=a)a' }, /looks ahead/],
    ['a schema with what cannot be kept', { jsonSchema: { type: 'array', uniqueItems: true } }, /uniqueItems/],
    ['a reference to itself', { jsonSchema: { $ref: '#' } }, /no value that ends/],
  ])('%s fails its own request', async (_, grammar, why) => {
    const good = Array.from({ length: 4 }, (_, seed) => generate(PERSON, { seed }))
    await expect(generate(grammar)).rejects.toHaveCode('ERR_GRAMMAR_INVALID', why)
    // The second time it is known.
    await expect(generate(grammar)).rejects.toHaveCode('ERR_GRAMMAR_INVALID', why)
    for (const { text } of await Promise.all(good)) JSON.parse(text)
    await expectWhole()
  })

  it('deep EBNF and what else is too much for the library does not end the process', async () => {
    const rules = Array.from({ length: 5000 }, (_, i) => `r${i} ::= "(" r${i + 1} ")" | r${i + 1}`).join('\n')
    const hostile: Grammar[] = [
      { grammar: `root ::= r0\n${rules}\nr5000 ::= "x"` },
      { grammar: `root ::= ${'"a"{0,1000} '.repeat(200)}` },
      { grammar: `root ::= ${'('.repeat(5000)}"a"${')'.repeat(5000)}` },
      { regex: `${'(a{0,9}b{0,9}){0,9}'.repeat(60)}` },
    ]
    const outcomes = await Promise.allSettled(hostile.map((grammar) => generate(grammar, { maxTokens: 20 })))
    for (const outcome of outcomes) if (outcome.status === 'rejected') expect(outcome.reason).toHaveCode('ERR_GRAMMAR_INVALID')
    JSON.parse((await generate(PERSON)).text)
    await expectWhole()
  }, 300_000)

  it('one that compiles for too long is given up, and others do not wait for it', async () => {
    const impatient = await LLM.load(folder, { backend: 'cpu', maxSequences: 16, grammarTimeoutMs: 10_000 })
    try {
      // Is followed by the library's parser, as it calls itself to the left, and compiles for minutes: on a machine of any speed longer than the limit.
      const rules = Array.from({ length: 500 }, (_, i) => `r${i} ::= [^x]* "${i}" [a-z]{1,${20 + i}} [^y]{3,9}`)
      const slow: Grammar = { grammar: `root ::= left | ${rules.map((_, i) => `r${i}`).join(' | ')}\nleft ::= left "!" | "?"\n${rules.join('\n')}` }
      await impatient.generate({ prompt, grammar: PERSON, maxTokens: 200, temperature: 1 }).result()
      let outcome = 'pending'
      const given = impatient.generate({ prompt, grammar: slow, maxTokens: 5 }).result().then(() => (outcome = 'done'), (error: { code: string }) => (outcome = error.code))
      let ticks = 0
      const timer = setInterval(() => ticks++, 10)
      const plain = await impatient.generate({ prompt, maxTokens: 30, temperature: 1 }).result()
      expect(plain.tokens.length).toBeGreaterThan(0)
      expect(outcome).toBe('pending')
      await given
      clearInterval(timer)
      expect(outcome).toBe('ERR_GRAMMAR_INVALID')
      // A thousand fit into the ten seconds; a compiler on this thread would let none pass.
      expect(ticks).toBeGreaterThan(50)
      JSON.parse((await impatient.generate({ prompt, grammar: PERSON, maxTokens: 200, temperature: 1 }).result()).text)
      await expectWhole(impatient)
    } finally {
      await impatient.close()
    }
  }, 300_000)
})

describe('requests under a grammar', () => {
  it('are aborted while the grammar is compiled, and while they run', async () => {
    // Of 500 letters, so that it takes more turns of the event loop than pass here: each token takes one.
    const unseen = (name: string): Grammar => ({ regex: `${name}[a-z]{500}` })
    for (const turns of [0, 1, 5, 20]) {
      const controller = new AbortController()
      const result = llm.generate({ prompt, grammar: unseen(`abort${turns}`), maxTokens: 400, ignoreEos: true, signal: controller.signal }).result()
      for (let i = 0; i < turns; i++) await turn()
      controller.abort(new Error('enough'))
      await expect(result).rejects.toMatchObject({ code: 'ABORT_ERR' })
    }
    const controller = new AbortController()
    const running = llm.generate({ prompt, grammar: unseen('running'), maxTokens: 400, ignoreEos: true, signal: controller.signal })
    const loop = (async () => {
      for await (const _ of running) controller.abort(new Error('enough'))
    })()
    await expect(loop).rejects.toMatchObject({ code: 'ABORT_ERR' })
    await expect(running.result()).rejects.toMatchObject({ code: 'ABORT_ERR' })
    const left = llm.generate({ prompt, grammar: unseen('left'), maxTokens: 400, ignoreEos: true })
    for await (const _ of left) break
    await expect(left.result()).rejects.toMatchObject({ code: 'ABORT_ERR' })
    await expectWhole()
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0 })
  })

  it('time out while the grammar is compiled', async () => {
    const result = llm.generate({ prompt, grammar: { regex: '([a-z]{1,300} ){1,80}timeout' }, timeoutMs: 0.001, maxTokens: 5 }).result()
    await expect(result).rejects.toHaveCode('ERR_TIMEOUT')
    await expectWhole()
  })

  it('64 at once, half of them under grammars: the others are as they are alone', async () => {
    const plain = (seed: number): GenerateOptions => ({ prompt, temperature: 1, seed, maxTokens: 60, ignoreEos: true })
    const expected = await Promise.all([3, 4].map((seed) => llm.generate(plain(seed)).result()))
    const grammars: Grammar[] = [PERSON, { regex: '[A-Z][a-z]+( [a-z]+){2,5}\\.' }, { choice: ['red', 'green', 'blue'] }, { json: true }]
    const results = await Promise.all(
      Array.from({ length: 64 }, (_, i) => {
        return i % 2 === 0 ? llm.generate(plain(i === 0 ? 3 : i === 2 ? 4 : i)).result() : generate(grammars[(i >> 1) % 4]!, { seed: i })
      }),
    )
    expect(results[0]!.tokens).toEqual(expected[0]!.tokens)
    expect(results[2]!.tokens).toEqual(expected[1]!.tokens)
    results.forEach(({ text, finishReason }, i) => {
      if (i % 8 === 1) JSON.parse(text)
      if (i % 8 === 3) expect(text).toMatch(finishReason === 'stop' ? /^[A-Z][a-z]+( [a-z]+){2,5}\.$/ : /^[A-Z]/)
      if (i % 8 === 5) expect(['red', 'green', 'blue']).toContain(text)
    })
    await expectWhole()
  })

  it('go on after they lost their pages', async () => {
    const cramped = await LLM.load(folder, { backend: 'cpu', maxSequences: 12, numPages: 24, pageSize: 8 })
    try {
      const tokens = llm.tokenize(prompt)
      const requests = Array.from({ length: 12 }, (_, seed): GenerateOptions => ({ tokens, grammar: PERSON, temperature: 1, seed, maxTokens: 150 }))
      const results = await Promise.all(requests.map((request) => cramped.generate(request).result()))
      expect(cramped.stats().preemptions).toBeGreaterThan(0)
      for (const [i, { text, tokens, finishReason }] of results.entries()) {
        if (finishReason === 'stop') JSON.parse(text)
        expect(tokens).toEqual((await llm.generate(requests[i]!).result()).tokens)
      }
      await expectWhole(cramped)
    } finally {
      await cramped.close()
    }
  })

  it('wait for a drain, and end with the LLM', async () => {
    const own = await LLM.load(folder, { backend: 'cpu', maxSequences: 4 })
    const drained = own.generate({ prompt, grammar: PERSON, temperature: 1, seed: 2, maxTokens: 200 }).result()
    await own.close({ drain: 600_000 })
    JSON.parse((await drained).text)
    const other = await LLM.load(folder, { backend: 'cpu', maxSequences: 4 })
    const cut = other.generate({ prompt, grammar: PERSON, temperature: 1, maxTokens: 200 }).result()
    cut.catch(() => {})
    await other.close()
    await expect(cut).rejects.toHaveCode('ERR_DISPOSED')
  })

  it('need a tokenizer, and an executor that takes masks', async () => {
    const create = (): Promise<Executor> =>
      CpuBackend.create({
        graph: graphFromConfig(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as never),
        files: [join(folder, 'model.safetensors')],
        pageSize: 16, numPages: 64, maxSlots: 4, maxStepTokens: 64, threads: 0, simd: '',
      })
    const bare = LLM.fromExecutor(await create())
    await expect(bare.generate({ tokens: [7], grammar: PERSON }).result()).rejects.toHaveCode('ERR_INVALID_ARGUMENT', /tokenizer/)
    await bare.close()
    const inner = await create()
    const maskless: Executor = {
      info: inner.info,
      start: (listener) => inner.start(listener),
      openSlot: (init) => inner.openSlot(init),
      closeSlot: (slot) => inner.closeSlot(slot),
      submit: (step) => inner.submit(step),
      close: () => inner.close(),
    }
    const plain = LLM.fromExecutor(maskless, { tokenizer: llm.tokenizer })
    await expect(plain.generate({ prompt, grammar: PERSON }).result()).rejects.toHaveCode('ERR_INVALID_ARGUMENT', /takes no token masks/)
    await plain.close()
  })

  it('"grammar" and "constrain" do not go together', async () => {
    const constrain = () => ({ mask: () => null, accept: () => {} })
    await expect(generate(PERSON, { constrain })).rejects.toHaveCode('ERR_INVALID_ARGUMENT', /not both/)
  })
})

it('random schemas: what is complete is valid, the rest a beginning', { timeout: 600_000 }, async () => {
  // With 32 at once, a slow machine may take long to come to the last.
  const patient = await LLM.load(folder, { backend: 'cpu', maxSequences: 64, grammarTimeoutMs: 300_000 })
  try {
    const run = await runSchemas(patient, { schemas: 150, seed: 7, concurrency: 32, maxTokens: 960, whitespace: 0 })
    expect(run.faults).toEqual([])
    expect(run.schemas).toBe(150)
    expect(run.complete / run.schemas).toBeGreaterThanOrEqual(0.95)
    await expectWhole(patient)
  } finally {
    await patient.close()
  }
})
