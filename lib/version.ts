import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { TensorRTError } from './errors'

/** The package's own version. */
export const version: string = versionIn(join(__dirname, '..'))

/**
 * @internal exported for its test
 * @throws ERR_ADDON_NOT_FOUND where the folder is not the package's: what a bundler makes of a program leaves addon and threads behind
 */
export function versionIn(root: string): string {
  const { name, version } = manifestIn(root)
  if (name === 'node-tensorrt' && typeof version === 'string') return version
  throw new TensorRTError('ERR_ADDON_NOT_FOUND', `node-tensorrt is not in its own folder, but in ${root}: a bundler has taken it apart`, {
    hint: "leave it out of the bundle (external: ['node-tensorrt', 'node-tensorrt/server']), and install it where the program runs",
  })
}

function manifestIn(root: string): { name?: unknown; version?: unknown } {
  try {
    return (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as object | null) ?? {}
  } catch {
    return {}
  }
}
