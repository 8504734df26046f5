/**
 * Sampling from given logits. The logits come back with the tokens, so the distribution that they should be drawn from is computed here,
 * in double precision, and compared by Pearson's test; greedy choices are compared exactly.
 */
import assert from 'node:assert/strict'
import { prompts } from './support/goldens.mjs'
import { record, verify } from './support/report.mjs'
import { chiSquare, penalised, samplingDistribution } from './support/statistics.mjs'
import { Steps } from './support/steps.mjs'
import { createExecutor, loadLLM, PAGE_SIZE, precisions, StepFlag } from './support/target.mjs'

const SLOTS = 128
const DRAWS = 16_384
/** Of nine distributions a correct sampler fails one with a chance of 1 in 1,000; the seeds are fixed, so it does or it does not. */
const LEAST_P = 1e-4
const FLAGS = StepFlag.SAMPLE | StepFlag.LOGITS

/** One full page and a token: sequences share the page and bring their last token in a page of their own. */
const { ids, greedy } = prompts.find(({ name }) => name === 'chat-two-turns')
/** In the middle of a sentence, where the model has many ideas how to go on: 5 nats of entropy. */
const context = [...ids, ...greedy.ids].slice(32, 32 + PAGE_SIZE + 1)

const CASES = {
  'temperature 1': { temperature: 1 },
  'temperature 0.7': { temperature: 0.7 },
  'temperature 2': { temperature: 2 },
  'top-k 20': { temperature: 1.5, topK: 20 },
  'top-p 0.8': { temperature: 1.3, topP: 0.8 },
  'min-p 0.02': { temperature: 1.2, minP: 0.02 },
  penalties: { temperature: 1.2, repetitionPenalty: 1.3, presencePenalty: 0.5, frequencyPenalty: 0.3 },
  'bans before minTokens': { temperature: 1, minTokens: 100 },
  everything: { temperature: 1.4, topK: 50, topP: 0.9, minP: 0.005, repetitionPenalty: 1.1, frequencyPenalty: 0.2 },
}

/** The context split into prompt and `generated` tokens of output: the draw's number among a seed's. */
const split = (generated) => [context.slice(0, context.length - generated), context.slice(context.length - generated)]

/** Prefills the shared page and hands out sequences that compute the context's last token. */
async function withSharedPage(precision, body) {
  const executor = await createExecutor(precision, { numPages: SLOTS + 1, maxSlots: SLOTS, maxStepTokens: 256 })
  try {
    const steps = new Steps(executor)
    steps.open(0, context)
    await steps.run({ slot: 0, tokens: context.slice(0, PAGE_SIZE), pages: [0], flags: 0 })
    steps.close(0)
    const row = (slot, flags) => ({ slot, tokens: [context[PAGE_SIZE]], cached: PAGE_SIZE, pages: [0, 1 + slot], flags })
    await body(steps, row, executor.info.vocabSize)
  } finally {
    await executor.close()
  }
}

