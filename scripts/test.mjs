// Builds what is missing, then runs everything that needs no GPU: type check, linters, native tests (ctest), vitest.
//   npm test [-- <vitest arguments, e.g. a file name>]     with arguments: vitest alone
// Leaves build/test/ctest.xml and build/test/vitest.json.
// The TensorRT backend module is compiled and tested too; the first run fetches compiler and headers into .sdk (170 MB, see
// scripts/sdk.sh; NT_SDK_DIR names another folder). NT_SKIP_TENSORRT=1 leaves it out. Where they cannot be fetched that is a failure
// with CI=true, and said elsewhere.
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { root, run, runTool, say, sdkFolder, sdkIsComplete } from './tools.mjs'

const args = process.argv.slice(2)
run(process.execPath, [join(root, 'scripts', 'ensure.mjs')])
const out = join(root, 'build', 'test')
const testedModule = join(out, 'cpp', 'tensorrt', 'nt-tensorrt.so')
const fakeGpu = join(out, 'fake_gpu')
const skipsTensorRT = process.env.NT_SKIP_TENSORRT === '1'
/** The module that was compiled here, unless the caller names one, and the fake GPU (test/native/fake_gpu). */
const vitestEnv = () => ({
  ...process.env,
  ...(process.env.NT_FAKE_GPU || skipsTensorRT || !existsSync(join(fakeGpu, 'nt-tensorrt.so')) ? {} : { NT_FAKE_GPU: fakeGpu }),
  ...(process.env.NODE_TENSORRT_MODULE || skipsTensorRT || !existsSync(testedModule) ? {} : { NODE_TENSORRT_MODULE: testedModule }),
})
if (args.length > 0) process.exit(runTool('vitest', 'vitest', ['run', ...args], { allowFailure: true, env: vitestEnv() }))

rmSync(join(out, 'vitest.json'), { force: true })
rmSync(join(out, 'second-attempts.json'), { force: true })
rmSync(join(out, 'ctest.xml'), { force: true })
mkdirSync(out, { recursive: true })
const failed = []
const step = (name, command) => {
  say(`${name} ...`)
  if (command() !== 0) failed.push(name)
}
const jobs = String(availableParallelism())
const quiet = { allowFailure: true }

for (const project of ['.', 'test', 'typings']) {
  step(`type check of ${project === '.' ? 'lib' : project}`, () => runTool('typescript', 'tsc', ['-p', project, '--noEmit'], quiet))
}
step('oxlint', () => runTool('oxlint', 'oxlint', ['--deny-warnings'], quiet))
step('clang-format', () => run(process.execPath, [join(root, 'scripts', 'format.mjs')], quiet))
let withTensorRT = false
step('compiler of the TensorRT backend module', () => {
  withTensorRT = !skipsTensorRT && fetchSdk()
  // A module of sources that have changed since would be tested in vain.
  if (!withTensorRT) {
    rmSync(testedModule, { force: true })
    rmSync(fakeGpu, { recursive: true, force: true })
  }
  return withTensorRT || skipsTensorRT || process.env.CI !== 'true' ? 0 : 1
})
step('native tests', () => {
  // One processor generation, for speed; releases have all.
  const tensorrt = withTensorRT
    ? ['-DNT_TENSORRT=ON', `-DNT_SDK_DIR=${sdkFolder()}`, `-DNT_CUDA_ARCHITECTURES=${(process.env.NT_TENSORRT_ARCH ?? '90a').replaceAll(',', ';')}`]
    : ['-DNT_TENSORRT=OFF']
  const build =
    run('cmake', ['-S', root, '-B', out, '-DCMAKE_BUILD_TYPE=Release', '-DNT_BUILD_TESTS=ON', '-DNT_BUILD_ADDON=OFF', ...tensorrt, '--log-level=WARNING'], quiet) ||
    run('cmake', ['--build', out, '--parallel', jobs], quiet)
  return build || run('ctest', ['--test-dir', out, '--output-on-failure', '--output-junit', join(out, 'ctest.xml')], quiet)
})
// A second attempt, where a machine stood still at the wrong moment: those that needed it are named in the end.
const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${join(out, 'vitest.json')}`, `--reporter=${join(root, 'scripts', 'second-attempts.mjs')}`]
step('vitest', () => runTool('vitest', 'vitest', ['run', '--retry=1', ...reporters], { ...quiet, env: vitestEnv() }))

if (failed.length > 0) say(`failed: ${failed.join(', ')}`)
process.exit(failed.length === 0 ? 0 : 1)

/** True when compiler and headers are there. */
function fetchSdk() {
  const folder = sdkFolder()
  if (sdkIsComplete(folder)) return true
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    say(`the TensorRT backend module is built on linux-x64 alone: left out on ${process.platform}-${process.arch}`)
    return false
  }
  say(`fetching the CUDA compiler and headers into ${folder} (170 MB, once) ...`)
  if (run('bash', [join(root, 'scripts', 'sdk.sh'), 'compile', folder], quiet) === 0 && sdkIsComplete(folder)) return true
  say('LEFT OUT: the TensorRT backend module, as its compiler could not be fetched (see above). NT_SKIP_TENSORRT=1 does not try.')
  return false
}
