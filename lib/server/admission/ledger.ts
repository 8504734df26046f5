/** What was let in and has not ended, as far as admission can tell from outside of the scheduler. */
import type { LLMLoad } from '../../llm'
import type { RequestFacts } from '../seams'
import type { Decoding, Prompt } from './forecast'
import { OutputLengths } from './output_lengths'

export interface Entry {
  readonly facts: RequestFacts
  readonly order: number
  /** When all of it had come, and when it was asked about. */
  readonly cameAt: number
  readonly askedAt: number
  readonly deadlineAt: number
  /** It was promised a first token in time. */
  readonly promised: boolean
  /** Tokens of its prompts that steps must be given, less what the prefix cache is expected to have. */
  readonly size: number
  left: number
  /** Expected, per choice. */
  readonly output: number
  /** When its first token came; NaN before. */
  firstAt: number
  /** Tokens of all choices. */
  produced: number
  /** ms from its admission to its first token, not corrected; NaN where none was made. */
  forecastMs: number
}

/** In which order prompts run: the scheduler's, but for the urgency that comes with waiting. Negative: `a` first. */
export function before(a: Entry, b: Entry): number {
  const urgency = a.facts.priority - b.facts.priority
  if (urgency !== 0) return urgency
  if (a.deadlineAt !== b.deadlineAt) return a.deadlineAt - b.deadlineAt
  return a.order - b.order
}

export class Ledger {
  private readonly decoding = new Set<Entry>()
  /** Counts what changes a forecast for a request behind all others, but for the passing of time and the steps of the scheduler. */
  version = 0
  /** Sorted. */
  readonly waiting: Entry[] = []
  private arrivals = 0
  private readonly lengths = new OutputLengths()
  /** Of prompts, the share that the prefix cache has. */
  private cachedShare = 0
  private seen: Pick<LLMLoad, 'prefillTokens' | 'prefixQueryTokens' | 'prefixHitTokens'> | undefined

  /** Brings the ledger up to what the scheduler has done. */
  advance(load: LLMLoad): void {
    const { seen } = this
    if (seen !== undefined) {
      const queried = load.prefixQueryTokens - seen.prefixQueryTokens
      if (queried > 0) {
        const share = (load.prefixHitTokens - seen.prefixHitTokens) / queried
        const weight = Math.min(queried / 10_000, 0.2)
        this.cachedShare += weight * (share - this.cachedShare)
      }
      let done = load.prefillTokens - seen.prefillTokens
      for (const entry of this.waiting) {
        if (done <= 0) break
        const part = Math.min(entry.left, done)
        entry.left -= part
        done -= part
      }
    }
    const { prefillTokens, prefixQueryTokens, prefixHitTokens } = load
    this.seen = { prefillTokens, prefixQueryTokens, prefixHitTokens }
  }

  entry(facts: RequestFacts, promised: boolean, now: number): Entry {
    const size = Math.max(Math.round(facts.promptTokens * (1 - this.cachedShare)), 1)
    return {
      facts,
      order: this.arrivals++,
      cameAt: now - (facts.waitedMs ?? 0),
      askedAt: now,
      deadlineAt: facts.deadlineMs === undefined ? Infinity : now + facts.deadlineMs,
      promised,
      size,
      left: size,
      output: this.lengths.expectedLeft(0, facts.maxTokens),
      firstAt: NaN,
      produced: 0,
      forecastMs: NaN,
    }
  }

  /** Where the entry is, or would be, among the waiting. */
  position(entry: Entry): number {
    let at = this.waiting.length
    while (at > 0 && before(entry, this.waiting[at - 1]!) < 0) at--
    return at
  }

  add(entry: Entry): void {
    this.version++
    this.waiting.splice(this.position(entry), 0, entry)
  }

  firstToken(entry: Entry, now: number): void {
    this.version++
    entry.firstAt = now
    this.unqueue(entry)
    this.decoding.add(entry)
  }

  end(entry: Entry): void {
    this.version++
    this.unqueue(entry)
    this.decoding.delete(entry)
    if (entry.produced > 0) this.lengths.observe(entry.produced / entry.facts.n, entry.facts.maxTokens)
  }

  private unqueue(entry: Entry): void {
    const at = this.waiting.indexOf(entry)
    if (at >= 0) this.waiting.splice(at, 1)
  }

  /** @param yields entries that give way */
  decodes(yields: (entry: Entry) => boolean): Decoding[] {
    const all: Decoding[] = []
    for (const entry of this.decoding) {
      const { facts, produced, size } = entry
      const left = this.lengths.expectedLeft(produced / facts.n, facts.maxTokens)
      all.push({ rows: facts.n, left, held: size + produced, yields: yields(entry) })
    }
    return all
  }

  prompts(entries: readonly Entry[]): Prompt[] {
    return entries.map(({ facts, left, size, output }) => ({ rows: facts.n, left, size, output }))
  }
}
