/** The models that a server serves. */
import { createHash } from 'node:crypto'
import type { LLM, LLMWarning } from '../llm'
import { detectReasoningFormat, detectToolCallFormat, type ReasoningFormatName, type ToolCallFormatName } from '../text'
import { version } from '../version'
import { ApiError } from './errors'

/** Why what computes is not what was meant to, as the model's warnings tell; undefined where it is. */
export function fallbackReason(warnings: readonly Pick<LLMWarning, 'code'>[]): 'failover' | 'no-gpu' | undefined {
  const last = warnings.findLast(({ code }) => code === 'BACKEND_FAILED_OVER' || code === 'BACKEND_RESTARTED')
  if (last?.code === 'BACKEND_FAILED_OVER') return 'failover'
  // What came back is what was there from the start.
  return warnings.some(({ code }) => code === 'CPU_FALLBACK') ? 'no-gpu' : undefined
}

/** `auto` goes by the chat template. */
export interface OutputParsers {
  toolCallParser?: ToolCallFormatName | 'auto' | 'none' | undefined
  reasoningParser?: ReasoningFormatName | 'auto' | 'none' | undefined
}

/** A model as clients see it. */
export class ServedModel {
  /** Seconds since the epoch. */
  readonly created = Math.floor(Date.now() / 1000)
  private fingerprintOf: LLM['info'] | undefined
  private lastFingerprint = ''

  /** How it writes tool calls, and reasoning; undefined where it is not known to. */
  readonly toolCallFormat: ToolCallFormatName | undefined
  readonly reasoningFormat: ReasoningFormatName | undefined

  /** @param names all that name it; the first is in answers */
  constructor(
    readonly llm: LLM,
    readonly names: readonly string[],
    { toolCallParser = 'auto', reasoningParser = 'auto' }: OutputParsers = {},
  ) {
    const template = llm.chatTemplate?.toolSource ?? ''
    this.toolCallFormat = toolCallParser === 'auto' ? detectToolCallFormat(template) : toolCallParser === 'none' ? undefined : toolCallParser
    this.reasoningFormat = reasoningParser === 'auto' ? detectReasoningFormat(template) : reasoningParser === 'none' ? undefined : reasoningParser
  }

  get name(): string {
    return this.names[0]!
  }

  /**
   * Changes with what outputs depend on beside the request: model, backend, device, version of this package, parsers of the output. The same
   * on every machine that serves alike, and from one start to the next.
   */
  get fingerprint(): string {
    const { info } = this.llm
    if (info !== this.fingerprintOf) {
      this.fingerprintOf = info
      const { fingerprint, family, name, device, vocabSize, defaults } = info
      const parts = [version, this.name, fingerprint, family, name, device, vocabSize, defaults, this.toolCallFormat, this.reasoningFormat]
      this.lastFingerprint = `fp_${createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 12)}`
    }
    return this.lastFingerprint
  }

  /**
   * Headers that say what computes. `x-node-tensorrt-fallback` says why that is not what was meant to: no GPU is usable
   * (`no-gpu`), or the backend died and another took over (`failover`).
   */
  backendHeaders(): Record<string, string> {
    const { backend, warnings } = this.llm
    const headers: Record<string, string> = { 'x-node-tensorrt-backend': backend }
    const reason = fallbackReason(warnings)
    if (reason !== undefined) headers['x-node-tensorrt-fallback'] = reason
    return headers
  }
}

export class ModelRegistry {
  private readonly byName = new Map<string, ServedModel>()

  constructor(readonly models: readonly ServedModel[]) {
    for (const model of models) for (const name of model.names) this.byName.set(name, model)
  }

  /**
   * The model of a request; of one that names none, where there is but one, that one.
   * @throws ApiError 404
   */
  find(name: string | undefined): ServedModel {
    const found = name === undefined && this.models.length === 1 ? this.models[0] : this.byName.get(name ?? '')
    if (found !== undefined) return found
    const shown = name === undefined ? '' : ` "${name.slice(0, 100)}"`
    const message = `The model${shown} does not exist; GET /v1/models lists those that do`
    throw new ApiError(404, 'invalid_request_error', 'model_not_found', message, 'model')
  }
}
