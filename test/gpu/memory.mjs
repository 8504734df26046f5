/** Device memory: nothing grows while steps run, and nothing stays behind when a model is closed. */
import assert from 'node:assert/strict'
import { deviceMemoryMiB, record, verify } from './support/report.mjs'
import { seededRandom } from './support/statistics.mjs'
import { loadLLM, onCpu, precisions } from './support/target.mjs'

const STEPS = 1000
const LOADS = 50
const MOST_GROWTH_MIB = 64
/** The driver counts in blocks of 2 MiB; one of them may be in flight. */
const MOST_LEFT_MIB = 4
const precision = precisions.includes('bf16') ? 'bf16' : precisions[0]
const rssMiB = () => Math.round(process.memoryUsage.rss() / 2 ** 20)

verify(`${precision}: memory between the pool's allocation and step ${STEPS}`, {}, async () => {
  const llm = await loadLLM(precision, { maxSequences: 128, numPages: 4096 })
  try {
    const samples = [{ steps: 0, deviceMiB: deviceMemoryMiB(), rssMiB: rssMiB() }]
    const random = seededRandom(11)
    const request = () => ({
      tokens: Array.from({ length: 1 + Math.floor(random() ** 2 * 700) }, () => 6 + Math.floor(random() * 4000)),
      maxTokens: 1 + Math.floor(random() * 200),
      temperature: random() < 0.5 ? 0 : 1,
      topP: random() < 0.5 ? 1 : 0.9,
      logprobs: random() < 0.2 ? 5 : undefined,
      promptLogprobs: random() < 0.1 ? 1 : undefined,
    })
    // Batches of all sizes, so that every bucket and every captured graph is used.
    const steps = () => llm.stats().steps.completed
    for (let batch = 1; steps() < STEPS; batch = (batch * 3) % 127) {
      const target = Math.min(STEPS, steps() + 1)
      await Promise.all(Array.from({ length: batch }, () => llm.generate(request()).result()))
      if (steps() >= target) samples.push({ steps: steps(), deviceMiB: deviceMemoryMiB(), rssMiB: rssMiB() })
    }
    const first = samples[0]
    const last = samples.at(-1)
    const growth = onCpu ? last.rssMiB - first.rssMiB : Math.max(...samples.map(({ deviceMiB }) => deviceMiB)) - first.deviceMiB
    record('steps', { growthMiB: growth, first, last, samples: samples.length })
    if (!onCpu) assert.ok(growth < MOST_GROWTH_MIB, `${growth} MiB`)
    llm.check()
  } finally {
    await llm.close()
  }
})

verify(`${precision}: ${LOADS} loads and closes`, {}, async () => {
  const samples = []
  const ms = []
  for (let i = 0; i <= LOADS; i++) {
    const started = performance.now()
    const llm = await loadLLM(precision, { maxSequences: 64, numPages: 1024 })
    ms.push(performance.now() - started)
    if (i % 10 === 0) await llm.generate({ tokens: [0, 2, 204], maxTokens: 4, temperature: 0 }).result()
    await llm.close()
    samples.push({ deviceMiB: deviceMemoryMiB(), rssMiB: rssMiB() })
  }
  // The first load brings what the process keeps: the CUDA context, TensorRT, the module's kernels.
  const left = samples.at(-1).deviceMiB - samples[0].deviceMiB
  const hostLeft = samples.at(-1).rssMiB - samples[1].rssMiB
  record('loads', {
    leftMiB: left,
    hostLeftMiB: hostLeft,
    first: samples[0],
    last: samples.at(-1),
    loadMs: { first: Math.round(ms[0]), median: Math.round([...ms].sort((a, b) => a - b)[ms.length >> 1]) },
  })
  if (!onCpu) assert.ok(left <= MOST_LEFT_MIB, `${left} MiB`)
  assert.ok(hostLeft < 64, `${hostLeft} MiB of host memory`)
})
