/** Load on a session: one request after the other, many in flight, and Poisson arrivals. */
import { lib, quantile, round, summary } from './target.mjs'

/** Numbers from 0 to 1 that are the same in every run. */
export function random(seed) {
  let state = seed >>> 0 || 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state / 2 ** 32
  }
}

/** Different texts of 128 tokens, one row each, with the inputs that `engine` has. */
export function texts(engine, count, length = 128, seed = 5) {
  const next = random(seed)
  const mask = lib.Tensor.int64(new BigInt64Array(length).fill(1n), [1, length])
  const masked = engine.inputs.some(({ name }) => name === 'attention_mask') ? { attention_mask: mask } : {}
  return Array.from({ length: count }, () => ({
    input_ids: lib.Tensor.int64(BigInt64Array.from({ length }, () => BigInt(Math.floor(next() * 30522))), [1, length]),
    ...masked,
  }))
}

/** Milliseconds of each of `runs` requests, one after the other. */
export async function oneByOne(session, requests, runs, warmUp = 100) {
  const times = []
  for (let i = 0; i < warmUp + runs; i++) {
    const started = performance.now()
    await session.run(requests[i % requests.length])
    if (i >= warmUp) times.push(performance.now() - started)
  }
  return times
}

/** Requests per second with so many in flight at any time. */
export async function inFlight(session, requests, count, seconds) {
  const until = performance.now() + seconds * 1000
  const started = performance.now()
  let done = 0
  const loop = async (first) => {
    for (let i = first; performance.now() < until; i += count) {
      await session.run(requests[i % requests.length])
      done++
    }
  }
  await Promise.all(Array.from({ length: count }, (_, i) => loop(i)))
  return done / ((performance.now() - started) / 1000)
}

/**
 * Poisson arrivals at `rate` a second for so many seconds, in this process. Latency counts from the arrival that was planned, so a late
 * start is part of it.
 */
export async function offer(session, requests, rate, seconds, seed = 1) {
  const next = random(seed)
  const count = Math.floor(rate * seconds)
  const arrivals = new Float64Array(count)
  for (let i = 0, at = 0; i < count; i++) arrivals[i] = at += -Math.log(1 - next()) * (1000 / rate)
  const latencies = new Float64Array(count)
  let sent = 0
  let answered = 0
  let failed = 0
  let ended
  const end = new Promise((resolve) => (ended = resolve))
  const started = performance.now() + 5
  // Far behind, there is nothing more to learn.
  const giveUpAt = started + seconds * 2000 + 1000
  const note = (i, latency) => {
    latencies[i] = latency
    if (++answered === count) ended()
  }
  const send = (i) => {
    void session.run(requests[i % requests.length]).then(
      () => note(i, performance.now() - started - arrivals[i]),
      () => {
        failed++
        note(i, Infinity)
      },
    )
  }
  const turn = () => {
    const now = performance.now()
    while (sent < count && arrivals[sent] <= now - started) send(sent++)
    if (now > giveUpAt) ended()
    else if (sent < count) setImmediate(turn)
  }
  turn()
  const watchdog = setTimeout(() => ended(), giveUpAt - performance.now())
  const cpu = process.cpuUsage()
  await end
  clearTimeout(watchdog)
  const elapsed = performance.now() - started
  const { user, system } = process.cpuUsage(cpu)
  const sorted = latencies.slice(0, answered).sort()
  return {
    offered: round(rate, 6),
    served: round(((answered - failed) / elapsed) * 1000, 6),
    complete: answered === count && failed === 0,
    p50: round(quantile(sorted, 0.5), 5),
    p99: round(quantile(sorted, 0.99), 5),
    processors: round((user + system) / 1000 / elapsed, 3),
  }
}

const LIMIT_MS = 100
const holds = ({ complete, p99, served, offered }) => complete && p99 <= LIMIT_MS && served >= 0.95 * offered

/** The highest rate of arrivals with P99 <= 100 ms, by halving between what holds and what does not. `trials` has them as they end. */
export async function highestRate(session, requests, ceiling, seconds, steps = 6, trials = []) {
  let low = 0
  let high = ceiling * 1.1
  let best = null
  for (let step = 0, rate = ceiling * 0.9; step < steps; step++, rate = (low + high) / 2) {
    const before = session.stats()
    const trial = await offer(session, requests, rate, seconds)
    const after = session.stats()
    trial.meanBatch = round((after.rows - before.rows) / Math.max(1, after.batches - before.batches), 4)
    trials.push(trial)
    if (holds(trial)) {
      low = rate
      best = trial
    } else {
      high = rate
    }
  }
  return { best, trials }
}

export { summary }
