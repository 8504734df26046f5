/**
 * Makes the report of a model from what the programs wrote: serving-NAME.json, pictures of it, and serving.md of all reports in the folder.
 *
 *   node bench/gpu/serving_report.mjs NAME SERVING.json... [--vllm VLLM.json] [--transformers HF.json] [--title TEXT] [--note TEXT] [--out docs/benchmarks]
 *
 * The note stands beside the table: what else ran on the machine, say. Of several serving reports, parts of one suite on one machine or an earlier report of this program, a later one's row counts, unless it failed. `node scripts/readme-table.mjs`
 * then brings the README up to date.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { readServingReports, servingSections } from '../../scripts/serving-table.mjs'
import { drawLatency, drawLoads } from './serving_pictures.mjs'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    vllm: { type: 'string', multiple: true },
    transformers: { type: 'string', multiple: true },
    title: { type: 'string' },
    note: { type: 'string' },
    out: { type: 'string', default: join(resolve(import.meta.dirname, '..', '..'), 'docs', 'benchmarks') },
  },
})
const [name, ...files] = positionals
if (files.length === 0 || !/^[\w.-]+$/.test(name)) throw new Error('serving_report.mjs NAME SERVING.json...')
const read = (file) => JSON.parse(readFileSync(file, 'utf8'))

/** One report of several of the same program. */
function merge(reports) {
  if (reports.length === 0) return undefined
  const rows = {}
  for (const report of reports) {
    for (const [row, value] of Object.entries(report.rows)) if (value.error === undefined || rows[row] === undefined) rows[row] = value
  }
  return { ...Object.assign({}, ...reports), rows }
}

const parts = files.map(read)
const { rows, ...facts } = merge(parts)
// What belongs to a part, which may be an earlier report, and not to this one.
for (const own of ['engine', 'command', 'commands', 'name', 'title', 'note', 'peers']) delete facts[own]
const peers = { vllm: merge((options.vllm ?? []).map(read)), transformers: merge((options.transformers ?? []).map(read)) }
const report = { name, title: options.title, note: options.note, commands: parts.flatMap(({ command, commands }) => command ?? commands ?? []), ...facts, rows, peers }
const base = join(options.out, `serving-${name}`)
writeFileSync(`${base}.json`, `${JSON.stringify(report, null, 1)}\n`)

const pictures = {}
const pictureOf = (file, drawn) => (drawn ? [`![${file}](${file})`, ''] : [])
for (const each of readServingReports(options.out)) {
  const at = `serving-${each.name}`
  pictures[each.name] = [
    ...pictureOf(`${at}.svg`, await drawLoads(join(options.out, `${at}.svg`), each)),
    ...pictureOf(`${at}-latency.svg`, await drawLatency(join(options.out, `${at}-latency.svg`), each)),
  ]
}
const text = [
  '# Serving on a GPU',
  '',
  'Written by `bench/gpu/serving_report.mjs` from the JSON beside it. "Hardware limit" is the bytes and the arithmetic of the load over what `bench/gpu/limits.py`',
  'measured on the same machine (`bench/gpu/roofline.mjs`); in parentheses, how much of it was reached. Ratios above 1: node-tensorrt is better.',
  '',
  ...readServingReports(options.out).flatMap((each) => [...servingSections(each), ...pictures[each.name]]),
]
writeFileSync(join(options.out, 'serving.md'), `${text.join('\n').trimEnd()}\n`)
console.log(`${base}.json`)
