// Writes programs that run where there are dist/, the addon and the package's own dependencies, and nothing else: no TypeScript, no
// development dependency.
import { existsSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { build } from 'vite'
import { root } from './tools.mjs'

const lib = join(root, 'lib') + sep

/** The file of dist/ that a source of the library becomes; undefined for what is no source of it. */
function compiled(source, importer) {
  if (!source.startsWith('.') || importer === undefined) return undefined
  const file = resolve(dirname(importer), source)
  if (!file.startsWith(lib)) return undefined
  const name = relative(lib, file)
  return join(root, 'dist', existsSync(`${file}.ts`) ? `${name}.js` : join(name, 'index.js'))
}

/**
 * One file with all that `entry` imports. The library is loaded from dist/, as it lies relative to the target, so that a class is one class.
 *
 * @param redirect gives what stands in for a module: the path of a file, or `{ id, external: true }`
 * @param define texts in place of expressions
 */
export async function bundle({ entry, target, format, redirect = () => undefined, define = {} }) {
  const folder = dirname(target)
  const resolution = {
    name: 'resolution',
    enforce: 'pre',
    resolveId(source, importer) {
      const instead = redirect(source, importer)
      if (instead !== undefined) return instead
      const file = compiled(source, importer)
      if (file === undefined) return null
      const id = relative(folder, file).split(sep).join('/')
      return { id: id.startsWith('.') ? id : `./${id}`, external: true }
    },
  }
  await build({
    configFile: false,
    logLevel: 'error',
    root,
    define,
    plugins: [resolution],
    ssr: { noExternal: true },
    build: {
      ssr: entry,
      outDir: folder,
      emptyOutDir: false,
      target: 'node20',
      rollupOptions: { output: { entryFileNames: relative(folder, target), format, inlineDynamicImports: true } },
    },
  })
}
