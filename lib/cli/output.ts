/** What the commands share: where output goes, how failures read, and how Ctrl-C ends work. */
import { setMaxListeners } from 'node:events'
import { AbortError, TensorRTError } from '../errors'
import type { LLMWarning } from '../llm'

/** Exit codes of a process that a signal ended, as shells have them. */
export const SIGNAL_CODES = { SIGINT: 130, SIGTERM: 143 } as const

/** Prints an error for a human on stderr, or as JSON on stdout, and sets the exit code. */
export function reportFailure(error: unknown, json: boolean): void {
  if (error instanceof AbortError) {
    process.exitCode = SIGNAL_CODES.SIGINT
    return
  }
  process.exitCode = 1
  const known = error instanceof TensorRTError
  const message = error instanceof Error ? error.message : String(error)
  if (json) {
    process.stdout.write(`${failureJson(error)}\n`)
  } else {
    process.stderr.write(`node-tensorrt: ${message}${known ? ` [${error.code}]` : ''}\n`)
    if (!known && error instanceof Error && process.env['NODE_TENSORRT_DEBUG'] !== undefined) {
      process.stderr.write(`${error.stack}\n`)
    }
  }
}

/** A failure as stdout has it with `--json`. */
export function failureJson(error: unknown): string {
  const { code, hint } = error instanceof TensorRTError ? error : { code: 'ERR_INTERNAL', hint: undefined }
  return JSON.stringify({ error: { code, message: error instanceof Error ? error.message : String(error), hint } })
}

/** A line on stderr of what goes on. */
export function say(text: string): void {
  process.stderr.write(`node-tensorrt: ${text}\n`)
}

/** A warning of the library as one line, without the trailer that Node adds to those that a program emits. */
export function printWarning(warning: LLMWarning): void {
  say(warning.message)
}

/** Aborts on the first Ctrl-C or SIGTERM (or when the reader of stdout goes away); a second one ends the process at once. */
export class Interrupt {
  readonly #controller = new AbortController()
  #code: number = SIGNAL_CODES.SIGINT
  readonly #onSignal = (signal: keyof typeof SIGNAL_CODES): void => {
    this.#code = SIGNAL_CODES[signal]
    if (this.#controller.signal.aborted) process.exit(this.#code)
    this.#controller.abort(new Error('interrupted'))
  }
  readonly #onStdoutError = (error: NodeJS.ErrnoException): void => {
    if (error.code === 'EPIPE') this.#controller.abort(error)
  }

  constructor() {
    setMaxListeners(0, this.#controller.signal)
    process.on('SIGINT', this.#onSignal)
    process.on('SIGTERM', this.#onSignal)
    process.stdout.on('error', this.#onStdoutError)
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Of a process that this ended: a reader that goes away is no failure. */
  get exitCode(): number {
    const { reason } = this.#controller.signal as { reason?: { code?: unknown } }
    return reason?.code === 'EPIPE' ? 0 : this.#code
  }

  dispose(): void {
    process.off('SIGINT', this.#onSignal)
    process.off('SIGTERM', this.#onSignal)
    process.stdout.off('error', this.#onStdoutError)
  }
}

/** One line on stderr that rewrites itself; silent where stderr is no terminal. */
export class Progress {
  #shown = false
  #last = 0

  constructor(private readonly enabled = process.stderr.isTTY === true) {}

  /** `force` draws even if the last drawing is less than 100 ms old. */
  update(text: string, force = false): void {
    if (!this.enabled) return
    const now = Date.now()
    if (!force && now - this.#last < 100) return
    this.#last = now
    this.#shown = true
    process.stderr.write(`\r\x1b[2K${text.slice(0, Math.max(20, (process.stderr.columns ?? 80) - 1))}`)
  }

  clear(): void {
    if (this.#shown) process.stderr.write('\r\x1b[2K')
    this.#shown = false
  }
}

/**
 * Runs what takes long: a line on stderr says how it stands, Ctrl-C ends it, and a failure is reported.
 *
 * @param status how it stands after so many seconds
 * @param work comes to what goes to stdout
 */
export async function runLong(json: boolean, status: (seconds: string) => string, work: (signal: AbortSignal) => Promise<string>): Promise<void> {
  const interrupt = new Interrupt()
  const progress = new Progress()
  const started = Date.now()
  const timer = setInterval(() => {
    const seconds = `${((Date.now() - started) / 1000).toFixed(0)} s`
    const { aborted } = interrupt.signal
    progress.update(aborted ? `stopping ... ${seconds}` : status(seconds), aborted)
  }, 250)
  try {
    const text = await work(interrupt.signal)
    progress.clear()
    process.stdout.write(text)
  } catch (error) {
    progress.clear()
    if (interrupt.signal.aborted) process.exitCode = interrupt.exitCode
    else reportFailure(error, json)
  } finally {
    clearInterval(timer)
    progress.clear()
    interrupt.dispose()
  }
}

/** Resolves when the stream can take more, so that a slow terminal slows the reader and not the memory. */
export async function writeOut(text: string, signal: AbortSignal): Promise<void> {
  if (text === '' || signal.aborted || process.stdout.write(text)) return
  await new Promise<void>((resolve) => {
    const done = (): void => {
      process.stdout.off('drain', done)
      process.stdout.off('close', done)
      signal.removeEventListener('abort', done)
      resolve()
    }
    process.stdout.once('drain', done)
    process.stdout.once('close', done)
    signal.addEventListener('abort', done)
  })
}

export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024
    unit++
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`
}
