/**
 * Compiles grammars and follows outputs under them, on threads. Nothing of it runs on the event loop but bookkeeping.
 *
 * A grammar is first parsed on a thread that has nothing else to do: the library ends at the first thing that it does not like,
 * and that takes its thread along. One that parses is compiled, if possible on a thread that follows no outputs, and stays
 * there; so do the outputs under it. A thread that crashes or falls silent is replaced, and its outputs go on elsewhere from
 * the tokens that they have. What was being compiled then is to blame, or the output that it was busy with.
 */
import { availableParallelism } from 'node:os'
import { TensorRTError } from '../errors'
import { invalidGrammar } from './grammar_error'
import { GrammarThread, type ThreadEnd, type ThreadEvents } from './grammar_thread'
import { MatcherStatus, type VocabularyData } from './messages'
import { type MatcherEvents, type MatcherOwner, OutputMatcher } from './output_matcher'
import { type GrammarSource, sourceKey } from './specification'

export interface GrammarEngineOptions {
  /** Milliseconds that parsing, compiling, or one mask may take. Default 10,000. */
  timeoutMs?: number | undefined
  /** Threads that compile and follow. Default: one less than there are processors, 2 to 4. */
  threads?: number | undefined
  /** Compiled grammars to keep. Default 128. */
  cacheSize?: number | undefined
  /** Bytes of memory, the library's and that of automata, beyond which a thread takes no new grammars, and ends with its last output. Default 512 MiB. */
  threadBytes?: number | undefined
}

type Stage = 'parsing' | 'compiling' | 'compiled'

interface Entry {
  readonly id: number
  readonly key: string
  readonly source: GrammarSource
  stage: Stage
  thread: GrammarThread | undefined
  readonly matchers: Set<OutputMatcher>
  /** Its automaton has turned out to be no way to follow outputs. */
  byLibrary: boolean
  /** How often a thread was lost that was busy with an output under this, or with none that is known. */
  losses: number
}

const MAX_LOSSES = 2
/** Grammars that are known to be bad. */
const REFUSED_SIZE = 256

export class GrammarEngine implements MatcherOwner {
  private readonly timeoutMs: number
  private readonly maxThreads: number
  private readonly cacheSize: number
  private readonly threadBytes: number
  /** By key, the one that was asked for last at the end. */
  private readonly entries = new Map<string, Entry>()
  private readonly byId = new Map<number, Entry>()
  private readonly followed = new Map<number, { matcher: OutputMatcher; entry: Entry }>()
  private readonly refused = new Map<string, TensorRTError>()
  private readonly toParse: Entry[] = []
  private readonly toCompile: Entry[] = []
  private parser: GrammarThread | undefined
  /** With the grammars that live there. */
  private readonly threads = new Map<GrammarThread, Set<Entry>>()
  private readonly dirty = new Set<GrammarThread>()
  private vocabulary: VocabularyData | undefined
  private loading = false
  private nextId = 1
  private closed = false
  private readonly events: ThreadEvents

  constructor(
    private readonly loadVocabulary: () => Promise<VocabularyData>,
    options: GrammarEngineOptions = {},
  ) {
    this.timeoutMs = options.timeoutMs ?? 10_000
    this.maxThreads = options.threads ?? Math.min(4, Math.max(2, availableParallelism() - 1))
    this.cacheSize = options.cacheSize ?? 128
    this.threadBytes = options.threadBytes ?? 512 * 1024 * 1024
    this.events = {
      onDone: (thread, job) => this.onDone(thread, job),
      onMasks: (thread, entries) => this.onMasks(thread, entries),
      onEnd: (thread, end) => this.onEnd(thread, end),
    }
  }

  /**
   * Starts to follow an output. Events come later, never from within.
   * @throws ERR_GRAMMAR_INVALID for a grammar that has been found bad before
   */
  open(source: GrammarSource, events: MatcherEvents): OutputMatcher {
    if (this.closed) throw new TensorRTError('ERR_DISPOSED', 'The LLM is closed')
    const key = sourceKey(source)
    const known = this.refused.get(key)
    if (known !== undefined) throw invalidGrammar(known.message)
    let entry = this.entries.get(key)
    if (entry === undefined) {
      entry = { id: this.nextId++, key, source, stage: 'parsing', thread: undefined, matchers: new Set(), byLibrary: false, losses: 0 }
      this.byId.set(entry.id, entry)
      this.toParse.push(entry)
    }
    this.entries.delete(key)
    this.entries.set(key, entry)
    const matcher = new OutputMatcher(this.nextId++, this, events)
    entry.matchers.add(matcher)
    this.followed.set(matcher.id, { matcher, entry })
    if (entry.stage === 'compiled') this.openOn(entry, [matcher])
    // While the first grammar is parsed.
    if (this.vocabulary === undefined && !this.loading) void this.load()
    this.evict()
    this.pump()
    return matcher
  }

