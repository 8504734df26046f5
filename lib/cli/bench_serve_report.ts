/** A measured load of a server as a table and as a picture. */
import type { Quantiles } from '../llm'
import type { GoodputBounds, ServeLoadReport } from './bench_serve_load'
import { type Panel, svgChart } from './svg_chart'

const number = (value: number, digits: number): string => (Number.isFinite(value) ? value.toFixed(digits) : '-')

export function loadName(report: ServeLoadReport): string {
  return report.rate === null ? `${report.concurrency} in flight` : `${report.rate} requests/s`
}

export function boundsText(bounds: GoodputBounds): string {
  return Object.entries(bounds)
    .map(([name, ms]) => `${name} <= ${ms} ms`)
    .join(', ')
}

function row(name: string, q: Quantiles): string {
  const digits = q.max >= 1000 ? 0 : 2
  return `${name.padEnd(20)}${[q.mean, q.p50, q.p90, q.p99, q.max].map((value) => number(value, digits).padStart(11)).join('')}`
}

/** The report of one load. */
export function tableOf(report: ServeLoadReport, bounds: GoodputBounds): string {
  const { client } = report
  const percent = (share: number): string => `${(share * 100).toFixed(1)}%`
  const lines = [
    `${loadName(report)}: ${report.completed} of ${report.requests} requests completed in ${report.seconds.toFixed(2)} s` +
      (report.failed > 0 ? `, ${report.failed} FAILED` : '') +
      (report.aborted > 0 ? `, ${report.aborted} broken off` : ''),
    ...Object.entries(report.errors).map(
      ([kind, { count, example }]) => `  ${count} x ${kind}${example === undefined || example === '' ? '' : ` (${example.replace(/\s+/g, ' ').slice(0, 120)})`}`,
    ),
    `${report.promptTokens} prompt tokens (${report.cachedTokens} of them cached), ${report.outputTokens} output tokens` +
      (report.otherLengths > 0 ? `; ${report.otherLengths} outputs of another length than asked for` : '') +
      (report.countedByChunks > 0 ? `; ${report.countedByChunks} outputs counted by chunks, as the server tells no usage` : ''),
    `${number(report.requestsPerSecond, 2)} requests/s, ${number(report.outputTokensPerSecond, 0)} output tokens/s, ` +
      `${number(report.totalTokensPerSecond, 0)} tokens/s with prompts`,
    ...(report.goodput === null || report.goodShare === null
      ? []
      : [`goodput ${number(report.goodput, 2)} requests/s, ${percent(report.goodShare)} of the requests within ${boundsText(bounds)}`]),
    '',
    `${'milliseconds'.padEnd(20)}${['mean', 'P50', 'P90', 'P99', 'max'].map((head) => head.padStart(11)).join('')}`,
    row('TTFT', report.ttftMs),
    row('TPOT', report.tpotMs),
    row('ITL', report.itlMs),
    row('E2E', report.e2eMs),
    '',
    `this client: ${number(client.cores, 2)} cores, event loop delay P99 ${number(client.eventLoopDelayMs.p99, 1)} ms` +
      (report.rate === null ? '' : `, requests sent late by ${number(client.sendDelayMs.p99, 1)} ms (P99)`) +
      `, at most ${client.maxActive} in flight`,
  ]
  if (report.seconds > 1 && (client.cores > 0.9 || client.eventLoopDelayMs.p99 > 20)) {
    lines.push('NOTE: this client is near its limit, or its machine is busy: the times above are in part its own.')
  }
  return `${lines.join('\n')}\n`
}

/** One line for each of several loads. */
export function overviewOf(reports: readonly ServeLoadReport[]): string {
  const head = ['load', 'requests/s', 'tokens/s', 'goodput', 'TTFT P50', 'TTFT P99', 'ITL P50', 'ITL P99', 'E2E P99', 'failed']
  const rows = reports.map((report) => [
    loadName(report),
    number(report.requestsPerSecond, 2),
    number(report.outputTokensPerSecond, 0),
    report.goodput === null ? '-' : number(report.goodput, 2),
    number(report.ttftMs.p50, 1),
    number(report.ttftMs.p99, 1),
    number(report.itlMs.p50, 2),
    number(report.itlMs.p99, 2),
    number(report.e2eMs.p99, 0),
    String(report.failed),
  ])
  const widths = head.map((name, i) => Math.max(name.length, ...rows.map((cells) => cells[i]!.length)))
  const line = (cells: readonly string[]): string =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ')
  return `${[head, ...rows].map(line).join('\n')}\n`
}

