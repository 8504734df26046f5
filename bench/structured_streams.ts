/**
 * Many outputs under grammars at once, with a vocabulary of 128k tokens, beside a clock that stands for a GPU: how many tokens a
 * second come of it, against the same without grammars. Tokens are drawn at random from what the masks allow, those that end a
 * part of JSON more often than their number would have it.
 *
 *     npx tsx bench/structured_streams.ts [--streams 64] [--step-ms 12] [--seconds 8]
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { type Grammar, LLM } from '../lib'
import { seededRandom } from '../lib/llm'
import { type Executor, type ExecutorInfo, STEP_HEADER_INTS, STEP_SEQUENCE_INTS, StepFlag, type StepResult } from '../lib/scheduler'
import { Tokenizer } from '../lib/text'
import { largeVocabulary } from './large_vocabulary'
import { describeMachine } from './machine'

const { values: flags } = parseArgs({
  options: { streams: { type: 'string', default: '64' }, 'step-ms': { type: 'string', default: '12' }, seconds: { type: 'string', default: '8' } },
})
const streams = Number(flags.streams)
const stepMs = Number(flags['step-ms'])
const seconds = Number(flags.seconds)
const VOCABULARY = 128_256
const SPECIAL = 6
const MAX_TOKENS = 120

/** Tokens as files of byte-level BPE spell them: each byte is a character that can be seen. */
function spell(bytes: Buffer): string {
  let text = ''
  for (const byte of bytes) {
    const seen = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
    const hidden = byte <= 0x20 ? byte : byte <= 0xa0 ? byte - 0x7f + 0x21 : 0x43
    text += String.fromCharCode(seen ? byte : 0x100 + hidden)
  }
  return text
}

function makeTokenizer(tokens: readonly Buffer[]): Tokenizer {
  const folder = join(__dirname, '..', 'models', 'tiny-storyteller')
  const read = (file: string): Record<string, unknown> => JSON.parse(readFileSync(join(folder, file), 'utf8')) as Record<string, unknown>
  const json = read('tokenizer.json') as { added_tokens: { id: number; content: string }[]; model: { vocab: Record<string, number>; merges: unknown[] } }
  json.model.vocab = Object.fromEntries([...json.added_tokens.map(({ content, id }) => [content, id] as const), ...tokens.map((token, i) => [spell(token), SPECIAL + i] as const)])
  json.model.merges = []
  return new Tokenizer(json, read('tokenizer_config.json'))
}

class MaskedClock implements Executor {
  readonly info: ExecutorInfo
  steps = 0
  private readonly random = seededRandom(1)
  private readonly masks = new Map<number, Int32Array>()
  private endsAt = 0
  private onResult: (result: StepResult) => void = () => {}

  /** @param endings tokens that end parts of JSON */
  constructor(private readonly endings: Int32Array) {
    this.info = {
      name: 'clock', device: 'a clock', batchInvariant: true, maxPositions: 8192, pageSize: 16, numPages: 65_536, kvCacheBytes: 0, weightBytes: 0,
      vocabSize: VOCABULARY, maxSlots: streams, maxStepTokens: 8192,
    }
  }

  start(onResult: (result: StepResult) => void): void {
    this.onResult = onResult
  }

  openSlot(): void {}

  closeSlot(slot: number): void {
    this.masks.delete(slot)
  }

  setMask(slot: number, mask: Int32Array | null): void {
    if (mask === null) this.masks.delete(slot)
    else this.masks.set(slot, mask.slice())
  }

