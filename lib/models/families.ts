import { TensorRTError } from '../errors'
import { ConfigReader } from './config_reader'
import { decoderGraph, type DecoderSpec } from './decoder_graph'
import type { Graph, WeightDType } from './graph'
import { readRope } from './rope'

/** Turns the config.json of one architecture into a graph. */
export interface ModelFamily {
  /** `architectures[0]` of config.json. */
  architecture: string
  /** `model_type`, which decides where a config names no architecture. */
  modelType: string
  graph(config: ConfigReader): Graph
}

const DTYPES: Readonly<Record<string, WeightDType>> = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' }
const MAX_LAYERS = 4096
const MAX_HEADS = 65_536

/** The fields that all families share. What a family adds or fixes is spread over it. */
function readDecoder(
  family: string,
  config: ConfigReader,
  defaults: { kvHeads?: number; headDim?: number } = {},
): DecoderSpec {
  const hiddenSize = config.integer('hidden_size')
  const heads = config.integer('num_attention_heads', { max: MAX_HEADS })
  const kvHeads = config.integer('num_key_value_heads', {
    max: heads,
    fallback: kvHeadsFallback(config, heads, defaults.kvHeads),
  })
  if (heads % kvHeads !== 0) config.fail('num_key_value_heads', `a divisor of "num_attention_heads" (${heads})`)
  if (config.get('head_dim') === undefined && defaults.headDim === undefined && hiddenSize % heads !== 0) {
    config.fail('hidden_size', `a multiple of "num_attention_heads" (${heads}) where there is no "head_dim"`)
  }
  const headDim = config.integer('head_dim', { min: 2, max: 65_536, fallback: defaults.headDim ?? hiddenSize / heads })
  if (headDim % 2 !== 0) config.fail('head_dim', 'even, as rotary embeddings need it')
  const activation = config.string('hidden_act', 'silu')
  if (activation !== 'silu' && activation !== 'swish') config.unsupported('hidden_act', '"silu"')
  if (config.get('quantization_config') !== undefined) {
    config.unsupported('quantization_config', 'a checkpoint of float32, float16 or bfloat16 weights')
  }
  const maxPositions = config.integer('max_position_embeddings')
  return {
    family,
    dtype: readDType(config),
    vocabSize: config.integer('vocab_size'),
    maxPositions,
    hiddenSize,
    intermediateSize: config.integer('intermediate_size'),
    layers: config.integer('num_hidden_layers', { max: MAX_LAYERS }),
    heads,
    kvHeads,
    headDim,
    rmsNormEps: config.positive('rms_norm_eps', 1e-6),
    rope: readRope(config, headDim, maxPositions),
    tiedEmbeddings: config.boolean('tie_word_embeddings', false),
    qkvBias: false,
    attentionOutputBias: false,
    mlpBias: false,
    qkNorm: false,
    window: () => 0,
  }
}

/** null always means "as many as heads"; a missing field means what the family's config class defaults to. */
function kvHeadsFallback(config: ConfigReader, heads: number, missing = heads): number {
  return config.has('num_key_value_heads') ? heads : missing
}

function readDType(config: ConfigReader): WeightDType {
  const name = config.get('dtype') === undefined ? 'torch_dtype' : 'dtype'
  const dtype = DTYPES[config.string(name, 'float32').replace(/^torch\./, '')]
  return dtype ?? config.unsupported(name, Object.keys(DTYPES).join(', '))
}

/** Qwen's windows: a list of layer types, or all layers from `max_window_layers` on. */
function readQwenWindow(config: ConfigReader, layers: number): (layer: number) => number {
  const size = config.boolean('use_sliding_window', false) ? config.integer('sliding_window', { fallback: 4096 }) : 0
  const types = config.get('layer_types')
  if (types === undefined) {
    const from = config.integer('max_window_layers', { min: 0, fallback: 28 })
    return (layer) => (layer >= from ? size : 0)
  }
  const known = (type: unknown): boolean => type === 'full_attention' || type === 'sliding_attention'
  if (!Array.isArray(types) || types.length !== layers || !types.every(known)) {
    return config.fail('layer_types', `a list of ${layers} entries "full_attention" or "sliding_attention"`)
  }
  return (layer) => (types[layer] === 'sliding_attention' ? size : 0)
}

const FAMILIES: readonly ModelFamily[] = [
  {
    architecture: 'LlamaForCausalLM',
    modelType: 'llama',
    graph(config) {
      const attentionBias = config.boolean('attention_bias', false)
      return decoderGraph({
        ...readDecoder('llama', config),
        qkvBias: attentionBias,
        attentionOutputBias: attentionBias,
        mlpBias: config.boolean('mlp_bias', false),
      })
    },
  },
  {
    architecture: 'MistralForCausalLM',
    modelType: 'mistral',
    graph(config) {
      // null turns the window off; a config without the field has the class's default.
      const window =
        config.has('sliding_window') && config.get('sliding_window') === undefined
          ? 0
          : config.integer('sliding_window', { fallback: 4096 })
      return decoderGraph({ ...readDecoder('mistral', config, { kvHeads: 8 }), window: () => window })
    },
  },
  {
    architecture: 'Qwen2ForCausalLM',
    modelType: 'qwen2',
    graph(config) {
      const spec = readDecoder('qwen2', config, { kvHeads: 32 })
      return decoderGraph({ ...spec, qkvBias: true, window: readQwenWindow(config, spec.layers) })
    },
  },
  {
    architecture: 'Qwen3ForCausalLM',
    modelType: 'qwen3',
    graph(config) {
      const spec = readDecoder('qwen3', config, { kvHeads: 32, headDim: 128 })
      const bias = config.boolean('attention_bias', false)
      return decoderGraph({
        ...spec,
        qkvBias: bias,
        attentionOutputBias: bias,
        qkNorm: true,
        window: readQwenWindow(config, spec.layers),
      })
    },
  },
]

/** Architectures that {@link graphFromConfig} knows. */
export const SUPPORTED_ARCHITECTURES: readonly string[] = FAMILIES.map((family) => family.architecture)

function findFamily(config: ConfigReader): ModelFamily {
  const architectures = config.get('architectures') ?? []
  if (!Array.isArray(architectures)) config.fail('architectures', 'a list of names')
  const architecture = (architectures as unknown[])[0]
  const family =
    architecture === undefined
      ? FAMILIES.find((known) => known.modelType === config.get('model_type'))
      : FAMILIES.find((known) => known.architecture === architecture)
  if (family !== undefined) return family
  const given =
    architecture === undefined
      ? `"model_type" ${JSON.stringify(config.get('model_type') ?? null)}`
      : `"${String(architecture)}"`
  throw new TensorRTError('ERR_MODEL_UNSUPPORTED', `${config.where}: the architecture ${given} is not supported`, {
    hint: `supported are ${SUPPORTED_ARCHITECTURES.join(', ')}`,
  })
}

/**
 * The graph of a Hugging Face model.
 * @param config parsed config.json
 * @param where what error messages call it
 * @throws ERR_MODEL_INVALID naming a field that is missing or out of range, ERR_MODEL_UNSUPPORTED for an architecture
 * or a feature that this library does not have
 */
export function graphFromConfig(config: unknown, where = 'config.json'): Graph {
  const reader = new ConfigReader(config, where)
  return findFamily(reader).graph(reader)
}
