/**
 * The thread that compiles grammars and follows outputs, as both take milliseconds for large vocabularies. Started by
 * grammar_thread.ts alone.
 *
 * Wherever the library finds something wrong it ends, without an exception to be caught: the thread says so, and is replaced.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { AutomatonMasks } from './automaton_masks'
import { printsFaithfully, readNetwork } from './byte_network'
import { AutomatonMatcher, LibraryMatcher, type Matcher } from './matchers'
import { type GrammarAnswer, type GrammarRequest, type GrammarThreadData, MatcherStatus, type OpenMatcher, type VocabularyData } from './messages'
import { Pushdown, PushdownOverflow } from './pushdown'
import type { GrammarSource } from './specification'
import { buildTries } from './token_trie'
import { type CompiledGrammar, type GrammarCompiler, loadXGrammar, type ParsedGrammar, type XGrammar } from './xgrammar'

/** Masks that are ready go out after this time, in ms, although others of the same batch are not. */
const FLUSH_MS = 0.5

const port = parentPort!
const { vocabulary, busyWith } = workerData as GrammarThreadData
let lastWords = ''

/** @param matcher 0: with none */
function setBusy(matcher: number): void {
  Atomics.store(busyWith, 0, matcher)
}

function answer(message: GrammarAnswer): void {
  port.postMessage(message)
}

/** The library's own message, without where in its source it stands. */
function reasonOf(error: unknown): string {
  const said = /^\[FATAL\] (?:\S+:\d+: )?(?:Check failed: \(.*?\) is false: )?(.*)$/s.exec(lastWords)?.[1]
  if (said !== undefined && said.trim() !== '') return said.trim()
  // Exceptions of C++ come as addresses, which say nothing.
  return error instanceof Error ? `it is too large or nested too deeply (${error.message})` : 'it is not well-formed'
}

function parse(library: XGrammar, { kind, text }: GrammarSource): ParsedGrammar {
  return kind === 'ebnf' ? library.Grammar.FromEBNF(text, 'root') : library.Grammar.FromStructuralTag(text)
}

/**
 * The tokens as the library takes them. One more than the model has stands for the end of the output: its bit in a mask says
 * that the output is complete.
 */
function createCompiler(library: XGrammar, { bytes, offsets, size }: VocabularyData): GrammarCompiler {
  const tokens: Uint8Array[] = []
  // Copies: the library does not read shared memory.
  for (let id = 0; id < size; id++) tokens.push(bytes.slice(offsets[id], offsets[id + 1]))
  tokens.push(new Uint8Array(0))
  const strings = library.vecStringFromJSArray(tokens)
  const stop = library.vecIntFromJSArray([size])
  const info = new library.TokenizerInfo(strings, 'RAW', size + 1, stop, false)
  strings.delete()
  stop.delete()
  const compiler = new library.GrammarCompiler(info, 1, false)
  info.delete()
  return compiler
}

/** A grammar, to be followed by its automaton, or as the library compiles it. */
class FollowedGrammar {
  private readonly automaton: Pushdown | undefined
  private readonly compiled: CompiledGrammar | undefined

  constructor(
    private readonly library: XGrammar,
    private readonly tools: Tools,
    source: GrammarSource,
    byLibrary: boolean,
  ) {
    const parsed = parse(library, source)
    this.automaton = byLibrary ? undefined : automatonOf(parsed, source)
    if (this.automaton === undefined) this.compiled = tools.compiler().CompileGrammar(parsed)
    else tools.masks.add(this.automaton)
    parsed.delete()
  }

  matcher(mask: Int32Array): Matcher {
    const { automaton, compiled, library, tools } = this
    if (automaton !== undefined) return new AutomatonMatcher(automaton, tools.masks, tokenBytes, mask)
    return new LibraryMatcher(library, compiled!, mask, vocabulary!.size)
  }

  delete(): void {
    this.compiled?.delete()
    if (this.automaton !== undefined) this.tools.masks.remove(this.automaton)
  }
}

/** @returns undefined where only the library can follow it */
function automatonOf(parsed: ParsedGrammar, { kind, text }: GrammarSource): Pushdown | undefined {
  const isEbnf = kind === 'ebnf'
  if (!printsFaithfully(text, isEbnf)) return undefined
  const network = readNetwork(parsed.ToString(), isEbnf ? 'root' : undefined)
  if (network === undefined) return undefined
  const automaton = new Pushdown(network)
  return statusOf(() => {
    automaton.start()
    return undefined
  }) === undefined ? automaton : undefined
}