/** Points of a cumulative distribution; 200 of them draw any curve. */
function distribution(samples: Float64Array): [number, number][] {
  const sorted = samples.slice().sort()
  const steps = Math.min(200, sorted.length)
  return Array.from({ length: steps }, (_, i) => {
    const at = Math.ceil(((i + 1) / steps) * sorted.length) - 1
    return [sorted[at]!, ((at + 1) / sorted.length) * 100]
  })
}

/** Of one load the distributions of its latencies; of several what becomes of latencies and throughput as load grows. */
export function pictureOf(reports: readonly ServeLoadReport[], bounds: GoodputBounds, title: string): string {
  const first = reports[0]
  if (first === undefined) return svgChart(title, 'nothing was measured', [])
  if (reports.length === 1) {
    const panel = (name: string, q: Quantiles, samples: Float64Array, bound: number | undefined): Panel => ({
      title: `${name}: P50 ${number(q.p50, 1)}, P99 ${number(q.p99, 1)} ms`,
      xLabel: 'ms',
      yLabel: '% of samples',
      yMax: 100,
      // The longest 1% would leave the rest no room.
      xMax: Math.max(q.p99 * 1.15, bound ?? 0) || 1,
      dots: false,
      series: [
        { name: `${name}, cumulative`, points: distribution(samples) },
        ...(bound === undefined ? [] : [{ name: `bound, ${bound} ms`, dashed: true, points: [[bound, 0], [bound, 100]] as const }]),
      ],
    })
    const subtitle = `${loadName(first)}, ${number(first.outputTokensPerSecond, 0)} output tokens/s, ${first.completed} requests, ${first.failed} failed`
    return svgChart(title, subtitle, [
      panel('TTFT', first.ttftMs, first.samples.ttftMs, bounds.ttft),
      panel('ITL', first.itlMs, first.samples.itlMs, bounds.itl),
      panel('E2E', first.e2eMs, first.samples.e2eMs, bounds.e2e),
    ])
  }
  const open = first.rate !== null
  const xLabel = open ? 'requests/s asked for' : 'requests in flight'
  const loads = reports.toSorted((a, b) => (a.rate ?? a.concurrency ?? 0) - (b.rate ?? b.concurrency ?? 0))
  const line = (name: string, of: (report: ServeLoadReport) => number) => ({
    name,
    points: loads.map((report) => [report.rate ?? report.concurrency ?? 0, of(report)] as const),
  })
  const ends = [loads[0]!, loads.at(-1)!].map((report) => report.rate ?? report.concurrency ?? 0)
  const bound = (ms: number | undefined) =>
    ms === undefined ? [] : [{ name: `bound, ${ms} ms`, dashed: true, points: ends.map((x) => [x, ms] as const) }]
  return svgChart(title, open ? 'open loop' : 'closed loop', [
    {
      title: 'Requests',
      xLabel,
      yLabel: 'requests/s',
      series: [
        line('completed', (report) => report.requestsPerSecond),
        ...(first.goodput === null ? [] : [line(`within ${boundsText(bounds)}`, (report) => report.goodput ?? NaN)]),
        ...(open ? [{ name: 'asked for', dashed: true, points: ends.map((x) => [x, x] as const) }] : []),
      ],
    },
    { title: 'Throughput', xLabel, yLabel: 'output tokens/s', series: [line('output tokens/s', (report) => report.outputTokensPerSecond)] },
    {
      title: 'Time to first token',
      xLabel,
      yLabel: 'ms',
      series: [line('P50', (r) => r.ttftMs.p50), line('P90', (r) => r.ttftMs.p90), line('P99', (r) => r.ttftMs.p99), ...bound(bounds.ttft)],
    },
    {
      title: 'Inter-token latency',
      xLabel,
      yLabel: 'ms',
      series: [line('P50', (r) => r.itlMs.p50), line('P90', (r) => r.itlMs.p90), line('P99', (r) => r.itlMs.p99), ...bound(bounds.itl)],
    },
    {
      title: 'Whole request',
      xLabel,
      yLabel: 'ms',
      series: [line('P50', (r) => r.e2eMs.p50), line('P90', (r) => r.e2eMs.p90), line('P99', (r) => r.e2eMs.p99), ...bound(bounds.e2e)],
    },
    { title: 'Failed requests', xLabel, yLabel: 'requests', series: [line('failed', (report) => report.failed)] },
  ])
}
