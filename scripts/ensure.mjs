// Installs and builds what a checkout lacks, and says so. `npm start` and `npm test` begin with it.
//   node scripts/ensure.mjs [--dependencies]      --dependencies: installs, and builds nothing
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { addonFile, fail, hashOf, isFresh, markFresh, nativeHash, requireBuildTools, root, run, say, typescriptHash } from './tools.mjs'

const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 20 || (major === 20 && minor < 19)) fail(`Node 20.19 or later is needed; this is ${process.versions.node}`)

const lockHash = hashOf(['package-lock.json'])
if (!installed()) {
  say('installing dependencies (npm ci) ...')
  run(process.platform === 'win32' ? 'npm.cmd' : 'npm', ['ci', '--no-audit', '--no-fund'])
  markFresh('dependencies', lockHash)
}
if (process.argv.includes('--dependencies')) process.exit(0)
if (!existsSync(addonFile) || !isFresh('native', nativeHash())) {
  requireBuildTools()
  say(`building the native addon (${existsSync(addonFile) ? 'sources have changed' : 'first build, about a minute'}) ...`)
  run(process.execPath, [join(root, 'scripts', 'build-native.mjs')])
}
if (!existsSync(join(root, 'dist', 'index.mjs')) || !isFresh('typescript', typescriptHash())) {
  say('compiling TypeScript ...')
  run(process.execPath, [join(root, 'scripts', 'build-ts.mjs')])
  run(process.execPath, [join(root, 'scripts', 'build-typings.mjs')])
}

/** True when node_modules is what the lock file says: npm notes in it what it has installed. */
function installed() {
  const note = join(root, 'node_modules', '.package-lock.json')
  if (!existsSync(note)) return false
  if (isFresh('dependencies', lockHash)) return true
  if (!sameVersions(note)) return false
  markFresh('dependencies', lockHash)
  return true
}

function sameVersions(note) {
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages
  const have = JSON.parse(readFileSync(note, 'utf8')).packages
  return Object.entries(wanted).every(([path, { version, optional }]) => path === '' || optional || have[path]?.version === version)
}
