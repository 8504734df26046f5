/** What the engine behind the server does: backend, steps, pages. */
import type { LLM, LLMState, StepProfile } from '../../llm'
import { HOST_BUCKETS, LATENCY_BUCKETS, SEQUENCE_BUCKETS } from './buckets'
import type { HistogramSeries, MetricSet } from './series'

const HOST_PARTS = ['plan', 'pack', 'submit', 'complete', 'emit'] as const

/** Histograms of steps, fed by {@link LLM.observe}. */
export class StepMetrics {
  private readonly queue: HistogramSeries
  private readonly runDecode: HistogramSeries
  private readonly runPrefill: HistogramSeries
  private readonly device: HistogramSeries
  private readonly gap: HistogramSeries
  private readonly host: Record<(typeof HOST_PARTS)[number], HistogramSeries>
  private readonly sequences: HistogramSeries

  constructor(set: MetricSet) {
    this.queue = set.histogram('node_tensorrt_step_queue_seconds', 'From the hand-over of a step to the start of its work', LATENCY_BUCKETS).series()
    const run = set.histogram(
      'node_tensorrt_step_run_seconds',
      'Work on a step, as the backend sees it; prefill: steps with rows of prompts',
      LATENCY_BUCKETS,
      ['phase'],
    )
    this.runDecode = run.series('decode')
    this.runPrefill = run.series('prefill')
    this.device = set
      .histogram('node_tensorrt_step_device_seconds', "Work on a step by the device's own clock; empty on backends without one", LATENCY_BUCKETS)
      .series()
    this.gap = set
      .histogram('node_tensorrt_step_gap_seconds', 'Idle time of the backend before a step although there was work', LATENCY_BUCKETS)
      .series()
    const host = set.histogram(
      'node_tensorrt_step_host_seconds',
      'Time of the event loop for a step: plan, pack, submit (enqueue), complete (account), emit (detokenise and hand out)',
      HOST_BUCKETS,
      ['part'],
    )
    this.host = Object.fromEntries(HOST_PARTS.map((part) => [part, host.series(part)])) as typeof this.host
    this.sequences = set.histogram('node_tensorrt_step_sequences', 'Sequences in a step', SEQUENCE_BUCKETS).series()
  }

  observe(step: StepProfile): void {
    const { host } = this
    this.queue.observe(step.queueUs / 1e6)
    const run = step.prefillRows > 0 ? this.runPrefill : this.runDecode
    run.observe(step.runUs / 1e6)
    if (!Number.isNaN(step.deviceUs)) this.device.observe(step.deviceUs / 1e6)
    this.gap.observe(step.gapUs / 1e6)
    host.plan.observe(step.planUs / 1e6)
    host.pack.observe(step.packUs / 1e6)
    host.submit.observe(step.submitUs / 1e6)
    host.complete.observe(step.completeUs / 1e6)
    host.emit.observe(step.emitUs / 1e6)
    this.sequences.observe(step.sequences)
  }
}

const STATES = ['ready', 'fallback', 'switching', 'restarting', 'dead', 'closing', 'closed'] as const satisfies readonly LLMState[]

