import type { Sequence } from './sequence'
import type { StepRecord } from './step_record'

/**
 * True when a sequence in this step computes most of what this one would compute: waiting for it is cheaper, as a page written in
 * a step cannot be read in the same one. This is also how siblings come to share their prompt.
 * @param found pages of its prefix that are cached
 * @param shareable pages of it that could be
 * @param firstPrefill row of the step from which on there are prompts
 */
export function prefixComing(
  seq: Sequence,
  found: number,
  shareable: number,
  record: StepRecord,
  firstPrefill: number,
  pageSize: number,
): boolean {
  const atLeastPages = found + Math.max(1, Math.ceil((seq.known / pageSize - found) / 2))
  if (shareable <= found) return false
  for (let row = firstPrefill; row < record.rows; row++) {
    const other = record.sequences[row]!
    if (other.salt !== seq.salt) continue
    const worth = (other.id === seq.id ? found + 1 : atLeastPages) * pageSize
    if (worth > Math.min(shareable * pageSize, other.known)) continue
    // From the end: prompts that only have a short beginning in common differ at the first look.
    let at = worth - 1
    while (at >= 0 && other.tokens[at] === seq.tokens[at]) at--
    if (at < 0) return true
  }
  return false
}
