import { TensorRTError } from '../errors'
import type { ConfigReader } from './config_reader'
import type { Rope } from './graph'

const { fround } = Math

const ROPE_TYPES = ['default', 'linear', 'llama3'] as const
const DEFAULT_THETA = 10_000

/**
 * Where a checkpoint keeps its rotary parameters: in one object (transformers 5), or in `rope_scaling` and `rope_theta`
 * beside it.
 */
function ropeFields(config: ConfigReader): { theta: number; type: string; fields: ConfigReader | undefined } {
  const parameters = config.object('rope_parameters')
  // As in transformers, which merges an old `rope_scaling` over the new field.
  const fields = config.object('rope_scaling') ?? parameters
  const theta =
    fields?.get('rope_theta') === undefined
      ? config.positive('rope_theta', DEFAULT_THETA)
      : fields.positive('rope_theta')
  return { theta, type: fields?.string('rope_type', fields.string('type', 'default')) ?? 'default', fields }
}

/**
 * The rotary frequencies of a Hugging Face config, for heads of `headDim` (even).
 *
 * The formulas, and the float32 rounding after each operation, are those of transformers' `modeling_rope_utils.py`:
 * - default: `invFreq[i] = 1 / theta^(2i / headDim)` (Su et al., RoFormer, 2021)
 * - linear: the same, divided by `factor` (Chen et al., Position Interpolation, 2023)
 * - llama3: wavelengths above `original_max_position_embeddings / low_freq_factor` are divided by `factor`, those below
 *   `original_max_position_embeddings / high_freq_factor` are kept, and between them the two are interpolated (Llama
 *   3.1)
 *
 * @throws ERR_MODEL_UNSUPPORTED naming the key for another type, ERR_MODEL_INVALID for parameters out of range
 */
export function readRope(config: ConfigReader, headDim: number, maxPositions: number): Rope {
  const { theta, type, fields } = ropeFields(config)
  const partial = (fields?.get('partial_rotary_factor') ?? config.get('partial_rotary_factor') ?? 1) as number
  if (partial !== 1) {
    throw new TensorRTError(
      'ERR_MODEL_UNSUPPORTED',
      `${config.where}: "partial_rotary_factor" is ${partial}; supported is 1`,
    )
  }

  const base = fround(theta)
  const invFreq: number[] = []
  for (let i = 0; i < headDim; i += 2) {
    invFreq.push(fround(1 / fround(base ** fround(i / headDim))))
  }
  if (fields === undefined || type === 'default') return { invFreq, scale: 1 }
  if (type === 'linear') {
    const factor = fround(fields.positive('factor'))
    return { invFreq: invFreq.map((frequency) => fround(frequency / factor)), scale: 1 }
  }
  if (type === 'llama3') return { invFreq: scaleLlama3(invFreq, fields, config, maxPositions), scale: 1 }
  return fields.unsupported(fields.get('rope_type') === undefined ? 'type' : 'rope_type', ROPE_TYPES.join(', '))
}

function scaleLlama3(invFreq: number[], fields: ConfigReader, config: ConfigReader, maxPositions: number): number[] {
  const factor = fround(fields.positive('factor'))
  const low = fields.positive('low_freq_factor')
  const high = fields.positive('high_freq_factor')
  if (!(high > low)) fields.fail('high_freq_factor', `greater than "low_freq_factor" (${low})`)
  const name = 'original_max_position_embeddings'
  // A field beside the object wins over one within it, as in transformers.
  const original =
    config.get(name) === undefined ? fields.integer(name, { fallback: maxPositions }) : config.integer(name)
  const longest = fround(original / low)
  const shortest = fround(original / high)
  return invFreq.map((frequency) => {
    const wavelength = fround(fround(2 * Math.PI) / frequency)
    if (wavelength < shortest) return frequency
    const slow = fround(frequency / factor)
    if (wavelength > longest) return slow
    const smooth = fround(fround(fround(original / wavelength) - fround(low)) / fround(high - low))
    const slowPart = fround(fround(fround(1 - smooth) * frequency) / factor)
    return fround(slowPart + fround(smooth * frequency))
  })
}
