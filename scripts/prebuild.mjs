// Makes all that the package carries: dist/, typings/, prebuilds/, checked. The binary is built from a copy of the sources that
// the package carries, which shows that they suffice, and leaves the build folder alone.
//   node scripts/prebuild.mjs [--if-stale]      --if-stale: keeps what was made from the sources as they are
// nt-tensorrt.so comes along where the CUDA compiler is there (scripts/sdk.sh); --if-stale leaves it out.
import { execFileSync } from 'node:child_process'
import { copyFileSync, cpSync, existsSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import {
  isFresh, markFresh, moduleFile, nativeHash, requireBuildTools, root, run, runTool, say, sdkFolder, sdkIsComplete, typescriptHash,
} from './tools.mjs'

const ifStale = process.argv.includes('--if-stale')
const binary = join(root, 'prebuilds', `${process.platform}-${process.arch}`, 'node-tensorrt.node')
const script = (name) => run(process.execPath, [join(root, 'scripts', name)])
if (!(ifStale && existsSync(join(root, 'dist', 'index.mjs')) && existsSync(join(root, 'typings', 'index.d.ts')) && isFresh('typescript', typescriptHash()))) {
  script('build-ts.mjs')
  script('build-typings.mjs')
}
const inputs = nativeHash()
if (ifStale && existsSync(binary) && isFresh('prebuild', inputs)) process.exit(0)

requireBuildTools()
rmSync(join(root, 'prebuilds'), { recursive: true, force: true })
// node-gyp asks for Node's headers although CMake brings its own; those that Node was installed with save it a download.
const prefix = dirname(dirname(process.execPath))
const env = { ...process.env }
if (env.npm_config_nodedir === undefined && existsSync(join(prefix, 'include', 'node', 'node.h'))) env.npm_config_nodedir = prefix
const stage = mkdtempSync(join(tmpdir(), 'node-tensorrt-prebuild-'))
process.on('exit', () => rmSync(stage, { recursive: true, force: true }))
for (const name of ['package.json', 'CMakeLists.txt', 'binding.gyp', 'cpp', 'scripts']) cpSync(join(root, name), join(stage, name), { recursive: true })
symlinkSync(join(root, 'node_modules'), join(stage, 'node_modules'))
runTool('prebuildify', 'prebuildify', ['--napi', '--strip', '--target', process.versions.node, '--cwd', stage, '--out', root], { env })
const hasModule = !ifStale && process.platform === 'linux' && process.arch === 'x64' && prebuildModule()
if (process.platform === 'linux') script('check-binary.mjs')

// They load: in a process of their own, by the loader of the package.
const load = hasModule ? 'probeTensorRT()' : 'loadAddon()'
execFileSync(process.execPath, ['-e', `require('./dist/native').${load}`], {
  cwd: root,
  stdio: 'inherit',
  env: { ...process.env, NODE_TENSORRT_ADDON: binary, NODE_TENSORRT_MODULE: '' },
})
markFresh('prebuild', inputs)

/** The TensorRT backend module beside the addon. Its sources are not packed: they need the CUDA compiler. */
function prebuildModule() {
  if (!sdkIsComplete(sdkFolder())) {
    say(`${sdkFolder()} lacks the CUDA compiler and headers (scripts/sdk.sh): the package will have no TensorRT backend module`)
    return false
  }
  script('build-tensorrt.mjs')
  const target = join(root, 'prebuilds', 'linux-x64', 'nt-tensorrt.so')
  copyFileSync(moduleFile, target)
  run('strip', ['--strip-unneeded', target])
  return true
}
