/** Escapes a literal for use in a regular expression. */
export function escapeRegExp(literal: string): string {
  return literal.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
}

/**
 * Pattern that finds any of the literals, the longest where several begin at one place; undefined for an empty list.
 */
export function alternation(literals: Iterable<string>, flags: string): RegExp | undefined {
  const kept = [...new Set(literals)].filter((literal) => literal !== '').sort((a, b) => b.length - a.length)
  return kept.length === 0 ? undefined : new RegExp(kept.map(escapeRegExp).join('|'), flags)
}
