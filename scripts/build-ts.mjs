// Builds dist/: CommonJS by tsc, and an index.mjs beside the index.js of each entry, which re-exports the same objects, so that a
// class is one class whether it was imported or required.
import { chmodSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { markFresh, root, runTool, typescriptHash } from './tools.mjs'

const inputs = typescriptHash()
const dist = join(root, 'dist')
// Beside dist/, for the paths in the source maps; it takes dist's place when it is complete.
const fresh = join(root, `build-dist-${process.pid}`)
process.on('exit', () => rmSync(fresh, { recursive: true, force: true }))
// The public declarations are typings/, bundled from the same sources.
runTool('typescript', 'tsc', ['-p', '.', '--outDir', fresh, '--declaration', 'false', '--inlineSources'])

const identifier = /^[A-Za-z_$][\w$]*$/
for (const entry of ['.', 'server']) {
  const names = Object.keys(createRequire(import.meta.url)(join(fresh, entry, 'index.js'))).sort()
  if (names.length === 0 || !names.every((name) => identifier.test(name))) throw new Error(`unexpected exports: ${names.join(', ')}`)
  writeFileSync(
    join(fresh, entry, 'index.mjs'),
    `import cjs from './index.js'\n\n${names.map((name) => `export const ${name} = cjs.${name}\n`).join('')}`,
  )
}
chmodSync(join(fresh, 'cli', 'main.js'), 0o755)
rmSync(dist, { recursive: true, force: true })
renameSync(fresh, dist)
markFresh('typescript', inputs)
