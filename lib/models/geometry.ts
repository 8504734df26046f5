import type { AttentionNode, Graph } from './graph'

/** Shape of a model's KV cache; the same for all its attention layers. */
export interface KvGeometry {
  layers: number
  kvHeads: number
  headDim: number
}

export function kvGeometry(graph: Graph): KvGeometry {
  const attention = graph.nodes.filter((node): node is AttentionNode => node.op === 'attention')
  const { kvHeads = 0, headDim = 0 } = attention[0] ?? {}
  return { layers: attention.length, kvHeads, headDim }
}

/** Bytes of one page over all layers, keys and values: `[layers, 2, pageSize, kvHeads, headDim]`. */
export function kvPageBytes(graph: Graph, pageSize: number, elementBytes: number): number {
  const { layers, kvHeads, headDim } = kvGeometry(graph)
  return layers * 2 * pageSize * kvHeads * headDim * elementBytes
}
