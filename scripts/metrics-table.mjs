// Writes the tables of docs/metrics.md from the metrics themselves.
//   node scripts/metrics-table.mjs [--check]      --check: changes nothing, fails where the page has other tables
// Reads dist/, so build first. test/unit/server/telemetry/docs.test.ts compares the page with the sources.
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = resolve(fileURLToPath(import.meta.url), '..', '..')
export const METRICS_PAGE = join(root, 'docs', 'metrics.md')

/** By their place on the page: what the names begin with. A metric goes where the longest of them fits. */
const GROUPS = {
  vllm: ['vllm:'],
  requests: ['node_tensorrt_requests_', 'node_tensorrt_request_', 'node_tensorrt_time_', 'node_tensorrt_inter_', 'node_tensorrt_sla_', 'node_tensorrt_http_', 'node_tensorrt_access_log_'],
  engine: ['node_tensorrt_'],
  steps: ['node_tensorrt_step', 'node_tensorrt_rows_', 'node_tensorrt_oldest_step_'],
  gpus: ['node_tensorrt_gpu_'],
  process: ['process_', 'nodejs_', 'node_tensorrt_event_loop_', 'node_tensorrt_build_'],
}
const UNITS = ['seconds', 'bytes', 'ratio', 'celsius', 'watts']

function groupOf(name) {
  const fits = Object.entries(GROUPS).flatMap(([group, starts]) => starts.filter((start) => name.startsWith(start)).map((start) => ({ group, length: start.length })))
  return fits.sort((a, b) => b.length - a.length)[0]?.group
}

/** As the names of Prometheus' metrics have it; tokens and the like are no units. */
function unitOf(name) {
  const words = name.split('_')
  return UNITS.find((unit) => words.includes(unit)) ?? ''
}

function row({ name, type, help, labelNames }) {
  const cells = [`\`${name}\``, type, labelNames.map((label) => `\`${label}\``).join(', '), unitOf(name), help]
  return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
}

const marker = (group) => `<!-- metrics: ${group}, written by scripts/metrics-table.mjs -->`
const END = '<!-- /metrics -->'

/** The page with these metrics in its tables. */
export function withTables(page, descriptions) {
  let written = page
  for (const group of Object.keys(GROUPS)) {
    const start = written.indexOf(marker(group))
    const end = written.indexOf(END, start)
    if (start === -1 || end === -1) throw new Error(`docs/metrics.md has no place for the metrics: ${marker(group)} ... ${END}`)
    const rows = descriptions.filter(({ name }) => groupOf(name) === group).map(row)
    const table = ['| metric | type | labels | unit | meaning |', '| --- | --- | --- | --- | --- |', ...rows].join('\n')
    written = `${written.slice(0, start)}${marker(group)}\n${table}\n${written.slice(end)}`
  }
  return written
}

async function main() {
  const require = createRequire(import.meta.url)
  const { LLM } = require(join(root, 'dist', 'llm'))
  const { createSlaAdmission, createTelemetry } = require(join(root, 'dist', 'server'))
  const llm = await LLM.load(join(root, 'models', 'tiny-storyteller'), { backend: 'cpu', numPages: 128 })
  // A log to nowhere, and an admission: their metrics are there with them only.
  const admission = createSlaAdmission(llm, { ttftMs: 1000, itlMs: 100 })
  const telemetry = createTelemetry(llm, { model: 'model', accessLog: { path: '/dev/null' }, admission })
  const { descriptions } = telemetry
  await telemetry.close()
  await llm.close()
  const page = readFileSync(METRICS_PAGE, 'utf8')
  const written = withTables(page, descriptions)
  if (written === page) return
  if (process.argv.includes('--check')) {
    console.error('docs/metrics.md has other tables than the metrics: node scripts/metrics-table.mjs')
    process.exitCode = 1
  } else {
    writeFileSync(METRICS_PAGE, written)
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main()
