/** Finds the native addon and loads it: the only place that touches a `.node` file. */
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import bindings from 'bindings'
import nodeGypBuild from 'node-gyp-build'
import { TensorRTError } from '../errors'
import type { NativeAddon } from './addon'
import { addonLoadFailed } from './load_error'

const requireFile = createRequire(__filename)

/** Environment variable with the path of the addon to load; nothing else is tried then. */
export const ADDON_PATH_VARIABLE = 'NODE_TENSORRT_ADDON'

export interface LoadedAddon {
  addon: NativeAddon
  /** Absolute path of the binary. */
  path: string
}

let loaded: LoadedAddon | undefined

/**
 * Loads the addon once per thread. Looks at `NODE_TENSORRT_ADDON`, then in `build/Release` and `prebuilds/` (node-gyp-build),
 * then at the places of a development build (bindings). The first file that exists is the one: if it does not load,
 * that is the error, and no other is tried.
 *
 * @throws TensorRTError ERR_ADDON_NOT_FOUND, ERR_ADDON_LOAD_FAILED, ERR_VERSION_MISMATCH
 */
export function loadAddon(): LoadedAddon {
  loaded ??= load(packageRoot())
  return loaded
}

function packageRoot(): string {
  // The same depth from lib/native and from dist/native.
  return resolve(__dirname, '..', '..')
}

function load(root: string): LoadedAddon {
  const path = findAddon(root)
  let exported: unknown
  try {
    exported = requireFile(path)
  } catch (error) {
    throw addonLoadFailed(path, error)
  }
  const addon = exported as Partial<NativeAddon> | null
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

/** @internal exported for its tests */
export function findAddon(root: string): string {
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
    return bindings({ bindings: 'node-tensorrt', module_root: root, path: true } as bindings.Options) as string
  } catch (error) {
    const { tries = [] } = error as { tries?: string[] }
    const places = [join(root, 'prebuilds', `${process.platform}-${process.arch}`, '*.node'), ...tries]
    throw new TensorRTError(
      'ERR_ADDON_NOT_FOUND',
      `There is no native addon for ${process.platform}-${process.arch}. Looked at:\n${places.map((place) => `  ${place}`).join('\n')}\n`,
      { hint: 'prebuilt is linux-x64; elsewhere build it: npx node-gyp rebuild in the package folder', cause: error },
    )
  }
}
