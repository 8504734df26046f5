/**
 * The rows of serving.mjs beyond fixed loads. Each takes the bench, `{ load(options), source(seed), limitOf(llm, requests), roofline?, onCpu, scale,
 * seconds, soakSeconds, rates }`, and gives its figures.
 */
import { growth, mean, median, memoryNow, runLoad, runRequest, sleep, whileSampling } from './load.mjs'

const fixed = (value, digits = 4) => (value === undefined ? undefined : Number(value.toPrecision(digits)))

/**
 * Open loop: conversations arrive as a Poisson process, whether or not the ones before have ended, at shares of the rate at which the
 * same kind of requests is served when all are there at once.
 */
export async function poisson(bench) {
  const llm = await bench.load({})
  const count = bench.onCpu ? 96 : 512
  const saturating = bench.source(20).conversations(count)
  const saturated = await runLoad(llm, saturating)
  const rates = []
  for (const share of bench.rates) {
    const rate = share * saturated.requestsPerSecond
    const requests = bench.source(21).conversations(Math.max(16, Math.round(rate * bench.seconds)), rate)
    rates.push({
      share,
      offeredRequestsPerSecond: fixed(rate),
      meanTokens: { input: fixed(mean(requests.map(({ tokens }) => tokens.length))), output: fixed(mean(requests.map(({ output }) => output))) },
      ...(await runLoad(llm, requests)),
      limit: bench.limitOf(llm, requests),
    })
  }
  return { saturated: { ...saturated, limit: bench.limitOf(llm, saturating) }, rates }
}

/**
 * `count` sequences that only decode, over `steps` steps at least; in several passes where the KV cache holds no sequences as long.
 * Times are the profile's: the executor's work of each step, and the host's.
 */
export async function decode(bench, count, steps = bench.onCpu ? 100 : 1000) {
  const llm = await bench.load({})
  const { numPages, pageSize, maxPositions, maxSlots } = llm.info
  const sequences = Math.min(count, maxSlots)
  const input = Math.max(1, Math.round(128 * bench.scale))
  const room = Math.min(maxPositions, Math.floor(numPages / sequences) * pageSize) - input - 2 * pageSize
  // Some steps pass before all sequences decode, and some when the first have ended.
  const slack = 16
  const passes = Math.ceil(steps / (room - 2 * slack))
  const perPass = Math.ceil(steps / passes)
  if (room < 4 * slack) throw new Error(`the KV cache has room for ${room} tokens a sequence`)
  const profiles = []
  for (let pass = 0; pass < passes; pass++) {
    const requests = bench.source(30 + pass).same(sequences, 128, 1).map(({ tokens }) => ({ tokens, output: perPass + 2 * slack }))
    const work = requests.map((request) => runRequest(llm, request))
    const all = Promise.all(work)
    const start = llm.stats().tokens.decode
    const allDecode = () => llm.stats().running === sequences && llm.stats().tokens.decode - start >= sequences * 2
    // The first to come: a load that ends, or fails, never reaches it.
    for (let waiting = true; waiting && !allDecode(); ) waiting = await Promise.race([sleep(2).then(() => true), all.then(() => false)])
    if (allDecode()) profiles.push(await llm.profile({ steps: perPass, keep: 0, until: all }))
    await all
  }
  if (profiles.length < passes) throw new Error('the sequences ended before all of them ran together')
  const taken = profiles.reduce((sum, profile) => sum + profile.steps, 0)
  const wallMs = profiles.reduce((sum, profile) => sum + profile.workMs, 0)
  const share = (name) => profiles.reduce((sum, { shares, workMs }) => sum + shares[name] * workMs, 0) / wallMs
  const step = (name) => fixed(profiles.reduce((sum, { perStep, steps: n }) => sum + perStep[name].mean * n, 0) / taken)
  const context = input + slack / 2 + perPass / 2
  const stepMs = wallMs / taken
  const leastMs = bench.roofline?.decodeMs(sequences, context)
  return {
    sequences,
    steps: taken,
    passes,
    contexts: [input, input + perPass + 2 * slack],
    decodeOnlySteps: profiles.reduce((sum, { decodeSteps }) => sum + decodeSteps.steps, 0),
    stepMs: fixed(stepMs),
    tokensPerSecond: (sequences * 1000) / stepMs,
    gpuBusy: fixed(share('run')),
    gap: fixed(share('gap')),
    hostUs: {
      mean: fixed(share('host') * stepMs * 1000),
      scheduler: fixed(share('scheduler') * stepMs * 1000),
      shareOfWall: fixed(share('host')),
      schedulerShareOfWall: fixed(share('scheduler')),
    },
    meanUs: Object.fromEntries(['planUs', 'packUs', 'submitUs', 'queueUs', 'runUs', 'gapUs', 'completeUs', 'emitUs'].map((name) => [name, step(name)])),
    runUs: profiles[0].perStep.runUs,
    gapUs: profiles[0].perStep.gapUs,
    eventLoop: fixed(mean(profiles.map(({ eventLoop }) => eventLoop.utilisation))),
    limit: leastMs && { stepMs: fixed(leastMs), tokensPerSecond: fixed((sequences * 1000) / leastMs) },
  }
}

