/**
 * Drives an LLM with a reproducible load and measures what its users would see. Arrivals, lengths and tokens depend on the
 * seed alone, so two configurations can be given the same requests.
 */
import { TensorRTError } from '../errors'
import { type LLM, type Quantiles, quantiles, seededRandom } from '../llm'
import { drawInterval, POISSON } from './bench_serve_plan'

export { type Quantiles, quantiles, seededRandom }

export interface LoadOptions {
  /** Requests in all. */
  requests: number
  /** Requests in flight at most. Ignored when `rate` is set. */
  concurrency: number
  /** Requests a second, Poisson arrivals (open loop). */
  rate?: number
  /** Tokens, inclusive range, uniform. */
  inputTokens: { min: number; max: number }
  outputTokens: { min: number; max: number }
  /** Share of each prompt that all requests have in common, 0 ... 1. */
  sharedPrefix: number
  seed: number
  signal?: AbortSignal
  onProgress?: (done: number, outputTokens: number) => void
}

export interface LoadReport {
  requests: number
  failed: number
  /** Failures by their code. */
  errors: Record<string, number>
  seconds: number
  promptTokens: number
  outputTokens: number
  cachedTokens: number
  outputTokensPerSecond: number
  totalTokensPerSecond: number
  requestsPerSecond: number
  /** From the call of generate() to the first chunk. */
  ttftMs: Quantiles
  /** Between chunks of one request, divided by the tokens of the later chunk. */
  interTokenMs: Quantiles
  /** From the call of generate() to the result. */
  latencyMs: Quantiles
  /** Used share of the KV pool's pages, and of the token places in used pages, sampled 20 times a second. */
  kvPagesUsed: Quantiles
  kvUtilisation: Quantiles
}

export interface PlannedRequest {
  /** Seconds after the start; 0 without a rate. */
  arrival: number
  tokens: number[]
  outputTokens: number
}

export function planLoad(options: LoadOptions, vocabSize: number, reservedTokens: ReadonlySet<number>): PlannedRequest[] {
  const random = seededRandom(options.seed)
  const pick = ({ min, max }: { min: number; max: number }): number => min + Math.floor(random() * (max - min + 1))
  const token = (): number => {
    for (;;) {
      const id = Math.floor(random() * vocabSize)
      if (!reservedTokens.has(id)) return id
    }
  }
  const prefix = Array.from({ length: Math.floor(options.inputTokens.max * options.sharedPrefix) }, token)
  let arrival = 0
  return Array.from({ length: options.requests }, () => {
    if (options.rate !== undefined) arrival += drawInterval(POISSON, options.rate, random)
    const length = pick(options.inputTokens)
    const shared = prefix.slice(0, Math.floor(length * options.sharedPrefix))
    const tokens = [...shared, ...Array.from({ length: length - shared.length }, token)]
    return { arrival, tokens, outputTokens: pick(options.outputTokens) }
  })
}

export async function runLoad(llm: LLM, options: LoadOptions): Promise<LoadReport> {
  const plan = planLoad(options, llm.info.vocabSize, new Set(llm.info.specialTokenIds))
  const ttft: number[] = []
  const interToken: number[] = []
  const latency: number[] = []
  const pagesUsed: number[] = []
  const utilisation: number[] = []
  let done = 0
  const errors: Record<string, number> = {}
  let failed = 0
  let promptTokens = 0
  let cachedTokens = 0
  let outputTokens = 0

  const one = async (request: PlannedRequest): Promise<void> => {
    const started = performance.now()
    let last = 0
    try {
      const generation = llm.generate({
        tokens: request.tokens,
        maxTokens: request.outputTokens,
        temperature: 0,
        ignoreEos: true,
        ...(options.signal === undefined ? {} : { signal: options.signal }),
      })
      for await (const chunk of generation) {
        if (chunk.tokens.length === 0) continue
        const now = performance.now()
        if (last === 0) ttft.push(now - started)
        else interToken.push((now - last) / chunk.tokens.length)
        last = now
        outputTokens += chunk.tokens.length
        options.onProgress?.(done, outputTokens)
      }
      const { usage } = await generation.result()
      promptTokens += usage.promptTokens
      cachedTokens += usage.cachedTokens
      latency.push(performance.now() - started)
    } catch (error) {
      if (options.signal?.aborted === true) throw error
      failed++
      const code = error instanceof TensorRTError ? error.code : 'ERR_INTERNAL'
      errors[code] = (errors[code] ?? 0) + 1
    }
    done++
    options.onProgress?.(done, outputTokens)
  }

  const sampler = setInterval(() => {
    const { kv } = llm.stats()
    pagesUsed.push(kv.usedPages / kv.totalPages)
    if (kv.usedPages > 0) utilisation.push(kv.utilisation)
  }, 50)
  const started = performance.now()
  try {
    if (options.rate === undefined) {
      let next = 0
      const worker = async (): Promise<void> => {
        for (let request = plan[next++]; request !== undefined; request = plan[next++]) await one(request)
      }
      await Promise.all(Array.from({ length: Math.min(options.concurrency, plan.length) }, worker))
    } else {
      const pending: Promise<void>[] = []
      for (const request of plan) {
        const wait = request.arrival * 1000 - (performance.now() - started)
        if (wait > 1) await new Promise((resolve) => setTimeout(resolve, wait))
        options.signal?.throwIfAborted()
        pending.push(one(request))
      }
      await Promise.all(pending)
    }
  } finally {
    clearInterval(sampler)
  }
  const seconds = (performance.now() - started) / 1000
  return {
    requests: options.requests,
    failed,
    errors,
    seconds,
    promptTokens,
    outputTokens,
    cachedTokens,
    outputTokensPerSecond: outputTokens / seconds,
    totalTokensPerSecond: (outputTokens + promptTokens) / seconds,
    requestsPerSecond: (options.requests - failed) / seconds,
    ttftMs: quantiles(ttft),
    interTokenMs: quantiles(interToken),
    latencyMs: quantiles(latency),
    kvPagesUsed: quantiles(pagesUsed),
    kvUtilisation: quantiles(utilisation),
  }
}
