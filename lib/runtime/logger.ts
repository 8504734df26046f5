/** TensorRT's log lines. */
import { setNativeLogListener } from '../native'
import { ArgumentReader, invalidArgument } from './argument_reader'
import { tellListener } from './listeners'

/** From the gravest to the most talkative. */
export type LogSeverity = 'internal-error' | 'error' | 'warning' | 'info' | 'verbose'

export interface LogLine {
  severity: LogSeverity
  text: string
}

export interface LoggerOptions {
  /** Lines of this severity and graver ones. Default 'warning'. */
  level?: LogSeverity | undefined
}

const SEVERITIES: readonly LogSeverity[] = ['internal-error', 'error', 'warning', 'info', 'verbose']

/**
 * Sends what TensorRT logs to a listener, from whatever thread: of runtimes, engines and builders alike. Lines come in order, a little later,
 * on the event loop; they do not keep the process alive. Where the event loop does not keep up, lines are lost, and a line says how many.
 *
 * There is one listener per thread of JavaScript: a later call replaces it, `null` ends it. What a listener throws becomes a warning of the
 * process. Without a listener nothing is printed; errors carry the lines that led to them either way.
 *
 * @throws ERR_INVALID_ARGUMENT; the addon's load errors, ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED, ERR_VERSION_MISMATCH
 */
export function setLogger(listener: ((line: LogLine) => void) | null, options: LoggerOptions = {}): void {
  const level = new ArgumentReader(options, ['level'], 'setLogger()').choice('level', SEVERITIES) ?? 'warning'
  if (listener !== null && typeof listener !== 'function') throw invalidArgument('listener', 'a function or null', listener)
  if (listener === null) {
    // Nothing need be loaded to end what never began.
    if (listening) setNativeLogListener(level, null)
    listening = false
    return
  }
  const tell = (line: LogLine): void => tellListener('The listener of setLogger()', listener, line)
  setNativeLogListener(level, (lines, dropped) => {
    if (dropped > 0) tell({ severity: 'warning', text: `${dropped} lines of TensorRT's log were lost: the event loop did not keep up` })
    for (const line of lines) tell(line)
  })
  listening = true
}

let listening = false
