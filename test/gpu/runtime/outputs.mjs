/**
 * Outputs of every model against onnxruntime's on the same inputs: float32 within 1e-3 (TF32 off), float16 within 2e-2, as |a - b| / max(1, |b|).
 * Each case runs by hand (context, stream, buffers) and through a session; both must agree to the bit.
 */
import assert from 'node:assert/strict'
import { runByHand } from './support/by_hand.mjs'
import { engineFolder, SERVED_SIZES } from './support/engines.mjs'
import { distance, readCases } from './support/references.mjs'
import { check, describeProgram, finish, lib, round } from './support/target.mjs'

describeProgram({
  text: "Outputs of every model against onnxruntime's on the same inputs, by hand and through a session.",
  pieces: {
    models: { checks: 'mlp,resnet,select,bert', seconds: 75, about: 'eight engines and their outputs; 70 s of it are builds' },
    batch: { checks: 'a batch', seconds: 5, about: 'a batch of a session is bit-equal to the same batch by hand (engine bert-serve)' },
  },
})
const TOLERANCE = { fp32: 1e-3, fp16: 2e-2 }
const { Engine } = lib

/** Of padded tokens no value means anything: which values of an output count. */
function counting(name, { attention_mask: mask }, { shape }) {
  if (name !== 'last_hidden_state') return undefined
  const [, length, hidden] = shape
  return (i) => mask.data[Math.floor(i / hidden / length) * length + (Math.floor(i / hidden) % length)] === 1n
}

for (const model of ['mlp', 'resnet', 'select', 'bert']) {
  for (const precision of ['fp32', 'fp16']) {
    await check(`${model} ${precision}`, async (figures) => {
      const engine = await Engine.load(await engineFolder(`${model}-${precision}`))
      figures.cases = []
      try {
        const session = await engine.createSession({ warmUp: false, cudaGraphs: model !== 'select' })
        for (const { inputs, outputs } of readCases(model)) {
          const byHand = await runByHand(engine, inputs)
          const fromSession = await session.run(inputs)
          const entry = { shapes: Object.values(inputs).map(({ shape }) => shape.join('x')), outputs: {} }
          figures.cases.push(entry)
          for (const [name, expected] of Object.entries(outputs)) {
            assert.deepEqual(fromSession[name].shape, byHand[name].shape)
            assert.deepEqual(fromSession[name].data, byHand[name].data, `${name}: a session gives what a run by hand gives`)
            const { relative, absolute } = distance(byHand[name], expected, counting(name, inputs, expected))
            entry.outputs[name] = { shape: expected.shape.join('x'), relative: round(relative), absolute: round(absolute) }
            assert.ok(relative <= TOLERANCE[precision], `${name}: ${relative} is more than ${TOLERANCE[precision]}`)
          }
        }
        await session.close()
      } finally {
        await engine.close()
      }
    })
  }
}

await check('a batch of a session gives what the same batch by hand gives', async () => {
  const engine = await Engine.load(await engineFolder('bert-serve'))
  try {
    // So many rows in one batch: the same rows as one request by hand.
    const rows = SERVED_SIZES[1]
    const session = await engine.createSession({ batching: { maxBatch: rows, runSizes: [1, rows], maxDelayMs: 1000 } })
    const requests = Array.from({ length: rows }, (_, row) => ({
      input_ids: lib.Tensor.int64(BigInt64Array.from({ length: 128 }, (_, i) => BigInt((i * 7919 + row * 104729) % 30522)), [1, 128]),
      attention_mask: lib.Tensor.int64(new BigInt64Array(128).fill(1n), [1, 128]),
    }))
    const answers = await Promise.all(requests.map((inputs) => session.run(inputs)))
    const { batchSizes } = session.stats()
    await session.close()
    const joined = Object.fromEntries(['input_ids', 'attention_mask'].map((name) => [name, lib.Tensor.int64(
      BigInt64Array.from(requests.flatMap((inputs) => [...inputs[name].data])), [rows, 128])]))
    const byHand = await runByHand(engine, joined, { profile: 1 })
    const { pooler_output: all } = byHand
    const width = all.shape[1]
    for (const [row, { pooler_output: own }] of answers.entries()) {
      assert.deepEqual(own.data, all.data.slice(row * width, (row + 1) * width), `row ${row}`)
    }
    return { batchSizes }
  } finally {
    await engine.close()
  }
})
await finish()
