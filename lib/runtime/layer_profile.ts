/** Times of an engine's layers. */

/** Of one layer, over the runs since profiling began or was read the last time. In order of execution. */
export interface LayerTime {
  /** As the engine's builder named it; fused layers are joined by ' + '. */
  name: string
  /** Milliseconds of device time, over all runs. */
  ms: number
  runs: number
}

/** @internal */
export function parseLayerTimes(json: string): LayerTime[] {
  return JSON.parse(json) as LayerTime[]
}
