/** A thread that encodes prompts, one after the other. It is started by the first one, and again after it had to be ended. */
import { extname, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { AbortError, TensorRTError } from '../errors'
import type { EncodeJob, EncoderAnswer, EncoderSource } from './encoder_messages'

/** Longest time that one prompt may take; a template that does not end in time says so itself, long before. */
const JOB_LIMIT_MS = 10_000
/** Most prompts, and UTF-16 units of their text, that may wait. */
const MAX_WAITING = 1024
const MAX_WAITING_LENGTH = 64 * 2 ** 20
/** A template that piles up text ends its thread, not the process. */
const HEAP_MIB = 1024

interface Job {
  request: EncodeJob
  /** UTF-16 units, more or less. */
  length: number
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
  private readonly waiting: Job[] = []
  private waitingLength = 0
  /** The one that the thread works at, unless it is still starting. */
  private current: Job | undefined
  private timer: NodeJS.Timeout | undefined
  private closed: TensorRTError | undefined

  constructor(private readonly source: () => EncoderSource) {}

  /** @throws ERR_QUEUE_FULL, and what {@link close} was given */
  encode(request: EncodeJob, length: number): PendingPrompt {
    if (this.closed !== undefined) throw this.closed
    if (this.waiting.length >= MAX_WAITING || this.waitingLength + length > MAX_WAITING_LENGTH) {
      throw new TensorRTError('ERR_QUEUE_FULL', `${this.waiting.length} long prompts wait to be encoded`, { hint: 'try again later' })
    }
    let job: Job | undefined
    const ids = new Promise<Int32Array>((resolve, reject) => {
      job = { request, length, resolve, reject }
      this.waiting.push(job)
      this.waitingLength += length
    })
    this.next()
    return { ids, cancel: () => this.drop(job!) }
  }

  /** Rejects what is under way with `reason`, and so everything from now on. */
  async close(reason: TensorRTError): Promise<void> {
    this.closed ??= reason
    const jobs = [...(this.current === undefined ? [] : [this.current]), ...this.waiting.splice(0)]
    this.waitingLength = 0
    for (const job of jobs) job.reject(reason)
    await this.stop()
  }

  private drop(job: Job): void {
    const at = this.waiting.indexOf(job)
    // One that has begun comes to its end: a new thread would take longer to start.
    if (at < 0) return
    this.waiting.splice(at, 1)
    this.waitingLength -= job.length
    if (this.waiting.length === 0 && this.current === undefined) this.worker?.unref()
    job.reject(new AbortError())
  }

  private next(): void {
    if (this.current !== undefined) return
    if (this.waiting.length === 0) {
      // An idle thread keeps no process alive.
      this.worker?.unref()
      return
    }
    this.worker ??= this.start()
    this.worker.ref()
    if (!this.ready) return
    const job = this.waiting.shift()!
    this.waitingLength -= job.length
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
    let job = this.finishCurrent()
    if (job === undefined) {
      job = this.waiting.shift()
      this.waitingLength -= job?.length ?? 0
    }
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
