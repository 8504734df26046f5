// Whether the package as npm packs it is whole: what is built is there, and README's links lead to files of it; then publint and
// "Are the types wrong?" on the tarball.
//   node scripts/check-package.mjs [--contents]      --contents: looks at the list of files alone
// `npm pack` takes what is there and says nothing of what is not: from a checkout without a build comes a package that cannot be loaded.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execFileSync } from 'node:child_process'
import { fail, manifest, root, runTool } from './tools.mjs'

const pack = (...args) => JSON.parse(execFileSync('npm', ['pack', '--json', ...args], { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 26 }))[0]

const packed = new Set(pack('--dry-run').files.map(({ path }) => path))
const lacks = [
  ...missing('JavaScript', entries().filter((path) => path.startsWith('dist/'))),
  ...missing('typings', entries().filter((path) => path.startsWith('typings/'))),
  ...([...packed].some((path) => /^prebuilds\/[^/]+\/node-tensorrt\.node$/.test(path)) ? [] : ['prebuilt addon: prebuilds/<platform>-<architecture>/node-tensorrt.node']),
]
if (lacks.length > 0) fail(`the package would lack its\n${lacks.map((line) => `  ${line}\n`).join('')}Build them first: npm run prebuild:all`)
const dead = links('README.md').filter((path) => !packed.has(path))
if (dead.length > 0) fail(`README.md links to what the package does not carry ("files" of package.json): ${dead.join(', ')}`)

if (!process.argv.includes('--contents')) {
  const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-pack-'))
  try {
    const tarball = join(folder, pack('--pack-destination', folder).filename)
    runTool('publint', 'publint', [tarball, '--strict'])
    runTool('@arethetypeswrong/cli', 'attw', [tarball, '--profile', 'node16'])
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Files that package.json leads to. */
function entries() {
  const paths = []
  const add = (value) => {
    if (typeof value === 'string') paths.push(value.replace(/^\.\//, ''))
    else for (const inner of Object.values(value)) add(inner)
  }
  add([manifest.main, manifest.types, manifest.bin, manifest.exports])
  return [...new Set(paths)]
}

function missing(what, paths) {
  const absent = paths.filter((path) => !packed.has(path))
  return absent.length === 0 ? [] : [`${what}: ${absent.join(', ')}`]
}

/** Targets of a page's links to files, from the root. */
function links(page) {
  const text = readFileSync(join(root, page), 'utf8')
  const targets = [...text.matchAll(/\]\(([^)\s#]+)(?:#[^)]*)?\)/g)].map(([, target]) => target)
  return [...new Set(targets.filter((target) => !/^[a-z]+:/.test(target)))]
}
