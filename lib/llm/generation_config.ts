import { join } from 'node:path'
import { TensorRTError } from '../errors'
import { ConfigReader } from '../models'
import type { Tokenizer } from '../text'

/** What a request gets where it does not say otherwise. */
export interface GenerationDefaults {
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  /** undefined = as many as context and KV cache allow. */
  maxTokens: number | undefined
  /** Tokens that end an output. */
  eosTokenIds: Int32Array
}

export const GREEDY_DEFAULTS: GenerationDefaults = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  maxTokens: undefined,
  eosTokenIds: new Int32Array(0),
}

interface Sources {
  /** Parsed generation_config.json, where there is one. */
  generationConfig: unknown
  /** Parsed config.json. */
  config: unknown
  tokenizer: Tokenizer
  vocabSize: number
  path: string
}

/**
 * Defaults of a model folder. As in transformers, sampling is greedy unless `do_sample` is set. End-of-sequence tokens
 * come of generation_config.json, else config.json, else the tokenizer.
 *
 * @throws ERR_MODEL_INVALID naming the field that is out of range
 */
export function readGenerationDefaults({
  generationConfig,
  config,
  tokenizer,
  vocabSize,
  path,
}: Sources): GenerationDefaults {
  const own = new ConfigReader(generationConfig ?? {}, join(path, 'generation_config.json'))
  const model = new ConfigReader(config, join(path, 'config.json'))
  const samples = own.boolean('do_sample', false)
  const number = (name: string, fallback: number, accepts: (value: number) => boolean, expected: string): number => {
    const value = own.get(name) ?? fallback
    return typeof value === 'number' && accepts(value) ? value : own.fail(name, expected)
  }
  const temperature = number('temperature', 1, (value) => value >= 0 && value <= 100, 'a number from 0 to 100')
  const eos = eosTokens(own, vocabSize) ?? eosTokens(model, vocabSize) ?? ownEos(tokenizer, vocabSize)
  return {
    temperature: samples ? temperature : 0,
    topK: own.integer('top_k', { min: 0, fallback: 0 }),
    topP: number('top_p', 1, (value) => value > 0 && value <= 1, 'a number above 0 and up to 1'),
    minP: number('min_p', 0, (value) => value >= 0 && value <= 1, 'a number from 0 to 1'),
    repetitionPenalty: number(
      'repetition_penalty',
      1,
      (value) => value >= 0.01 && value <= 100,
      'a number from 0.01 to 100',
    ),
    maxTokens: own.get('max_new_tokens') === undefined ? undefined : own.integer('max_new_tokens'),
    eosTokenIds: eos,
  }
}

function eosTokens(config: ConfigReader, vocabSize: number): Int32Array | undefined {
  const value = config.get('eos_token_id')
  if (value === undefined) return undefined
  const ids: unknown[] = Array.isArray(value) ? value : [value]
  const valid = (id: unknown): id is number =>
    typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < vocabSize
  if (!ids.every(valid)) return config.fail('eos_token_id', `a token id in [0, ${vocabSize}), or a list of them`)
  return Int32Array.from(new Set(ids))
}

function ownEos(tokenizer: Tokenizer, vocabSize: number): Int32Array {
  const id = tokenizer.eosTokenId
  if (id === undefined) return new Int32Array(0)
  if (id < vocabSize) return Int32Array.of(id)
  throw new TensorRTError(
    'ERR_MODEL_INVALID',
    `The tokenizer's end-of-sequence token ${id} is outside the vocabulary of ${vocabSize}`,
  )
}
