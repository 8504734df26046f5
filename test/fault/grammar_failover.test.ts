/** Outputs under grammars go on when their backend dies, when steps fail, and when the thread that follows them is lost. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import '../unit/matchers'
import { type Executor, type GenerateOptions, type GenerationResult, type Grammar, LLM } from '../../lib'
import { checkGrammar, GrammarEngine, MatcherStatus, type OutputMatcher, readVocabulary } from '../../lib/grammar'
import { graphFromConfig } from '../../lib/models'
import { CpuBackend } from '../../lib/native'
import { Tokenizer } from '../../lib/text'
import { DyingExecutor } from './dying_executor'
import { FaultyExecutor } from './faulty_executor'

const folder = resolve(__dirname, '..', '..', 'models', 'tiny-storyteller')
const json = (file: string): never => JSON.parse(readFileSync(join(folder, file), 'utf8')) as never
const tokenizer = new Tokenizer(json('tokenizer.json'), json('tokenizer_config.json'))

function cpu(numPages = 512): Promise<Executor> {
  return CpuBackend.create({
    graph: graphFromConfig(json('config.json')),
    files: [join(folder, 'model.safetensors')],
    pageSize: 16, numPages, maxSlots: 32, maxStepTokens: 256, threads: 0, simd: '',
  })
}

const GRAMMARS: Grammar[] = [
  { jsonSchema: { type: 'object', properties: { name: { type: 'string', maxLength: 20 }, age: { type: 'integer', minimum: 0, maximum: 120 } }, required: ['name', 'age'] }, whitespace: 1 },
  { regex: '[A-Z][a-z]{2,8}( [a-z]{1,8}){2,5}\\.' },
  { choice: ['a very long choice of many words', 'a very long choice of other words'] },
]
const requests = Array.from({ length: 24 }, (_, i): GenerateOptions => {
  const common = { prompt: 'Once upon a time', temperature: 1, seed: i, maxTokens: 120 }
  return i % 4 === 3 ? { ...common, ignoreEos: true, maxTokens: 40 } : { ...common, grammar: GRAMMARS[i % 4]!, n: i % 8 === 0 ? 2 : 1 }
})

const open: LLM[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})
const serve = (executor: Executor, options: Parameters<typeof LLM.fromExecutor>[1] = {}): LLM => {
  const llm = LLM.fromExecutor(executor, { tokenizer, onWarning: () => {}, ...options })
  open.push(llm)
  return llm
}
const run = (llm: LLM): Promise<GenerationResult[]> => Promise.all(requests.map((request) => llm.generate(request).result()))
const tokensOf = (results: readonly GenerationResult[]): number[][][] => results.map(({ choices }) => choices.map(({ tokens }) => tokens))

let calm: GenerationResult[]
beforeAll(async () => {
  const llm = serve(await cpu())
  calm = await run(llm)
  expect(calm.filter(({ finishReason }, i) => i % 4 !== 3 && finishReason === 'stop').length).toBe(18)
})

describe('the backend', () => {
  it.each([
    [0, 'ERR_CUDA'],
    [7, 'ERR_CUDA'],
    [20, 'submit'],
    [33, 'ERR_BACKEND_DEAD'],
  ] as const)('dies at step %i by %s: outputs are those of a calm run', async (at, how) => {
    const first = new DyingExecutor(await cpu(), at, how)
    const llm = serve(first, { failover: () => cpu(64) })
    expect(tokensOf(await run(llm))).toEqual(tokensOf(calm))
    expect(llm.stats().failovers).toBe(1)
    await expect.poll(() => llm.stats().kv.usedPages).toBe(0)
    llm.check()
  })

  it('and the one that takes over has no masks: these requests fail, the others go on', async () => {
    const llm = serve(new DyingExecutor(await cpu(), 5), {
      failover: async () => {
        const executor = await cpu()
        return { info: executor.info, start: (to) => executor.start(to), openSlot: (init) => executor.openSlot(init), closeSlot: (slot) => executor.closeSlot(slot), submit: (step) => executor.submit(step), close: () => executor.close() }
      },
    })
    const outcomes = await Promise.allSettled(requests.map((request) => llm.generate(request).result()))
    outcomes.forEach((outcome, i) => {
      if (i % 4 === 3) expect((outcome as PromiseFulfilledResult<GenerationResult>).value.tokens).toEqual(calm[i]!.tokens)
      else if (outcome.status === 'rejected') expect(outcome.reason).toHaveCode('ERR_INVALID_ARGUMENT', /takes no token masks/)
    })
    await expect.poll(() => llm.stats().kv.usedPages).toBe(0)
    llm.check()
  })

  it('fails steps now and then: they run again', async () => {
    const llm = serve(new FaultyExecutor(await cpu(), (step) => (step % 6 === 5 ? { retryable: true } : undefined)), { retries: 1000 })
    expect(tokensOf(await run(llm))).toEqual(tokensOf(calm))
    expect(llm.stats().retries).toBeGreaterThan(0)
    await expect.poll(() => llm.stats().kv.usedPages).toBe(0)
    llm.check()
  })
})

/** Follows the most probable way through a mask that has no probabilities: the lowest token, or the end. */
function follow(engine: GrammarEngine, grammar: Grammar, onToken?: (count: number) => void): Promise<string> {
  return new Promise((resolve, reject) => {
    const tokens: number[] = []
    const onReady = (matcher: OutputMatcher): void => {
      if (matcher.status !== MatcherStatus.CONTINUES || tokens.length === 200) {
        matcher.close()
        resolve(tokenizer.decode(tokens))
        return
      }
      const words = matcher.mask!
      const word = words.findIndex((bits) => bits !== 0)
      const token = 32 * word + (31 - Math.clz32(words[word]! & -words[word]!))
      tokens.push(token)
      matcher.accept(token)
      engine.flush()
      onToken?.(tokens.length)
    }
    try {
      engine.open(checkGrammar(grammar), { onReady, onFailure: (_, error) => reject(error) })
    } catch (error) {
      reject(error as Error)
    }
  })
}

