// Builds the addon: CMake in build/cmake, the binary in build/Release/node-tensorrt.node.
//   node scripts/build-native.mjs [--debug] [--include=<folder of node_api.h>]
// With cmake-js where it is installed (a checkout), with plain CMake where not (the package, through binding.gyp).
import { copyFileSync, mkdirSync, renameSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { addonFile, cmakeFolder, fail, isInstalled, markFresh, nativeHash, onPath, requireBuildTools, root, run, runTool } from './tools.mjs'

const { values: options } = parseArgs({ options: { debug: { type: 'boolean' }, include: { type: 'string' } } })

requireBuildTools()
const inputs = nativeHash()
const config = options.debug ? 'Debug' : 'Release'
const jobs = process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? String(availableParallelism())

if (isInstalled('cmake-js')) {
  const verb = options.debug ? ['--debug'] : []
  runTool('cmake-js', 'cmake-js', ['build', '--out', cmakeFolder, '--parallel', jobs, '--target', 'node-tensorrt', ...verb])
} else {
  if (!isInstalled('node-addon-api')) fail('node-addon-api is not installed: run npm install first')
  const require = createRequire(join(root, 'package.json'))
  const headers = isInstalled('node-api-headers')
    ? require('node-api-headers').include_dir
    : (options.include ?? resolve(dirname(process.execPath), '..', 'include', 'node'))
  const include = `${resolve(root, headers)};${resolve(root, require('node-addon-api').include_dir)}`
  const generator = onPath('ninja') === undefined ? [] : ['-G', 'Ninja']
  run('cmake', ['-S', root, '-B', cmakeFolder, ...generator, `-DCMAKE_BUILD_TYPE=${config}`, `-DCMAKE_JS_INC=${include}`,
    `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${join(cmakeFolder, config)}`])
  run('cmake', ['--build', cmakeFolder, '--target', 'node-tensorrt', '--parallel', jobs])
}

// Renamed into place: a process that has the old file mapped keeps it.
mkdirSync(dirname(addonFile), { recursive: true })
copyFileSync(join(cmakeFolder, config, 'node-tensorrt.node'), `${addonFile}.tmp`)
renameSync(`${addonFile}.tmp`, addonFile)
if (isInstalled('cmake-js') && !options.debug) markFresh('native', inputs)
