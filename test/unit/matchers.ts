/** Import for its effect: matchers for typed errors. */
import { expect } from 'vitest'

interface TypedErrorMatchers<R> {
  /** A function that throws an error with this `code`, and a message that matches. */
  toThrowCode(code: string, message?: RegExp): R
  /** An error (such as the one of `.rejects`) with this `code`, and a message that matches. */
  toHaveCode(code: string, message?: RegExp): R
}

declare module 'vitest' {
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  interface Matchers<T = any> extends TypedErrorMatchers<T> {}
}

function check(error: unknown, code: string, message: RegExp | undefined): { pass: boolean; message: () => string } {
  const given = error as { code?: unknown; message?: unknown } | undefined
  const pass = error instanceof Error && given?.code === code && (message === undefined || message.test(error.message))
  const expected = `an error ${code}${message === undefined ? '' : ` that matches ${message}`}`
  const got = `${String(given?.code)}: ${String(given?.message ?? error)}`
  return { pass, message: () => `expected ${expected}, got ${got}` }
}

expect.extend({
  toThrowCode(received: () => unknown, code: string, message?: RegExp) {
    try {
      received()
    } catch (error) {
      return check(error, code, message)
    }
    return { pass: false, message: () => `expected an error ${code}, but nothing was thrown` }
  },
  toHaveCode: (received: unknown, code: string, message?: RegExp) => check(received, code, message),
})
