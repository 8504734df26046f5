/** The conformance suite against each engine; bundled by bundle_conformance.mjs. */
import { describeExecutor } from 'executor-suite'
import { createExecutor, precisions } from './target.mjs'

for (const precision of precisions) {
  describeExecutor(precision, () => createExecutor(precision, { numPages: 64, maxSlots: 4, maxStepTokens: 64 }))
}
