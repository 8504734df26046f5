import { GRAPH_VERSION, type AttentionNode, type Graph, type GraphNode, type Rope, type WeightDType } from './graph'

/** What tells the pre-norm decoders of this room apart; sizes are checked by the one who fills it in. */
export interface DecoderSpec {
  family: string
  dtype: WeightDType
  vocabSize: number
  maxPositions: number
  hiddenSize: number
  intermediateSize: number
  layers: number
  heads: number
  kvHeads: number
  headDim: number
  rmsNormEps: number
  rope: Rope
  /** The output projection is the embedding table. */
  tiedEmbeddings: boolean
  qkvBias: boolean
  attentionOutputBias: boolean
  mlpBias: boolean
  /** RMS norm of each head of q and k. */
  qkNorm: boolean
  /** Sliding window of a layer in tokens; 0 = none. */
  window(layer: number): number
}

const ROPE = 'rope'

/**
 * The graph of a decoder of RMS norms, rotary attention and a gated MLP, with the weight names that Llama gave them and
 * that Mistral and Qwen kept.
 */
export function decoderGraph(spec: DecoderSpec): Graph {
  const { hiddenSize, headDim, rmsNormEps: eps } = spec
  const qWidth = spec.heads * headDim
  const kvWidth = spec.kvHeads * headDim
  const weights: Record<string, number[]> = {}
  const nodes: GraphNode[] = []

  const weight = (name: string, ...shape: number[]): string => {
    weights[name] = shape
    return name
  }
  const linear = (
    input: string,
    output: string,
    inWidth: number,
    parts: readonly [name: string, out: number][],
    bias: boolean,
  ): string => {
    nodes.push({
      op: 'linear',
      input,
      output,
      weights: parts.map(([name, out]) => weight(`${name}.weight`, out, inWidth)),
      biases: bias ? parts.map(([name, out]) => weight(`${name}.bias`, out)) : [],
    })
    return output
  }
  const rmsNorm = (input: string, output: string, name: string): string => {
    nodes.push({ op: 'rmsNorm', input, output, weight: weight(name, hiddenSize), eps })
    return output
  }
  const add = (a: string, b: string, output: string): string => {
    nodes.push({ op: 'add', inputs: [a, b], output })
    return output
  }

  const embedding = weight('model.embed_tokens.weight', spec.vocabSize, hiddenSize)
  nodes.push({ op: 'embedding', output: 'embedded', weight: embedding, scale: 1 })
  let residual = 'embedded'
  for (let layer = 0; layer < spec.layers; layer++) {
    const own = `model.layers.${layer}`
    const name = (value: string): string => `layer${layer}.${value}`
    const projection = (part: string): string => `${own}.self_attn.${part}_proj`
    const normed = rmsNorm(residual, name('attentionNorm'), `${own}.input_layernorm.weight`)
    const qkv = linear(
      normed,
      name('qkv'),
      hiddenSize,
      [
        [projection('q'), qWidth],
        [projection('k'), kvWidth],
        [projection('v'), kvWidth],
      ],
      spec.qkvBias,
    )
    const qkNorm: AttentionNode['qkNorm'] = spec.qkNorm
      ? {
          q: weight(`${own}.self_attn.q_norm.weight`, headDim),
          k: weight(`${own}.self_attn.k_norm.weight`, headDim),
          eps,
        }
      : null
    nodes.push({
      op: 'attention',
      input: qkv,
      output: name('attention'),
      layer,
      heads: spec.heads,
      kvHeads: spec.kvHeads,
      headDim,
      scale: headDim ** -0.5,
      rope: ROPE,
      window: spec.window(layer),
      qkNorm,
    })
    const attended = linear(
      name('attention'),
      name('attentionOut'),
      qWidth,
      [[projection('o'), hiddenSize]],
      spec.attentionOutputBias,
    )
    residual = add(residual, attended, name('afterAttention'))

    const mlp = (part: string): string => `${own}.mlp.${part}_proj`
    const mlpNormed = rmsNorm(residual, name('mlpNorm'), `${own}.post_attention_layernorm.weight`)
    const gateUp = linear(
      mlpNormed,
      name('gateUp'),
      hiddenSize,
      [
        [mlp('gate'), spec.intermediateSize],
        [mlp('up'), spec.intermediateSize],
      ],
      spec.mlpBias,
    )
    nodes.push({ op: 'siluMul', input: gateUp, output: name('gated') })
    const down = linear(name('gated'), name('mlpOut'), spec.intermediateSize, [[mlp('down'), hiddenSize]], spec.mlpBias)
    residual = add(residual, down, name('afterMlp'))
  }
  nodes.push({ op: 'gatherRows', input: residual, output: 'gathered' })
  const normed = rmsNorm('gathered', 'finalNorm', 'model.norm.weight')
  const head = spec.tiedEmbeddings ? embedding : weight('lm_head.weight', spec.vocabSize, hiddenSize)
  nodes.push({ op: 'linear', input: normed, output: 'logits', weights: [head], biases: [] })

  return {
    version: GRAPH_VERSION,
    family: spec.family,
    vocabSize: spec.vocabSize,
    maxPositions: spec.maxPositions,
    dtype: spec.dtype,
    weights,
    ropes: { [ROPE]: spec.rope },
    nodes,
    logits: 'logits',
  }
}
