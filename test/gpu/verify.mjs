/**
 * `verifyEngine` on the GPU: engines of the demo model beside the CPU backend, with the built-in prompts and with texts, and beside stored
 * references; what marks an engine unfit keeps it from being loaded.
 */
import assert from 'node:assert/strict'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { prompts as goldens } from './support/goldens.mjs'
import { record, verify } from './support/report.mjs'
import { engineFolder, LLM, modelFolder, onCpu, precisions, root, skip } from './support/target.mjs'

const { saveReferences, verifyEngine } = createRequire(join(root, 'package.json'))(join(root, 'dist', 'index.js'))
const nothing = onCpu ? 'the CPU backend has nothing to be verified against' : skip

for (const precision of precisions) {
  verify(`${precision}: the engine is fit, against the CPU backend and stored references`, { skip: nothing }, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-verify-'))
    try {
      const path = join(folder, 'engine')
      cpSync(await engineFolder(precision), path, { recursive: true })
      const kept = () => JSON.parse(readFileSync(join(path, 'engine.json'), 'utf8')).verification
      const common = { weights: modelFolder }

      const random = await verifyEngine(path, common)
      record(`${precision}.random`, random)
      const texts = goldens.map(({ ids }) => ids)
      const trained = await verifyEngine(path, { ...common, prompts: texts, maxTokens: 64 })
      record(`${precision}.goldens`, trained)
      const file = join(folder, 'references.json')
      await saveReferences(modelFolder, file, { prompts: texts, maxTokens: 64 })
      const stored = await verifyEngine(path, { ...common, references: file })
      record(`${precision}.references`, stored)
      for (const { verification, excesses } of [random, trained, stored]) {
        assert.deepEqual(excesses, [])
        assert.ok(verification.fit)
        // Another type, or another order of sums, and never the same bits throughout.
        assert.ok(verification.maxLogitDifference > 0)
        assert.ok(verification.positions > verification.prompts)
      }
      assert.deepEqual(kept(), stored.verification)
      await (await LLM.load(path, { backend: 'tensorrt', ...common })).close()

      const unfit = await verifyEngine(path, { ...common, limits: { maxLogitDifference: 0 } })
      assert.equal(unfit.verification.fit, false)
      assert.deepEqual(kept(), unfit.verification)
      await assert.rejects(LLM.load(path, { backend: 'tensorrt', ...common }), { code: 'ERR_ENGINE_INCOMPATIBLE', message: /largest difference of logits .*, the limit is 0/ })
      await (await LLM.load(path, { backend: 'tensorrt', allowUnfit: true, ...common })).close()
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
}

verify('an engine whose numbers are those of other prompts is unfit', { skip: nothing }, async () => {
  const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-verify-'))
  try {
    const path = join(folder, 'engine')
    cpSync(await engineFolder(precisions[0]), path, { recursive: true })
    const file = join(folder, 'references.json')
    // The references' numbers stay, and the engine is given the tokens rotated by one.
    await saveReferences(modelFolder, file, { prompts: goldens.map(({ ids }) => ids), maxTokens: 16 })
    const references = JSON.parse(readFileSync(file, 'utf8'))
    for (const prompt of references.prompts) prompt.tokens = [...prompt.tokens.slice(1), prompt.tokens[0]]
    writeFileSync(file, JSON.stringify(references))
    const { verification, excesses } = await verifyEngine(path, { weights: modelFolder, references: file, write: false })
    record('rotated', { verification, excesses })
    assert.equal(verification.fit, false)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
