/**
 * The access log: a JSON object per line and HTTP request. Lines wait in memory, of a bounded size, and are written by
 * libuv's threads: a disk or a reader that does not keep up costs lines, which are counted, and never the event loop's time.
 */
import { close, constants, fstatSync, open, openSync, write } from 'node:fs'
import { promisify } from 'node:util'
import type { HttpFacts } from '../seams'

/** Where lines go. A file is appended to, and opened anew on SIGHUP, after a rotation. */
export type AccessLogDestination = 'stdout' | 'stderr' | { path: string }

const openFile = promisify(open)
const closeFile = promisify(close)
const FILE_MODE = 0o640
/** A pipe whose reader stands still answers EAGAIN then. A thread that waits for it would keep the process from ending. */
const NONBLOCKING = constants.O_WRONLY | constants.O_NONBLOCK
const FILE_FLAGS = NONBLOCKING | constants.O_APPEND | constants.O_CREAT
/** Characters of lines that wait, and of one write. */
const MAX_WAITING = 1 << 20
const MAX_WRITE = 1 << 16
/** How long a pipe that is full is left alone. */
const FULL_MS = 20
/** How long `close` waits for what is not written yet. */
const CLOSE_MS = 2000
const MAX_FIELD_LENGTH = 256

/** The fields, in this order, of a line. What there is nothing to tell of is left out. */
interface AccessLogLine {
  /** End of the answer, ISO 8601, UTC. */
  time: string
  request_id: string
  method: string
  route: string
  status: number
  duration_ms: number
  response_bytes: number
  backend: string
  model?: string
  /** Name of the API key. */
  key?: string
  error?: string
  aborted?: true
  prompt_tokens?: number
  completion_tokens?: number
  cached_tokens?: number
}

export class AccessLog {
  lines = 0
  dropped = 0
  private fd: number | undefined
  private readonly waiting: string[] = []
  private waitingLength = 0
  /** What is being written: a write may take a part of it. */
  private current: Buffer | undefined
  private currentLines = 0
  private busy = false
  private reopening: Promise<void> | undefined
  private closing: Promise<void> | undefined
  private warned = false
  private onDrained: (() => void) | undefined
  private readonly onHangup = (): void => void this.reopen()

  private constructor(
    private readonly path: string | undefined,
    fd: number | undefined,
    private readonly onWarning: (message: string) => void,
    private readonly maxWaiting: number,
  ) {
    this.fd = fd
    if (path === undefined) return
    // Without a listener of ours, the signal would end the process.
    process.on('SIGHUP', this.onHangup)
    void this.reopen()
  }

  /** Opens the file in the background; lines wait for it. */
  static to(destination: AccessLogDestination, onWarning: (message: string) => void, maxWaiting = MAX_WAITING): AccessLog {
    if (typeof destination === 'object') return new AccessLog(destination.path, undefined, onWarning, maxWaiting)
    return new AccessLog(undefined, standardStream(destination === 'stdout' ? 1 : 2), onWarning, maxWaiting)
  }

  add(facts: HttpFacts): void {
    const line = `${JSON.stringify(toLine(facts))}\n`
    if (this.closing !== undefined || this.waitingLength + line.length > this.maxWaiting) {
      this.dropped++
      return
    }
    this.waiting.push(line)
    this.waitingLength += line.length
    this.pump()
  }

  /** Opens the file anew, for the one that is open may have been renamed. Keeps it where that fails. Never rejects. */
  reopen(): Promise<void> {
    const { path } = this
    if (path === undefined || this.closing !== undefined) return Promise.resolve()
    const mine = this.openAfter(this.reopening, path).finally(() => {
      if (this.reopening === mine) this.reopening = undefined
      this.pump()
    })
    this.reopening = mine
    return mine
  }

  /** One that is under way may have opened the file before it was renamed. */
  private async openAfter(earlier: Promise<void> | undefined, path: string): Promise<void> {
    await earlier
    await this.openAnew(path)
  }

  /** Writes what waits, for at most two seconds. */
  close(): Promise<void> {
    this.closing ??= this.end()
    return this.closing
  }

