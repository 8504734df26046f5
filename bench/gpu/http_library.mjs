/**
 * The library in a process of its own, for http.mjs, which sends loads over the channel and gets reports: what the load generator of `bench serve`
 * measures with `generate()` in the place of HTTP. Argument: `{ folder, options }` of LLM.load as JSON.
 */
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..', '..')
const require = createRequire(join(root, 'package.json'))
const { LLM, version } = require(join(root, 'dist', 'index.js'))
const { runServeLoad } = require(join(root, 'dist', 'cli', 'bench_serve_load.js'))

/** Stands where ServeClient of lib/cli stands for servers. */
class LibraryClient {
  #llm
  #ended = new AbortController()
  active = 0

  constructor(llm) {
    this.#llm = llm
  }

  async send({ promptTokens, outputTokens }) {
    const startedAt = performance.now()
    const served = { aborted: false, startedAt, ttftMs: NaN, gapsMs: [], promptTokens: 0, outputTokens: 0, cachedTokens: 0, counted: 'usage' }
    let last = startedAt
    this.active++
    try {
      const generation = this.#llm.generate({ tokens: promptTokens, maxTokens: outputTokens, temperature: 0, ignoreEos: true, signal: this.#ended.signal })
      for await (const { text } of generation) {
        // Over HTTP, a token that is part of a character has no event either.
        if (text === '') continue
        const now = performance.now()
        if (last === startedAt) served.ttftMs = now - startedAt
        else served.gapsMs.push(now - last)
        last = now
      }
      const { usage } = await generation.result()
      Object.assign(served, { promptTokens: usage.promptTokens, outputTokens: usage.completionTokens, cachedTokens: usage.cachedTokens })
    } catch (error) {
      served.aborted = this.#ended.signal.aborted
      served.error = error.code ?? 'error'
      served.detail = String(error.message ?? error)
    } finally {
      this.active--
    }
    served.endedAt = performance.now()
    return served
  }

  close() {
    this.#ended.abort()
  }
}

const { folder, options } = JSON.parse(process.argv[2])
let llm
/** Of the load that runs. */
let stop
let ending

/** Whoever started this process asks for it by a signal, or is gone. */
async function end() {
  stop?.abort()
  await llm?.close()
  process.exit()
}
for (const event of ['SIGTERM', 'SIGINT', 'disconnect']) process.on(event, () => (ending ??= end()))

process.on('message', async ({ limitSeconds, ...load }) => {
  stop = new AbortController()
  try {
    const signal = AbortSignal.any([stop.signal, AbortSignal.timeout(limitSeconds * 1000)])
    const { samples: _, ...report } = await runServeLoad({ ...load, target: new LibraryClient(llm), signal })
    process.send({ report })
  } catch (error) {
    process.send({ error: String(error.stack ?? error) })
  }
})
llm = await LLM.load(folder, options)
process.send({ ready: { version, device: llm.info.device, vocabSize: llm.info.vocabSize, kvTokens: llm.info.numPages * llm.info.pageSize } })
