/** The TensorRT backend: a module of its own beside the addon, for it links what is NVIDIA's. */
import { existsSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { TensorRTError } from '../errors'
import type { Graph } from '../models/graph'
import type { Executor } from '../scheduler/executor'
import { loadAddon } from './load'

/** Environment variable with the path of the backend module; no other place is looked at then. */
export const MODULE_PATH_VARIABLE = 'NODE_TENSORRT_MODULE'

const MODULE_FILE = 'nt-tensorrt.so'

export interface TensorRTBackendOptions {
  graph: Graph
  /** safetensors files, absolute paths. */
  files: string[]
}

/**
 * Looks for the backend module and, where there is none, says so and where it looked.
 *
 * @throws TensorRTError (as a rejection) ERR_TENSORRT_MODULE_NOT_FOUND, and the addon's load errors
 */
export async function createTensorRTBackend(_options: TensorRTBackendOptions): Promise<Executor> {
  const { addon, path } = loadAddon()
  const named = process.env[MODULE_PATH_VARIABLE]
  const places = named ? [resolve(named)] : [join(dirname(path), MODULE_FILE)]
  const found = places.find((place) => existsSync(place))
  throw new TensorRTError(
    'ERR_TENSORRT_MODULE_NOT_FOUND',
    found === undefined
      ? `The TensorRT backend module is not installed; looked at ${places.join(', ')}`
      : `The addon ${addon.version} was built without support for the TensorRT backend module ${found}`,
    { hint: "this release runs models on the CPU: use backend: 'cpu', or 'auto'" },
  )
}
