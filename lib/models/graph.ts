/**
 * The model as data: what a family in this room makes of a Hugging Face config, and what both backends run. Plain JSON,
 * versioned; cpp/core checks it again on the way in.
 *
 * Values are row tensors `[rows, width]`, one row per token of the step. Weights have Hugging Face's layout: a linear
 * layer's is `[out, in]`. A list of weight names means: concatenated along `out`.
 */
export const GRAPH_VERSION = 1

export type WeightDType = 'F32' | 'F16' | 'BF16'

/** A named table of rotary frequencies. `angle(position, i) = position * invFreq[i]`, cos and sin multiplied by `scale`. */
export interface Rope {
  /** float32 values, `dim / 2` of them; rotation pairs are `(i, i + dim / 2)` (the NeoX / Hugging Face layout). */
  invFreq: number[]
  scale: number
}

export interface EmbeddingNode {
  op: 'embedding'
  output: string
  /** `[vocab, width]` */
  weight: string
  /** Multiplies the rows; 1 for Llama. */
  scale: number
}

/** `x / sqrt(mean(x^2) + eps) * weight`, computed in float32. */
export interface RmsNormNode {
  op: 'rmsNorm'
  input: string
  output: string
  weight: string
  eps: number
}

/** `x W^T + b`. */
export interface LinearNode {
  op: 'linear'
  input: string
  output: string
  weights: string[]
  /** As many as weights, or none. */
  biases: string[]
}

/**
 * Causal attention over the paged cache. The input row is `q | k | v`: `(heads + 2 * kvHeads) * headDim` wide; the output
 * `heads * headDim`. Rotates q and k, appends k and v, attends to positions `0 ... own` (the last `window` of them, if set).
 */
export interface AttentionNode {
  op: 'attention'
  input: string
  output: string
  /** Index into the KV pool. */
  layer: number
  heads: number
  kvHeads: number
  headDim: number
  /** Multiplies q k^T. */
  scale: number
  /** Name in `ropes`. */
  rope: string
  /** Sliding window in tokens; 0 = none. */
  window: number
  /** RMS norms of each head of q and k before the rotation (Qwen 3); null where the family has none. */
  qkNorm: { q: string; k: string; eps: number } | null
}

/** Input `gate | up`, `[rows, 2 * width]`; output `act(gate) * up`. */
export interface GatedActivationNode {
  op: 'siluMul' | 'geluMul'
  input: string
  output: string
}

export interface AddNode {
  op: 'add'
  inputs: [string, string]
  output: string
}

/** Keeps the rows whose logits are wanted. Everything after it runs on those rows alone. */
export interface GatherRowsNode {
  op: 'gatherRows'
  input: string
  output: string
}

export type GraphNode =
  | EmbeddingNode
  | RmsNormNode
  | LinearNode
  | AttentionNode
  | GatedActivationNode
  | AddNode
  | GatherRowsNode

export interface Graph {
  version: typeof GRAPH_VERSION
  /** Family, for messages: 'llama'. */
  family: string
  vocabSize: number
  /** Longest sequence, in tokens. */
  maxPositions: number
  /** Type the checkpoint computes in; backends with 16-bit math round where Hugging Face rounds. */
  dtype: WeightDType
  /** Name -> shape that the checkpoint must have. */
  weights: Record<string, number[]>
  ropes: Record<string, Rope>
  /** In order of execution. */
  nodes: GraphNode[]
  /** The tensor that holds `[gathered rows, vocabSize]`. */
  logits: string
}
