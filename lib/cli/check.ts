import { TensorRTError } from '../errors'

/** One line of `doctor`'s report. */
export interface Check {
  name: string
  ok: boolean
  /** A failed check that does not stop the library from working here. */
  optional?: boolean
  detail: string
  /** Of the error, where one was the reason. */
  code?: string | undefined
  hint?: string | undefined
  /** Where was looked, and what was found there. */
  places?: string[]
}

export function failed(name: string, error: unknown): Check {
  if (!(error instanceof TensorRTError)) return { name, ok: false, detail: error instanceof Error ? error.message : String(error) }
  const { code, hint } = error
  // The message ends with the hint, which has a line of its own here.
  const suffix = ` (${hint})`
  const detail = hint !== undefined && error.message.endsWith(suffix) ? error.message.slice(0, -suffix.length) : error.message
  return { name, ok: false, detail, code, hint }
}
