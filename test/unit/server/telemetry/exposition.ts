/**
 * A strict reader of Prometheus' text format, version 0.0.4: what a scraper would merely put up with is an error here.
 * https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
 */

export interface Sample {
  name: string
  labels: Record<string, string>
  value: number
}

export interface MetricFamily {
  name: string
  type: string
  help: string
  samples: Sample[]
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/
const NUMBER = /^(?:[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]Inf)$/
const TYPES = ['counter', 'gauge', 'histogram']

export class Exposition {
  readonly families = new Map<string, MetricFamily>()

  constructor(body: string) {
    if (!body.endsWith('\n')) throw new Error('The text does not end in a line feed')
    let current: MetricFamily | undefined
    let help: { name: string; text: string } | undefined
    for (const line of body.split('\n')) {
      if (line === '') continue
      const [, keyword, name = '', text = ''] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? []
      if (keyword === 'HELP') {
        if (help !== undefined) throw new Error(`No TYPE after the HELP of ${help.name}`)
        help = { name, text }
      } else if (keyword === 'TYPE') {
        if (help?.name !== name) throw new Error(`No HELP before the TYPE of ${name}`)
        if (!NAME.test(name) || !TYPES.includes(text)) throw new Error(line)
        if (this.families.has(name)) throw new Error(`${name} is there twice`)
        current = { name, type: text, help: help.text, samples: [] }
        this.families.set(name, current)
        help = undefined
      } else if (line.startsWith('#')) {
        throw new Error(`A comment: ${line}`)
      } else {
        if (current === undefined) throw new Error(`A sample before any TYPE: ${line}`)
        current.samples.push(readSample(line, current))
      }
    }
    for (const family of this.families.values()) checkFamily(family)
  }

  get series(): number {
    let count = 0
    for (const { samples } of this.families.values()) count += samples.length
    return count
  }

  family(name: string): MetricFamily {
    const found = this.families.get(name)
    if (found === undefined) throw new Error(`There is no ${name}`)
    return found
  }

  /** Of the one sample with these labels, among others; `_sum`, `_count` and `_bucket` go with a histogram's name. */
  value(name: string, labels: Record<string, string> = {}): number {
    const family = this.families.get(name) ?? this.family(name.replace(/_(sum|count|bucket)$/, ''))
    const found = family.samples.filter(
      (sample) => sample.name === name && Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
    )
    if (found.length !== 1) throw new Error(`${found.length} samples of ${name} ${JSON.stringify(labels)}`)
    return found[0]!.value
  }
}

function readSample(line: string, family: MetricFamily): Sample {
  const [, name = '', inBraces, number = ''] = /^([^\s{]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? []
  if (!NAME.test(name) || !NUMBER.test(number)) throw new Error(`Not a sample: ${line}`)
  const suffixes = family.type === 'histogram' ? ['_bucket', '_sum', '_count'] : ['']
  if (!suffixes.some((suffix) => name === family.name + suffix)) throw new Error(`${name} is not of ${family.name}`)
  const value = number.endsWith('Inf') ? (number.startsWith('-') ? -Infinity : Infinity) : Number(number)
  return { name, labels: inBraces === undefined ? {} : readLabels(inBraces, line), value }
}

function readLabels(text: string, line: string): Record<string, string> {
  const labels: Record<string, string> = Object.create(null) as Record<string, string>
  const label = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y
  while (label.lastIndex < text.length) {
    const [, name, value, comma] = label.exec(text) ?? []
    if (name === undefined || (comma === ',' && label.lastIndex === text.length)) throw new Error(`Bad labels: ${line}`)
    if (name in labels) throw new Error(`A label twice: ${line}`)
    labels[name] = value!.replace(/\\(.)/g, (_, escaped: string) => (escaped === 'n' ? '\n' : escaped))
  }
  return labels
}

function checkFamily({ name, type, samples }: MetricFamily): void {
  const keys = samples.map((sample) => `${sample.name} ${JSON.stringify(Object.entries(sample.labels).sort())}`)
  if (new Set(keys).size !== keys.length) throw new Error(`A series of ${name} is there twice`)
  if (type === 'counter') {
    if (!name.endsWith('_total')) throw new Error(`The counter ${name} does not end in _total`)
    if (samples.some(({ value }) => !(value >= 0))) throw new Error(`The counter ${name} is negative, or NaN`)
  }
  if (type === 'histogram') checkHistogram(name, samples)
}

function checkHistogram(name: string, samples: Sample[]): void {
  const buckets = new Map<string, Sample[]>()
  const others = new Map<string, number>()
  for (const sample of samples) {
    const { le, ...rest } = sample.labels
    const key = JSON.stringify(Object.entries(rest).sort())
    if (sample.name === `${name}_bucket`) buckets.set(key, [...(buckets.get(key) ?? []), sample])
    else if (le !== undefined) throw new Error(`${sample.name} has a label le`)
    else others.set(`${sample.name} ${key}`, sample.value)
  }
  for (const [key, list] of buckets) {
    const bounds = list.map(({ labels }) => (labels['le'] === '+Inf' ? Infinity : Number(labels['le'])))
    if (bounds.some((bound, i) => i > 0 && !(bound > bounds[i - 1]!))) throw new Error(`Bounds of ${name} do not rise`)
    if (bounds.at(-1) !== Infinity) throw new Error(`${name} has no bucket +Inf`)
    if (list.some(({ value }, i) => i > 0 && value < list[i - 1]!.value)) throw new Error(`${name} is not cumulative`)
    if (others.get(`${name}_count ${key}`) !== list.at(-1)!.value) throw new Error(`_count of ${name} is not that of +Inf`)
    if (!Number.isFinite(others.get(`${name}_sum ${key}`))) throw new Error(`_sum of ${name} is ${others.get(`${name}_sum ${key}`)}`)
  }
}
