// Makes vendor/web-xgrammar/ of the npm package @mlc-ai/web-xgrammar: XGrammar compiled to WebAssembly, which stands inlined in a
// script. That script is CommonJS in a package that says it is ESM, so it cannot be required as it comes; and it hides what it
// makes of the WebAssembly module behind a wrapper that leaks. The copy has another name, and exports the module's factory.
//
// The module merges states of automata that are not equal (mlc-ai/xgrammar#618, mended after this version by #632): from
// [0-9] "." [0-9] [0-9] | [0-9] "." [0-9] it makes an automaton that takes "1.234". It merges below 100,000 states, which are
// 1,200,000 bytes; the copy compares with 0 instead, so it never merges. What is left to do minimisation does.
//
// With --check, nothing is written, and a copy that is not of this package is an error.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, root, say } from './tools.mjs'

const source = join(root, 'node_modules', '@mlc-ai', 'web-xgrammar')
const target = join(root, 'vendor', 'web-xgrammar')
const { name, version, license } = JSON.parse(readFileSync(join(source, 'package.json'), 'utf8'))
/** i32.const 1200001, i32.ge_s; and the same with 0 in as many bytes. */
const merging = { from: [0x41, 0x81, 0x9f, 0xc9, 0x00, 0x4e], to: [0x41, 0x80, 0x80, 0x80, 0x00, 0x4e] }
const marks = [
  ['exports.default = index;', 'exports.createBinding = Module;\n  exports.default = index;'],
  ['//# sourceMappingURL=index.js.map', ''],
]

let code = readFileSync(join(source, 'lib', 'index.js'), 'utf8')
for (const [from, to] of marks) {
  if (code.split(from).length !== 2) fail(`${name} ${version} is not as expected: it should have ${from} once`)
  code = code.replace(from, () => to)
}
code = code.replace(/(data:application\/octet-stream;base64,)([A-Za-z0-9+/=]+)/, (_, before, text) => {
  const module = Buffer.from(text, 'base64')
  const at = module.indexOf(Buffer.from(merging.from))
  if (at < 0 || module.includes(Buffer.from(merging.from), at + 1)) fail(`${name} ${version} is not as expected: where does it merge states?`)
  Buffer.from(merging.to).copy(module, at)
  return before + module.toString('base64')
})
const header = `// ${name} ${version}, ${license}, Copyright (c) 2024 by XGrammar Contributors; see LICENSE beside this file.
// Made by scripts/vendor-xgrammar.mjs, which tells what it changes.
`
const file = join(target, 'index.cjs')
if (process.argv.includes('--check')) {
  if (readFileSync(file, 'utf8') !== header + code.trimEnd() + '\n') fail(`${file} is not made of ${name} ${version}: run scripts/vendor-xgrammar.mjs`)
} else {
  mkdirSync(target, { recursive: true })
  writeFileSync(file, header + code.trimEnd() + '\n')
  say(`wrote ${file} of ${name} ${version}`)
}
