// Builds nt-tensorrt.so, the TensorRT backend module, in build/Release beside the addon.
//   node scripts/build-tensorrt.mjs [--arch 80,89,90a] [--fetch]
// Needs what scripts/sdk.sh fetches (the CUDA compiler, TensorRT's headers, FlashInfer), in .sdk or where NT_SDK_DIR says; --fetch
// fetches what is missing. It needs no GPU. NT_TENSORRT_ARCH is the default of --arch.
import { copyFileSync, mkdirSync, renameSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { fail, moduleFile, onPath, requireBuildTools, root, run, say, sdkFolder, sdkIsComplete, tensorrtArchitectures } from './tools.mjs'

const { values: options } = parseArgs({ options: { arch: { type: 'string' }, fetch: { type: 'boolean' } } })
if (process.platform !== 'linux' || process.arch !== 'x64') fail(`the TensorRT backend module is built on linux-x64, this is ${process.platform}-${process.arch}`)

requireBuildTools()
const architectures = options.arch?.split(',') ?? tensorrtArchitectures()
const sdk = sdkFolder()
if (!sdkIsComplete(sdk)) {
  if (!options.fetch) fail(`${sdk} lacks what the build needs: run scripts/sdk.sh (170 MB), or let NT_SDK_DIR name the folder that has it`)
  say(`fetching compiler and headers into ${sdk} (170 MB, once) ...`)
  run('bash', [join(root, 'scripts', 'sdk.sh'), 'compile', sdk])
}

const folder = join(root, 'build', 'cmake-tensorrt')
const jobs = process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? String(availableParallelism())
const generator = onPath('ninja') === undefined ? [] : ['-G', 'Ninja']
run('cmake', ['-S', root, '-B', folder, ...generator, '-DCMAKE_BUILD_TYPE=Release', '-DNT_TENSORRT=ON', '-DNT_BUILD_ADDON=OFF',
  `-DNT_SDK_DIR=${sdk}`, `-DNT_CUDA_ARCHITECTURES=${architectures.join(';')}`, '--log-level=WARNING'])
run('cmake', ['--build', folder, '--target', 'nt-tensorrt', '--parallel', jobs])

// Renamed into place: a process that has the old file mapped keeps it.
mkdirSync(dirname(moduleFile), { recursive: true })
copyFileSync(join(folder, 'cpp', 'tensorrt', 'nt-tensorrt.so'), `${moduleFile}.tmp`)
renameSync(`${moduleFile}.tmp`, moduleFile)
