// What the build scripts share. Node's own modules only: these run in a bare clone, before anything is installed.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, constants, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { delimiter, dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..')
export const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))

/** Where `cmake` works; the binary is copied to build/Release, where the loader looks. */
export const cmakeFolder = join(root, 'build', 'cmake')
export const addonFile = join(root, 'build', 'Release', 'node-tensorrt.node')
export const moduleFile = join(root, 'build', 'Release', 'nt-tensorrt.so')
const stampFolder = join(root, 'node_modules', '.cache', 'node-tensorrt')

export function say(text) {
  process.stderr.write(`node-tensorrt: ${text}\n`)
}

/** Ends the process with a message instead of a stack. */
export function fail(text) {
  say(text)
  process.exit(1)
}

/** Runs a command with its output shown; ends this process when it fails, unless `allowFailure`. Returns the exit code. */
export function run(command, args, options = {}) {
  const { allowFailure = false, ...rest } = options
  const { status, signal, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...rest })
  if (error !== undefined && !allowFailure) fail(`${command} does not start: ${error.message}`)
  const code = status ?? (signal === null ? 1 : 128)
  if (code !== 0 && !allowFailure) fail(`${[command, ...args].join(' ')} failed (${signal ?? `exit code ${code}`})`)
  return code
}

/** Runs a package's command of node_modules/.bin with this Node. */
export function runTool(name, bin, args, options) {
  return run(process.execPath, [toolPath(name, bin), ...args], options)
}

export function toolPath(name, bin = name) {
  const require = createRequire(join(root, 'package.json'))
  // Not require.resolve(name/package.json): `exports` may hide it.
  const folder = require.resolve.paths(name).map((path) => join(path, name)).find((path) => existsSync(join(path, 'package.json')))
  if (folder === undefined) throw new Error(`${name} is not installed`)
  const { bin: bins } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  return join(folder, typeof bins === 'string' ? bins : bins[bin])
}

export function isInstalled(name) {
  return createRequire(join(root, 'package.json')).resolve.paths(name).some((path) => existsSync(join(path, name, 'package.json')))
}

export function onPath(command) {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    try {
      accessSync(join(folder, command), constants.X_OK)
      return join(folder, command)
    } catch {
      // next
    }
  }
  return undefined
}

/** Ends the process, saying what to install, when a C++ build cannot work here. */
export function requireBuildTools() {
  const missing = []
  if (onPath('cmake') === undefined) missing.push('CMake 3.20 or later')
  const compilers = [process.env.CXX, 'c++', 'g++', 'clang++'].filter(Boolean)
  if (!compilers.some((compiler) => existsSync(compiler) || onPath(compiler.split(' ')[0]) !== undefined)) {
    missing.push('a C++20 compiler (GCC 11 or Clang 14, or later)')
  }
  if (onPath('ninja') === undefined && onPath('make') === undefined && onPath('gmake') === undefined) missing.push('make or ninja')
  if (missing.length === 0) return
  fail(
    `building the native addon needs ${missing.join(' and ')}, which ${missing.length === 1 ? 'is' : 'are'} not on the PATH.\n` +
      '  Debian, Ubuntu:  sudo apt-get install build-essential cmake ninja-build\n' +
      '  Fedora, RHEL:    sudo dnf install gcc-c++ make cmake ninja-build',
  )
}

/** Hash of the contents of files and folders, to tell whether an output is stale. */
export function hashOf(paths, extra = '') {
  const hash = createHash('sha256').update(extra)
  const visit = (path) => {
    const absolute = join(root, path)
    if (!existsSync(absolute)) return
    const entries = readdirSync(absolute, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))
    for (const entry of entries) {
      const child = join(path, entry.name)
      if (entry.isDirectory()) visit(child)
      else hash.update(`${child}\0`).update(readFileSync(join(root, child)))
    }
  }
  for (const path of paths) {
    if (existsSync(join(root, path)) && !isFolder(path)) hash.update(`${path}\0`).update(readFileSync(join(root, path)))
    else visit(path)
  }
  return hash.digest('hex')
}

function isFolder(path) {
  try {
    readdirSync(join(root, path))
    return true
  } catch {
    return false
  }
}

/** True when `name` was last marked with `value`. */
export function isFresh(name, value) {
  try {
    return readFileSync(join(stampFolder, name), 'utf8') === value
  } catch {
    return false
  }
}

export function markFresh(name, value) {
  mkdirSync(stampFolder, { recursive: true })
  writeFileSync(join(stampFolder, name), value)
}

export const nativeInputs = ['CMakeLists.txt', 'cpp/compat', 'cpp/core', 'cpp/cpu', 'cpp/napi']
export const typescriptInputs = ['lib', 'tsconfig.json', 'scripts/build-ts.mjs']
export const nativeHash = () => hashOf(nativeInputs, `${manifest.version} ${process.arch}`)
export const typescriptHash = () => hashOf(typescriptInputs, manifest.version)

/** Compute capabilities that the module is compiled for: A100, RTX 40 and L4, H100 and H200. */
export const tensorrtArchitectures = () => (process.env.NT_TENSORRT_ARCH ?? '80,89,90a').split(',')

/** Folder of the CUDA compiler and the headers that scripts/sdk.sh fetches. */
export function sdkFolder() {
  return resolve(root, process.env.NT_SDK_DIR || '.sdk')
}

export function sdkIsComplete(folder) {
  return ['cuda/bin/nvcc', 'trt/include/NvInfer.h', 'flashinfer/include/flashinfer'].every((name) => existsSync(join(folder, name)))
}
