/** Miniature models of each family, with random weights, against values of transformers in float32. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { LLM } from '../../lib'
import { graphFromConfig } from '../../lib/models'
import { CpuBackend, loadAddon } from '../../lib/native'

interface Golden {
  ids: number[]
  prompt_logprobs: (number | null)[]
  /** Of the prompt's last position. */
  logits: number[]
  greedy: number[]
  min_gap: number
}

const fixtures = join(__dirname, '..', 'fixtures', 'families')
const { models } = JSON.parse(readFileSync(join(fixtures, 'goldens.json'), 'utf8')) as {
  models: Record<string, Golden>
}
const TOLERANCE = 1e-4

const cases = Object.keys(models).flatMap((name) =>
  loadAddon()
    .addon.cpuFeatures()
    .simd.map((simd) => ({ name, simd })),
)

describe.each(cases)('$name on $simd', ({ name, simd }) => {
  // Smaller steps than the prompt, so that windows and positions cross from one chunk to the next.
  it.each([{ maxStepTokens: 256 }, { maxStepTokens: 5 }])(
    'equals the reference, $maxStepTokens tokens a step',
    async ({ maxStepTokens }) => {
      const golden = models[name]!
      const config: unknown = JSON.parse(readFileSync(join(fixtures, name, 'config.json'), 'utf8'))
      const executor = await CpuBackend.create({
        graph: graphFromConfig(config),
        files: [join(fixtures, name, 'model.safetensors')],
        pageSize: 4,
        numPages: 64,
        maxSlots: 4,
        maxStepTokens,
        threads: 2,
        simd,
      })
      const llm = LLM.fromExecutor(executor)
      try {
        const request = { tokens: golden.ids, maxTokens: golden.greedy.length, logprobs: 40, promptLogprobs: 0 }
        const result = await llm.generate(request).result()
        const prompt = result.promptLogprobs!.slice(1).map((entry) => entry!.logprob)
        prompt.forEach((logprob, i) =>
          expect(Math.abs(logprob - golden.prompt_logprobs[i + 1]!), `position ${i + 1}`).toBeLessThan(TOLERANCE),
        )
        const logSum = Math.log(golden.logits.reduce((sum, logit) => sum + Math.exp(logit), 0))
        for (const { token, logprob } of result.logprobs![0]!.top) {
          expect(Math.abs(logprob - (golden.logits[token]! - logSum)), `token ${token}`).toBeLessThan(TOLERANCE)
        }
        expect(golden.min_gap).toBeGreaterThan(TOLERANCE * 10)
        expect(result.tokens).toEqual(golden.greedy)
      } finally {
        await llm.close()
      }
    },
  )
})
