import type { BlockManager } from './block_manager'
import type { Sequence } from './sequence'
import type { StepRecord } from './step_record'

/**
 * Follows the damage of a failed step. What it wrote is undefined, and so is what any step in flight after it computed
 * from that: the rows of the same sequences, and of sequences that share a page which it wrote; and what those wrote,
 * and so on.
 *
 * Marks those rows of later steps as dropped, makes every page with undefined content unfindable, and stamps each
 * damaged sequence with `stamp`.
 * @param later the steps in flight after `failed`, in order.
 * A sequence that shares a page of `failed` was admitted after it was planned, so it has a row in one of the later
 * steps.
 * @returns damaged sequences that have no row in `failed` itself.
 */
export function spreadFailure(
  failed: StepRecord,
  later: readonly StepRecord[],
  blocks: BlockManager,
  stamp: number,
): Sequence[] {
  const undefinedPages = new Uint8Array(blocks.numPages)
  const damaged: Sequence[] = []

  const markWritten = (step: StepRecord, row: number, firstPage: number): void => {
    const cached = step.cachedOf(row)
    const last = Math.ceil((cached + step.tokensOf(row)) / blocks.pageSize)
    for (let i = Math.floor(cached / blocks.pageSize); i < last; i++) undefinedPages[step.page(firstPage + i)] = 1
  }

  for (let row = 0, at = failed.firstPage; row < failed.rows; at += failed.pagesOf(row), row++) {
    failed.sequences[row]!.taint = stamp
    markWritten(failed, row, at)
  }
  for (const step of later) {
    for (let row = 0, at = step.firstPage; row < step.rows; at += step.pagesOf(row), row++) {
      const seq = step.sequences[row]!
      let hit = seq.taint === stamp || step.dropped[row] !== 0
      for (let i = 0; i < step.pagesOf(row) && !hit; i++) hit = undefinedPages[step.page(at + i)] !== 0
      if (!hit) continue
      markWritten(step, row, at)
      if (step.dropped[row] === 0) {
        step.dropped[row] = 1
        if (step.samplesRow(row)) seq.pending--
      }
      if (seq.taint !== stamp) {
        seq.taint = stamp
        damaged.push(seq)
      }
    }
  }
  for (let page = 0; page < undefinedPages.length; page++) if (undefinedPages[page] !== 0) blocks.unpublish(page)
  return damaged
}
