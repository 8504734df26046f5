/** A "language model": logits are a hash of all tokens so far. */
import { type LogprobRow, maskAllows, NOTHING_ALLOWED, type SlotSampling } from '../../lib/scheduler'

/** `[vocabSize]`, each in [0, 8). */
export function logitsAfter(tokens: Int32Array, vocabSize: number): Float32Array<ArrayBuffer> {
  const state = tokens.reduce((hash, token) => mix(hash ^ token), 0)
  return Float32Array.from({ length: vocabSize }, (_, token) => (mix(state + token) >>> 8) / 2 ** 21)
}

function mix(value: number): number {
  let h = Math.imul(value + 0x3c6ef372, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 15), 0xc2b2ae35)
  return h ^ (h >>> 13)
}

/** Output token number `index`: greedy, or by temperature with Gumbel noise keyed by (seed, index, token). */
export function sample(
  logits: Float32Array,
  sampling: SlotSampling,
  index: number,
  mask: Int32Array | null = null,
): number {
  const { temperature, seed, minTokens, bannedTokens, logitBias } = sampling
  const biased = logits.slice()
  logitBias?.ids.forEach((id, i) => (biased[id]! += logitBias.values[i]!))
  let best = NOTHING_ALLOWED
  let bestScore = -Infinity
  biased.forEach((logit, token) => {
    if (!maskAllows(mask, token) || (index < minTokens && bannedTokens.includes(token))) return
    const uniform = ((mix(mix(mix(seed) ^ index) + token) >>> 8) + 0.5) / 2 ** 24
    const score = temperature === 0 ? logit : logit / temperature - Math.log(-Math.log(uniform))
    if (score > bestScore) [best, bestScore] = [token, score]
  })
  // The mask wins over the ban.
  if (best === NOTHING_ALLOWED && index < minTokens) return sample(logits, { ...sampling, minTokens: 0 }, index, mask)
  return best
}

export function logprobRow(
  sequence: number,
  position: number,
  token: number,
  logits: Float32Array,
  top: number,
): LogprobRow {
  const logSum = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0))
  const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b)
  const topIds = Int32Array.from(order.slice(0, top))
  const topLogprobs = Float32Array.from(topIds, (id) => logits[id]! - logSum)
  return {
    sequence,
    position,
    token,
    logprob: logits[token]! - logSum,
    rank: order.indexOf(token) + 1,
    topIds,
    topLogprobs,
  }
}