/** Backend, queue, steps and pages, as {@link LLM.stats} and {@link LLM.health} tell them. */
export function collectEngine(set: MetricSet, llm: LLM): void {
  collectHealth(set, llm)
  const queued = set.gauge('node_tensorrt_queue_sequences', 'Sequences that wait to run').series()
  const queueLimit = set.gauge('node_tensorrt_queue_limit_sequences', 'Most sequences that may wait').series()
  const runningLimit = set.gauge('node_tensorrt_running_limit_sequences', 'Most sequences that may run at once at the moment').series()
  const retries = set.counter('node_tensorrt_retries_total', 'Sequences that were run again after a failed step').series()
  const sequences = set.counter('node_tensorrt_sequences_total', 'Sequences that ended, as the engine counts them', ['outcome'])
  const rows = set.counter(
    'node_tensorrt_rows_total',
    'Rows that were computed: of prompts, of generated tokens, and in vain, as the sequence had ended',
    ['kind'],
  )
  const steps = set.counter('node_tensorrt_steps_total', 'Steps that were handed to the backend').series()
  const failedSteps = set.counter('node_tensorrt_step_failures_total', 'Steps that failed, or were lost with their backend').series()
  const inFlight = set.gauge('node_tensorrt_steps_in_flight', 'Steps that were handed over and have no result yet').series()
  const pages = set.gauge('node_tensorrt_kv_cache_pages', 'Pages of the KV cache; cached: free, with a prefix that may be used again', ['state'])
  const fill = set.gauge('node_tensorrt_kv_cache_page_fill_ratio', 'Filled token places, of those in used pages; 0 to 1').series()
  const kvBytes = set.gauge('node_tensorrt_kv_cache_bytes', 'Size of the KV cache').series()
  const weightBytes = set.gauge('node_tensorrt_weight_bytes', 'Size of the weights').series()
  const workspaceBytes = set.gauge('node_tensorrt_workspace_bytes', 'Size of activations, tables and buffers of a step, as the backend tells it')
  // What ran before, such as a warm-up, was nobody's.
  const start = llm.stats()
  set.onCollect(() => {
    const stats = llm.stats()
    const { maxQueue, maxRunning } = llm.load()
    queued.set(stats.waiting)
    queueLimit.set(maxQueue)
    runningLimit.set(maxRunning)
    retries.set(stats.retries - start.retries)
    sequences.series('finished').set(stats.sequences.finished - start.sequences.finished)
    sequences.series('failed').set(stats.sequences.failed - start.sequences.failed)
    sequences.series('aborted').set(stats.sequences.aborted - start.sequences.aborted)
    rows.series('prefill').set(stats.tokens.prefill - start.tokens.prefill)
    rows.series('decode').set(stats.tokens.decode - start.tokens.decode)
    rows.series('wasted').set(stats.tokens.wasted - start.tokens.wasted)
    steps.set(stats.steps.submitted - start.steps.submitted)
    failedSteps.set(stats.steps.failed - start.steps.failed)
    inFlight.set(stats.steps.inFlight)
    pages.series('free').set(stats.kv.freePages)
    pages.series('cached').set(stats.kv.cachedPages)
    pages.series('used').set(stats.kv.usedPages)
    fill.set(stats.kv.utilisation)
    const { info } = llm
    kvBytes.set(info.kvCacheBytes)
    weightBytes.set(info.weightBytes)
    // Backends that do not tell have no series: 0 would be a claim.
    workspaceBytes.clear()
    if ((info.workspaceBytes ?? 0) > 0) workspaceBytes.series().set(info.workspaceBytes!)
  })
}

function collectHealth(set: MetricSet, llm: LLM): void {
  const info = set.gauge('node_tensorrt_backend_info', 'What runs the model, as labels; always 1', ['backend', 'device'])
  const states = set.gauge('node_tensorrt_backend_state', '1 for the state that the backend is in, 0 for the others', ['state'])
  const ready = set.gauge('node_tensorrt_backend_ready', '1 while requests are taken and run').series()
  const failovers = set.counter('node_tensorrt_failovers_total', 'How often another backend took over from one that died').series()
  const restarts = set.counter('node_tensorrt_backend_restarts_total', "How often the model's own backend came back after its death").series()
  const attempts = set.gauge('node_tensorrt_backend_restart_attempts', 'Attempts in a row to bring a dead backend back that failed').series()
  const restartable = set.gauge('node_tensorrt_backend_restartable', '0 where a dead backend can only come back with another process').series()
  const oldest = set.gauge('node_tensorrt_oldest_step_seconds', 'How long the oldest step in flight has been running').series()
  const stuck = set.gauge('node_tensorrt_step_stuck', '1 while a step takes longer than any should').series()
  set.onCollect(() => {
    const health = llm.health()
    const { name, device } = llm.info
    // There is another after a failover.
    info.clear()
    info.series(name, device).set(1)
    for (const state of STATES) states.series(state).set(health.state === state ? 1 : 0)
    ready.set(health.ready ? 1 : 0)
    failovers.set(health.failovers)
    restarts.set(health.restarts)
    attempts.set(health.restartAttempts)
    restartable.set(health.restartable ? 1 : 0)
    oldest.set(health.oldestStepMs / 1000)
    stuck.set(health.stuck ? 1 : 0)
  })
}
