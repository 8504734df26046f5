/** The loads of http.mjs. Lengths, contents and arrivals come of seeds: each program that is measured gets the same requests. */

const between = (min, max) => ({ kind: 'uniform', min, max })
const exactly = (length) => between(length, length)

/**
 * `streams` of a closed loop, or `open` at rates. Of exact lengths all streams run in step: their requests end together, and the next ones come as one
 * burst of prompts. Of mixed lengths prompts come one by one while the others decode. @see bench_serve_plan in lib/cli for ShareGPT's lengths
 */
const LOADS = {
  '64x128-128': { streams: 64, input: exactly(128), output: exactly(128) },
  '64x512-256': { streams: 64, input: exactly(512), output: exactly(256) },
  '256x128-128': { streams: 256, input: exactly(128), output: exactly(128) },
  sharegpt: { open: true },
  '64xmixed': { streams: 64, input: between(64, 192), output: between(64, 192) },
}
export const LOAD_NAMES = Object.keys(LOADS)

/** Seconds in which a load may end after the last request was sent; what has not ended then is broken off. The longest outputs have 1024 tokens. */
const CLOSED_TAIL = 5
const OPEN_TAIL = 12

/** Multiplies lengths, for small models. */
function scaled(lengths, scale) {
  const of = (length) => Math.max(1, Math.round(length * scale))
  const cut = { ...lengths, min: of(lengths.min), max: of(lengths.max) }
  return lengths.median === undefined ? cut : { ...cut, median: Math.max(cut.min, lengths.median * scale) }
}

const words = ({ min, max }) => (min === max ? `${min}` : `${min} to ${max}`)

/**
 * What runServeLoad of lib/cli takes, by name; the rest of it is the target's.
 * @param sharegpt lengths `{ input, output }`
 * @param options `{ names, rates, seconds, scale, tokenIds }`
 */
export function planLoads(sharegpt, { names, rates, seconds, scale, tokenIds }) {
  const common = { seed: 1, sharedPrefix: 0, tokenIds, arrivals: { kind: 'gamma', shape: 1 }, requests: undefined, durationSeconds: seconds, goodput: {} }
  const planned = names.flatMap((name) => {
    const load = LOADS[name]
    if (load === undefined) throw new Error(`there is no load ${name}; there are ${LOAD_NAMES.join(', ')}`)
    if (!load.open) {
      const { streams } = load
      const lengths = { input: scaled(load.input, scale), output: scaled(load.output, scale) }
      const what = `${streams} streams, ${words(lengths.input)} in, ${words(lengths.output)} out`
      return [{ name, what, limitSeconds: seconds + CLOSED_TAIL, ...common, concurrency: streams, ...lengths }]
    }
    return rates.map((rate) => ({
      name: `sharegpt-${rate}`,
      what: `${rate} requests/s, ShareGPT lengths`,
      limitSeconds: seconds + OPEN_TAIL,
      ...common,
      rate,
      concurrency: 0,
      input: scaled(sharegpt.input, scale),
      output: scaled(sharegpt.output, scale),
    }))
  })
  // A content of its own for each, that no cache has seen.
  return planned.map((load, index) => ({ ...load, load: index }))
}

/** Sequences of many lengths, whose number falls from the most to none: what is compiled, captured and cached at first use is there afterwards. */
export function warmUpLoad({ requests, scale, tokenIds }) {
  return {
    name: 'warm-up',
    limitSeconds: 120,
    seed: 2,
    load: 1000,
    sharedPrefix: 0,
    tokenIds,
    arrivals: { kind: 'gamma', shape: 1 },
    requests,
    durationSeconds: undefined,
    goodput: {},
    concurrency: 256,
    input: scaled({ kind: 'uniform', min: 16, max: 512 }, scale),
    output: scaled({ kind: 'uniform', min: 4, max: 64 }, scale),
  }
}
