/** Requests for a server as a seed has them: when they arrive, how long they are, and what they say. */
import { InvalidArgumentError } from 'commander'
import { seededRandom } from '../llm'

type Random = () => number

/** Lengths in tokens. */
export type LengthDistribution =
  | { kind: 'uniform'; min: number; max: number }
  /** `median * exp(sigma * N(0, 1))`, cut to [min, max]. */
  | { kind: 'lognormal'; median: number; sigma: number; min: number; max: number }

/**
 * Lengths like those of ShareGPT's conversations as vLLM's benchmark takes them: 4 to 1024 tokens, in the mean about 215 for
 * prompts and 200 for outputs, most of them short and a few long.
 */
export const SHAREGPT: Readonly<Record<'input' | 'output', LengthDistribution>> = {
  input: { kind: 'lognormal', median: 110, sigma: 1.3, min: 4, max: 1024 },
  output: { kind: 'lognormal', median: 130, sigma: 1, min: 4, max: 1024 },
}

/** '128', '16-512', 'sharegpt', or 'lognormal:MEDIAN:SIGMA:MAX'. */
export function parseLengths(which: 'input' | 'output'): (text: string) => LengthDistribution {
  return (text) => {
    const value = text.trim()
    if (value === 'sharegpt') return SHAREGPT[which]
    const range = /^(\d+)(?:-(\d+))?$/.exec(value)
    if (range !== null) {
      const min = Number(range[1])
      const max = Number(range[2] ?? range[1])
      if (min >= 1 && max >= min && max <= 1e7) return { kind: 'uniform', min, max }
    }
    const log = /^lognormal:(\d+(?:\.\d+)?):(\d+(?:\.\d+)?):(\d+)$/.exec(value)
    if (log !== null) {
      const [median, sigma, max] = [Number(log[1]), Number(log[2]), Number(log[3])]
      if (median >= 1 && sigma <= 5 && max >= median && max <= 1e7) return { kind: 'lognormal', median, sigma, min: 1, max }
    }
    throw new InvalidArgumentError("expected a count such as 128, a range such as 16-512, 'sharegpt', or lognormal:MEDIAN:SIGMA:MAX.")
  }
}

/** The most tokens that a distribution gives. */
export const longest = (lengths: LengthDistribution): number => lengths.max

/** Standard normal, by Box and Muller. */
const normal = (random: Random): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())

export function drawLength(lengths: LengthDistribution, random: Random): number {
  if (lengths.kind === 'uniform') return lengths.min + Math.floor(random() * (lengths.max - lengths.min + 1))
  const drawn = Math.round(lengths.median * Math.exp(lengths.sigma * normal(random)))
  return Math.min(lengths.max, Math.max(lengths.min, drawn))
}

/** Gamma of shape k and scale 1: Marsaglia and Tsang, ACM TOMS 26 (2000), with their step for k < 1. */
function drawGamma(k: number, random: Random): number {
  if (k < 1) return drawGamma(k + 1, random) * (1 - random()) ** (1 / k)
  const d = k - 1 / 3
  const c = 1 / Math.sqrt(9 * d)
  for (;;) {
    const x = normal(random)
    const v = (1 + c * x) ** 3
    if (v > 0 && Math.log(1 - random()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v
  }
}

/**
 * How arrivals follow each other at a mean rate: evenly, or in intervals of a gamma distribution, whose shape 1 is a Poisson
 * process; smaller shapes come in bursts.
 */
export type Arrivals = { kind: 'constant' } | { kind: 'gamma'; shape: number }

export const POISSON: Arrivals = { kind: 'gamma', shape: 1 }

/** Seconds from one arrival to the next. */
export function drawInterval(arrivals: Arrivals, rate: number, random: Random): number {
  if (arrivals.kind === 'constant') return 1 / rate
  const { shape } = arrivals
  return (shape === 1 ? -Math.log(1 - random()) : drawGamma(shape, random) / shape) / rate
}

export interface ServePlanOptions {
  seed: number
  /** Number of the load: its prompts have the lengths of the others and another content, so that no cache has them. Default 0. */
  load?: number | undefined
  input: LengthDistribution
  output: LengthDistribution
  /** Share of each prompt that all have in common, 0 to 1. */
  sharedPrefix: number
  /** Ids that prompts are made of, inclusive. */
  tokenIds: { min: number; max: number }
  /** Requests a second; undefined: they arrive as others end. */
  rate?: number | undefined
  arrivals: Arrivals
}

export interface PlannedServeRequest {
  /** Seconds after the start; 0 without a rate. */
  arrival: number
  promptTokens: number[]
  outputTokens: number
}

/**
 * The requests in the order of their arrival, without end. The lengths of request i depend on the seed and i alone, its content
 * on the load, too, and arrivals on the seed and the rate: all loads of a row ask for the same work.
 */
export function* planServeLoad(options: ServePlanOptions): Generator<PlannedServeRequest, never> {
  const { tokenIds, input, sharedPrefix, rate } = options
  const clock = seededRandom(options.seed)
  const token = (random: Random): number => tokenIds.min + Math.floor(random() * (tokenIds.max - tokenIds.min + 1))
  const contentSeed = options.seed + Math.imul((options.load ?? 0) + 1, 0x5bd1e995)
  const prefixRandom = seededRandom(contentSeed)
  const prefix = Array.from({ length: Math.floor(longest(input) * sharedPrefix) }, () => token(prefixRandom))
  for (let i = 0, arrival = 0; ; i++) {
    if (rate !== undefined) arrival += drawInterval(options.arrivals, rate, clock)
    const lengths = seededRandom(options.seed + Math.imul(i + 1, 0x9e3779b1))
    const length = drawLength(input, lengths)
    const outputTokens = drawLength(options.output, lengths)
    const random = seededRandom(contentSeed + Math.imul(i + 1, 0x9e3779b1))
    const promptTokens = prefix.slice(0, Math.floor(length * sharedPrefix))
    while (promptTokens.length < length) promptTokens.push(token(random))
    yield { arrival, promptTokens, outputTokens }
  }
}

/** Common short words, most of which are one token in most vocabularies. */
const WORDS = (
  'the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what all were we ' +
  'when your can said there use an each which she do how their if will up other about out many then them these so some her would make ' +
  'like him into time has look two more write go see number no way could people my than first water been call who oil its now find'
).split(' ')

/** A text of about as many tokens, for endpoints that take no token ids. */
export function wordsOf(tokens: readonly number[]): string {
  return tokens.map((token) => WORDS[token % WORDS.length]).join(' ')
}