describe('the threads that follow outputs', () => {
  const engines: GrammarEngine[] = []
  afterEach(async () => {
    for (const engine of engines.splice(0)) await engine.close()
  })
  const start = (options: ConstructorParameters<typeof GrammarEngine>[1]): GrammarEngine => {
    const engine = new GrammarEngine(() => readVocabulary(tokenizer, tokenizer.vocabSize), options)
    engines.push(engine)
    return engine
  }
  const long: Grammar = { regex: '([a-c]{3} ){30}end' }
  // Parses in less than a second, is followed by the library's parser as it calls itself to the left, and compiles for more than a minute.
  const rules = Array.from({ length: 200 }, (_, i) => `r${i} ::= [^x]* "${i}" [a-z]{1,${20 + i}} [^y]{3,9}`)
  const slow: Grammar = { grammar: `root ::= left | ${rules.map((_, i) => `r${i}`).join(' | ')}\nleft ::= left "!" | "?"\n${rules.join('\n')}` }

  it('are replaced when a compilation on them takes too long, and the outputs go on', async () => {
    const engine = start({ threads: 1, timeoutMs: 5000 })
    const calmText = await follow(engine, long)
    let blocked: Promise<unknown> | undefined
    const text = await follow(engine, long, (count) => {
      if (count === 10) blocked = follow(engine, slow).catch((error: unknown) => error)
    })
    expect(text).toBe(calmText)
    expect(await blocked).toHaveCode('ERR_GRAMMAR_INVALID', /longer than 5000 ms/)
    expect(engine.stats().matchers).toBe(0)
  })

  it('keep no more grammars than they may, and compile them again when they are asked for', async () => {
    const engine = start({ threads: 2, cacheSize: 3 })
    const words = Array.from({ length: 12 }, (_, i) => `word${i}`)
    for (const word of [...words, ...words]) expect(await follow(engine, { choice: [word] })).toBe(word)
    expect(engine.stats().grammars).toBeLessThanOrEqual(3)
  })

  it('end when their memory has grown too far, and others take their place', async () => {
    const engine = start({ threads: 2, threadBytes: 1 })
    for (let i = 0; i < 4; i++) expect(await follow(engine, { choice: [`word${i}`] })).toBe(`word${i}`)
    expect(engine.stats()).toEqual({ threads: 0, grammars: 0, matchers: 0 })
  })

  it('follow many outputs of one grammar that is compiled once', async () => {
    const engine = start({ threads: 2 })
    const texts = await Promise.all(Array.from({ length: 40 }, () => follow(engine, long)))
    expect(new Set(texts).size).toBe(1)
    expect(engine.stats()).toMatchObject({ threads: 1, grammars: 1, matchers: 0 })
  })

  it('take no more when the engine is closed', async () => {
    const engine = start({})
    await engine.close()
    await expect(follow(engine, long)).rejects.toHaveCode('ERR_DISPOSED')
  })
})