for (const precision of precisions) {
  verify(`${precision}: draws follow the distribution of the logits`, {}, async () => {
    await withSharedPage(precision, async (steps, row, vocab) => {
      const slots = Array.from({ length: SLOTS }, (_, slot) => slot)
      let first
      let spread = 0
      let seed = 1
      for (const [name, base] of Object.entries(CASES)) {
        // Penalties see what counts as output; elsewhere the draw's number may vary.
        const penalty = base.repetitionPenalty !== undefined
        const counts = new Float64Array(vocab)
        let sampling = base
        for (let done = 0; done < DRAWS; done += SLOTS) {
          if (base.minTokens !== undefined && first !== undefined) {
            const best = Array.from(first.keys()).sort((a, b) => first[b] - first[a]).slice(0, 3)
            sampling = { ...base, bannedTokens: Int32Array.from(best) }
          }
          for (const slot of slots) {
            const [prompt, output] = split(penalty ? 6 : slot % 8)
            steps.open(slot, prompt, { ...sampling, seed: seed++ }, output)
          }
          const { tokens, logits } = await steps.run(...slots.map((slot) => row(slot, slot === 0 || done === 0 ? FLAGS : StepFlag.SAMPLE)))
          first ??= logits.slice(0, vocab)
          for (let at = 0; at < logits.length; at++) spread = Math.max(spread, Math.abs(logits[at] - first[at % vocab]))
          for (const token of tokens) {
            assert.ok(token >= 0 && token < vocab)
            counts[token]++
          }
          for (const slot of slots) steps.close(slot)
        }
        const [prompt, output] = split(penalty ? 6 : 0)
        const { probabilities, support, boundary } = samplingDistribution(first, sampling, prompt, output)
        const outside = Array.from(counts.keys()).filter((token) => counts[token] > 0 && probabilities[token] === 0 && !boundary.includes(token))
        const test = chiSquare(counts, probabilities)
        record(`${precision}.${name}`, { ...test, support, outside: outside.length })
        assert.deepEqual(outside, [], `${name}: tokens that the parameters exclude`)
        assert.ok(test.degrees >= 3, `${name}: a test of ${test.degrees} degrees says nothing`)
        assert.ok(test.p > LEAST_P, `${name}: chi-square ${test.statistic} with ${test.degrees} degrees, p = ${test.p}`)
      }
      record(`${precision}.spread of the same row's logits in a batch of ${SLOTS}`, spread)
    })
  })

  verify(`${precision}: greedy takes the largest logit after penalties and bans`, {}, async () => {
    await withSharedPage(precision, async (steps, row, vocab) => {
      const samplings = [
        {},
        { repetitionPenalty: 1.8 },
        { presencePenalty: 6, frequencyPenalty: 1.5 },
        { repetitionPenalty: 0.5, frequencyPenalty: -2 },
        { minTokens: 30, bannedTokens: Int32Array.from(context) },
        { minTokens: 2, bannedTokens: Int32Array.from(context) },
        { repetitionPenalty: 1.2, presencePenalty: 1, minTokens: 30, bannedTokens: Int32Array.of(greedy.ids[1]) },
      ]
      samplings.forEach((sampling, slot) => steps.open(slot, ...openArguments(split(6), sampling)))
      const { tokens, logits } = await steps.run(...samplings.map((_, slot) => row(slot, FLAGS)))
      samplings.forEach((sampling, slot) => {
        const x = penalised(logits.subarray(slot * vocab, (slot + 1) * vocab), sampling, ...split(6))
        const max = x.reduce((best, value) => Math.max(best, value), -Infinity)
        // In float32 a penalty may round to a tie.
        assert.ok(x[tokens[slot]] >= max - 1e-5, `case ${slot}: token ${tokens[slot]} has ${x[tokens[slot]]}, the largest is ${max}`)
        if (sampling.minTokens === 30) assert.ok(!sampling.bannedTokens.includes(tokens[slot]))
      })
    })
  })

  verify(`${precision}: equal logits and an equal seed give an equal token, in any batch`, {}, async () => {
    await withSharedPage(precision, async (steps, row, vocab) => {
      const seen = new Map()
      let compared = 0
      let otherLogits = 0
      for (const size of [1, 3, 8, 20, 64, 128]) {
        for (let seed = 1; seed <= 40; seed++) {
          const at = (seed * 7) % size
          const rows = Array.from({ length: size }, (_, slot) => row(slot, slot === at ? FLAGS : StepFlag.SAMPLE))
          for (let slot = 0; slot < size; slot++) {
            const neighbour = { temperature: (slot % 3) * 0.8, topK: (slot % 5) * 3, topP: slot % 2 === 0 ? 1 : 0.7, seed: slot + 1000 }
            const own = { temperature: 1.5, topP: 0.95, seed }
            steps.open(slot, ...openArguments(split(2), slot === at ? own : neighbour))
          }
          const { tokens, logits } = await steps.run(...rows)
          for (let slot = 0; slot < size; slot++) steps.close(slot)
          assert.equal(logits.length, vocab)
          const key = `${seed} ${Buffer.from(logits.slice().buffer).toString('base64')}`
          const before = seen.get(key)
          if (before === undefined) {
            if ([...seen.keys()].some((other) => other.startsWith(`${seed} `))) otherLogits++
            seen.set(key, tokens[at])
          } else {
            compared++
            assert.equal(tokens[at], before, `seed ${seed}, batch of ${size}`)
          }
        }
      }
      record(`${precision}.seeds`, { compared, otherLogits })
      assert.ok(compared >= 40, `only ${compared} pairs had bit-equal logits`)
    })
  })

  verify(`${precision}: seeded texts alone, again, and beside others`, {}, async () => {
    // A cached prefix would leave other rows to compute, in other batches.
    const llm = await loadLLM(precision, { prefixCache: false })
    try {
      const requests = prompts.filter(({ ids }) => ids.length < 100).map(({ ids: tokens }, i) => ({
        tokens, maxTokens: 48, temperature: 0.9, topP: 0.95, seed: 100 + i, ignoreEos: true,
      }))
      const alone = []
      const again = []
      for (const list of [alone, again]) for (const request of requests) list.push((await llm.generate(request).result()).tokens.join())
      const beside = (await Promise.all(requests.map((request) => llm.generate(request).result()))).map(({ tokens }) => tokens.join())
      const equal = (list) => list.filter((text, i) => text === alone[i]).length
      record(`${precision}.seeded texts`, { requests: requests.length, again: equal(again), beside: equal(beside) })
      assert.equal(equal(again), requests.length, 'the same requests again, alone')
      // Other kernels run for other batches; in float32 they all but never move a draw across a boundary.
      if (precision === 'fp32') assert.ok(equal(beside) >= requests.length - 1, `${equal(beside)} of ${requests.length} equal beside others`)
      assert.ok(new Set(alone).size > requests.length / 2)
    } finally {
      await llm.close()
    }
  })
}

/** Arguments of `open` after the slot. */
function openArguments([prompt, output], sampling) {
  return [prompt, sampling, output]
}
