/**
 * Makes the report of HTTP servers from what http.mjs wrote: http-NAME.json, a picture of it, and serving-http.md of all such reports in the folder.
 *
 *   node bench/gpu/http_report.mjs NAME HTTP.json... [--title TEXT] [--out docs/benchmarks]
 *
 * Of several files, runs of one suite on one kind of machine, a later one's load of a side counts.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { cell, percent, table, times } from '../../scripts/serving-table.mjs'
import { draw } from './serving_pictures.mjs'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    title: { type: 'string' },
    out: { type: 'string', default: join(resolve(import.meta.dirname, '..', '..'), 'docs', 'benchmarks') },
  },
})
const [name, ...files] = positionals
if (files.length === 0 || !/^[\w.-]+$/.test(name)) throw new Error('http_report.mjs NAME HTTP.json...')
const SIDES = { library: 'node-tensorrt, in process', server: 'node-tensorrt serve', vllm: 'vllm serve' }
const COLORS = { library: '#9ecae9', server: '#4c78a8', vllm: '#f58518' }

/** What two runs must have in common to be compared. */
function comparable({ settings, machine: { gpu, processor } }) {
  return JSON.stringify({ ...settings, startSeconds: undefined, vllmArgs: undefined, gpu, processor })
}

function merge(reports) {
  const [first] = reports
  const sides = {}
  for (const report of reports) {
    if (comparable(report) !== comparable(first)) throw new Error(`runs that cannot be compared: ${comparable(first)} and ${comparable(report)}`)
    for (const [side, found] of Object.entries(report.sides)) {
      const { error: _, ...before } = sides[side] ?? {}
      sides[side] = { ...before, ...found, loads: { ...before.loads, ...found.loads } }
    }
  }
  return { ...first, loads: Object.assign({}, ...reports.map(({ loads }) => loads)), sides }
}

const report = { name, title: options.title, ...merge(files.map((file) => JSON.parse(readFileSync(file, 'utf8')))) }
writeFileSync(join(options.out, `http-${name}.json`), `${JSON.stringify(report, null, 1)}\n`)

/** The sides that ran a load: `[side, what it measured]`. */
const ran = ({ sides }, load) => Object.keys(SIDES).flatMap((side) => (sides[side]?.loads[load] === undefined ? [] : [[side, sides[side].loads[load]]]))
const two = ({ p50, p99 }) => `${cell(p50)} / ${cell(p99)}`
const titled = (side, { sides }) => (side === 'vllm' && sides.vllm.version !== undefined ? `vllm serve ${sides.vllm.version}` : SIDES[side])

function figures(each) {
  const rows = Object.keys(each.loads).flatMap((load) =>
    ran(each, load).map(([side, { outputTokensPerSecond, ttftMs, itlMs, tpotMs, completed, failed, aborted, processor }], index) => [
      index === 0 ? each.loads[load] : '',
      titled(side, each),
      cell(outputTokensPerSecond),
      two(ttftMs),
      two(itlMs),
      two(tpotMs),
      `${completed} / ${failed} / ${aborted}`,
      cell(processor.usPerOutputToken),
    ]),
  )
  return table(['load', '', 'output tokens/s', 'first token, ms', 'between chunks, ms', 'a token, ms', 'requests', 'processor, us a token'], rows)
}

/** @returns lines, none where a load has not both sides */
function ratios(each, peer, head, rowOf) {
  const rows = Object.keys(each.loads).flatMap((load) => {
    const { server, [peer]: other } = Object.fromEntries(ran(each, load))
    return server === undefined || other === undefined ? [] : [[each.loads[load], ...rowOf(server, other)]]
  })
  return rows.length === 0 ? [] : [table(['load', ...head], rows), '']
}

const againstLibrary = (each) =>
  ratios(each, 'library', ['throughput of the library\'s', 'first token: more ms, P50 / P99', 'between chunks: more ms, P50 / P99', 'processor: more us a token'], (server, library) => {
    const more = (figure) => [50, 99].map((p) => cell(server[figure][`p${p}`] - library[figure][`p${p}`], (value) => value.toFixed(2))).join(' / ')
    return [
      percent(server.outputTokensPerSecond / library.outputTokensPerSecond),
      more('ttftMs'),
      more('itlMs'),
      cell(server.processor.usPerOutputToken - library.processor.usPerOutputToken, (value) => value.toFixed(1)),
    ]
  })

const againstVllm = (each) =>
  ratios(each, 'vllm', ['throughput', 'first token, P50 / P99', 'between chunks, P50 / P99', 'a token, P50 / P99', 'processor a token'], (server, vllm) => {
    const both = (figure) => [50, 99].map((p) => cell(vllm[figure][`p${p}`] / server[figure][`p${p}`], times)).join(' / ')
    return [
      cell(server.outputTokensPerSecond / vllm.outputTokensPerSecond, times),
      both('ttftMs'),
      both('itlMs'),
      both('tpotMs'),
      cell(vllm.processor.usPerOutputToken / server.processor.usPerOutputToken, times),
    ]
  })

