// A conversation, scripted. Each turn sends all turns before it; their keys and values come from the prefix cache.
//   node examples/chat.mjs
import { fileURLToPath } from 'node:url'
import { LLM } from 'node-tensorrt'

const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
const llm = await LLM.load(model, { backend: 'cpu' })

const messages = [{ role: 'system', content: 'Begin every answer with: Ahoy!' }]
for (const question of ['Hello!', 'What color is snow?', 'What is 7 plus 5?']) {
  messages.push({ role: 'user', content: question })
  const { text, usage } = await llm.generate({ messages, temperature: 0 }).result()
  messages.push({ role: 'assistant', content: text })
  console.log(`> ${question}\n${text}\n  (${usage.cachedTokens} of ${usage.promptTokens} prompt tokens from the cache)`)
}
await llm.close()
