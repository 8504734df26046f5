// Sessions in all kinds of use, in a process of its own: node busy_sessions.mjs <plan> [seed]. Prints a line of JSON.
import { readFileSync } from 'node:fs'
import { Engine, Session, Tensor } from 'node-tensorrt'

let state = Number(process.argv[3] ?? 1)
const random = (below) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 2 ** 32) * below)
}
const counts = {}
const count = (what) => (counts[what] = (counts[what] ?? 0) + 1)

async function send(session) {
  const rows = 1 + random(3)
  const x = Float32Array.from({ length: 4 * rows }, () => random(1000))
  const abort = new AbortController()
  const kind = random(6)
  const options = kind === 0 ? { signal: abort.signal } : kind === 1 ? { timeoutMs: 1 + random(20) } : kind === 2 ? { priority: random(5) - 2 } : {}
  if (kind === 0) setTimeout(() => abort.abort(), random(10))
  try {
    const { y } = await session.run({ x: Tensor.float32(x, [rows, 4]) }, options)
    count(y.data.length === x.length && y.data.every((value, i) => value === 2 * x[i] + 1) ? 'right' : 'wrong')
  } catch (error) {
    count(error.code)
  }
}

const plan = readFileSync(process.argv[2])
const session = await Session.load(plan, {
  backend: 'tensorrt',
  contexts: 2,
  batching: { maxBatch: 8, maxDelayMs: 1, preferredSizes: [4, 8], runSizes: [1, 4, 8] },
  cudaGraphs: 2,
  maxQueue: 64,
})
const engine = await Engine.load(plan)
const plain = await engine.createSession({ warmUp: false, cudaGraphs: 1 })
for (let round = 0; round < 30; round++) {
  await Promise.all(Array.from({ length: 20 }, async (_, i) => {
    await new Promise((resolve) => setTimeout(resolve, random(10)))
    await send(i % 4 === 0 ? plain : session)
  }))
}
const stats = [session.stats(), plain.stats()]
const inUse = Array.from({ length: 20 }, () => send(session))
const alsoInUse = Array.from({ length: 20 }, () => send(plain))
await Promise.all([session.close(), engine.close()])
await Promise.all([...inUse, ...alsoInUse])
const { queued, running } = stats[0]
console.log(JSON.stringify({ counts, queued, running, completed: stats[0].completed + stats[1].completed }))