  private async openAnew(path: string): Promise<void> {
    try {
      const fresh = await openFile(path, FILE_FLAGS, FILE_MODE)
      const old = this.fd
      await this.idle()
      this.fd = fresh
      if (old !== undefined) await closeFile(old)
    } catch (error) {
      // Its message names the path, which is the operator's own.
      this.warn(`The access log could not be opened: ${(error as Error).message}`)
    }
  }

  /** Once no write is under way. */
  private idle(): Promise<void> {
    if (!this.busy) return Promise.resolve()
    return new Promise((resolve) => (this.onDrained = resolve))
  }

  private async end(): Promise<void> {
    process.off('SIGHUP', this.onHangup)
    await this.reopening
    const deadline = Date.now() + CLOSE_MS
    this.pump()
    while ((this.busy || this.waiting.length > 0) && this.fd !== undefined && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    this.dropped += this.waiting.length + this.currentLines
    this.waiting.length = 0
    const { fd } = this
    this.fd = undefined
    if (fd !== undefined && fd > 2 && !this.busy) await closeFile(fd).catch(() => {})
  }

  private pump(): void {
    if (this.busy || this.fd === undefined) return
    if (this.current === undefined) {
      // A reopening waits for a pause.
      if (this.onDrained !== undefined) return this.tellDrained()
      if (this.waiting.length === 0) return
      this.takeWaiting()
    }
    this.busy = true
    write(this.fd, this.current!, (error, written) => this.onWritten(error, written))
  }

  private takeWaiting(): void {
    let length = 0
    let count = 0
    while (count < this.waiting.length && length < MAX_WRITE) length += this.waiting[count++]!.length
    this.current = Buffer.from(this.waiting.splice(0, count).join(''))
    this.currentLines = count
    this.waitingLength -= length
  }

  private onWritten(error: NodeJS.ErrnoException | null, written: number): void {
    this.busy = false
    if (error === null) {
      this.current = written < this.current!.length ? this.current!.subarray(written) : undefined
      if (this.current === undefined) {
        this.lines += this.currentLines
        this.currentLines = 0
      }
    } else if (error.code === 'EAGAIN') {
      this.busy = true
      setTimeout(() => {
        this.busy = false
        this.pump()
      }, FULL_MS)
      return
    } else {
      this.warn(`The access log could not be written: ${error.message}`)
      this.dropped += this.currentLines
      this.current = undefined
      this.currentLines = 0
    }
    this.pump()
  }

  private tellDrained(): void {
    this.onDrained?.()
    this.onDrained = undefined
  }

  /** Once: a full disk would fail each line. */
  private warn(message: string): void {
    if (this.warned) return
    this.warned = true
    this.onWarning(message)
  }
}

/** A pipe gets a description of its own: this process's other writers may want theirs to block. */
function standardStream(fd: 1 | 2): number {
  try {
    return fstatSync(fd).isFIFO() ? openSync(`/proc/self/fd/${fd}`, NONBLOCKING) : fd
  } catch {
    return fd
  }
}

function toLine(facts: HttpFacts): AccessLogLine {
  const { keyName, model, errorCode, usage } = facts
  return {
    time: new Date().toISOString(),
    request_id: clip(facts.requestId),
    method: clip(facts.method),
    route: clip(facts.route),
    status: facts.status,
    duration_ms: Math.round(facts.durationMs * 1000) / 1000,
    response_bytes: facts.responseBytes,
    backend: facts.backend,
    ...(model === undefined ? {} : { model: clip(model) }),
    ...(keyName === undefined ? {} : { key: clip(keyName) }),
    ...(errorCode === undefined ? {} : { error: clip(errorCode) }),
    ...(facts.aborted ? { aborted: true } : {}),
    ...(usage === undefined
      ? {}
      : { prompt_tokens: usage.promptTokens, completion_tokens: usage.completionTokens, cached_tokens: usage.cachedTokens }),
  }
}

function clip(text: string): string {
  return text.length > MAX_FIELD_LENGTH ? text.slice(0, MAX_FIELD_LENGTH) : text
}
