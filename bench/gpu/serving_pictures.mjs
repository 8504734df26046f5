/** Pictures of a serving report as SVG, drawn by vega without a browser. */
import { writeFileSync } from 'node:fs'
import { servingLoads } from '../../scripts/serving-table.mjs'

const SCHEMA = 'https://vega.github.io/schema/vega-lite/v6.json'
const COLORS = { 'node-tensorrt': '#4c78a8', vLLM: '#f58518', transformers: '#54a24b', 'hardware limit': '#bab0ac' }

/** @param spec vega-lite, without schema and background */
export async function draw(file, spec) {
  const [vega, lite] = await Promise.all([import('vega'), import('vega-lite')])
  const compiled = lite.compile({ $schema: SCHEMA, background: 'white', ...spec })
  writeFileSync(file, await new vega.View(vega.parse(compiled.spec), { renderer: 'none' }).toSVG())
}

const title = ({ name, title: text, device, at }, what) => ({ text: what, subtitle: `${text ?? name}, ${device}, ${at.slice(0, 10)}`, anchor: 'start' })

/** One panel a load, with a scale of its own: measured, the peers, and the roofline. @returns whether there was something to draw */
export async function drawLoads(file, report) {
  const loads = servingLoads(report)
  if (loads.length === 0) return false
  const panel = ({ name, measured, vllm, transformers, limit }) => {
    const values = Object.entries({ 'node-tensorrt': measured, vLLM: vllm, transformers, 'hardware limit': limit })
      .filter(([, value]) => value !== undefined)
      .map(([program, value]) => ({ program, value }))
    const y = { field: 'program', type: 'nominal', sort: null, title: null }
    return {
      data: { values },
      width: 460,
      height: { step: 20 },
      encoding: { y, x: { field: 'value', type: 'quantitative', title: name } },
      layer: [
        { mark: 'bar', encoding: { color: { field: 'program', type: 'nominal', legend: null, scale: { domain: Object.keys(COLORS), range: Object.values(COLORS) } } } },
        { mark: { type: 'text', align: 'left', dx: 4 }, encoding: { text: { field: 'value', type: 'quantitative', format: ',.3~r' } } },
      ],
    }
  }
  await draw(file, { title: title(report, 'Serving, beside what the hardware allows'), vconcat: loads.map(panel) })
  return true
}

/** Percentiles of time to the first token and between tokens over the rate of arrivals. @returns whether there was something to draw */
export async function drawLatency(file, report) {
  const { rates } = report.rows.poisson ?? {}
  if (rates === undefined) return false
  const panel = ([figure, text]) => ({
    data: {
      values: rates.flatMap((rate) => ['p50', 'p90', 'p99'].map((percentile) => ({ rate: rate.offeredRequestsPerSecond, percentile: percentile.toUpperCase(), ms: rate[figure][percentile] }))),
    },
    width: 300,
    height: 220,
    mark: { type: 'line', point: true },
    encoding: {
      x: { field: 'rate', type: 'quantitative', title: 'requests that arrive in a second' },
      y: { field: 'ms', type: 'quantitative', scale: { type: 'log' }, title: text },
      color: { field: 'percentile', type: 'nominal', title: null },
    },
  })
  const panels = [['ttftMs', 'time to the first token, ms'], ['interTokenMs', 'time between tokens, ms']]
  await draw(file, { title: title(report, 'Latency under random arrivals'), hconcat: panels.map(panel) })
  return true
}
