/** A thread that encodes prompts, one after the other. It is started by the first one, and again after it had to be ended. */
import { extname, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { AbortError, TensorRTError } from '../errors'
import type { EncodeJob, EncoderAnswer, EncoderSource } from './encoder_messages'

/** Longest time that one prompt may take; a template that does not end in time says so itself, long before. */
const JOB_LIMIT_MS = 10_000
/** Most prompts that may wait, where the queue of requests holds fewer; and UTF-16 units of their text, for each of them. */
const MIN_MAX_WAITING = 1024
const LENGTH_EACH = 2 ** 16
/** A template that piles up text ends its thread, not the process. */
const HEAP_MIB = 1024

interface Job {
  request: EncodeJob
  /** UTF-16 units, more or less. */
  length: number
  /** It waits no more: it was taken, or dropped. */
  taken: boolean
  resolve(ids: Int32Array): void
  reject(error: unknown): void
}

/** A prompt on its way. */
export interface PendingPrompt {
  ids: Promise<Int32Array>
  /** It is not wanted any more: `ids` rejects, unless it is being worked at. */
  cancel(): void
}

export class EncoderThread {
  private worker: Worker | undefined
  private ready = false
  /** From `first` on; before it are jobs that were taken. */
  private waiting: Job[] = []
  private first = 0
  /** Of those that wait and were not dropped. */
  private waitingCount = 0
  private waitingLength = 0
  private readonly maxWaiting: number
  /** The one that the thread works at, unless it is still starting. */
  private current: Job | undefined
  private timer: NodeJS.Timeout | undefined
  private closed: TensorRTError | undefined

  /** @param maxQueue requests that may wait elsewhere: who lets many wait lets their prompts wait, too */
  constructor(
    private readonly source: () => EncoderSource,
    maxQueue = 0,
  ) {
    this.maxWaiting = Math.max(MIN_MAX_WAITING, maxQueue)
  }

  /** @throws ERR_QUEUE_FULL, and what {@link close} was given */
  encode(request: EncodeJob, length: number): PendingPrompt {
    if (this.closed !== undefined) throw this.closed
    if (this.waitingCount >= this.maxWaiting || this.waitingLength + length > this.maxWaiting * LENGTH_EACH) {
      throw new TensorRTError('ERR_QUEUE_FULL', `${this.waitingCount} prompts wait to be encoded`, { hint: 'retry later, or raise maxQueue' })
    }
    let job: Job | undefined
    const ids = new Promise<Int32Array>((resolve, reject) => {
      job = { request, length, taken: false, resolve, reject }
      this.waiting.push(job)
      this.waitingCount++
      this.waitingLength += length
    })
    this.next()
    return { ids, cancel: () => this.drop(job!) }
  }

  /** Rejects what is under way with `reason`, and so everything from now on. */
  async close(reason: TensorRTError): Promise<void> {
    this.closed ??= reason
    this.current?.reject(reason)
    for (let job = this.take(); job !== undefined; job = this.take()) job.reject(reason)
    await this.stop()
  }

  private drop(job: Job): void {
    // One that has begun comes to its end: a new thread would take longer to start.
    if (job.taken) return
    this.leave(job)
    if (this.waitingCount === 0 && this.current === undefined) this.worker?.unref()
    job.reject(new AbortError())
  }

  /** The first that waits, which waits no more. */
  private take(): Job | undefined {
    while (this.first < this.waiting.length) {
      const job = this.waiting[this.first++]!
      if (job.taken) continue
      this.leave(job)
      return job
    }
    return undefined
  }

  private leave(job: Job): void {
    job.taken = true
    this.waitingCount--
    this.waitingLength -= job.length
    // What was taken or dropped is let go when it is most of the list: in constant time for each, however many are dropped at once.
    if (this.waitingCount > 0 && (this.waiting.length < 64 || this.waitingCount * 2 > this.waiting.length)) return
    this.waiting = this.waiting.slice(this.first).filter(({ taken }) => !taken)
    this.first = 0
  }

  private next(): void {
    if (this.current !== undefined) return
    if (this.waitingCount === 0) {
      // An idle thread keeps no process alive.
      this.worker?.unref()
      return
    }
    this.worker ??= this.start()
    this.worker.ref()
    if (!this.ready) return
    const job = this.take()!
    this.current = job
    this.timer = setTimeout(() => this.overdue(), JOB_LIMIT_MS)
    this.worker.postMessage(job.request)
  }

  private start(): Worker {
    const extension = extname(__filename)
    const worker = new Worker(join(__dirname, `encoder_worker${extension}`), {
      workerData: this.source(),
      // Run from the sources, the worker is TypeScript too.
      execArgv: extension === '.ts' ? ['--require', 'tsx/cjs'] : [],
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB },
      name: 'node-tensorrt encoder',
    })
    worker.on('message', (answer: EncoderAnswer) => {
      if (this.worker === worker) this.onAnswer(answer)
    })
    worker.on('error', (error) => this.died(worker, error))
    worker.on('exit', (code) => this.died(worker, new Error(`it ended with ${code}`)))
    return worker
  }

  private onAnswer(answer: EncoderAnswer): void {
    if (answer.kind === 'ready') {
      this.ready = true
    } else {
      const job = this.finishCurrent()
      // What a thread posts is of the process's first context, whose classes are not those of a library that runs in another (node:vm, as test
      // runners have it).
      if (answer.kind === 'encoded') job?.resolve(new Int32Array(answer.ids.buffer))
      else job?.reject(new TensorRTError(answer.code, answer.message, { hint: answer.hint }))
    }
    this.next()
  }

  private finishCurrent(): Job | undefined {
    const job = this.current
    this.current = undefined
    clearTimeout(this.timer)
    return job
  }

  private overdue(): void {
    const job = this.finishCurrent()
    void this.stop()
    job?.reject(
      new TensorRTError('ERR_PROMPT_TOO_LONG', `The prompt takes longer than ${JOB_LIMIT_MS / 1000} s to encode`, { hint: 'shorten the prompt' }),
    )
    this.next()
  }

  /** The one that it worked at, or was started for, fails with it. */
  private died(worker: Worker, cause: Error): void {
    if (this.worker !== worker) return
    this.worker = undefined
    this.ready = false
    const job = this.finishCurrent() ?? this.take()
    job?.reject(new TensorRTError('ERR_INTERNAL', `The thread that encodes prompts has ended: ${cause.message}`, { cause }))
    this.next()
  }

  private async stop(): Promise<void> {
    const { worker } = this
    this.finishCurrent()
    this.worker = undefined
    this.ready = false
    await worker?.terminate()
  }
}