  submit(packed: Int32Array): void {
    const tokens: number[] = []
    for (let row = 0, at = STEP_HEADER_INTS; row < packed[2]!; row++, at += STEP_SEQUENCE_INTS) {
      if ((packed[at + 4]! & StepFlag.SAMPLE) !== 0) tokens.push(this.sample(this.masks.get(packed[at]!)))
    }
    const stepId = packed[1]!
    this.steps++
    this.endsAt = Math.max(performance.now(), this.endsAt) + stepMs
    const result: StepResult = { stepId, tokens: Int32Array.from(tokens), logprobs: [], logits: new Float32Array(0), timings: { queueUs: 0, runUs: 1000 * stepMs } }
    setTimeout(() => this.onResult(result), this.endsAt - performance.now())
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  private sample(mask: Int32Array | undefined): number {
    const allows = (token: number): boolean => mask === undefined || (mask[token >> 5]! & (1 << (token & 31))) !== 0
    if (mask !== undefined && this.random() < 0.15) {
      const from = Math.floor(this.random() * this.endings.length)
      for (let i = 0; i < this.endings.length; i++) {
        const token = this.endings[(from + i) % this.endings.length]!
        if (allows(token)) return token
      }
    }
    for (let i = 0; i < 8; i++) {
      const token = SPECIAL + Math.floor(this.random() * (VOCABULARY - SPECIAL))
      if (allows(token)) return token
    }
    const words = mask!.length
    for (let i = 0, word = Math.floor(this.random() * words); i < words; i++, word = (word + 1) % words) {
      if (mask![word] !== 0) return 32 * word + (31 - Math.clz32(mask![word]! & -mask![word]!))
    }
    throw new Error('the mask allows nothing')
  }
}

const person = (n: number): Grammar => ({
  jsonSchema: {
    type: 'object',
    properties: {
      [`name${n}`]: { type: 'string', maxLength: 40 }, age: { type: 'integer', minimum: 0, maximum: 120 }, tags: { type: 'array', items: { type: 'string' }, maxItems: 5 },
      address: { type: 'object', properties: { street: { type: 'string' }, code: { type: 'string', pattern: '[0-9]{5}' } }, required: ['street', 'code'] },
      kind: { enum: ['person', 'company'] }, score: { type: 'number' },
    },
    required: [`name${n}`, 'age', 'tags', 'address', 'kind', 'score'],
  },
})
const SCENARIOS: Record<string, (request: number) => Grammar | undefined> = {
  'no grammar': () => undefined,
  'one schema': () => person(0),
  'any JSON object': () => ({ json: true }),
  'a schema per stream': (request) => person(request % streams),
  'a new schema per request': (request) => person(1000 + request),
}

async function main(): Promise<void> {
  const words = largeVocabulary(VOCABULARY - SPECIAL)
  const tokenizer = makeTokenizer(words)
  const endings = Int32Array.from(words.flatMap((bytes, i) => (/^[^"]*["\]}]+[,:}\]"]*$/.test(bytes.toString('latin1')) ? [SPECIAL + i] : [])))
  const { date, cpu, cores, node } = describeMachine()
  console.log(`${date}, ${cores} cores of ${cpu}, Node ${node}; ${streams} streams, ${stepMs} ms a step, ${VOCABULARY} tokens\n`)
  console.log('| outputs | tokens/s | of what the clock allows | requests | the first request, ms | first token, ms: p50 | p99 | event loop delay, ms: p99 |\n| --- | --- | --- | --- | --- | --- | --- | --- |')
  for (const [name, grammarOf] of Object.entries(SCENARIOS)) {
    const executor = new MaskedClock(endings)
    const llm = LLM.fromExecutor(executor, { tokenizer, onWarning: () => {} })
    // Threads start, and read the vocabulary, with the first request under a grammar.
    const began = performance.now()
    const warm = grammarOf(0)
    await llm.generate({ prompt: 'a', maxTokens: 1, ...(warm === undefined ? {} : { grammar: warm }) }).result()
    const startMs = performance.now() - began
    const until = performance.now() + 1000 * seconds
    const firsts: number[] = []
    let [tokens, requests] = [0, 0]
    const delay = monitorEventLoopDelay({ resolution: 2 })
    delay.enable()
    await Promise.all(
      Array.from({ length: streams }, async () => {
        while (performance.now() < until) {
          const sent = performance.now()
          const grammar = grammarOf(requests++)
          let first = true
          for await (const chunk of llm.generate({ prompt: 'a', maxTokens: MAX_TOKENS, ignoreEos: true, ...(grammar === undefined ? {} : { grammar }) })) {
            if (first) firsts.push(performance.now() - sent)
            first = false
            if (performance.now() < until) tokens += chunk.tokens.length
          }
        }
      }),
    )
    delay.disable()
    await llm.close()
    firsts.sort((a, b) => a - b)
    const rate = tokens / seconds
    const at = (share: number): string => firsts[Math.min(firsts.length - 1, Math.floor(share * firsts.length))]!.toFixed(0)
    console.log(`| ${name} | ${rate.toFixed(0)} | ${((100 * rate * stepMs) / (1000 * streams)).toFixed(0)}% | ${requests} | ${startMs.toFixed(0)} | ${at(0.5)} | ${at(0.99)} | ${(delay.percentile(99) / 1e6).toFixed(0)} |`)
  }
}

void main()
