// Tables of the serving reports (docs/benchmarks/serving-*.json), for README.md and docs/benchmarks/serving.md.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const LOADS = [
  ['ttft-128', 'time to the first token of 128, ms', 'ms'],
  ['ttft-512', 'time to the first token of 512, ms', 'ms'],
  ['ttft-1024', 'time to the first token of 1024, ms', 'ms'],
  ['ttft-2048', 'time to the first token of 2048, ms', 'ms'],
  ['single', 'one stream, tokens/s', 'tokensPerSecond'],
  ['batch', '256 requests of 128 in, 128 out: output tokens/s', 'tokensPerSecond'],
  ['waves', '1024 requests of 128 in, 128 out: output tokens/s', 'tokensPerSecond'],
  ['mixed', '512 requests of 16-1023 in, 16-511 out: output tokens/s', 'tokensPerSecond'],
  ['long', '512 requests of 1000 in, 1000 out, 256 at once: output tokens/s', 'tokensPerSecond'],
]

const count = (value) => Math.round(value).toLocaleString('en-US')
const number = (value) => (value >= 100 ? count(value) : value.toFixed(value >= 10 ? 1 : 2))
export const cell = (value, format = number) => (value === undefined || value === null || !Number.isFinite(value) ? '-' : format(value))
export const percent = (value) => `${(100 * value).toFixed(1)}%`
export const times = (value) => `${value.toFixed(2)}x`
export const table = (head, rows) => [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')

/** The serving reports of a folder, by name. */
export function readServingReports(folder) {
  const files = readdirSync(folder).filter((file) => /^serving-.*\.json$/.test(file)).sort()
  return files.map((file) => JSON.parse(readFileSync(join(folder, file), 'utf8')))
}

/**
 * The loads that were measured: `{ row, name, better, measured, limit, vllm, transformers, ratios }`. Ratios are above 1 where this library is
 * better; `partial` says that the peer ran only some of its batches.
 */
export function servingLoads({ rows, peers = {} }) {
  return LOADS.flatMap(([row, name, figure]) => {
    const measured = rows[row]?.[figure]
    if (measured === undefined) return []
    const better = figure === 'ms' ? 'lower' : 'higher'
    const against = (value) => (value === undefined ? undefined : better === 'lower' ? value / measured : measured / value)
    const vllm = peers.vllm?.rows[row]?.[figure]
    const transformers = peers.transformers?.rows[row]?.[figure]
    const limit = rows[row].limit?.[figure]
    const { measured: ran, of } = peers.transformers?.rows[row]?.batches ?? {}
    const partial = ran < of ? `${ran} of ${of} batches` : undefined
    const ratios = { limit: against(limit), vllm: against(vllm), transformers: against(transformers) }
    return [{ row, name, better, measured, limit, vllm, transformers, partial, ratios }]
  })
}

function loadTable(report) {
  const loads = servingLoads(report)
  if (loads.length === 0) return []
  const { vllm, transformers } = report.peers ?? {}
  const version = (peer, name) => (peer === undefined ? name : `${name} ${peer.version}`)
  const has = (name) => loads.some((load) => load[name] !== undefined)
  const columns = [
    ['', ({ name }) => name],
    ['node-tensorrt', ({ measured }) => cell(measured)],
    ...(has('limit') ? [['hardware limit', ({ limit, ratios }) => (limit === undefined ? '-' : `${cell(limit)} (${percent(ratios.limit)})`)]] : []),
    ...(has('vllm')
      ? [
          [version(vllm, 'vLLM'), ({ vllm: value }) => cell(value)],
          ['ratio to vLLM', ({ ratios }) => cell(ratios.vllm, times)],
        ]
      : []),
    ...(has('transformers')
      ? [
          [version(transformers, 'transformers'), ({ transformers: value, partial }) => cell(value) + (partial === undefined ? '' : ` (${partial})`)],
          ['ratio to transformers', ({ ratios }) => cell(ratios.transformers, times)],
        ]
      : []),
  ]
  return [table(columns.map(([head]) => head), loads.map((load) => columns.map(([, value]) => value(load))))]
}

const date = ({ at }) => at.slice(0, 10)

/** For the README: what was measured, without the rest. */
export function servingSummary(reports) {
  return reports.flatMap((report) => {
    const tables = loadTable(report)
    if (tables.length === 0) return []
    const note = report.note === undefined ? [] : [report.note, '']
    return [`${report.title ?? report.name}, random weights, BF16, greedy, prefix cache off, ${report.device}, ${date(report)}:`, '', ...tables, '', ...note]
  })
}

function poissonTable({ saturated, rates }) {
  const three = ({ p50, p90, p99 }) => [p50, p90, p99].map((ms) => cell(ms)).join(' / ')
  const row = (name, { requestsPerSecond, tokensPerSecond, ttftMs, interTokenMs, limit }) => [
    name, cell(requestsPerSecond), cell(tokensPerSecond), cell(limit?.tokensPerSecond), three(ttftMs), three(interTokenMs),
  ]
  return table(
    ['arrivals', 'requests/s', 'output tokens/s', 'hardware limit', 'first token, ms, P50 / P90 / P99', 'between tokens, ms, P50 / P90 / P99'],
    [...rates.map((rate) => row(`${cell(rate.offeredRequestsPerSecond)}/s (${Math.round(100 * rate.share)}% of saturation)`, rate)), row('all at once', saturated)],
  )
}

function decodeTable(decodes) {
  const row = ({ sequences, steps, stepMs, limit, gpuBusy, hostUs }) => [
    sequences, steps, cell(stepMs), cell(limit?.stepMs), percent(gpuBusy), cell(hostUs.mean), cell(hostUs.scheduler), percent(hostUs.schedulerShareOfWall),
  ]
  return table(['sequences', 'steps', 'step, ms', 'hardware limit', 'GPU busy', 'host, us a step', 'of it the scheduler', 'scheduler, of wall time'], decodes.map(row))
}

function wasteLines({ waste, wasteMax, tokensPerSequence, running, pageSize, contiguous }) {
  return table(
    ['KV places without a token', 'share', 'sequences that fit'],
    [
      [`pages of ${pageSize}, ${cell(running)} sequences of ${cell(tokensPerSequence)} tokens on average`, `${percent(waste)} (at most ${percent(wasteMax)})`, count(contiguous.pagedSequencesThatFit)],
      [`contiguous, ${contiguous.maxLength.tokens} tokens each (simulated)`, percent(contiguous.maxLength.waste), count(contiguous.maxLength.sequencesThatFit)],
      ['contiguous, each request as long as it will get (simulated)', percent(contiguous.ownLength.waste), '-'],
    ],
  )
}

function prefixTable({ requests, inputTokens, outputTokens, shared, on, off, ratio }) {
  const row = (name, { tokensPerSecond, ttftMs, hitRate }) => [name, cell(tokensPerSecond), cell(ttftMs.p50), percent(hitRate)]
  return [
    `${requests} requests of ${inputTokens} in (${100 * shared}% shared), ${outputTokens} out: ${times(ratio)}.`,
    '',
    table(['prefix cache', 'output tokens/s', 'first token, ms, P50', 'hits'], [row('on', on), row('off', off)]),
  ].join('\n')
}

function soakTable({ seconds, clients, ended, aborted, failed, tokensPerSecond, memory, left }) {
  const grown = (name) => (memory[name] === undefined ? '-' : `${memory[name].from} -> ${memory[name].to} (at most ${memory[name].max})`)
  return table(
    ['soak', ''],
    [
      ['time, clients', `${cell(seconds)} s, ${clients}`],
      ['requests ended / aborted / failed', `${ended} / ${aborted} / ${failed}`],
      ['output tokens/s', cell(tokensPerSecond)],
      ['resident memory of the process, MiB, early -> late', grown('rssMiB')],
      ['memory of the device, MiB, early -> late', grown('deviceMiB')],
      ['left: running, waiting, used pages', `${left.running}, ${left.waiting}, ${left.usedPages}`],
    ],
  )
}

/** All of a report, as Markdown under a heading. */
export function servingSections(report) {
  const { rows, limits } = report
  const ok = (name) => (rows[name] !== undefined && rows[name].error === undefined ? [rows[name]] : [])
  const section = (title, found, render) => (found.length === 0 ? [] : [`### ${title}`, '', render(found), ''])
  const measured = limits && `limits measured beside it: ${limits.readGBs} GB/s read, ${limits.matmulTFLOPs} TFLOP/s BF16`
  const machine = [report.device, measured, `Node ${report.node.slice(1)}`, date(report)]
  const { vllm } = report.peers ?? {}
  const failed = Object.entries(rows).filter(([, { error }]) => error !== undefined)
  return [
    `## ${report.title ?? report.name}`,
    '',
    `${machine.filter(Boolean).join('; ')}. Random weights, BF16, greedy, prefix cache off where nothing else is said, up to 256 sequences at once.`,
    '',
    ...(report.note === undefined ? [] : [report.note, '']),
    ...loadTable(report).flatMap((text) => [text, '']),
    ...(vllm === undefined ? [] : [`vLLM ran with ${Object.entries(vllm.settings ?? {}).map(([name, value]) => `${name} ${value}`).join(', ')}.`, '']),
    ...section('Random arrivals, lengths like ShareGPT conversations', ok('poisson'), ([poisson]) => poissonTable(poisson)),
    ...section('Steady decode', [...ok('decode-64'), ...ok('decode-256')], decodeTable),
    ...section('KV cache', ok('waste'), ([waste]) => wasteLines(waste)),
    ...section('Prefix cache', ok('prefix'), ([prefix]) => prefixTable(prefix)),
    ...section('Soak', ok('soak'), ([soak]) => soakTable(soak)),
    ...(failed.length === 0 ? [] : [`Rows that failed: ${failed.map(([name, { error }]) => `${name} (${error.split('\n')[0]})`).join('; ')}.`, '']),
  ]
}
