/**
 * Counters, gauges and histograms whose series exist before they are counted: counting adds to a field. prom-client's own
 * look labels up and allocate with each observation, which is too much for each chunk of each stream. Its registry
 * renders both kinds.
 */
import type { Metric, Registry } from 'prom-client'

export type LabelValues = Readonly<Record<string, string>>
export type MetricType = 'counter' | 'gauge' | 'histogram'

/** What a metric is, for its documentation. */
export interface MetricDescription {
  name: string
  type: MetricType
  help: string
  labelNames: readonly string[]
  /** Upper bounds, without +Inf; of a histogram. */
  buckets: readonly number[] | undefined
}

/** A line of the text format: a metric's, or of a histogram one of its `_bucket`, `_sum` and `_count`. */
interface Sample {
  value: number
  /** Beside those of the series. */
  labels: LabelValues
  /** Those of the series: prom-client keeps their text by the object. */
  sharedLabels: LabelValues
  metricName?: string
}

interface Rendered {
  name: string
  help: string
  type: MetricType
  aggregator: 'sum'
  values: Sample[]
}

const NO_LABELS: LabelValues = {}

/** Stands in for label values beyond a metric's {@link MAX_SERIES}. */
export const OTHER = 'other'
/** Label values partly come from outside: a metric has no more series than this. */
export const MAX_SERIES = 512

/** One counter or gauge of a metric. */
export class ScalarSeries {
  value = 0

  constructor(readonly labels: LabelValues) {}

  inc(by = 1): void {
    this.value += by
  }

  set(value: number): void {
    this.value = value
  }
}

/** One histogram of a metric. */
export class HistogramSeries {
  /** One per bucket, and one for what is above the last bound. Not cumulative. */
  readonly counts: Float64Array
  sum = 0

  constructor(
    readonly labels: LabelValues,
    private readonly bounds: Float64Array,
  ) {
    this.counts = new Float64Array(bounds.length + 1)
  }

  /** @param times how often `value` was seen */
  observe(value: number, times = 1): void {
    const { bounds } = this
    let low = 0
    let high = bounds.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (bounds[middle]! < value) low = middle + 1
      else high = middle
    }
    this.counts[low]! += times
    this.sum += value * times
  }
}

abstract class Family<S extends { labels: LabelValues }> {
  protected readonly all = new Map<string, S>()

  constructor(readonly description: MetricDescription) {}

  protected abstract make(labels: LabelValues): S
  protected abstract render(series: S): Sample[]

  /**
   * The series of these label values, in the order of the label names; made where it is new. Where there are too many,
   * the one whose values are all {@link OTHER}.
   */
  series(...values: string[]): S {
    const key = values.join('\0')
    let found = this.all.get(key)
    if (found === undefined) {
      const { labelNames } = this.description
      if (this.all.size >= MAX_SERIES && values.some((value) => value !== OTHER)) {
        return this.series(...labelNames.map(() => OTHER))
      }
      found = this.make(Object.fromEntries(labelNames.map((name, i) => [name, values[i] ?? ''])))
      this.all.set(key, found)
    }
    return found
  }

  /** Forgets all series: for facts that change, such as what runs. */
  clear(): void {
    this.all.clear()
  }

  /** What prom-client's registry asks a metric for, to write its text. */
  getForPromString(): Promise<Rendered> {
    const { name, help, type } = this.description
    const values = [...this.all.values()].flatMap((series) => this.render(series))
    return Promise.resolve({ name, help, type, aggregator: 'sum', values })
  }

  /** The same, to hand on as JSON. */
  async get(): Promise<Rendered> {
    const rendered = await this.getForPromString()
    const values = rendered.values.map((sample) => ({ ...sample, labels: { ...sample.sharedLabels, ...sample.labels } }))
    return { ...rendered, values }
  }
}

export class ScalarFamily extends Family<ScalarSeries> {
  protected make(labels: LabelValues): ScalarSeries {
    return new ScalarSeries(labels)
  }

  protected render({ labels, value }: ScalarSeries): Sample[] {
    return [{ value, labels: NO_LABELS, sharedLabels: labels }]
  }
}

export class HistogramFamily extends Family<HistogramSeries> {
  private readonly bounds: Float64Array
  /** One per bucket. */
  private readonly boundLabels: LabelValues[]

  constructor(description: MetricDescription, buckets: readonly number[]) {
    super(description)
    this.bounds = Float64Array.from(buckets)
    this.boundLabels = [...buckets.map(formatBound), '+Inf'].map((le) => ({ le }))
  }

  protected make(labels: LabelValues): HistogramSeries {
    return new HistogramSeries(labels, this.bounds)
  }

  protected render({ labels, counts, sum }: HistogramSeries): Sample[] {
    const { name } = this.description
    const bucketName = `${name}_bucket`
    let count = 0
    const values: Sample[] = Array.from(counts, (inBucket, i) => {
      count += inBucket
      return { value: count, labels: this.boundLabels[i]!, sharedLabels: labels, metricName: bucketName }
    })
    const of = (value: number, suffix: string): Sample => ({ value, labels: NO_LABELS, sharedLabels: labels, metricName: `${name}_${suffix}` })
    return [...values, of(sum, 'sum'), of(count, 'count')]
  }
}

/**
 * A bucket's bound as Prometheus' Python client, and so vLLM, writes it: with a decimal point, and from 1e6 on with an
 * exponent. Rules and dashboards compare `le` as text.
 */
export function formatBound(bound: number): string {
  const text = Number.isInteger(bound) ? `${bound}.0` : String(bound)
  const digits = text.indexOf('.')
  if (digits <= 6) return text
  const mantissa = `${text[0]}.${text.slice(1, digits)}${text.slice(digits + 1)}`.replace(/[0.]+$/, '')
  return `${mantissa}e+${String(digits - 1).padStart(2, '0')}`
}

/** Makes metrics in a registry, and brings them up to date when they are read. */
export class MetricSet {
  readonly descriptions: MetricDescription[] = []
  private readonly collectors: (() => void | Promise<void>)[] = []

  constructor(readonly registry: Registry) {}

  counter(name: string, help: string, labelNames: readonly string[] = []): ScalarFamily {
    return this.add(new ScalarFamily({ name, type: 'counter', help, labelNames, buckets: undefined }))
  }

  gauge(name: string, help: string, labelNames: readonly string[] = []): ScalarFamily {
    return this.add(new ScalarFamily({ name, type: 'gauge', help, labelNames, buckets: undefined }))
  }

  histogram(name: string, help: string, buckets: readonly number[], labelNames: readonly string[] = []): HistogramFamily {
    return this.add(new HistogramFamily({ name, type: 'histogram', help, labelNames, buckets }, buckets))
  }

  /** Has `collect` called before the metrics are read. */
  onCollect(collect: () => void | Promise<void>): void {
    this.collectors.push(collect)
  }

  /** Prometheus' text format. A collector that fails leaves its metrics as they were. */
  async render(): Promise<{ contentType: string; body: string }> {
    // In the same turn as the call, those that are synchronous: figures belong to one moment.
    await Promise.allSettled(this.collectors.map(async (collect) => collect()))
    return { contentType: this.registry.contentType, body: await this.registry.metrics() }
  }

  private add<F extends ScalarFamily | HistogramFamily>(family: F): F {
    this.descriptions.push(family.description)
    // The registry asks a metric for no more than its name and these two; its type is one of its own four classes.
    this.registry.registerMetric(Object.assign(family, { name: family.description.name }) as unknown as Metric<string>)
    return family
  }
}
