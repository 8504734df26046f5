/** Distributions, and how far apart they are. */

/** mulberry32: small, seedable, uniform in [0, 1). */
export function seededRandom(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/** Natural logs of softmax(logits), in double precision. */
export function logSoftmax(logits) {
  const max = logits.reduce((best, value) => Math.max(best, value), -Infinity)
  const logSum = Math.log(logits.reduce((sum, value) => sum + Math.exp(value - max), 0))
  return Float64Array.from(logits, (value) => value - max - logSum)
}

/**
 * Logits after mask, bias, penalties and bans, in the order of lib/scheduler/executor.ts; `output` are the tokens generated so far,
 * `allowed` those that a mask leaves, undefined = all.
 */
export function penalised(logits, sampling, prompt, output, allowed) {
  const x = Float64Array.from(logits)
  if (allowed !== undefined) {
    const kept = new Set(allowed)
    for (const token of x.keys()) if (!kept.has(token)) x[token] = -Infinity
  }
  sampling.logitBias?.ids.forEach((id, i) => (x[id] += sampling.logitBias.values[i]))
  const counts = new Map(prompt.map((token) => [token, 0]))
  for (const token of output) counts.set(token, (counts.get(token) ?? 0) + 1)
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0, minTokens = 0, bannedTokens = [] } = sampling
  for (const [token, count] of counts) {
    x[token] = x[token] > 0 ? x[token] / repetitionPenalty : x[token] * repetitionPenalty
    if (count > 0) x[token] -= presencePenalty + frequencyPenalty * count
  }
  if (output.length < minTokens) for (const token of bannedTokens) x[token] = -Infinity
  return x
}

/**
 * Probabilities that a token is drawn with: penalties, temperature, min-p, then top-k, then top-p over what is left.
 * `boundary` holds the tokens next to a cut, where rounding may decide either way.
 */
export function samplingDistribution(logits, sampling, prompt = [], output = [], allowed = undefined) {
  const { temperature, topK = 0, topP = 1, minP = 0 } = sampling
  const x = penalised(logits, sampling, prompt, output, allowed).map((value) => value / temperature)
  const max = x.reduce((best, value) => Math.max(best, value), -Infinity)
  let order = Array.from(x.keys()).filter((token) => x[token] > -Infinity && x[token] >= max + Math.log(minP))
  order.sort((a, b) => x[b] - x[a] || a - b)
  if (topK > 0) order = order.slice(0, topK)
  const weights = order.map((token) => Math.exp(x[token] - max))
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  let kept = order.length
  if (topP < 1) {
    let mass = 0
    kept = 0
    while (kept < order.length && (kept === 0 || mass < topP * total)) mass += weights[kept++]
  }
  const mass = weights.slice(0, kept).reduce((sum, weight) => sum + weight, 0)
  const probabilities = new Float64Array(x.length)
  for (let i = 0; i < kept; i++) probabilities[order[i]] = weights[i] / mass
  const boundary = kept < order.length || minP > 0 ? [order[kept - 1], order[kept]] : []
  return { probabilities, support: kept, boundary }
}

/** Upper tail of the gamma distribution, Q(a, x): a series below a + 1, Lentz's continued fraction above (DLMF 8.11.4, 8.9.2). */
function upperGamma(a, x) {
  if (x <= 0) return 1
  const scale = Math.exp(a * Math.log(x) - x - logGamma(a))
  if (x < a + 1) {
    let term = 1 / a
    let sum = term
    for (let n = 1; Math.abs(term) > 1e-15 * Math.abs(sum); n++) sum += term *= x / (a + n)
    return 1 - sum * scale
  }
  let b = x + 1 - a
  let c = 1e300
  let d = 1 / b
  let fraction = d
  for (let n = 1; n < 10_000; n++) {
    const an = -n * (n - a)
    b += 2
    d = 1 / (an * d + b)
    c = b + an / c
    fraction *= d * c
    if (Math.abs(d * c - 1) < 1e-14) break
  }
  return fraction * scale
}

/** ln of the gamma function for a > 0: Stirling's series (DLMF 5.11.1) after shifting up. */
function logGamma(a) {
  let shift = 0
  for (; a < 12; a++) shift -= Math.log(a)
  const series = 1 / (12 * a) - 1 / (360 * a ** 3) + 1 / (1260 * a ** 5) - 1 / (1680 * a ** 7)
  return shift + (a - 0.5) * Math.log(a) - a + 0.5 * Math.log(2 * Math.PI) + series
}

/**
 * Pearson's test of draws against probabilities. Outcomes that are expected fewer than 10 times share a bin.
 *
 * @param counts of each outcome
 * @returns statistic, degrees of freedom, and the probability of one at least as large
 */
export function chiSquare(counts, probabilities) {
  const draws = counts.reduce((sum, count) => sum + count, 0)
  let statistic = 0
  let bins = 0
  const rest = { observed: 0, expected: 0 }
  const add = (observed, expected) => {
    statistic += (observed - expected) ** 2 / expected
    bins++
  }
  probabilities.forEach((probability, outcome) => {
    const expected = probability * draws
    if (expected >= 10) return add(counts[outcome], expected)
    rest.observed += counts[outcome]
    rest.expected += expected
  })
  if (rest.expected >= 10) add(rest.observed, rest.expected)
  const degrees = Math.max(bins - 1, 1)
  return { statistic, degrees, p: upperGamma(degrees / 2, statistic / 2), draws }
}

/** Mean and largest of a list of non-negative numbers; fails on NaN. */
export function meanAndMax(values) {
  if (values.length === 0 || values.some((value) => !(value >= 0))) throw new Error('a difference is missing, or not a number')
  return { mean: values.reduce((sum, value) => sum + value, 0) / values.length, max: Math.max(...values), count: values.length }
}

export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]
}
