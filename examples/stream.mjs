// Streams a story as it is written.
//   node examples/stream.mjs ["Write a short story about a shy robot."]
import { fileURLToPath } from 'node:url'
import { LLM } from 'node-tensorrt'

const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
const prompt = process.argv[2] ?? 'Write a short story about a shy robot.'

const llm = await LLM.load(model, { backend: 'cpu' })
const generation = llm.generate({ messages: [{ role: 'user', content: prompt }], temperature: 0.7, seed: 7 })
for await (const chunk of generation) process.stdout.write(chunk.text)

const { usage, timings, finishReason } = await generation.result()
console.log(
  `\n\n${usage.completionTokens} tokens, the first after ${timings.ttftMs.toFixed(0)} ms, ` +
    `all after ${timings.totalMs.toFixed(0)} ms (${finishReason})`,
)
await llm.close()
