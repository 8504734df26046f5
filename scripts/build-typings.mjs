// Builds typings/index.d.ts, the public declarations in one file. index.d.mts gives the same to importers.
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { rollup } from 'rollup'
import { dts } from 'rollup-plugin-dts'
import { root } from './tools.mjs'

const folder = join(root, 'typings')
for (const name of ['index.d.ts', 'index.d.mts']) rmSync(join(folder, name), { force: true })
const bundle = await rollup({
  input: join(root, 'lib', 'index.ts'),
  external: (id) => !id.startsWith('.') && !id.startsWith('/'),
  plugins: [dts({ tsconfig: join(root, 'tsconfig.json'), compilerOptions: { stripInternal: true } })],
  onwarn(warning) {
    throw new Error(warning.message)
  },
})
await bundle.write({ file: join(folder, 'index.d.ts'), format: 'es' })
await bundle.close()
writeFileSync(join(folder, 'index.d.mts'), "export * from './index.js'\n")
