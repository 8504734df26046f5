/**
 * Writes the executor conformance suite as a program that needs no development dependency: vitest's part in it is node:test's, and the
 * library is the one in dist/.
 *
 *   node test/gpu/support/bundle_conformance.mjs [test/gpu/conformance.mjs]
 */
import { join, resolve } from 'node:path'
import { bundle } from '../../../scripts/bundle.mjs'

const here = import.meta.dirname
const suite = resolve(here, '..', '..', 'conformance', 'executor_suite.ts')

function redirect(source) {
  if (source === 'vitest') return join(here, 'vitest_shim.mjs')
  if (source === 'executor-suite') return suite
  // Loaded from where it lies beside the program.
  if (source.endsWith('/report.mjs') || source.endsWith('/target.mjs')) {
    return { id: `./support/${source.slice(source.lastIndexOf('/') + 1)}`, external: true }
  }
  return undefined
}

const target = resolve(process.argv[2] ?? join(here, '..', 'conformance.mjs'))
await bundle({ entry: join(here, 'conformance_entry.mjs'), target, format: 'es', redirect })
