/** Constraints of a caller's own, whose ends cannot fail. */
import { tellListener } from '../runtime'
import type { TokenConstraint } from '../scheduler'

/**
 * By the time of `close` its sequence has ended, and the loop is in the middle of others' tokens: what it throws concerns no request, and
 * becomes a warning of the process.
 */
export function guardClose(constrain: ((index: number) => TokenConstraint) | undefined): typeof constrain {
  if (constrain === undefined) return undefined
  return (index) => {
    const constraint = constrain(index) as Partial<TokenConstraint> | null | undefined
    // What is none is told where it is used.
    if (typeof constraint?.close !== 'function' || typeof constraint.mask !== 'function' || typeof constraint.accept !== 'function') return constraint as TokenConstraint
    return new GuardedConstraint(constraint as Required<TokenConstraint>)
  }
}

class GuardedConstraint implements TokenConstraint {
  constructor(private readonly constraint: Required<TokenConstraint>) {}

  get ready(): boolean {
    // Absent: always.
    return (this.constraint as TokenConstraint).ready ?? true
  }

  mask(): Int32Array | null {
    return this.constraint.mask()
  }

  accept(token: number): void {
    this.constraint.accept(token)
  }

  close(): void {
    tellListener('The close() of a token constraint', () => this.constraint.close(), undefined)
  }
}
