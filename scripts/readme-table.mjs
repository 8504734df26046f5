// Writes the table of measurements in README.md from the reports in docs/benchmarks (npm run bench).
//   node scripts/readme-table.mjs [--check]      --check: changes nothing, fails where the README has another table
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readServingReports, servingSummary } from './serving-table.mjs'

const START = '<!-- measurements: written by scripts/readme-table.mjs -->'
const END = '<!-- /measurements -->'
const REPORTS = ['batching', 'prefix', 'transformers']

const times = (value) => `${value.toFixed(1)}x`
const count = (value) => Math.round(value).toLocaleString('en-US')
const middle = (values) => values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) / 2)]

function batchingRows({ saturatedThroughputRatio, steadyTtftP50Ratio, steadyTtftP99Ratio, steadyLatencyP99Ratio, rounds, size, requests }) {
  const of = (load, kind, pick) => count(middle(rounds.map((round) => pick(round[load][kind]))))
  const row = (name, load, pick, ratio) => [name, `continuous batching ${of(load, 'continuous', pick)}`, `static ${of(load, 'static', pick)}`, times(ratio)]
  const steady = 'arriving at 80% of what static batching carries'
  return [
    row(`${requests} requests of mixed length, up to ${size} at once: output tokens/s`, 'saturated', (r) => r.outputTokensPerSecond, saturatedThroughputRatio),
    row(`${steady}: time to the first token, ms, P50`, 'steady', (r) => r.ttftMs.p50, steadyTtftP50Ratio),
    row('the same, P99', 'steady', (r) => r.ttftMs.p99, steadyTtftP99Ratio),
    row('the same: whole request, ms, P99', 'steady', (r) => r.latencyMs.p99, steadyLatencyP99Ratio),
  ]
}

function prefixRows({ throughputRatio, ttftP50Ratio, rounds, load }) {
  const of = (kind, pick) => count(middle(rounds.map((round) => pick(round[kind]))))
  const what = `prompts of ${load.inputTokens.max} tokens, ${load.sharedPrefix * 100}% shared`
  const row = (name, pick, ratio) => [`${what}: ${name}`, `prefix cache on ${of('on', pick)}`, `off ${of('off', pick)}`, times(ratio)]
  return [
    row('output tokens/s', (report) => report.outputTokensPerSecond, throughputRatio),
    row('median time to the first token, ms', (report) => report.ttftMs.p50, ttftP50Ratio),
  ]
}

function transformersRows({ results, peer }) {
  const version = typeof peer?.transformers === 'string' ? ` ${peer.transformers}` : ''
  return (results ?? []).map(({ requests, newTokens, tokensPerSecond, ratioToTransformers }) => {
    // Against the faster of the peer's types.
    const [dtype, ratio] = Object.entries(ratioToTransformers).reduce((a, b) => (b[1] < a[1] ? b : a))
    return [
      `${requests} request${requests === 1 ? '' : 's'} of ${newTokens} new tokens: output tokens/s`,
      `node-tensorrt ${count(tokensPerSecond['node-tensorrt'])}`,
      `transformers${version}, ${dtype}: ${count(tokensPerSecond[dtype])}`,
      times(ratio),
    ]
  })
}

/** The table for the reports of a folder, between its markers. */
export function renderTable(folder) {
  const read = (name) => {
    const path = join(folder, `cpu-${name}.json`)
    return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : undefined
  }
  const [batching, prefix, transformers] = REPORTS.map(read)
  const rows = [
    ...(batching === undefined ? [] : batchingRows(batching)),
    ...(prefix === undefined ? [] : prefixRows(prefix)),
    ...(transformers === undefined ? [] : transformersRows(transformers)),
  ]
  const serving = servingSummary(readServingReports(folder))
  if (serving.length > 0) serving.push('More, with pictures: [serving on a GPU](docs/benchmarks/serving.md), [performance](docs/performance.md).', '')
  if (rows.length === 0) {
    const lines = [...serving, 'No figures yet of the CPU backend: `npm run bench` measures them on your machine.']
    return `${START}\n${lines.join('\n')}\n${END}`
  }
  const { device, machine, model } = batching ?? prefix ?? transformers
  const lines = [
    ...serving,
    `CPU backend, \`${model}\`, ${device}, ${machine.memoryGiB} GiB, Node ${machine.node.slice(1)}, ${machine.date.slice(0, 10)}; medians:`,
    '',
    '| load | this | that | ratio |',
    '| --- | --- | --- | --- |',
    ...rows.map((row) => `| ${row.join(' | ')} |`),
    '',
    'On a CPU the cost of a step grows almost in proportion to its rows. So continuous batching buys early first tokens here, and long',
    'requests share the processor with more others; throughput is what it buys on a GPU.',
    '',
    'The reports are in `docs/benchmarks`; `npm run bench` makes them anew.',
  ]
  return `${START}\n${lines.join('\n')}\n${END}`
}

/** @param {string} readme its text, with the markers */
export function replaceTable(readme, table) {
  const from = readme.indexOf(START)
  const to = readme.indexOf(END)
  if (from < 0 || to < from) throw new Error(`README.md lacks the lines ${START} and ${END}`)
  return readme.slice(0, from) + table + readme.slice(to + END.length)
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const root = resolve(fileURLToPath(import.meta.url), '..', '..')
  const path = join(root, 'README.md')
  const readme = readFileSync(path, 'utf8')
  const fresh = replaceTable(readme, renderTable(join(root, 'docs', 'benchmarks')))
  if (!process.argv.includes('--check')) {
    writeFileSync(path, fresh)
  } else if (fresh !== readme) {
    console.error('README.md has another table than docs/benchmarks: run node scripts/readme-table.mjs')
    process.exitCode = 1
  }
}