/**
 * KV places that hold nothing, at steady load: of pages, and of what contiguous allocations would take for the same sequences: `maxLength` =
 * the model's context for each, `ownLength` = each request's prompt and output, were they known.
 */
export async function waste(bench) {
  const llm = await bench.load({})
  const { pageSize, maxPositions, maxSlots, numPages } = llm.info
  const clients = Math.min(256, maxSlots)
  const source = bench.source(40)
  const until = performance.now() + bench.seconds * 1000
  const end = new AbortController()
  const live = new Set()
  let ended = 0
  const client = async () => {
    while (performance.now() < until) {
      const [request] = source.mixed(1)
      live.add(request)
      try {
        await runRequest(llm, { ...request, signal: end.signal })
        ended++
      } catch (error) {
        // What is left when the time is over.
        if (!end.signal.aborted) throw error
      }
      live.delete(request)
    }
  }
  const samples = []
  const warm = performance.now() + (bench.seconds * 1000) / 4
  const sample = () => {
    const { running, kv } = llm.stats()
    const now = performance.now()
    if (now < warm || now > until || running === 0) return
    const places = kv.usedPages * pageSize
    const filled = kv.utilisation * places
    const reserved = [...live].reduce((sum, { tokens, output }) => sum + tokens.length + output, 0)
    samples.push({
      waste: 1 - kv.utilisation,
      maxLength: 1 - filled / (running * maxPositions),
      ownLength: 1 - filled / reserved,
      running,
      tokens: filled / running,
      used: kv.usedPages / kv.totalPages,
    })
  }
  const timer = setTimeout(() => end.abort(), bench.seconds * 1000)
  await whileSampling(50, sample, Promise.all(Array.from({ length: clients }, client))).finally(() => clearTimeout(timer))
  if (samples.length === 0) throw new Error('no sample at steady load')
  const of = (name) => fixed(mean(samples.map((each) => each[name])))
  return {
    seconds: bench.seconds,
    samples: samples.length,
    requests: ended,
    pageSize,
    running: of('running'),
    tokensPerSequence: of('tokens'),
    poolUsed: of('used'),
    waste: of('waste'),
    wasteMax: fixed(Math.max(...samples.map((each) => each.waste))),
    contiguous: {
      maxLength: { tokens: maxPositions, waste: of('maxLength'), sequencesThatFit: Math.floor((numPages * pageSize) / maxPositions) },
      ownLength: { waste: of('ownLength') },
      pagedSequencesThatFit: Math.floor((numPages * pageSize * (1 - of('waste'))) / of('tokens')),
    },
  }
}

/** Prompts that share their first 90%, with prefix cache and without. The cache is warm: one request has brought the prefix. */
export async function prefix(bench) {
  const count = bench.onCpu ? 32 : 512
  const requests = bench.source(50).sharing(count, 1000, 64, 0.9)
  const warmUp = bench.source(51).same(1, 1000, 8)
  const result = { requests: count, inputTokens: requests[0].tokens.length, outputTokens: requests[0].output, shared: 0.9 }
  for (const [name, prefixCache] of [['off', false], ['on', true]]) {
    const llm = await bench.load({ prefixCache })
    await runLoad(llm, [...warmUp, { ...requests[0], output: 1 }])
    const before = llm.stats().prefixCache
    const { tokensPerSecond, seconds, ttftMs, steps } = await runLoad(llm, requests)
    const after = llm.stats().prefixCache
    const queried = after.queriedTokens - before.queriedTokens
    result[name] = { tokensPerSecond, seconds, ttftMs, steps, hitRate: queried === 0 ? 0 : (after.hitTokens - before.hitTokens) / queried }
  }
  const limit = bench.limitOf(await bench.load({ prefixCache: true }), requests)
  return { ...result, ratio: result.on.tokensPerSecond / result.off.tokensPerSecond, limit: limit && { offTokensPerSecond: limit.tokensPerSecond } }
}

