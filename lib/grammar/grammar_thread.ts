/** A worker thread with the grammar library in it. */
import { extname, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import type { GrammarAnswer, GrammarRequest, GrammarThreadData, VocabularyData } from './messages'

/** Why a thread is of no use any more. */
export interface ThreadEnd {
  /**
   * `fault`: the library told of an error of the grammar. `silence`: it had work, and did not answer in time. `start`: it never
   * worked.
   */
  kind: 'fault' | 'silence' | 'crash' | 'start'
  message: string
  /** Of the grammar that was parsed or compiled then, or was to be. */
  job: number | undefined
  /** The matcher that it was busy with then, which may be closed by now. */
  matcher: number | undefined
}

export interface ThreadEvents {
  onDone(thread: GrammarThread, job: number): void
  onMasks(thread: GrammarThread, entries: Int32Array): void
  /** Once. The thread does nothing any more. */
  onEnd(thread: GrammarThread, end: ThreadEnd): void
}

/** Milliseconds that a thread has to start, at least: where many start on a busy machine, that is the fault of no grammar. */
const START_MS = 60_000

export class GrammarThread {
  /** Of the library, which grows and never shrinks, and of automata, when the last grammar was compiled. */
  memoryBytes = 0
  /** The grammar that is parsed or compiled. */
  private job: number | undefined
  /** Answers that are due: one for each grammar and each mask. */
  private due = 0
  private timer: NodeJS.Timeout | undefined
  private ended = false
  private ready = false
  private accepted: number[] = []
  private readonly busyWith = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
  private readonly worker: Worker
  private readonly exited: Promise<void>

  /**
   * @param vocabulary null for a thread that parses only
   * @param silenceMs how long it may work without an answer once it has started
   */
  constructor(
    vocabulary: VocabularyData | null,
    private readonly silenceMs: number,
    private readonly events: ThreadEvents,
  ) {
    const extension = extname(__filename)
    // Run from the sources, the worker is TypeScript too.
    const execArgv = extension === '.ts' ? ['--require', 'tsx/cjs'] : []
    const workerData: GrammarThreadData = { vocabulary, busyWith: this.busyWith }
    this.worker = new Worker(join(__dirname, `grammar_worker${extension}`), { workerData, execArgv, name: 'node-tensorrt grammar' })
    this.exited = new Promise((resolve) => this.worker.once('exit', () => resolve()))
    this.worker.on('message', (message: GrammarAnswer) => this.onAnswer(message))
    this.worker.on('error', (error) => this.end('crash', error instanceof Error ? error.message : String(error)))
    this.worker.on('exit', () => this.end('crash', 'its thread has ended'))
    // It keeps the process alive while it has something to do.
    this.worker.unref()
    this.expect()
  }

  get working(): boolean {
    return this.job !== undefined
  }

  get alive(): boolean {
    return !this.ended
  }

  /** Parses or compiles a grammar, one at a time. */
  run(request: Extract<GrammarRequest, { kind: 'parse' | 'compile' }>): void {
    this.job = request.id
    this.post(request)
    this.expect()
  }

  open(request: Extract<GrammarRequest, { kind: 'open' }>): void {
    this.post(request)
    this.expect(request.matchers.length)
  }

  /** Goes out with the next {@link flush}. */
  accept(matcher: number, token: number): void {
    this.accepted.push(matcher, token)
  }

  flush(): void {
    if (this.accepted.length === 0) return
    const entries = Int32Array.from(this.accepted)
    this.accepted = []
    this.post({ kind: 'accept', entries })
    this.expect(entries.length / 2)
  }

  closeMatchers(matchers: readonly number[]): void {
    // What they still have to accept would be answered by nobody.
    const closed = new Set(matchers)
    this.accepted = this.accepted.filter((_, i) => !closed.has(this.accepted[i - (i % 2)]!))
    this.post({ kind: 'close', matchers: Int32Array.from(matchers) })
  }

  drop(grammar: number): void {
    this.post({ kind: 'drop', id: grammar })
  }

  /** Ends it without a word to anyone. @returns when it has ended */
  async close(): Promise<void> {
    this.ended = true
    this.settle()
    await this.worker.terminate()
    await this.exited
  }

  private post(request: GrammarRequest): void {
    if (!this.ended) this.worker.postMessage(request)
  }

  private expect(answers = 1): void {
    if (this.ended) return
    if (this.due === 0) {
      this.worker.ref()
      this.watch()
    }
    this.due += answers
  }

  private watch(): void {
    clearTimeout(this.timer)
    const limit = this.ready ? this.silenceMs : Math.max(this.silenceMs, START_MS)
    this.timer = setTimeout(() => this.end('silence', `it takes longer than ${limit} ms`), limit)
  }

  private settle(): void {
    this.due = 0
    clearTimeout(this.timer)
    this.worker.unref()
  }

  private onAnswer(message: GrammarAnswer): void {
    if (this.ended) return
    if (message.kind === 'failed') {
      this.end('fault', message.message)
      return
    }
    this.due -= message.kind === 'masks' ? message.entries.length / 2 : 1
    if (message.kind === 'ready') this.ready = true
    if (this.due > 0) this.watch()
    else this.settle()
    if (message.kind === 'done') {
      this.memoryBytes = message.memoryBytes
      this.job = undefined
      this.events.onDone(this, message.id)
    } else if (message.kind === 'masks') this.events.onMasks(this, message.entries)
  }

  private end(kind: ThreadEnd['kind'], message: string): void {
    if (this.ended) return
    this.ended = true
    this.settle()
    const matcher = Atomics.load(this.busyWith, 0) || undefined
    void this.worker.terminate()
    this.events.onEnd(this, { kind: this.ready ? kind : 'start', message, job: this.job, matcher })
  }
}
