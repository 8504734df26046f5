import { TensorRTError } from '../errors'

export function invalidGrammar(message: string, hint?: string): TensorRTError {
  return new TensorRTError('ERR_GRAMMAR_INVALID', message, { hint })
}