/**
 * Clients that ask again and again: random lengths, pauses and priorities, and every eighth request aborted after a random while.
 * Nothing may fail, no page may be lost, and memory must not grow.
 */
export async function soak(bench) {
  const llm = await bench.load({ prefixCache: true })
  const clients = Math.min(320, llm.info.maxSlots + 64)
  const source = bench.source(60)
  const counts = { ended: 0, aborted: 0, failed: 0, tokens: 0 }
  const failures = []
  const until = performance.now() + bench.soakSeconds * 1000
  const client = async () => {
    while (performance.now() < until) {
      const [request] = source.mixed(1)
      const abort = source.between(0, 8) === 0 ? new AbortController() : undefined
      const timer = abort && setTimeout(() => abort.abort(), source.between(0, 4000))
      try {
        await runRequest(llm, { ...request, priority: source.between(-2, 3), signal: abort?.signal })
        counts.ended++
        counts.tokens += request.output
      } catch (error) {
        if (error.name === 'AbortError' && abort?.signal.aborted) counts.aborted++
        else {
          counts.failed++
          if (failures.length < 5) failures.push(`${error.code ?? error.name}: ${error.message}`)
        }
      } finally {
        clearTimeout(timer)
      }
      await sleep(source.between(0, 20))
    }
  }
  const started = performance.now()
  const samples = []
  const sample = async () => void samples.push({ second: fixed((performance.now() - started) / 1000), ...(await memoryNow()) })
  await whileSampling(Math.min(5000, (bench.soakSeconds * 1000) / 20), sample, Promise.all(Array.from({ length: clients }, client)))
  const seconds = (performance.now() - started) / 1000
  // Slots close with the next pump of the loop.
  await sleep(100)
  llm.check()
  const { running, waiting, kv, sequences, preemptions, retries, steps } = llm.stats()
  return {
    seconds: fixed(seconds),
    clients,
    ...counts,
    failures,
    tokensPerSecond: counts.tokens / seconds,
    memory: growth(samples),
    left: { running, waiting, usedPages: kv.usedPages },
    preemptions,
    retries,
    sequences,
    stepsFailed: steps.failed,
    samples: samples.map(({ second, rssMiB, deviceMiB }) => [second, Math.round(rssMiB), deviceMiB]),
  }
}

/** Milliseconds to the first token of one request alone. */
export async function ttft(bench) {
  const llm = await bench.load({})
  const rows = {}
  for (const length of [128, 512, 1024, 2048]) {
    const requests = bench.source(10).same(10, length, 1)
    const tokens = requests[0].tokens.length
    if (tokens >= llm.info.maxPositions) continue
    const times = []
    for (const request of requests) times.push((await runRequest(llm, request)).first)
    rows[`ttft-${length}`] = { ms: median(times), all: times.map((ms) => fixed(ms)), limit: bench.roofline && { ms: fixed(bench.roofline.prefillMs(tokens)) } }
  }
  return rows
}

/** Tokens a second of one request alone: 256 tokens later ones, so that the first is not counted. */
export async function single(bench) {
  const llm = await bench.load({})
  const rates = []
  const [few, many] = [16, bench.onCpu ? 80 : 272]
  const { tokens } = bench.source(11).request(128, 1)
  for (let i = 0; i < 3; i++) {
    const [short, long] = [await runRequest(llm, { tokens, output: few }), await runRequest(llm, { tokens, output: many })]
    rates.push((1000 * (many - few)) / (long.total - short.total))
  }
  const context = tokens.length + (few + many) / 2
  return {
    tokensPerSecond: median(rates),
    all: rates.map((rate) => fixed(rate)),
    limit: bench.roofline && { tokensPerSecond: fixed(1000 / bench.roofline.decodeMs(1, context)) },
  }
}
