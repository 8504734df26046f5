import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import '../matchers'
import {
  type AttentionNode,
  type Graph,
  graphFromConfig,
  kvGeometry,
  kvPageBytes,
  type LinearNode,
  SUPPORTED_ARCHITECTURES,
} from '../../../lib/models'

const storyteller = JSON.parse(
  readFileSync(join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller', 'config.json'), 'utf8'),
) as Record<string, unknown>

const small = {
  architectures: ['LlamaForCausalLM'],
  vocab_size: 100,
  hidden_size: 12,
  intermediate_size: 20,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  num_key_value_heads: 1,
  head_dim: 8,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
}
const of = (config: object): Graph => graphFromConfig({ ...small, ...config })
const attention = (graph: Graph): AttentionNode[] =>
  graph.nodes.filter((node): node is AttentionNode => node.op === 'attention')
const linear = (graph: Graph, output: string): LinearNode =>
  graph.nodes.find((node): node is LinearNode => node.op === 'linear' && node.output === output)!

/** Width of each tensor, checked op by op as a backend would. */
function widths(graph: Graph): Map<string, number> {
  const width = new Map<string, number>()
  for (const node of graph.nodes) {
    const inputs = node.op === 'embedding' ? [] : node.op === 'add' ? node.inputs : [node.input]
    for (const input of inputs)
      expect(width.has(input), `${node.op} ${node.output} reads ${input} before it exists`).toBe(true)
    expect(width.has(node.output), `${node.output} is defined twice`).toBe(false)
    const first = width.get(inputs[0] ?? '') ?? 0
    let out = first
    if (node.op === 'embedding') out = graph.weights[node.weight]![1]!
    else if (node.op === 'linear') {
      out = 0
      node.weights.forEach((name, i) => {
        const shape = graph.weights[name]!
        expect(shape[1], name).toBe(first)
        if (node.biases.length > 0) expect(graph.weights[node.biases[i]!]).toEqual([shape[0]])
        out += shape[0]!
      })
    } else if (node.op === 'attention') {
      expect(first).toBe((node.heads + 2 * node.kvHeads) * node.headDim)
      expect(graph.ropes[node.rope]!.invFreq).toHaveLength(node.headDim / 2)
      out = node.heads * node.headDim
    } else if (node.op === 'siluMul') out = first / 2
    else if (node.op === 'rmsNorm') expect(graph.weights[node.weight]).toEqual([first])
    else if (node.op === 'add') expect(width.get(node.inputs[1])).toBe(first)
    width.set(node.output, out)
  }
  return width
}

describe('the demo model', () => {
  const graph = graphFromConfig(storyteller)

  it('has exactly the weights of its checkpoint', () => {
    const file = readFileSync(join(__dirname, '..', '..', '..', 'models', 'tiny-storyteller', 'model.safetensors'))
    const header = JSON.parse(file.toString('utf8', 8, 8 + Number(file.readBigUInt64LE(0)))) as Record<
      string,
      { shape: number[] }
    >
    delete header['__metadata__']
    expect(graph.weights).toEqual(Object.fromEntries(Object.entries(header).map(([name, { shape }]) => [name, shape])))
  })

  it('has tensors that fit together', () => {
    expect(widths(graph).get(graph.logits)).toBe(graph.vocabSize)
    expect(graph).toMatchObject({ version: 1, family: 'llama', vocabSize: 4096, maxPositions: 1024, dtype: 'BF16' })
  })

  it('gathers rows right before the final norm, and shares the embedding with the output', () => {
    expect(graph.nodes.slice(-3).map((node) => node.op)).toEqual(['gatherRows', 'rmsNorm', 'linear'])
    expect(linear(graph, 'logits').weights).toEqual(['model.embed_tokens.weight'])
  })

  it('has 12 KiB of keys and values a token in float32', () => {
    expect(kvGeometry(graph)).toEqual({ layers: 6, kvHeads: 2, headDim: 64 })
    expect(kvPageBytes(graph, 16, 4)).toBe(6 * 2 * 16 * 2 * 64 * 4)
  })

  it('is plain JSON', () => {
    expect(JSON.parse(JSON.stringify(graph))).toEqual(graph)
  })
})

describe('families', () => {
  it('keeps the head size independent of the width', () => {
    const graph = of({})
    widths(graph)
    expect(linear(graph, 'layer0.qkv').weights).toHaveLength(3)
    expect(graph.weights['model.layers.1.self_attn.q_proj.weight']).toEqual([24, 12])
    expect(graph.weights['model.layers.1.self_attn.o_proj.weight']).toEqual([12, 24])
    expect(graph.weights['lm_head.weight']).toEqual([100, 12])
    expect(attention(graph).map((node) => node.layer)).toEqual([0, 1])
    expect(attention(graph)[0]!.scale).toBeCloseTo(8 ** -0.5, 15)
  })

  it('derives the head size and the number of key-value heads', () => {
    const graph = of({ head_dim: null, num_key_value_heads: null, hidden_size: 24 })
    expect(attention(graph)[0]).toMatchObject({ headDim: 8, kvHeads: 3 })
  })

  it('adds biases where the config has them', () => {
    const graph = of({ attention_bias: true, mlp_bias: true })
    widths(graph)
    for (const output of ['layer0.qkv', 'layer0.attentionOut', 'layer1.gateUp', 'layer1.mlpOut']) {
      expect(linear(graph, output).biases).toHaveLength(linear(graph, output).weights.length)
    }
    expect(linear(graph, 'logits').biases).toEqual([])
  })

  it('knows Mistral, with its window', () => {
    const mistral = { architectures: ['MistralForCausalLM'] }
    const windows = (config: object): number[] => attention(of({ ...mistral, ...config })).map((node) => node.window)
    expect(windows({ sliding_window: 32 })).toEqual([32, 32])
    expect(windows({ sliding_window: null })).toEqual([0, 0])
    expect(windows({})).toEqual([4096, 4096])
    expect(() => of({ ...mistral, sliding_window: -1 })).toThrowCode('ERR_MODEL_INVALID', /sliding_window/)
  })

  it('knows Qwen 2: biases on q, k and v alone', () => {
    const graph = of({ architectures: ['Qwen2ForCausalLM'] })
    widths(graph)
    expect(linear(graph, 'layer0.qkv').biases).toHaveLength(3)
    expect(linear(graph, 'layer0.attentionOut').biases).toEqual([])
    expect(attention(graph)[0]!.qkNorm).toBeNull()
  })

  it('knows Qwen 3: norms of q and k, and windows by layer', () => {
    const qwen = { architectures: ['Qwen3ForCausalLM'], num_hidden_layers: 3 }
    const graph = of(qwen)
    widths(graph)
    expect(attention(graph)[0]!.qkNorm).toEqual({
      q: 'model.layers.0.self_attn.q_norm.weight',
      k: 'model.layers.0.self_attn.k_norm.weight',
      eps: 1e-5,
    })
    expect(graph.weights['model.layers.2.self_attn.k_norm.weight']).toEqual([8])
    const windows = (config: object): number[] => attention(of({ ...qwen, ...config })).map((node) => node.window)
    expect(windows({ sliding_window: 16 })).toEqual([0, 0, 0])
    expect(windows({ use_sliding_window: true, sliding_window: 16, max_window_layers: 1 })).toEqual([0, 16, 16])
    const types = ['sliding_attention', 'full_attention', 'sliding_attention']
    expect(windows({ use_sliding_window: true, sliding_window: 16, layer_types: types })).toEqual([16, 0, 16])
    expect(() => windows({ layer_types: ['full_attention'] })).toThrowCode('ERR_MODEL_INVALID', /layer_types/)
    expect(attention(of({ ...qwen, head_dim: undefined }))[0]!.headDim).toBe(128)
  })

  it('finds a family by model_type where no architecture is named', () => {
    expect(of({ architectures: undefined, model_type: 'qwen2' }).family).toBe('qwen2')
  })

  it('lists what it knows where it does not know', () => {
    for (const config of [
      { architectures: ['GPT2LMHeadModel'] },
      { architectures: [], model_type: 'gpt2' },
      { architectures: undefined },
    ]) {
      expect(() => of(config)).toThrowCode('ERR_MODEL_UNSUPPORTED', new RegExp(SUPPORTED_ARCHITECTURES.join(', ')))
    }
  })

  it('reads the type in both spellings', () => {
    expect(of({ dtype: 'float16' }).dtype).toBe('F16')
    expect(of({ torch_dtype: 'float32' }).dtype).toBe('F32')
    expect(of({}).dtype).toBe('F32')
    expect(() => of({ dtype: 'float8_e4m3fn' })).toThrowCode('ERR_MODEL_UNSUPPORTED', /"dtype"/)
  })

  it.each([{ hidden_act: 'gelu' }, { quantization_config: { quant_method: 'gptq' } }])(
    'does not support %j',
    (config) => {
      expect(() => of(config)).toThrowCode('ERR_MODEL_UNSUPPORTED', new RegExp(Object.keys(config)[0]!))
    },
  )

  it.each([
    ['vocab_size', [undefined, 0, -1, 1.5, '100', NaN, 2 ** 31]],
    ['hidden_size', [undefined, 0, [], {}]],
    ['intermediate_size', [undefined, 0]],
    ['num_hidden_layers', [undefined, 0, 5000]],
    ['num_attention_heads', [undefined, 0, true]],
    ['num_key_value_heads', [0, 2, 4]],
    ['head_dim', [0, 1, 7, 'x']],
    ['max_position_embeddings', [undefined, 0]],
    ['rms_norm_eps', [0, -1, '1e-5', Infinity]],
    ['tie_word_embeddings', ['yes', 1]],
    ['attention_bias', ['no']],
    ['mlp_bias', [0]],
    ['architectures', ['LlamaForCausalLM', {}]],
  ])('names %s where it is wrong', (field, values) => {
    for (const value of values) {
      const config: Record<string, unknown> = { ...small, [field]: value }
      expect(() => graphFromConfig(config, 'm/config.json'), String(value)).toThrowCode(
        'ERR_MODEL_INVALID',
        new RegExp(`^m/config.json: "${field}" must be`),
      )
    }
  })

  it('refuses a width that the heads do not divide', () => {
    expect(() => of({ head_dim: undefined, hidden_size: 13 })).toThrowCode('ERR_MODEL_INVALID', /hidden_size/)
  })

  it.each([null, [], 'x', 7])('refuses %j in place of a config', (config) => {
    expect(() => graphFromConfig(config)).toThrowCode('ERR_MODEL_INVALID', /JSON object/)
  })

  it('does not take fields from the prototype', () => {
    const config = Object.create(small) as object
    expect(() => graphFromConfig(config)).toThrowCode('ERR_MODEL_UNSUPPORTED', /model_type/)
  })
})
