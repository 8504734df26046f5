/** The check of `logitBias`. */
import { isMap } from 'node:util/types'
import { TensorRTError } from '../errors'
import { describeValue, invalidArgument } from '../runtime'
import { type LogitBias, MAX_LOGIT_BIAS, MAX_LOGIT_BIAS_VALUE } from '../scheduler'

const TOKEN_ID = /^(0|[1-9][0-9]{0,9})$/

/**
 * @param bias a Map by token id, or an object whose keys are token ids
 * @returns undefined where no token has a bias
 * @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN
 */
export function checkLogitBias(bias: unknown, vocabSize: number): LogitBias | undefined {
  if (bias === undefined) return undefined
  const isObject = Object.prototype.toString.call(bias) === '[object Object]'
  if (typeof bias !== 'object' || bias === null || !(isObject || isMap(bias))) {
    throw invalidArgument('logitBias', 'a Map, or an object of token ids and biases', bias)
  }
  const size = isMap(bias) ? bias.size : Object.keys(bias).length
  if (size > MAX_LOGIT_BIAS) {
    throw invalidArgument('logitBias', `a bias of at most ${MAX_LOGIT_BIAS} tokens`, `${size} of them`)
  }
  const ids = new Int32Array(size)
  const values = new Float32Array(size)
  let at = 0
  for (const [key, value] of isMap(bias) ? bias : Object.entries(bias)) {
    const id = typeof key === 'string' && !(isMap(bias)) && TOKEN_ID.test(key) ? Number(key) : key
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= vocabSize) {
      const expected = `token ids, integers in [0, ${vocabSize})`
      throw new TensorRTError('ERR_INVALID_TOKEN', `The keys of "logitBias" must be ${expected}, not ${describeValue(key)}`)
    }
    // Written so that NaN fails.
    if (typeof value !== 'number' || !(Math.abs(value) <= MAX_LOGIT_BIAS_VALUE)) {
      throw invalidArgument(`logitBias[${id}]`, `a number from ${-MAX_LOGIT_BIAS_VALUE} to ${MAX_LOGIT_BIAS_VALUE}`, value)
    }
    ids[at] = id
    values[at++] = value
  }
  return size === 0 ? undefined : { ids, values }
}
