// Makes vendor/web-xgrammar/ of the npm package @mlc-ai/web-xgrammar: XGrammar compiled to WebAssembly, which stands inlined in a
// script. That script is CommonJS in a package that says it is ESM, so it cannot be required as it comes; and it hides what it
// makes of the WebAssembly module behind a wrapper that leaks. The copy has another name, and exports the module's factory.
// With --check, nothing is written, and a copy that is not of this package is an error.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root, say } from './tools.mjs'

const source = join(root, 'node_modules', '@mlc-ai', 'web-xgrammar')
const target = join(root, 'vendor', 'web-xgrammar')
const { name, version, license } = JSON.parse(readFileSync(join(source, 'package.json'), 'utf8'))
const marks = [
  ['exports.default = index;', 'exports.createBinding = Module;\n  exports.default = index;'],
  ['//# sourceMappingURL=index.js.map', ''],
]

let code = readFileSync(join(source, 'lib', 'index.js'), 'utf8')
for (const [from, to] of marks) {
  if (code.split(from).length !== 2) fail(`${name} ${version} is not as expected: it should have ${from} once`)
  code = code.replace(from, () => to)
}
const header = `// ${name} ${version}, ${license}, Copyright (c) 2024 by XGrammar Contributors; see LICENSE beside this file.
// Made by scripts/vendor-xgrammar.mjs, which adds the export createBinding and leaves out the source map.
`
const file = join(target, 'index.cjs')
if (process.argv.includes('--check')) {
  if (readFileSync(file, 'utf8') !== header + code.trimEnd() + '\n') fail(`${file} is not made of ${name} ${version}: run scripts/vendor-xgrammar.mjs`)
} else {
  mkdirSync(target, { recursive: true })
  writeFileSync(file, header + code.trimEnd() + '\n')
  say(`wrote ${file} of ${name} ${version}`)
}
