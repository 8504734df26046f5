/** New weights for an engine. */
import { TensorRTError } from '../errors'
import type { NativeWeights } from '../native'
import { closest, describeValue } from './argument_reader'
import { Tensor } from './tensor'

/**
 * @param known names of the engine's refittable weights
 * @throws ERR_INVALID_TENSOR for an unknown name, with the closest one, or what is no tensor; ERR_INVALID_ARGUMENT
 */
export function checkWeights(weights: unknown, known: readonly string[]): NativeWeights[] {
  if (typeof weights !== 'object' || weights === null || Array.isArray(weights)) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `refit() takes an object of tensors by name, not ${describeValue(weights)}`)
  }
  const names = new Set(known)
  return Object.entries(weights).map(([name, tensor]) => {
    if (!names.has(name)) {
      const meant = closest(name, known)
      const some = known.length > 8 ? `${known.slice(0, 8).join(', ')} and ${known.length - 8} more` : known.join(', ')
      throw new TensorRTError('ERR_INVALID_TENSOR', `The engine has no refittable weights ${describeValue(name)}`, {
        hint: meant === undefined ? `there are: ${some === '' ? 'none' : some}` : `did you mean "${meant}"?`,
      })
    }
    if (!(tensor instanceof Tensor)) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `The weights "${name}" must be a Tensor, not ${describeValue(tensor)}`)
    }
    return { name, dtype: tensor.dtype, values: tensor.bytes, count: tensor.size }
  })
}
