// Fails unless the binaries given load on every system that the package promises: no symbol of glibc above 2.28, no libstdc++ or
// libgcc from outside, no other library than glibc's, one exported entry point, no executable stack, never unloaded.
//   node scripts/check-binary.mjs [file ...]      default: all of prebuilds/linux-*
import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { pathToFileURL } from 'node:url'
import { fail, onPath, root, say } from './tools.mjs'

const GLIBC = [2, 28]
const LIBRARIES = /^(libc|libm|libdl|libpthread|librt|ld-linux-[\w-]+)\.so\.\d+$/
const ADDON_ENTRY_POINTS = ['napi_register_module_v1', 'node_api_module_get_api_version_v1']
const MODULE_ENTRY_POINTS = ['nt_tensorrt_module']

/** What is wrong with a binary; empty when it may travel. */
export function problemsOf(file) {
  const tool = (name, ...args) => execFileSync(name, [...args, file], { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } })
  const problems = []
  const entryPoints = file.endsWith('.node') ? ADDON_ENTRY_POINTS : MODULE_ENTRY_POINTS

  for (const line of tool('objdump', '-T').split('\n')) {
    const symbol = line.trim().split(/\s+/).at(-1)
    const version = /\(?(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)\)?/.exec(line)
    if (version !== null) {
      if (version[1] !== 'GLIBC') problems.push(`${symbol} comes from ${version[1]}_${version[2]}: link libstdc++ and libgcc statically`)
      else if (isAbove(version[2].split('.').map(Number))) problems.push(`${symbol} needs GLIBC_${version[2]}`)
    }
    // Column 2 are flags: g = global, u = unique global; *UND* is an import.
    if (/^[0-9a-f]+ [gu]/.test(line) && !line.includes('*UND*') && !entryPoints.includes(symbol)) problems.push(`${symbol} is exported`)
  }
  const dynamic = tool('readelf', '-dW')
  for (const [, library] of dynamic.matchAll(/\(NEEDED\)\s+Shared library: \[(.+?)\]/g)) {
    if (!LIBRARIES.test(library)) problems.push(`it needs ${library}`)
  }
  if (!/\(FLAGS_1\).*NODELETE/.test(dynamic)) problems.push('it can be unloaded (link with -z nodelete)')
  if (/\((RPATH|RUNPATH)\)/.test(dynamic)) problems.push('it has a run path of the build machine')
  if (/GNU_STACK.*RWE/.test(tool('readelf', '-lW'))) problems.push('its stack is executable')
  return problems
}

function isAbove([major, minor = 0]) {
  return major > GLIBC[0] || (major === GLIBC[0] && minor > GLIBC[1])
}

function prebuilt() {
  return readdirSync(join(root, 'prebuilds'), { recursive: true })
    .filter((name) => /^linux-.*\.(node|so)$/.test(name))
    .map((name) => join(root, 'prebuilds', name))
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  for (const name of ['objdump', 'readelf']) if (onPath(name) === undefined) fail(`${name} (binutils) is needed`)
  const files = process.argv.length > 2 ? process.argv.slice(2) : prebuilt()
  if (files.length === 0) fail('there is no binary to check')
  for (const file of files) {
    const problems = problemsOf(file)
    if (problems.length > 0) fail(`${relative(process.cwd(), file)} cannot travel:\n${problems.map((text) => `  ${text}`).join('\n')}`)
    say(`${relative(process.cwd(), file)}: glibc ${GLIBC.join('.')} suffices`)
  }
}
