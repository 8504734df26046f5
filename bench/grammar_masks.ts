/**
 * What a mask costs, by size of vocabulary and kind of grammar: on the thread that makes it, and as the event loop sees it, from a
 * token to its mask. Synthetic vocabularies; outputs are drawn at random from what the masks allow, and as they are what is made once
 * is made within the first of them.
 *
 *   npx tsx bench/grammar_masks.ts
 */
import { cpus } from 'node:os'
import { checkGrammar, type Grammar, GrammarEngine, MatcherStatus } from '../lib/grammar'
import type { VocabularyData } from '../lib/grammar/messages'
import { quantiles, seededRandom } from '../lib/llm'
import { largeVocabulary } from './large_vocabulary'

const GRAMMARS: Record<string, Grammar> = {
  'json object': { json: true },
  'json schema': {
    jsonSchema: {
      type: 'object',
      properties: { name: { type: 'string', maxLength: 40 }, age: { type: 'integer', minimum: 0, maximum: 120 }, tags: { type: 'array', items: { type: 'string' }, maxItems: 5 }, kind: { enum: ['a', 'b'] } },
      required: ['name', 'age', 'tags', 'kind'],
    },
  },
  'regex, sentence': { regex: '[A-Z][a-z]+( [a-z]+)*\\.' },
  choice: { choice: ['yes, certainly', 'no, never', 'perhaps'] },
}

function vocabulary(size: number): VocabularyData {
  const all = largeVocabulary(size)
  const offsets = new Int32Array(new SharedArrayBuffer(4 * (size + 1)))
  all.forEach((token, i) => (offsets[i + 1] = offsets[i]! + token.length))
  const bytes = new Uint8Array(new SharedArrayBuffer(offsets[size]!))
  bytes.set(Buffer.concat(all))
  return { bytes, offsets, size }
}

interface Measured {
  firstMs: number
  us: number[]
}

function measure(engine: GrammarEngine, grammar: Grammar, tokens: number, seed: number): Promise<Measured> {
  return new Promise((resolve, reject) => {
    const random = seededRandom(seed)
    const us: number[] = []
    let sent = performance.now()
    let firstMs: number | undefined
    engine.open(checkGrammar(grammar), {
      onReady: (matcher) => {
        const took = performance.now() - sent
        if (firstMs === undefined) firstMs = took
        else us.push(1000 * took)
        if (matcher.status === MatcherStatus.ENDS || us.length >= tokens) {
          matcher.close()
          resolve({ firstMs, us })
          return
        }
        const allowed: number[] = []
        matcher.mask!.forEach((word, i) => {
          for (let bit = 0; bit < 32; bit++) if ((word & (1 << bit)) !== 0) allowed.push(32 * i + bit)
        })
        sent = performance.now()
        matcher.accept(allowed[Math.floor(random() * allowed.length)]!)
        engine.flush()
      },
      onFailure: (_, error) => reject(error),
    })
  })
}

async function main(): Promise<void> {
  process.stdout.write(`${new Date().toISOString()}, ${cpus()[0]!.model}, ${cpus().length} processors, Node ${process.version}\n`)
  process.stdout.write('| tokens | grammar | first mask, ms | token to mask, us: p50 | p90 | p99 |\n| --- | --- | --- | --- | --- | --- |\n')
  for (const size of [512, 128_256]) {
    const engine = new GrammarEngine(() => Promise.resolve(vocabulary(size)), { timeoutMs: 60_000 })
    await measure(engine, { choice: ['warm'] }, 5, 1)
    for (const [name, grammar] of Object.entries(GRAMMARS)) {
      const runs: Measured[] = []
      for (let seed = 0; runs.reduce((sum, { us }) => sum + us.length, 0) < 400 && seed < 60; seed++) runs.push(await measure(engine, grammar, 100, seed))
      const { p50, p90, p99 } = quantiles(runs.flatMap(({ us }) => us))
      process.stdout.write(`| ${size} | ${name} | ${runs[0]!.firstMs.toFixed(0)} | ${p50.toFixed(0)} | ${p90.toFixed(0)} | ${p99.toFixed(0)} |\n`)
    }
    await engine.close()
  }
}

void main()