  send(matcher: OutputMatcher, token: number): void {
    const thread = this.followed.get(matcher.id)?.entry.thread
    if (thread === undefined) return
    matcher.due++
    thread.accept(matcher.id, token)
    this.dirty.add(thread)
  }

  /** Sends off the tokens that were accepted since the last call. */
  flush(): void {
    for (const thread of this.dirty) thread.flush()
    this.dirty.clear()
  }

  release(matcher: OutputMatcher): void {
    const entry = this.followed.get(matcher.id)?.entry
    if (entry === undefined) return
    this.followed.delete(matcher.id)
    entry.matchers.delete(matcher)
    const { thread } = entry
    if (thread !== undefined) {
      thread.closeMatchers([matcher.id])
      if (entry.matchers.size === 0) this.retire(thread)
    } else if (entry.matchers.size === 0) {
      // Nobody waits for it any more. What a thread works on already is kept when it is done.
      if (remove(this.toParse, entry) || remove(this.toCompile, entry)) this.forget(entry)
    }
  }

  /** Threads, compiled grammars, outputs that are followed. */
  stats(): { threads: number; grammars: number; matchers: number } {
    return { threads: this.threads.size, grammars: this.entries.size, matchers: this.followed.size }
  }

  /** Ends the threads, without a word to the outputs that are followed. */
  async close(): Promise<void> {
    this.closed = true
    const threads = [...this.threads.keys(), ...(this.parser === undefined ? [] : [this.parser])]
    this.threads.clear()
    this.parser = undefined
    await Promise.all(threads.map((thread) => thread.close()))
  }

  // --- parsing and compiling ---

  private pump(): void {
    if (this.closed) return
    if (this.toParse.length > 0 && this.parser?.working !== true) {
      this.parser ??= new GrammarThread(null, this.timeoutMs, this.events)
      const { id, source } = this.toParse.shift()!
      this.parser.run({ kind: 'parse', id, source })
    }
    while (this.toCompile.length > 0) {
      const thread = this.threadForGrammar()
      if (thread === undefined) return
      const entry = this.toCompile.shift()!
      this.threads.get(thread)!.add(entry)
      thread.run({ kind: 'compile', id: entry.id, source: entry.source, byLibrary: entry.byLibrary })
    }
  }

  /** One without outputs, so that none waits meanwhile; else another one; else the one with the fewest. */
  private threadForGrammar(): GrammarThread | undefined {
    if (this.vocabulary === undefined) {
      if (!this.loading) void this.load()
      return undefined
    }
    let best: GrammarThread | undefined
    let fewest = Infinity
    for (const [thread, entries] of this.threads) {
      if (thread.working || thread.memoryBytes > this.threadBytes) continue
      let matchers = 0
      for (const entry of entries) matchers += entry.matchers.size
      if (matchers < fewest) [best, fewest] = [thread, matchers]
    }
    if (fewest === 0 || this.threads.size >= this.maxThreads) return best
    const thread = new GrammarThread(this.vocabulary, this.timeoutMs, this.events)
    this.threads.set(thread, new Set())
    return thread
  }

  private async load(): Promise<void> {
    this.loading = true
    try {
      this.vocabulary = await this.loadVocabulary()
    } catch (cause) {
      const error = new TensorRTError('ERR_INTERNAL', `The vocabulary cannot be read: ${(cause as Error).message}`, { cause })
      for (const entry of this.toCompile.splice(0)) this.fail(entry, error)
    } finally {
      this.loading = false
    }
    this.pump()
  }

  private onDone(thread: GrammarThread, job: number): void {
    const entry = this.byId.get(job)
    if (entry !== undefined) {
      if (thread === this.parser) {
        if (entry.matchers.size === 0) this.forget(entry)
        else {
          entry.stage = 'compiling'
          this.toCompile.push(entry)
        }
      } else {
        entry.stage = 'compiled'
        entry.thread = thread
        this.openOn(entry, [...entry.matchers])
        this.retire(thread)
      }
    }
    this.pump()
  }

  private openOn(entry: Entry, matchers: readonly OutputMatcher[]): void {
    if (matchers.length === 0) return
    const words = Math.ceil(this.vocabulary!.size / 32)
    const opened = matchers.map((matcher) => {
      matcher.due = 1
      const mask = new Int32Array(new SharedArrayBuffer(words * Int32Array.BYTES_PER_ELEMENT))
      matcher.nextMask = mask
      return { matcher: matcher.id, mask, tokens: Int32Array.from(matcher.tokens) }
    })
    entry.thread!.open({ kind: 'open', id: entry.id, matchers: opened })
  }

  // --- following ---