/** @returns UNFIT where the automaton has given up */
function statusOf<T extends MatcherStatus | undefined>(act: () => T): T | typeof MatcherStatus.UNFIT {
  try {
    return act()
  } catch (error) {
    if (error instanceof PushdownOverflow) return MatcherStatus.UNFIT
    throw error
  }
}

function tokenBytes(token: number): Uint8Array {
  const { bytes, offsets } = vocabulary!
  return bytes.subarray(offsets[token], offsets[token + 1])
}

/** What all grammars of a vocabulary share. */
interface Tools {
  readonly masks: AutomatonMasks
  /** Made when it is first needed, as it takes time and memory. */
  compiler(): GrammarCompiler
}

function createTools(library: XGrammar, data: VocabularyData): Tools {
  let compiler: GrammarCompiler | undefined
  return {
    masks: new AutomatonMasks(buildTries(data), Math.ceil(data.size / 32)),
    compiler: () => (compiler ??= createCompiler(library, data)),
  }
}

class GrammarWorker {
  private readonly tools: Tools | undefined
  private readonly grammars = new Map<number, FollowedGrammar>()
  private readonly matchers = new Map<number, Matcher>()

  constructor(private readonly library: XGrammar) {
    if (vocabulary !== null) this.tools = createTools(library, vocabulary)
  }

  handle(request: GrammarRequest): void {
    setBusy(0)
    switch (request.kind) {
      case 'parse':
        this.make(request.id, () => parse(this.library, request.source).delete())
        break
      case 'compile':
        this.make(request.id, () => {
          this.grammars.set(request.id, new FollowedGrammar(this.library, this.tools!, request.source, request.byLibrary))
        })
        break
      case 'drop':
        this.grammars.get(request.id)?.delete()
        this.grammars.delete(request.id)
        break
      case 'open':
        this.open(this.grammars.get(request.id)!, request.matchers)
        break
      case 'accept':
        this.accept(request.entries)
        break
      case 'close':
        for (const id of request.matchers) {
          this.matchers.get(id)?.delete()
          this.matchers.delete(id)
        }
    }
    setBusy(0)
  }

  private make(id: number, work: () => void): void {
    lastWords = ''
    try {
      work()
    } catch (error) {
      answer({ kind: 'failed', id, message: reasonOf(error) })
      return
    }
    answer({ kind: 'done', id, memoryBytes: this.library.HEAP8.byteLength + (this.tools?.masks.memoryBytes ?? 0) })
  }

  private open(grammar: FollowedGrammar, opened: readonly OpenMatcher[]): void {
    const entries = new Int32Array(2 * opened.length)
    for (const [i, { matcher: id, mask, tokens }] of opened.entries()) {
      setBusy(id)
      entries[2 * i] = id
      entries[2 * i + 1] = statusOf(() => {
        const matcher = grammar.matcher(mask)
        this.matchers.set(id, matcher)
        return tokens.every((token) => matcher.accept(token)) ? matcher.fill() : MatcherStatus.REFUSED
      })
    }
    answer({ kind: 'masks', entries })
  }

  /** Masks that are known already go out first: who needs them must not wait for those that have to be made. */
  private accept(entries: Int32Array): void {
    const known: number[] = []
    const slow: { id: number; matcher: Matcher }[] = []
    for (let i = 0; i < entries.length; i += 2) {
      const id = entries[i]!
      const matcher = this.matchers.get(id)
      setBusy(id)
      const status = statusOf(() => {
        if (matcher?.accept(entries[i + 1]!) !== true) return MatcherStatus.REFUSED
        return matcher.quick ? matcher.fill() : undefined
      })
      if (status === undefined) slow.push({ id, matcher: matcher! })
      else known.push(id, status)
    }
    if (known.length > 0) answer({ kind: 'masks', entries: Int32Array.from(known) })
    let made: number[] = []
    let started = performance.now()
    for (const { id, matcher } of slow) {
      setBusy(id)
      made.push(id, statusOf(() => matcher.fill()))
      if (performance.now() - started < FLUSH_MS) continue
      answer({ kind: 'masks', entries: Int32Array.from(made) })
      made = []
      started = performance.now()
    }
    if (made.length > 0) answer({ kind: 'masks', entries: Int32Array.from(made) })
  }
}

void (async () => {
  const library = await loadXGrammar((line) => {
    if (line.startsWith('[FATAL]')) lastWords = line
  })
  const worker = new GrammarWorker(library)
  port.on('message', (request: GrammarRequest) => worker.handle(request))
  answer({ kind: 'ready' })
})()
