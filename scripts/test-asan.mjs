// The native tests, and the addon under Node, with AddressSanitizer and UndefinedBehaviorSanitizer. Where the module's compiler and
// headers are there (scripts/sdk.sh), the module's runtime too, on the fake GPU of test/native/fake_gpu.
//   npm run test:asan
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { fail, isFresh, onPath, requireBuildTools, root, run, runTool, say, sdkFolder, sdkIsComplete, typescriptHash } from './tools.mjs'

requireBuildTools()
run(process.execPath, [join(root, 'scripts', 'ensure.mjs'), '--dependencies'])
// Some tests start processes that load the package.
if (!existsSync(join(root, 'dist', 'index.js')) || !isFresh('typescript', typescriptHash())) run(process.execPath, [join(root, 'scripts', 'build-ts.mjs')])
const out = join(root, 'build', 'asan')
const withTensorRT = process.env.NT_SKIP_TENSORRT !== '1' && sdkIsComplete(sdkFolder())
if (!withTensorRT) say('LEFT OUT: the TensorRT backend module, as its compiler is not there (npm test fetches it)')
const tensorrt = withTensorRT ? ['-DNT_TENSORRT=ON', `-DNT_SDK_DIR=${sdkFolder()}`, '-DNT_CUDA_ARCHITECTURES=90a'] : ['-DNT_TENSORRT=OFF']
run('cmake', ['-S', root, '-B', out, '-DCMAKE_BUILD_TYPE=RelWithDebInfo', '-DNT_SANITIZE=address,undefined', '-DNT_BUILD_TESTS=ON', ...tensorrt, '--log-level=WARNING'])
run('cmake', ['--build', out, '--parallel', String(availableParallelism())])
say('native tests under the sanitizers ...')
run('ctest', ['--test-dir', out, '--output-on-failure'])

// Node itself is not instrumented, so the runtime is loaded ahead of it. V8 never frees all it has: no leak check here.
const compiler = process.env.CXX ?? ['c++', 'g++'].find((name) => onPath(name) !== undefined)
const runtime = execFileSync(compiler, ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim()
if (!runtime.startsWith('/')) fail(`${compiler} has no shared AddressSanitizer runtime: use GCC`)
say('the addon under Node, under the sanitizers ...')
const withFakeGpu = withTensorRT ? ['test/unit/native/fake_gpu.test.ts', 'test/unit/native/runtime_addon.test.ts'] : []
runTool('vitest', 'vitest', ['run', 'test/unit/native/backend.test.ts', 'test/e2e/workers.e2e.test.ts', ...withFakeGpu, '--testTimeout=300000'], {
  env: {
    ...process.env,
    ...(withTensorRT ? { NT_FAKE_GPU: join(out, 'fake_gpu') } : { NT_SKIP_TENSORRT: '1' }),
    LD_PRELOAD: runtime,
    ASAN_OPTIONS: 'detect_leaks=0:allocator_may_return_null=1:abort_on_error=1',
    UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
    NODE_TENSORRT_ADDON: join(out, 'cpp', 'napi', 'node-tensorrt.node'),
  },
})
