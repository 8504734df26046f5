/**
 * Writes the executor conformance suite as a program that needs no development dependency: vitest's part in it is node:test's, and the
 * library is the one in dist/.
 *
 *   node test/gpu/support/bundle_conformance.mjs [test/gpu/conformance.mjs]
 */
import { dirname, join, relative, resolve } from 'node:path'
import { build } from 'vite'

const here = import.meta.dirname
const root = resolve(here, '..', '..', '..')
const target = resolve(process.argv[2] ?? join(here, '..', 'conformance.mjs'))
const suite = join(root, 'test', 'conformance', 'executor_suite.ts')

/** What is loaded from where it lies beside the program, so that a class is one class. */
const external = {
  name: 'external',
  enforce: 'pre',
  resolveId(source, importer) {
    if (source === 'vitest') return join(here, 'vitest_shim.mjs')
    if (source === 'executor-suite') return suite
    if (source.startsWith('../../lib/') && importer === suite) {
      const name = source.slice('../../lib/'.length)
      return { id: `../../dist/${name === 'scheduler' ? 'scheduler/index' : name}.js`, external: true }
    }
    if (source.endsWith('/report.mjs') || source.endsWith('/target.mjs')) {
      return { id: `./support/${source.slice(source.lastIndexOf('/') + 1)}`, external: true }
    }
    return null
  },
}

await build({
  configFile: false,
  logLevel: 'error',
  root,
  plugins: [external],
  ssr: { noExternal: true },
  build: {
    ssr: join(here, 'conformance_entry.mjs'),
    outDir: dirname(target),
    emptyOutDir: false,
    target: 'node20',
    rollupOptions: { output: { entryFileNames: relative(dirname(target), target), format: 'es', inlineDynamicImports: true } },
  },
})
