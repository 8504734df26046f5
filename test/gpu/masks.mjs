/**
 * Token masks, logit bias and hidden states. Logits come back with the tokens, so what a masked or biased row must choose is computed
 * from the very row: greedy exactly, draws by Pearson's test. Steps are prompts (no graph) and generated tokens (captured graphs), in
 * batches of all sizes, with masked and free rows side by side. Hidden states are compared with the CPU backend's.
 */
import assert from 'node:assert/strict'
import { prompts } from './support/goldens.mjs'
import { record, verify } from './support/report.mjs'
import { chiSquare, penalised, samplingDistribution, seededRandom } from './support/statistics.mjs'
import { pageRange, Steps } from './support/steps.mjs'
import { createCpuExecutor, createExecutor, loadCpu, loadLLM, PAGE_SIZE, precisions, StepFlag } from './support/target.mjs'

const SLOTS = 128
const PAGES_EACH = 4
const { SAMPLE, LOGITS, HIDDEN, HIDDEN_ROWS } = StepFlag
const { ids, greedy } = prompts.find(({ name }) => name === 'chat-two-turns')
/** Distance of an embedding of length 1 from the CPU's. */
const EMBEDDING_LIMITS = { fp32: 1e-4, fp16: 1e-2, bf16: 2e-2 }

async function withSteps(precision, body) {
  const executor = await createExecutor(precision, { numPages: SLOTS * PAGES_EACH, maxSlots: SLOTS, maxStepTokens: 1024 })
  try {
    await body(new Steps(executor), executor.info)
  } finally {
    await executor.close()
  }
}

const pagesOf = (slot) => pageRange(PAGES_EACH, slot * PAGES_EACH)
const bias = (...entries) => ({ ids: Int32Array.from(entries, ([id]) => id), values: Float32Array.from(entries, ([, value]) => value) })

/** Every so-manieth token: all, a handful, across the words' borders. */
function someTokens(random, vocab) {
  const step = [1, 2, 3, 31, 32, 33, 500, 4000][Math.floor(random() * 8)]
  const first = Math.floor(random() * step)
  return Array.from({ length: Math.ceil((vocab - first) / step) }, (_, i) => first + i * step)
}

function assertLargest(x, token, what) {
  const max = x.reduce((best, value) => Math.max(best, value), -Infinity)
  assert.ok(x[token] >= max - 1e-5, `${what}: token ${token} has ${x[token]}, the largest is ${max}`)
}

/** Of two vectors, each scaled to length 1. */
function distance(a, b) {
  const scale = (x) => 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0))
  const [ofA, ofB] = [scale(a), scale(b)]
  return Math.sqrt(a.reduce((sum, value, i) => sum + (value * ofA - b[i] * ofB) ** 2, 0))
}

