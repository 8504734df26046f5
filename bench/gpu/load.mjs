/** Runs requests through an LLM and measures what its users see, and what memory it takes meanwhile. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const execute = promisify(execFile)
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
export const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length

/** Nearest rank. */
export function quantiles(values) {
  const sorted = Float64Array.from(values).sort()
  const at = (share) => Number(sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]?.toFixed(3))
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) }
}

/**
 * One greedy request to its end; `request` is `{ tokens, output, priority?, signal? }`.
 * @returns milliseconds to the first token and of the whole, and between tokens: tokens that come together share the gap before them
 */
export async function runRequest(llm, { tokens, output, priority, signal }) {
  const generation = llm.generate({ tokens, maxTokens: output, temperature: 0, ignoreEos: true, priority, signal })
  const started = performance.now()
  const gaps = []
  let first = 0
  let last = started
  let count = 0
  for await (const chunk of generation) {
    if (chunk.tokens.length === 0) continue
    const now = performance.now()
    if (first === 0) first = now - started
    else for (let i = 0; i < chunk.tokens.length; i++) gaps.push((now - last) / chunk.tokens.length)
    last = now
    count += chunk.tokens.length
  }
  if (count !== output) throw new Error(`${count} tokens instead of ${output}`)
  return { first, gaps, total: last - started }
}

/**
 * Requests at their times (`at`, seconds; all at once without). Output tokens a second over the whole load, and what the engine did meanwhile.
 */
export async function runLoad(llm, requests) {
  const before = llm.stats()
  const started = performance.now()
  const results = await Promise.all(
    requests.map(async (request) => {
      if (request.at !== undefined) await sleep(Math.max(0, request.at * 1000 - (performance.now() - started)))
      return runRequest(llm, request)
    }),
  )
  const seconds = (performance.now() - started) / 1000
  const after = llm.stats()
  const steps = after.steps.completed - before.steps.completed
  const tokens = requests.reduce((sum, { output }) => sum + output, 0)
  return {
    tokensPerSecond: tokens / seconds,
    seconds,
    requests: requests.length,
    requestsPerSecond: requests.length / seconds,
    ttftMs: quantiles(results.map(({ first }) => first)),
    interTokenMs: quantiles(results.flatMap(({ gaps }) => gaps)),
    steps,
    /** The executor's own account of its steps, of the load's time. */
    busy: after.steps.runMs === undefined ? undefined : (after.steps.runMs - before.steps.runMs) / 1000 / seconds,
    preemptions: after.preemptions - before.preemptions,
  }
}

/** MiB that are taken, by all programs, of the memory of the first GPU that this process may use; undefined where there is no GPU. */
async function deviceMiB() {
  const visible = process.env.CUDA_VISIBLE_DEVICES
  try {
    const { stdout } = await execute('nvidia-smi', [...(visible ? ['-i', visible.split(',')[0]] : []), '--query-gpu=memory.used', '--format=csv,noheader,nounits'])
    return Number(stdout.split('\n')[0])
  } catch {
    return undefined
  }
}

/** Calls `sample` each `ms` until `work` settles. */
export async function whileSampling(ms, sample, work) {
  const ended = new AbortController()
  const sampling = (async () => {
    while (!ended.signal.aborted) {
      await sample()
      await sleep(ms)
    }
  })()
  try {
    return await work
  } finally {
    ended.abort()
    await sampling
  }
}

export async function memoryNow() {
  const { rss, heapUsed } = process.memoryUsage()
  return { rssMiB: rss / 2 ** 20, heapMiB: heapUsed / 2 ** 20, deviceMiB: await deviceMiB() }
}

/**
 * Growth between the second and the last fifth of the samples, by their medians: the first fifth is warm-up.
 * @param samples `[{ rssMiB, deviceMiB }]`, evenly spaced
 */
export function growth(samples) {
  const fifth = Math.max(1, Math.floor(samples.length / 5))
  const of = (name) => {
    const values = samples.map((sample) => sample[name])
    if (values.some((value) => value === undefined)) return undefined
    const early = median(values.slice(fifth, 2 * fifth).length > 0 ? values.slice(fifth, 2 * fifth) : values)
    return { from: Math.round(early), to: Math.round(median(values.slice(-fifth))), max: Math.round(Math.max(...values)) }
  }
  return { rssMiB: of('rssMiB'), heapMiB: of('heapMiB'), deviceMiB: of('deviceMiB') }
}
