/** Names under which a model is served. */
import { basename } from 'node:path'
import { TensorRTError } from '../errors'
import type { LLM } from '../llm'
import { invalidArgument } from '../runtime'

/** Letters that need no escape in a path, a header and a label. */
const MODEL_NAME = /^[\w][\w.:/@+-]{0,255}$/

/** The name of the model's folder, where that can be a name. */
export function defaultModelName({ info }: LLM): string {
  const name = info.model === undefined ? info.name : basename(info.model)
  return MODEL_NAME.test(name) ? name : 'model'
}

/** @throws ERR_INVALID_ARGUMENT */
export function checkModelNames(llm: LLM, given: unknown): string[] {
  const names = given === undefined ? [defaultModelName(llm)] : typeof given === 'string' ? [given] : given
  if (!Array.isArray(names) || names.length === 0) throw invalidArgument('modelName', 'a name or an array of names', given)
  for (const name of names) {
    if (typeof name !== 'string' || !MODEL_NAME.test(name)) {
      throw invalidArgument('modelName', 'up to 256 letters, digits and . : / @ + - _, beginning with a letter or digit', name)
    }
  }
  if (new Set(names).size < names.length) throw new TensorRTError('ERR_INVALID_ARGUMENT', '"modelName" has a name twice')
  return [...(names as string[])]
}