for (const precision of precisions) {
  verify(`${precision}: greedy takes the largest logit that the mask leaves, in prompts and captured steps of any size`, {}, async () => {
    await withSteps(precision, async (steps, { vocabSize }) => {
      const random = seededRandom(7)
      const promptOf = (slot) => ids.slice(slot % 8, (slot % 8) + 5)
      const samplingOf = (slot) => ({
        ...(slot % 3 === 2 ? { logitBias: bias([slot * 7, 8], [slot, -5], [vocabSize - 1, 6]) } : {}),
        repetitionPenalty: slot % 5 === 4 ? 1.4 : 1,
      })
      let masked = 0
      for (const size of [1, 2, 3, 8, 20, 64, 128]) {
        const slots = pageRange(size)
        for (const slot of slots) steps.open(slot, promptOf(slot), samplingOf(slot))
        const outputs = slots.map(() => [])
        for (let at = 0; at < 6; at++) {
          const allowed = slots.map((slot) => ((slot + at) % 4 === 3 ? undefined : someTokens(random, vocabSize)))
          for (const slot of slots) steps.mask(slot, allowed[slot] ?? null)
          const rows = slots.map((slot) => ({
            slot,
            ...(at === 0 ? { tokens: promptOf(slot) } : { tokens: [-1], cached: 4 + at }),
            pages: pagesOf(slot),
            flags: SAMPLE | LOGITS,
          }))
          const { tokens, logits } = await steps.run(...rows)
          for (const slot of slots) {
            const row = logits.subarray(slot * vocabSize, (slot + 1) * vocabSize)
            const x = penalised(row, samplingOf(slot), promptOf(slot), outputs[slot], allowed[slot])
            assertLargest(x, tokens[slot], `${size} rows, step ${at}, slot ${slot}`)
            if (allowed[slot] !== undefined) {
              masked++
              assert.ok(allowed[slot].includes(tokens[slot]))
            }
            outputs[slot].push(tokens[slot])
          }
        }
        for (const slot of slots) steps.close(slot)
      }
      record(`${precision}.masked rows`, masked)
      assert.ok(masked > 500)
    })
  })

  verify(`${precision}: draws under masks and biases follow the distribution of what is left`, {}, async () => {
    await withSteps(precision, async (steps, { vocabSize }) => {
      const context = [...ids, ...greedy.ids].slice(32, 32 + PAGE_SIZE + 1)
      steps.open(0, context)
      await steps.run({ slot: 0, tokens: context.slice(0, PAGE_SIZE), pages: [0], flags: 0 })
      steps.close(0)
      const slots = pageRange(SLOTS)
      const row = (slot, flags) => ({ slot, tokens: [context[PAGE_SIZE]], cached: PAGE_SIZE, pages: [0, 1 + slot], flags })
      const third = Array.from({ length: Math.floor(vocabSize / 3) }, (_, i) => 3 * i)
      let seed = 1
      for (const [name, sampling, allowed] of [
        ['mask', { temperature: 1.2 }, third],
        ['mask, top-k', { temperature: 1.5, topK: 12 }, third],
        ['mask of few, top-k of many', { temperature: 8, topK: 500 }, third.slice(0, 9)],
        ['mask, top-p', { temperature: 1.3, topP: 0.8 }, third],
        ['bias', { temperature: 1, logitBias: bias([3, 9], [4, 8], [vocabSize - 1, 7]) }, undefined],
        ['mask, bias, penalty', { temperature: 1.2, logitBias: bias([3, 9], [4, 20]), repetitionPenalty: 1.3 }, third],
      ]) {
        const counts = new Float64Array(vocabSize)
        let first
        for (let done = 0; done < 8192; done += SLOTS) {
          for (const slot of slots) {
            steps.open(slot, context, { ...sampling, seed: seed++ })
            if (allowed !== undefined) steps.mask(slot, allowed)
          }
          const { tokens, logits } = await steps.run(...slots.map((slot) => row(slot, slot === 0 && done === 0 ? SAMPLE | LOGITS : SAMPLE)))
          first ??= logits.slice(0, vocabSize)
          for (const token of tokens) counts[token]++
          for (const slot of slots) steps.close(slot)
        }
        const { probabilities, boundary } = samplingDistribution(first, sampling, context, [], allowed)
        const outside = Array.from(counts.keys()).filter((token) => counts[token] > 0 && probabilities[token] === 0 && !boundary.includes(token))
        const test = chiSquare(counts, probabilities)
        record(`${precision}.${name}`, { ...test, outside: outside.length })
        assert.deepEqual(outside, [], `${name}: tokens that are excluded`)
        assert.ok(test.degrees >= 3, `${name}: a test of ${test.degrees} degrees says nothing`)
        assert.ok(test.p > 1e-4, `${name}: p = ${test.p}`)
      }
    })
  })

  verify(`${precision}: masks take effect in order with steps that nobody waits for`, {}, async () => {
    await withSteps(precision, async (steps, { vocabSize }) => {
      for (const others of [0, 7, 40]) {
        const slots = pageRange(others + 1)
        for (const slot of slots) steps.open(slot, ids.slice(0, 5))
        const only = [9, vocabSize - 1, 31, 32, 2000, 0, 63, 64]
        const results = only.map((token, at) => {
          steps.mask(0, [token])
          if (others > 0) steps.mask(1 + (at % others), at % 2 === 0 ? [token + 1, 5] : null)
          const row = at === 0 ? { tokens: ids.slice(0, 5) } : { tokens: [-1], cached: 4 + at }
          return steps.run(...slots.map((slot) => ({ slot, ...row, pages: pagesOf(slot) })))
        })
        const tokens = (await Promise.all(results)).map((result) => [...result.tokens])
        assert.deepEqual(tokens.map(([token]) => token), only)
        for (const slot of slots) steps.close(slot)
      }
    })
  })

  verify(`${precision}: the mask wins over the ban, and log-probabilities are the model's own`, {}, async () => {
    await withSteps(precision, async (steps) => {
      const prompt = ids.slice(0, 9)
      const banned = { minTokens: 4, bannedTokens: Int32Array.of(2, 6) }
      const samplings = [banned, { ...banned, temperature: 1 }, { logprobs: 3 }, { logprobs: 3, logitBias: bias([5, 1e6]) }]
      samplings.forEach((sampling, slot) => steps.open(slot, prompt, sampling))
      for (const slot of [0, 1]) steps.mask(slot, [2])
      steps.mask(2, [2, 6, 9])
      const { tokens, logprobs, logits } = await steps.run(
        ...samplings.map((_, slot) => ({ slot, tokens: prompt, pages: pagesOf(slot), flags: slot === 2 ? SAMPLE | LOGITS : SAMPLE })),
      )
      assert.deepEqual([tokens[0], tokens[1], tokens[3]], [2, 2, 5])
      const max = logits.reduce((best, value) => Math.max(best, value), -Infinity)
      const logSum = max + Math.log(logits.reduce((sum, value) => sum + Math.exp(value - max), 0))
      for (const row of logprobs) assert.ok(Math.abs(row.logprob - (logits[row.token] - logSum)) < 2e-2, `${row.logprob}`)
      assert.deepEqual([...logprobs[0].topIds], [...logprobs[1].topIds])
    })
  })

  verify(`${precision}: hidden states are the CPU's, in captured and other steps, beside logits and tokens`, {}, async () => {
    const cpu = await createCpuExecutor({ numPages: SLOTS * PAGES_EACH, maxSlots: SLOTS, maxStepTokens: 1024 })
    try {
      const reference = new Steps(cpu)
      await withSteps(precision, async (steps, { hiddenSize }) => {
        assert.equal(hiddenSize, cpu.info.hiddenSize)
        let worst = 0
        const compare = async (rows) => {
          const [ours, theirs] = await Promise.all([steps.run(...rows), reference.run(...rows)])
          for (const part of ['hidden', 'tokens', 'logits']) assert.equal(ours[part].length, theirs[part].length, part)
          for (let at = 0; at < ours.hidden.length; at += hiddenSize) {
            const end = at + hiddenSize
            worst = Math.max(worst, distance(ours.hidden.subarray(at, end), theirs.hidden.subarray(at, end)))
          }
        }
        for (const size of [1, 5, 40, 128]) {
          const slots = pageRange(size)
          for (const each of [steps, reference]) for (const slot of slots) each.open(slot, ids.slice(0, 8))
          await compare(slots.map((slot) => ({ slot, tokens: ids.slice(slot % 3, (slot % 3) + 5), pages: pagesOf(slot), flags: slot % 2 === 0 ? HIDDEN : HIDDEN_ROWS })))
          // One row each: a captured step.
          const flags = [HIDDEN, SAMPLE, HIDDEN_ROWS | SAMPLE, HIDDEN | LOGITS]
          await compare(slots.map((slot) => ({ slot, tokens: [ids[10 + (slot % 7)]], cached: 5, pages: pagesOf(slot), flags: flags[slot % 4] })))
          for (const each of [steps, reference]) for (const slot of slots) each.close(slot)
        }
        record(`${precision}.hidden states`, { worst, limit: EMBEDDING_LIMITS[precision] })
        assert.ok(worst < EMBEDDING_LIMITS[precision], `distance ${worst}`)
      })
    } finally {
      await cpu.close()
    }
  })

  verify(`${precision}: embeddings of texts are the CPU's, whatever is generated beside them`, {}, async () => {
    const inputs = prompts.map((prompt) => prompt.ids)
    const cpu = await loadCpu()
    const { embeddings: expected } = await cpu.embed(inputs)
    await cpu.close()
    const llm = await loadLLM(precision, { maxStepTokens: 96 })
    try {
      const beside = inputs.slice(0, 6).map((tokens) => llm.generate({ tokens, maxTokens: 40, temperature: 0, ignoreEos: true }).result())
      const { embeddings, usage } = await llm.embed([...inputs, ...inputs])
      await Promise.all(beside)
      assert.equal(usage.promptTokens, 2 * inputs.reduce((sum, { length }) => sum + length, 0))
      const distances = embeddings.map((embedding, i) => distance(embedding, expected[i % expected.length]))
      const worst = Math.max(...distances)
      record(`${precision}.embeddings`, { worst, limit: EMBEDDING_LIMITS[precision], inputs: distances.length })
      assert.ok(worst < EMBEDDING_LIMITS[precision], `distance ${worst}`)
    } finally {
      await llm.close()
    }
  })

  verify(`${precision}: a constrained request among free ones, run ahead of`, {}, async () => {
    const llm = await loadLLM(precision)
    try {
      const { vocabSize } = llm.info
      const words = new Int32Array(Math.ceil(vocabSize / 32))
      const constrain = () => {
        let count = 0
        return {
          mask() {
            for (let i = 0; i < words.length; i++) words[i] = count % 2 === 0 ? 0x55555555 : ~0x55555555
            return words
          },
          accept: () => void count++,
        }
      }
      const request = (i, more) => ({ tokens: ids.slice(i, i + 9), maxTokens: 40, temperature: 0.8, seed: i, ignoreEos: true, ...more })
      const bound = Array.from({ length: 12 }, (_, i) => llm.generate(request(i, { constrain })).result())
      const free = Array.from({ length: 12 }, (_, i) => llm.generate(request(i)).result())
      for (const { tokens } of await Promise.all(bound)) assert.deepEqual(tokens.map((token) => token % 2), tokens.map((_, i) => i % 2))
      for (const { tokens } of await Promise.all(free)) assert.equal(tokens.length, 40)
    } finally {
      await llm.close()
    }
  })

  verify(`${precision}: what masks cost`, {}, async () => {
    await withSteps(precision, async (steps, { vocabSize }) => {
      const slots = pageRange(64)
      const third = Array.from({ length: Math.floor(vocabSize / 3) }, (_, i) => 3 * i)
      for (const masked of [0, 1, 64]) {
        for (const slot of slots) steps.open(slot, ids.slice(0, 5))
        await steps.run(...slots.map((slot) => ({ slot, tokens: ids.slice(0, 5), pages: pagesOf(slot) })))
        const times = []
        for (let at = 0; at < 50; at++) {
          for (const slot of slots.slice(0, masked)) steps.mask(slot, third)
          const { timings } = await steps.run(...slots.map((slot) => ({ slot, tokens: [-1], cached: 5 + at, pages: pagesOf(slot) })))
          if (at >= 10) times.push(timings.deviceUs ?? timings.runUs)
        }
        times.sort((a, b) => a - b)
        record(`${precision}.step of 64 rows, ${masked} masked, us`, times[times.length >> 1])
        for (const slot of slots) steps.close(slot)
      }
    })
  })
}
