/** Captured work, to be launched again and again. */
import type { NativeGraph } from '../native'
import { NativeHandle } from './handle'

/**
 * Commands that `stream.capture()` took down; `stream.launch(graph)` runs them all at the cost of one. It works on the memory and with the
 * shapes of the capture, and keeps alive what it uses.
 */
export class CudaGraph extends NativeHandle {
  readonly #native: NativeGraph

  private constructor(graph: NativeGraph, owner: NativeHandle) {
    super('CudaGraph', graph, owner)
    this.#native = graph
  }

  /** @internal */
  static wrap(graph: NativeGraph, owner: NativeHandle): CudaGraph {
    return new CudaGraph(graph, owner)
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeGraph {
    this.checkOpen()
    return this.#native
  }
}
