/** What became of the latencies that admission promises. */
import type { SlaAdmission } from '../admission'
import type { MetricSet, ScalarFamily } from './series'

export type AdmissionSource = Pick<SlaAdmission, 'snapshot'>

export function collectAdmission(set: MetricSet, admission: AdmissionSource): void {
  const ttft = set.gauge('node_tensorrt_sla_ttft_seconds', 'Time to first token at the promised percentile, of the last 1024 requests that were promised one')
  const itl = set.gauge('node_tensorrt_sla_inter_token_latency_seconds', 'Inter-token latency at the promised percentile, of the last 1024 tokens that were promised one')
  const correction = set.gauge(
    'node_tensorrt_sla_forecast_correction_ratio',
    'Times to first token over their forecasts, at the promised percentile; forecasts are corrected by it',
  )
  /** Without a figure there is no series. */
  const show = (family: ScalarFamily, value: number): void => {
    family.clear()
    if (Number.isFinite(value)) family.series().set(value)
  }
  set.onCollect(() => {
    const { ttftMs, itlMs, correction: factor } = admission.snapshot()
    show(ttft, ttftMs / 1000)
    show(itl, itlMs / 1000)
    show(correction, factor)
  })
}
