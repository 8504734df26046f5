// Builds typings/, the public declarations: a file each for the package and for its server, whose types come from the first, as a
// class that is declared twice is two. The .d.mts give the same to importers.
import { rmSync, writeFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { rollup } from 'rollup'
import { dts } from 'rollup-plugin-dts'
import { root } from './tools.mjs'

const folder = join(root, 'typings')
const lib = join(root, 'lib')
const serverFolder = join(lib, 'server')

/** Has whatever of the library is no part of the server imported from the package's declarations. */
const fromIndex = {
  name: 'from-index',
  resolveId(source, importer) {
    if (importer === undefined || !source.startsWith('.')) return null
    const target = resolve(dirname(importer), source)
    return relative(serverFolder, target).startsWith('..') ? { id: './index.js', external: 'relative' } : null
  },
}

async function bundle(name, input, plugins) {
  for (const extension of ['d.ts', 'd.mts']) rmSync(join(folder, `${name}.${extension}`), { force: true })
  const bundled = await rollup({
    input,
    external: (id) => !id.startsWith('.') && !id.startsWith('/'),
    plugins: [...plugins, dts({ tsconfig: join(root, 'tsconfig.json'), compilerOptions: { stripInternal: true } })],
    onwarn(warning) {
      throw new Error(warning.message)
    },
  })
  await bundled.write({ file: join(folder, `${name}.d.ts`), format: 'es' })
  await bundled.close()
  writeFileSync(join(folder, `${name}.d.mts`), `export * from './${name}.js'\n`)
}

await bundle('index', join(lib, 'index.ts'), [])
await bundle('server', join(serverFolder, 'index.ts'), [fromIndex])
