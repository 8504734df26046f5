/** Builds every engine that the other programs use: how long it takes, and what comes of it. Then once more, from the timing cache and from the build cache. */
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { ENGINES, engineFolder } from './support/engines.mjs'
import { check, describeProgram, enginesFolder, finish, lib, modelsFolder, options, positionals, round, stopSignal, timingCache } from './support/target.mjs'

describeProgram({
  text: 'Builds the engines that the other programs use, or those that are named:\n' + Object.keys(ENGINES).join(', '),
  options: ['  --sizes LIST         batch sizes of bert-serve, a profile each. Default: 1,32,128'],
  pieces: {
    small: { checks: 'build mlp,build resnet,build select', seconds: 55, about: 'nine small ones, 5 to 8 s each' },
    bert: { checks: 'build bert-fp', seconds: 25, about: 'two with one profile' },
    serve: { checks: 'build bert-serve', seconds: 45, about: 'the one of the load tests: 15 s a profile, 3 s with a timing cache' },
    cache: { checks: 'a build of', seconds: 12, about: 'a build from the timing cache and one from the build cache' },
  },
})
const wanted = positionals.length > 0 ? positionals : Object.keys(ENGINES)
for (const name of wanted) {
  await check(`build ${name}`, async (figures) => {
    let built
    const folder = await engineFolder(name, (facts) => (built = facts))
    if (built === undefined) return { found: true }
    Object.assign(figures, { seconds: round(built.seconds), planBytes: built.planBytes, build: built.manifest.build })
    assert.equal(statSync(join(folder, 'plan')).size, built.manifest.plan.bytes)
    return undefined
  }, { timeoutMs: 400_000 })
}

if (!options.fake && positionals.length === 0) {
  const { onnx, ...rest } = ENGINES['resnet-fp16']
  const model = join(modelsFolder, `${onnx}.onnx`)
  await check('a build of what was built before comes from the cache', async () => {
    const cacheDir = join(enginesFolder, 'cache')
    const build = async () => {
      const started = performance.now()
      const { cached, path } = await lib.buildEngine({ onnx: model, cacheDir, timingCache, signal: stopSignal, ...rest })
      return { cached, path, seconds: round((performance.now() - started) / 1000) }
    }
    const first = await build()
    const second = await build()
    assert.deepEqual([first.cached, second.cached, second.path], [false, true, first.path])
    return { withTimingCacheSeconds: first.seconds, cachedSeconds: second.seconds }
  })
}
await finish()