/** A panel for each figure, in it the loads, in each of these the sides. @returns whether there was something to draw */
async function picture(file, each) {
  const values = Object.keys(each.loads).flatMap((load) => ran(each, load).map(([side, measured]) => ({ load: each.loads[load], key: side, side: titled(side, each), measured })))
  if (values.length === 0) return false
  const panels = {
    'output tokens/s': ({ outputTokensPerSecond }) => outputTokensPerSecond,
    'time to the first token, P50, ms': ({ ttftMs }) => ttftMs.p50,
    'time to the first token, P99, ms': ({ ttftMs }) => ttftMs.p99,
    'between chunks, P50, ms': ({ itlMs }) => itlMs.p50,
    'between chunks, P99, ms': ({ itlMs }) => itlMs.p99,
  }
  const colors = Object.fromEntries(values.map(({ key, side }) => [side, COLORS[key]]))
  const sides = Object.keys(colors)
  await draw(file, {
    title: { text: 'HTTP servers under the same load', subtitle: [each.title ?? each.name, each.machine.gpu ?? each.machine.processor, each.at.slice(0, 10)].join(', '), anchor: 'start' },
    config: { legend: { labelLimit: 320 } },
    vconcat: Object.entries(panels).map(([text, of]) => ({
      data: { values: values.map(({ load, side, measured }) => ({ load, side, value: of(measured) })) },
      width: 460,
      height: { step: 14, for: 'offset' },
      encoding: {
        y: { field: 'load', type: 'nominal', sort: null, title: null },
        yOffset: { field: 'side', type: 'nominal', sort: sides },
        x: { field: 'value', type: 'quantitative', title: text },
      },
      layer: [
        { mark: 'bar', encoding: { color: { field: 'side', type: 'nominal', sort: sides, title: null, scale: { domain: sides, range: Object.values(colors) } } } },
        { mark: { type: 'text', align: 'left', dx: 4, fontSize: 9 }, encoding: { text: { field: 'value', type: 'quantitative', format: ',.3~r' } } },
      ],
    })),
  })
  return true
}

async function section(each) {
  const { machine, settings, sides } = each
  const file = `http-${each.name}.svg`
  const facts = [machine.gpu ?? machine.processor, `${machine.cores} cores`, `Node ${each.node.slice(1)}`, each.at.slice(0, 10)]
  const limits = [`${settings.maxSequences} sequences at once`, settings.maxStepTokens === undefined ? undefined : `steps of at most ${settings.maxStepTokens} tokens`]
  const failed = Object.entries(sides).filter(([, { error }]) => error !== undefined)
  const compared = (lines, text) => (lines.length === 0 ? [] : [text, '', ...lines])
  return [
    `## ${each.title ?? each.name}`,
    '',
    `${facts.join('; ')}. Greedy, exact lengths, no prefix cache, ${limits.filter(Boolean).join(', ')}; requests were sent for ${settings.seconds} s a load.`,
    '',
    figures(each),
    '',
    ...compared(againstVllm(each), 'The server against vLLM, above 1 where the server is better:'),
    ...compared(againstLibrary(each), 'The server against the library in its own process:'),
    ...(failed.length === 0 ? [] : [`Not all was measured: ${failed.map(([side, { error }]) => `${SIDES[side]} (${error.split('\n')[0]})`).join('; ')}.`, '']),
    ...((await picture(join(options.out, file), each)) ? [`![${file}](${file})`, ''] : []),
    ...Object.values(sides).flatMap(({ command }) => (command === undefined ? [] : [`- \`${command}\``])),
    '',
  ]
}

const names = readdirSync(options.out).filter((file) => /^http-.*\.json$/.test(file)).sort()
const text = [
  '# Serving over HTTP',
  '',
  'Written by `bench/gpu/http_report.mjs` from the JSON beside it, which `bench/gpu/http.mjs` measured: the same requests from the load generator of `bench serve`',
  'to each server on loopback, and to the library\'s `generate()`. Two figures are P50 / P99; requests are completed / failed / broken off at the end of the time. "A token" is the',
  'time after the first token by the number of tokens after it. The processor\'s time is that of all processes of the server, in process that of the load generator, too.',
  '',
]
for (const file of names) text.push(...(await section(JSON.parse(readFileSync(join(options.out, file), 'utf8')))))
writeFileSync(join(options.out, 'serving-http.md'), `${text.join('\n').trimEnd()}\n`)
console.log(join(options.out, 'serving-http.md'))
