/** Metrics, spans and the access log of a server. */
import { Registry } from 'prom-client'
import type { LLM } from '../../llm'
import { gpuUsage } from '../../native'
import { ArgumentReader, guardListener, invalidArgument } from '../../runtime'
import { defaultModelName } from '../model_names'
import type { HttpFacts, RefusalReason, RequestFacts, RequestTelemetry, Telemetry, TokenizeFacts } from '../seams'
import { AccessLog, type AccessLogDestination } from './access_log'
import { type AdmissionSource, collectAdmission } from './admission_metrics'
import { collectEngine, StepMetrics } from './engine_metrics'
import { collectGpus, type ReadGpus } from './gpu_metrics'
import { collectProcess } from './process_metrics'
import { RequestRecord } from './request_telemetry'
import { type MetricDescription, MetricSet } from './series'
import { ServerMetrics } from './server_metrics'
import { Tracing } from './tracing'
import { VllmMetrics } from './vllm_metrics'

export type { AccessLogDestination } from './access_log'
export type { MetricDescription, MetricType } from './series'

export interface TelemetryOptions {
  /** Name under which the model is served: the label `model_name` of vLLM's metrics. Default: as `createServer` names it. */
  model?: string | undefined
  /** The label `engine` of vLLM's metrics, where several serve one model. Default '0'. */
  engine?: string | undefined
  /** Where lines of the access log go; a relative path is of the working directory. Default: nowhere. */
  accessLog?: AccessLogDestination | undefined
  /**
   * A span per request, by `@opentelemetry/api`, where that is installed and the application has set up a tracer provider.
   * Default true.
   */
  tracing?: boolean | undefined
  /** Metrics of the machine's GPUs, where there are any. Default true. */
  gpus?: boolean | undefined
  /** Metrics of the latencies that it promises: what `createSlaAdmission` has made. */
  admission?: AdmissionSource | undefined
  /** Called once for each kind of trouble, such as an access log that cannot be written. Default: `process.emitWarning`. */
  onWarning?: ((message: string) => void) | undefined
}

/** {@link Telemetry}, with what there is to tell of it. */
export interface ServerTelemetry extends Telemetry {
  /** The server's own, never prom-client's global one. Metrics of an application may be added. */
  readonly registry: Registry
  /** What the metrics are. */
  readonly descriptions: readonly MetricDescription[]
}

const OPTIONS = ['model', 'engine', 'accessLog', 'tracing', 'gpus', 'admission', 'onWarning']
const MAX_LABEL_LENGTH = 256

/**
 * Counts what a server does with an LLM. Closing the LLM does not close it.
 *
 * @throws ERR_INVALID_ARGUMENT
 */
export function createTelemetry(llm: LLM, options: TelemetryOptions = {}): ServerTelemetry {
  return telemetryOf(llm, options)
}

/** @internal */
export function telemetryOf(llm: LLM, options: TelemetryOptions, readGpus: ReadGpus = gpuUsage): ServerTelemetry {
  return new PrometheusTelemetry(llm, checkOptions(llm, options), readGpus)
}

interface CheckedOptions {
  model: string
  engine: string
  accessLog: AccessLogDestination | undefined
  tracing: boolean
  gpus: boolean
  admission: AdmissionSource | undefined
  onWarning: (message: string) => void
}

function checkOptions(llm: LLM, options: unknown): CheckedOptions {
  const reader = new ArgumentReader(options, OPTIONS, 'createTelemetry()')
  const model = reader.string('model', MAX_LABEL_LENGTH) ?? defaultModelName(llm)
  if (model === '') throw invalidArgument('model', 'a name', model)
  const accessLog = reader.get('accessLog') as AccessLogDestination | undefined
  if (accessLog !== undefined && accessLog !== 'stdout' && accessLog !== 'stderr') {
    if (typeof accessLog !== 'object' || accessLog === null) throw invalidArgument('accessLog', "'stdout', 'stderr' or { path }", accessLog)
    if (new ArgumentReader(accessLog, ['path'], 'accessLog').path('path') === undefined) throw invalidArgument('accessLog.path', 'a path', undefined)
  }
  const admission = reader.get('admission') as AdmissionSource | undefined
  if (admission !== undefined && typeof (admission as Partial<AdmissionSource> | null)?.snapshot !== 'function') {
    throw invalidArgument('admission', 'what createSlaAdmission() returns', admission)
  }
  return {
    model,
    engine: reader.string('engine', MAX_LABEL_LENGTH) ?? '0',
    accessLog,
    tracing: reader.boolean('tracing') ?? true,
    gpus: reader.boolean('gpus') ?? true,
    admission,
    onWarning: guardListener('onWarning', reader.callback('onWarning') as ((message: string) => void) | undefined) ?? warnProcess,
  }
}

function warnProcess(message: string): void {
  process.emitWarning(message, 'NodeTensorRTWarning')
}

class PrometheusTelemetry implements ServerTelemetry {
  readonly registry = new Registry()
  private readonly set = new MetricSet(this.registry)
  private readonly vllm: VllmMetrics
  private readonly server: ServerMetrics
  private readonly log: AccessLog | undefined
  private readonly tracing: Tracing | undefined
  private readonly ends: (() => void)[] = []
  private closing: Promise<void> | undefined

  constructor(llm: LLM, { model, engine, accessLog, tracing, gpus, admission, onWarning }: CheckedOptions, readGpus: ReadGpus) {
    const { set } = this
    this.vllm = new VllmMetrics(set, llm, model, engine)
    this.server = new ServerMetrics(set)
    if (admission !== undefined) collectAdmission(set, admission)
    collectEngine(set, llm)
    const steps = new StepMetrics(set)
    this.ends.push(
      collectProcess(set),
      llm.observe((step) => {
        steps.observe(step)
        this.vllm.step(step.prefillRows + step.decodeRows)
      }),
    )
    if (gpus) collectGpus(set, readGpus, once(onWarning))
    this.tracing = tracing ? Tracing.open(once(onWarning)) : undefined
    this.log = accessLog === undefined ? undefined : AccessLog.to(accessLog, onWarning)
    if (this.log !== undefined) collectAccessLog(set, this.log)
  }

  get descriptions(): readonly MetricDescription[] {
    return this.set.descriptions
  }

  start(facts: RequestFacts): RequestTelemetry {
    return new RequestRecord(facts, this.vllm, this.server, this.tracing?.start(facts))
  }

  refused(_facts: RequestFacts | TokenizeFacts, reason: RefusalReason): void {
    this.server.refuse(reason)
  }

  httpStarted(): void {
    this.server.httpStarted()
  }

  http(facts: HttpFacts): void {
    this.server.http(facts)
    this.log?.add(facts)
  }

  metrics(): Promise<{ contentType: string; body: string }> {
    return this.set.render()
  }

  close(): Promise<void> {
    this.closing ??= (async () => {
      for (const end of this.ends) end()
      await this.log?.close()
    })()
    return this.closing
  }
}

function collectAccessLog(set: MetricSet, log: AccessLog): void {
  const lines = set.counter('node_tensorrt_access_log_lines_total', 'Lines of the access log that were written').series()
  const dropped = set.counter('node_tensorrt_access_log_dropped_total', 'Lines of the access log that were dropped, as they could not be written in time').series()
  set.onCollect(() => {
    lines.set(log.lines)
    dropped.set(log.dropped)
  })
}

function once(warn: (message: string) => void): (message: string) => void {
  let warned = false
  return (message) => {
    if (warned) return
    warned = true
    warn(message)
  }
}
