/** `llm.profile()` of an engine under load: what it counts is what ran, and its times add up to the wall's. */
import assert from 'node:assert/strict'
import { record, verify } from './support/report.mjs'
import { loadLLM, precisions } from './support/target.mjs'

const precision = precisions.includes('bf16') ? 'bf16' : precisions[0]

for (const sequences of [1, 64]) {
  verify(`${precision}: ${sequences} sequences`, {}, async () => {
    const llm = await loadLLM(precision, { maxSequences: 64, prefixCache: false })
    try {
      const load = () =>
        Promise.all(
          Array.from({ length: sequences }, (_, i) =>
            llm.generate({ tokens: Array.from({ length: 100 }, (_, j) => 6 + ((i * 131 + j * 17) % 4000)), maxTokens: 300, ignoreEos: true, temperature: 0 }).result(),
          ),
        )
      await load()
      const before = llm.stats()
      const { recent, ...profile } = await llm.profile({ until: load(), keep: 100_000 })
      const after = llm.stats()
      record(`${sequences}`, { ...profile, recent: recent.slice(-5) })
      const sum = (name) => recent.reduce((total, step) => total + step[name], 0)
      assert.equal(sum('decodeRows'), after.tokens.decode - before.tokens.decode)
      assert.equal(sum('prefillRows'), after.tokens.prefill - before.tokens.prefill)
      assert.ok(Math.abs(sum('runUs') / 1000 - (after.steps.runMs - before.steps.runMs)) < 1)
      assert.ok(Math.abs(profile.shares.run + profile.shares.gap - 1) < 0.1, `${profile.shares.run} + ${profile.shares.gap}`)
      assert.ok(profile.perStep.decodeRows.max === sequences)
    } finally {
      await llm.close()
    }
  })
}
