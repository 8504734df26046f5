import type { SchedulerLoad } from '../scheduler'
import type { EngineLoop } from './engine_loop'

/** Queue and KV cache as they are now; everything else counts since the model was loaded. */
export interface LLMStats {
  /** Sequences with a slot, and waiting ones. A sequence is one choice of a request. */
  running: number
  waiting: number
  /** How often a sequence gave up its pages to others, and how often one was run again after a failed step. */
  preemptions: number
  retries: number
  /** How often another backend took over from one that died. Counters go on across it. */
  failovers: number
  /** How often the model's own backend came back after that. */
  restarts: number
  kv: {
    pageSize: number
    /**
     * `free + cached + used = total`. Cached pages hold prefixes that nobody uses now; they are given away when free
     * ones run out.
     */
    totalPages: number
    freePages: number
    cachedPages: number
    usedPages: number
    /** Token places filled, of those in used pages; 0 to 1. */
    utilisation: number
  }
  prefixCache: {
    /** Tokens of prompts that could have come from the cache, and that did. */
    queriedTokens: number
    hitTokens: number
    /** The share of them; 0 while nothing was asked for. */
    hitRate: number
  }
  requests: {
    added: number
  }
  sequences: {
    finished: number
    failed: number
    aborted: number
  }
  tokens: {
    /** Rows computed of prompts (again after a preemption), and of generated tokens. */
    prefill: number
    decode: number
    /** Tokens handed out. */
    generated: number
    /** Rows whose result was not needed, as their sequence had ended. */
    wasted: number
    /** Tokens of prompts that came from the prefix cache, of requests that have ended. */
    cachedPrompt: number
  }
  steps: {
    submitted: number
    completed: number
    failed: number
    inFlight: number
    /** Means over the completed steps: waiting at the executor for the step before, and running. */
    meanQueueMs: number
    meanRunMs: number
    /** The sums behind them, in milliseconds: of two readings they give the mean between. */
    queueMs: number
    runMs: number
  }
}

/** What a forecast of waiting times is made from. */
export interface LLMLoad extends SchedulerLoad {
  /** How long the oldest step in flight has been running, in ms. */
  oldestStepMs: number
}

export function collectStats(loop: EngineLoop): LLMStats {
  const { counters, limits } = loop
  const stats = loop.stats()
  const steps = Math.max(counters.stepsCompleted, 1)
  return {
    running: stats.running,
    waiting: stats.waiting,
    preemptions: stats.preemptions,
    retries: stats.retries,
    failovers: counters.failovers,
    restarts: counters.restarts,
    kv: {
      pageSize: limits.pageSize,
      totalPages: stats.pagesTotal,
      freePages: stats.pagesFree,
      cachedPages: stats.pagesCached,
      usedPages: stats.pagesUsed,
      utilisation: stats.kvUtilization,
    },
    prefixCache: {
      queriedTokens: stats.prefixQueryTokens,
      hitTokens: stats.prefixHitTokens,
      hitRate: stats.prefixQueryTokens === 0 ? 0 : stats.prefixHitTokens / stats.prefixQueryTokens,
    },
    requests: { added: stats.requestsAdded },
    sequences: {
      finished: stats.sequencesFinished,
      failed: stats.sequencesFailed,
      aborted: stats.sequencesAborted,
    },
    tokens: {
      prefill: stats.prefillTokens,
      decode: stats.decodeTokens,
      generated: counters.generatedTokens,
      wasted: stats.wastedRows,
      cachedPrompt: counters.cachedPromptTokens,
    },
    steps: {
      submitted: stats.steps,
      completed: counters.stepsCompleted,
      failed: stats.stepFailures,
      inFlight: stats.stepsInFlight,
      meanQueueMs: counters.stepQueueUs / steps / 1000,
      meanRunMs: counters.stepRunUs / steps / 1000,
      queueMs: counters.stepQueueUs / 1000,
      runMs: counters.stepRunUs / 1000,
    },
  }
}
