/** Loads the model that `serve` serves, as its configuration says, and warms it up. */
import { LLM, type LLMOptions } from '../llm'
import { bundledModel, resolveModel } from './options'
import { printWarning, say } from './output'
import type { ServeConfig } from './serve_config'

/** Lines that say that loading goes on. */
const LOADING_EVERY_MS = 5000
/** Forecasts of the time to first token know nothing of batch work that has become urgent: with bounds that takes its time. */
const AGING_MS_WITH_SLA = 600_000

/** Of all options but these, operators have a say. Memory says how many pages there are, and `simd` is for tests. */
type OperatorOptions = Omit<Required<LLMOptions>, 'signal' | 'onWarning' | 'numPages' | 'simd'>

/** What the model is loaded with: what admission promises, the scheduler keeps. */
export function llmOptions(config: ServeConfig): { [name in keyof OperatorOptions]: LLMOptions[name] } {
  const { sla, failover } = config
  const { enabled: restarts, ...restart } = config.restart
  return {
    backend: config.backend,
    threads: config.threads,
    device: config.device,
    libraryPath: config.libraryPath,
    weights: config.weights,
    verifyWeights: config.verifyWeights,
    allowUnfit: config.allowUnfit,
    cudaGraphs: config.cudaGraphs,
    kvCacheMemory: config.kvCacheMemory,
    kvCacheFraction: config.kvCacheFraction,
    pageSize: config.pageSize,
    maxSequences: config.maxSequences,
    maxStepTokens: config.maxStepTokens,
    maxStepMs: config.maxStepMs ?? sla?.itlMs,
    maxQueue: config.maxQueue,
    agingMs: config.agingMs ?? (sla === undefined ? undefined : AGING_MS_WITH_SLA),
    preemptForPriority: config.preemptForPriority ?? sla !== undefined,
    prefixCache: config.prefixCache,
    retries: config.retries,
    grammarTimeoutMs: config.grammarTimeoutMs,
    failover: failover === undefined || failover === 'standby' ? failover : failover === 'on',
    restart: restarts ? restart : false,
    stepTimeoutMs: config.stepTimeoutMs,
    stuckAfterMs: config.stuckAfterMs,
    embedding: config.embedding,
  }
}

/** @throws what keeps the model from being loaded; AbortError */
export async function loadServed(config: ServeConfig, signal: AbortSignal): Promise<LLM> {
  const folder = resolveModel(config.model ?? bundledModel)
  say(`loading ${folder}`)
  const startedAt = performance.now()
  const seconds = (): string => ((performance.now() - startedAt) / 1000).toFixed(1)
  const timer = setInterval(() => say(`still loading, after ${seconds()} s`), LOADING_EVERY_MS)
  try {
    const llm = await LLM.load(folder, { ...llmOptions(config), signal, onWarning: printWarning })
    const { device, maxPositions, numPages, pageSize, maxSlots } = llm.info
    say(`loaded in ${seconds()} s on ${llm.backend}: ${device}; context ${maxPositions}, KV cache of ${numPages * pageSize} tokens, ${maxSlots} sequences`)
    return llm
  } finally {
    clearInterval(timer)
  }
}

/** The first request of each kind costs more than the rest: threads start, memory is touched, code is compiled. */
export async function warmUp(llm: LLM, signal: AbortSignal): Promise<void> {
  const startedAt = performance.now()
  const { hasChatTemplate, hasTokenizer, maxPositions } = llm.info
  const text = 'The quick brown fox jumps over the lazy dog. '
  const once = (options: Parameters<LLM['generate']>[0]): Promise<unknown> =>
    llm.generate({ ...options, maxTokens: 8, ignoreEos: true, temperature: 1, signal }).result()
  await Promise.all([
    once({ tokens: [0] }),
    ...(hasTokenizer ? [once({ prompt: text })] : []),
    ...(hasChatTemplate ? [once({ messages: [{ role: 'user', content: text }] })] : []),
    // Long enough for the thread that encodes long prompts, which starts with the first one; a small context refuses it then.
    ...(hasTokenizer ? [llm.encodePrompt({ prompt: text.repeat(Math.max(60, Math.floor(maxPositions / 20))), signal }).catch(() => {})] : []),
  ])
  say(`warmed up in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`)
}
