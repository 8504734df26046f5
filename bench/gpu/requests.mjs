/** The requests of each load, the same in every run and for every program that is measured: from seeds, written to files for the others. */

/** mulberry32: uniform in [0, 1). */
export function randomSource(seed) {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/**
 * Lengths like those of ShareGPT's conversations: log-normal, cut to [4, 1024]. Parameters are of the logarithm. Uncut means are 161 tokens in
 * and 338 out, as the PagedAttention paper gives for that set; the cut takes 7% and 5% off.
 */
export const CONVERSATIONS = { input: { mu: 4.361, sigma: 1.2 }, output: { mu: 5.503, sigma: 0.8 }, min: 4, max: 1024 }

/** Box-Muller. */
const normal = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())

function logNormal({ mu, sigma }, { min, max }, random) {
  return Math.min(max, Math.max(min, Math.round(Math.exp(mu + sigma * normal(random)))))
}

/** Random tokens and lengths within a model's vocabulary and context. */
export class RequestSource {
  #random

  /** @param vocab tokens from 5 up to this (or 30,000) are drawn @param scale multiplies all lengths, for small models */
  constructor(seed, { vocab = 30000, scale = 1 } = {}) {
    this.#random = randomSource(seed)
    this.vocab = Math.min(30000, vocab)
    this.scale = scale
  }

  between(from, to) {
    return from + Math.floor(this.#random() * (to - from))
  }

  tokens(length) {
    return Array.from({ length }, () => this.between(5, this.vocab))
  }

  #scaled(length) {
    return Math.max(1, Math.round(length * this.scale))
  }

  request(input, output) {
    return { tokens: this.tokens(this.#scaled(input)), output: this.#scaled(output) }
  }

  same(count, input, output) {
    return Array.from({ length: count }, () => this.request(input, output))
  }

  mixed(count) {
    return Array.from({ length: count }, () => this.request(this.between(16, 1024), this.between(16, 512)))
  }

  /** @param rate requests a second; without it all are there at once */
  conversations(count, rate) {
    let at = 0
    return Array.from({ length: count }, () => {
      const { input, output } = CONVERSATIONS
      const request = this.request(logNormal(input, CONVERSATIONS, this.#random), logNormal(output, CONVERSATIONS, this.#random))
      if (rate === undefined) return request
      at -= Math.log(1 - this.#random()) / rate
      return { ...request, at }
    })
  }

  /** Prompts of `input` tokens of which the first `shared` share are the same in all. */
  sharing(count, input, output, shared) {
    const prefix = this.tokens(Math.floor(this.#scaled(input) * shared))
    return Array.from({ length: count }, () => {
      const request = this.request(input, output)
      return { ...request, tokens: [...prefix, ...request.tokens.slice(prefix.length)] }
    })
  }
}

/** Loads in which all requests are there from the start, by row name; other programs read them from a file. */
export const FIXED_LOADS = {
  batch: { seed: 2, what: '256 requests of 128 in, 128 out', make: (source, count = 256) => source.same(count, 128, 128) },
  waves: { seed: 3, what: '1024 requests of 128 in, 128 out', make: (source, count = 1024) => source.same(count, 128, 128) },
  mixed: { seed: 4, what: '512 requests of 16-1023 in, 16-511 out', make: (source, count = 512) => source.mixed(count) },
  long: { seed: 5, what: '512 requests of 1000 in, 1000 out', make: (source, count = 512) => source.same(count, 1000, 1000) },
}

/** @param options `{ vocab, scale, count }` */
export const fixedLoad = (name, { count, ...options } = {}) => FIXED_LOADS[name].make(new RequestSource(FIXED_LOADS[name].seed, options), count)
