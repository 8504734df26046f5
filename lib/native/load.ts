/** Finds the native addon and loads it: the only place that touches a `.node` file. */
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import bindings from 'bindings'
import nodeGypBuild from 'node-gyp-build'
import { TensorRTError } from '../errors'
import type { NativeAddon } from './addon'
import { inspectElf } from './elf'
import { addonLoadFailed } from './load_error'


/** Environment variable with the path of the addon to load; nothing else is tried then. */
export const ADDON_PATH_VARIABLE = 'NODE_TENSORRT_ADDON'

export interface LoadedAddon {
  addon: NativeAddon
  /** Absolute path of the binary. */
  path: string
}

/** Where bindings looks; the names in it are keys of its own. */
const DEVELOPMENT_BUILDS = [
  ['module_root', 'build', 'bindings'],
  ['module_root', 'build', 'Debug', 'bindings'],
  ['module_root', 'build', 'Release', 'bindings'],
  ['module_root', 'build', 'cmake', 'Debug', 'bindings'],
  ['module_root', 'build', 'cmake', 'Release', 'bindings'],
]

let loaded: LoadedAddon | undefined

/**
 * Loads the addon once per thread. Looks at `NODE_TENSORRT_ADDON`, then in `build/Release` and `prebuilds/` (node-gyp-build),
 * then at the places of a development build (bindings). The first file that exists is the one: if it does not load,
 * that is the error, and no other is tried.
 *
 * @throws TensorRTError ERR_ADDON_NOT_FOUND, ERR_ADDON_LOAD_FAILED, ERR_VERSION_MISMATCH
 */
export function loadAddon(): LoadedAddon {
  // The package's root is at the same distance from lib/native and from dist/native.
  loaded ??= loadFrom(resolve(__dirname, '..', '..'))
  return loaded
}

/** @internal exported for its tests */
export function loadFrom(root: string): LoadedAddon {
  const path = findAddon(root)
  if (process.platform === 'linux' && inspectElf(path)?.complete === false) throw addonLoadFailed(path, new Error('truncated'))
  const module: { exports: unknown } = { exports: {} }
  try {
    // And not require(), which would run a file of another name as JavaScript.
    process.dlopen(module, path)
  } catch (error) {
    throw addonLoadFailed(path, error)
  }
  const addon = module.exports as Partial<NativeAddon> | null
  if (typeof addon?.createCpuBackend !== 'function' || typeof addon.cpuFeatures !== 'function') {
    throw addonLoadFailed(path, new Error('the file is some other addon'))
  }
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
  if (addon.version !== version) {
    throw new TensorRTError('ERR_VERSION_MISMATCH', `The package is ${version}, the native addon ${path} is ${addon.version}`, {
      hint: 'build it again: npm run build:native',
    })
  }
  return { addon: addon as NativeAddon, path }
}

function findAddon(root: string): string {
  const fromEnvironment = process.env[ADDON_PATH_VARIABLE]
  if (fromEnvironment !== undefined && fromEnvironment !== '') {
    const path = resolve(fromEnvironment)
    if (existsSync(path)) return path
    throw new TensorRTError('ERR_ADDON_NOT_FOUND', `${ADDON_PATH_VARIABLE} names ${path}, which does not exist`, {
      hint: `correct ${ADDON_PATH_VARIABLE}, or unset it to use the addon of the package`,
    })
  }
  try {
    return nodeGypBuild.path(root)
  } catch {
    // Nothing there; the places are listed below.
  }
  try {
    const options = { bindings: 'node-tensorrt', module_root: root, path: true, try: DEVELOPMENT_BUILDS }
    return bindings(options as bindings.Options) as string
  } catch (error) {
    const { tries = [] } = error as { tries?: string[] }
    const places = [join(root, 'prebuilds', `${process.platform}-${process.arch}`, '*.node'), ...tries]
    throw new TensorRTError(
      'ERR_ADDON_NOT_FOUND',
      `There is no native addon for ${process.platform}-${process.arch}; looked at ${places.join(', ')}`,
      { hint: 'prebuilt is linux-x64; elsewhere build it: npx node-gyp rebuild in the package folder', cause: error },
    )
  }
}
