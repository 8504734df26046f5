/**
 * The thread that compiles grammars and follows outputs, as both take milliseconds for large vocabularies. Started by
 * grammar_thread.ts alone.
 *
 * Wherever the library finds something wrong it ends, without an exception to be caught: the thread says so, and is replaced.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { type GrammarAnswer, type GrammarRequest, type GrammarThreadData, MatcherStatus, type OpenMatcher, type VocabularyData } from './messages'
import type { GrammarSource } from './specification'
import { type CompiledGrammar, type GrammarCompiler, type GrammarMatcher, loadXGrammar, type ParsedGrammar, type XGrammar } from './xgrammar'

/** Masks that are ready go out after this time, in ms, although others of the same batch are not. */
const FLUSH_MS = 0.5

const port = parentPort!
const { vocabulary } = workerData as GrammarThreadData
let lastWords = ''

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

class Matcher {
  constructor(
    private readonly library: XGrammar,
    private readonly handle: GrammarMatcher,
    private readonly mask: Int32Array,
    private readonly size: number,
  ) {}

  accept(token: number): boolean {
    return this.handle.AcceptToken(token, false)
  }

  fill(): MatcherStatus {
    const { library, mask, size } = this
    const vector = this.handle.GetNextTokenBitmask(size + 1)
    const words = library.vecIntToView(vector)
    const complete = (words[size >> 5]! & (1 << (size & 31))) !== 0
    words[size >> 5]! &= ~(1 << (size & 31))
    let any = 0
    for (let i = 0; i < mask.length; i++) any |= words[i]!
    mask.set(words.subarray(0, mask.length))
    vector.delete()
    if (any === 0) return complete ? MatcherStatus.ENDS : MatcherStatus.STUCK
    return complete ? MatcherStatus.MAY_END : MatcherStatus.CONTINUES
  }

  delete(): void {
    this.handle.delete()
  }
}

class GrammarWorker {
  private readonly compiler: GrammarCompiler | undefined
  private readonly grammars = new Map<number, CompiledGrammar>()
  private readonly matchers = new Map<number, Matcher>()

  constructor(private readonly library: XGrammar) {
    if (vocabulary !== null) this.compiler = createCompiler(library, vocabulary)
  }

  handle(request: GrammarRequest): void {
    switch (request.kind) {
      case 'parse':
      case 'compile':
        this.make(request.id, request.source, request.kind === 'compile')
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
  }

  private make(id: number, source: GrammarSource, compile: boolean): void {
    lastWords = ''
    try {
      const parsed = parse(this.library, source)
      if (compile) this.grammars.set(id, this.compiler!.CompileGrammar(parsed))
      parsed.delete()
    } catch (error) {
      answer({ kind: 'failed', id, message: reasonOf(error) })
      return
    }
    answer({ kind: 'done', id, memoryBytes: this.library.HEAP8.byteLength })
  }

  private open(grammar: CompiledGrammar, opened: readonly OpenMatcher[]): void {
    const { library } = this
    const entries = new Int32Array(2 * opened.length)
    for (const [i, { matcher: id, mask, tokens }] of opened.entries()) {
      const matcher = new Matcher(library, new library.GrammarMatcher(grammar, undefined, false, -1), mask, vocabulary!.size)
      this.matchers.set(id, matcher)
      entries[2 * i] = id
      entries[2 * i + 1] = tokens.every((token) => matcher.accept(token)) ? matcher.fill() : MatcherStatus.REFUSED
    }
    answer({ kind: 'masks', entries })
  }

  private accept(entries: Int32Array): void {
    let from = 0
    let started = performance.now()
    // Statuses take the place of the tokens.
    for (let i = 0; i < entries.length; i += 2) {
      const matcher = this.matchers.get(entries[i]!)
      if (matcher !== undefined) entries[i + 1] = matcher.accept(entries[i + 1]!) ? matcher.fill() : MatcherStatus.REFUSED
      if (i + 2 >= entries.length || performance.now() - started < FLUSH_MS) continue
      answer({ kind: 'masks', entries: entries.slice(from, i + 2) })
      from = i + 2
      started = performance.now()
    }
    answer({ kind: 'masks', entries: entries.slice(from) })
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