  private onMasks(thread: GrammarThread, entries: Int32Array): void {
    for (let i = 0; i < entries.length; i += 2) {
      const found = this.followed.get(entries[i]!)
      if (found === undefined || found.entry.thread !== thread) continue
      const { matcher } = found
      if (entries[i + 1] === MatcherStatus.UNFIT) {
        this.compileAgain(found.entry)
        continue
      }
      if (!matcher.arrived(entries[i + 1] as MatcherStatus)) continue
      if (matcher.status === MatcherStatus.STUCK) {
        this.failMatcher(matcher, invalidGrammar('No token of the vocabulary goes on with the output as the grammar asks'))
      } else if (matcher.status === MatcherStatus.REFUSED) {
        this.failMatcher(matcher, new TensorRTError('ERR_INTERNAL', 'A token was sampled that the grammar does not allow'))
      } else {
        matcher.events.onReady(matcher)
      }
    }
  }

  /** Its outputs go on from the tokens that they have when the library has compiled it. */
  private compileAgain(entry: Entry): void {
    const thread = entry.thread!
    entry.thread = undefined
    for (const matcher of entry.matchers) matcher.due = 0
    thread.closeMatchers([...entry.matchers].map(({ id }) => id))
    thread.drop(entry.id)
    this.threads.get(thread)?.delete(entry)
    entry.byLibrary = true
    entry.stage = 'compiling'
    this.toCompile.push(entry)
    // It may have been the last that was followed there.
    this.retire(thread)
    this.pump()
  }

  private failMatcher(matcher: OutputMatcher, error: TensorRTError): void {
    matcher.close()
    matcher.events.onFailure(matcher, error)
  }

  // --- the end of things ---

  private onEnd(thread: GrammarThread, { kind, message, job, matcher }: ThreadEnd): void {
    const lived = this.threads.get(thread) ?? new Set<Entry>()
    this.threads.delete(thread)
    this.dirty.delete(thread)
    if (thread === this.parser) this.parser = undefined
    // Where it was busy with an output, what was to be compiled had not begun, and no other output has to do with it.
    const blamed = job === undefined || matcher !== undefined ? undefined : this.byId.get(job)
    if (blamed !== undefined) lived.delete(blamed)
    const suspect = matcher === undefined ? undefined : this.followed.get(matcher)?.entry
    for (const entry of lived) {
      entry.thread = undefined
      for (const one of entry.matchers) one.due = 0
      if (entry.matchers.size === 0) {
        this.forget(entry)
      } else if (blamed === undefined && (matcher === undefined || entry === suspect) && ++entry.losses >= MAX_LOSSES) {
        this.fail(entry, invalidGrammar(`Outputs under the grammar cannot be followed: ${message}`))
      } else {
        entry.stage = 'compiling'
        this.toCompile.unshift(entry)
      }
    }
    if (blamed !== undefined) {
      const error =
        kind === 'start'
          ? new TensorRTError('ERR_INTERNAL', `The grammar library does not start: ${message}`)
          : invalidGrammar(`The grammar ${kind === 'crash' ? 'is too much for the compiler' : 'cannot be used'}: ${message}`)
      if (kind !== 'start') this.refuse(blamed.key, error)
      this.fail(blamed, error)
    }
    this.pump()
  }

  private refuse(key: string, error: TensorRTError): void {
    this.refused.set(key, error)
    if (this.refused.size > REFUSED_SIZE) this.refused.delete(this.refused.keys().next().value!)
  }

  private fail(entry: Entry, error: TensorRTError): void {
    this.forget(entry)
    for (const matcher of entry.matchers) this.failMatcher(matcher, error)
  }

  private forget(entry: Entry): void {
    if (this.entries.get(entry.key) === entry) this.entries.delete(entry.key)
    this.byId.delete(entry.id)
  }

  private evict(): void {
    for (const entry of this.entries.values()) {
      if (this.entries.size <= this.cacheSize) return
      if (entry.matchers.size === 0 && entry.stage === 'compiled') this.drop(entry)
    }
  }

  private drop(entry: Entry): void {
    this.forget(entry)
    this.threads.get(entry.thread!)?.delete(entry)
    entry.thread!.drop(entry.id)
  }

  /** A thread whose memory has grown too far ends when nothing is followed there any more. */
  private retire(thread: GrammarThread): void {
    const entries = this.threads.get(thread)
    if (entries === undefined || thread.memoryBytes <= this.threadBytes || thread.working) return
    for (const entry of entries) if (entry.matchers.size > 0) return
    for (const entry of entries) this.forget(entry)
    this.threads.delete(thread)
    void thread.close()
    this.pump()
  }
}

function remove<T>(list: T[], item: T): boolean {
  const at = list.indexOf(item)
  if (at >= 0) list.splice(at, 1)
  return at >= 0
}
