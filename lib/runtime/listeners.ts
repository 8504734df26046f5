/**
 * Tells a callback of the caller's. What it throws, or rejects with, is its own, and must not end what it is told of: it becomes a warning of
 * the process.
 *
 * @param name of the callback, for the warning
 */
export function tellListener<T>(name: string, listener: (value: T) => unknown, value: T): void {
  const warn = (error: unknown): void =>
    process.emitWarning(`${name} threw: ${error instanceof Error ? error.message : String(error)}`, 'NodeTensorRTWarning')
  try {
    const result = listener(value)
    if (result instanceof Promise) result.catch(warn)
  } catch (error) {
    warn(error)
  }
}

/** A callback of the caller's that neither throws nor rejects: see {@link tellListener}. */
export function guardListener<T>(name: string, listener: ((value: T) => unknown) | undefined): ((value: T) => void) | undefined {
  return listener === undefined ? undefined : (value) => tellListener(name, listener, value)
}
