/** Where the time of steps goes by layer. */
import type { RecordedStep } from './step_recorder'

/** Mean microseconds a step, by CUDA events. */
export interface PartTimes {
  steps: number
  embeddingUs: number
  layers: LayerTimes[]
  /** The final norm and the vocabulary's matrix, of the rows whose logits are wanted. */
  headUs: number
  samplingUs: number
}

export interface LayerTimes {
  /** Rotary embedding, append to the KV cache, attention. */
  attentionUs: number
  /** The rest of the layer: projections, MLP, norms. */
  linearUs: number
}

export interface LayerProfile {
  /** Of steps of generated tokens only; undefined where there was none. */
  decode: PartTimes | undefined
  /** Of steps with rows of prompts. */
  prefill: PartTimes | undefined
}

class PartSums {
  private sums: Float64Array | undefined
  private steps = 0

  add(partUs: Float32Array): void {
    const sums = (this.sums ??= new Float64Array(partUs.length))
    this.steps++
    for (let i = 0; i < sums.length; i++) sums[i]! += partUs[i] ?? 0
  }

  means(): PartTimes | undefined {
    const { sums, steps } = this
    if (sums === undefined) return undefined
    const mean = (part: number): number => sums[part]! / steps
    const layers = (sums.length - 3) / 2
    return {
      steps,
      embeddingUs: mean(0),
      layers: Array.from({ length: layers }, (_, i) => ({ attentionUs: mean(1 + 2 * i), linearUs: mean(2 + 2 * i) })),
      headUs: mean(1 + 2 * layers),
      samplingUs: mean(2 + 2 * layers),
    }
  }
}

/** Adds up the parts of steps. */
export class LayerSums {
  private readonly decode = new PartSums()
  private readonly prefill = new PartSums()

  add({ profile, partUs }: RecordedStep): void {
    if (partUs === undefined) return
    if (profile.prefillRows === 0) this.decode.add(partUs)
    else this.prefill.add(partUs)
  }

  /** Undefined where no step told. */
  result(): LayerProfile | undefined {
    const decode = this.decode.means()
    const prefill = this.prefill.means()
    return decode === undefined && prefill === undefined ? undefined : { decode, prefill }
  }
}
