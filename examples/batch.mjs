// Many prompts through one LLM. They run together, up to `maxSequences` at once; how many are handed over at a time is the
// program's choice, so a list of any length needs neither a long queue nor much memory.
//   node examples/batch.mjs [prompts] [concurrency]
import { fileURLToPath } from 'node:url'
import { LLM } from 'node-tensorrt'

const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
const count = Number(process.argv[2] ?? 40)
const concurrency = Number(process.argv[3] ?? 16)

/** The same for all: its keys and values are computed once. */
const system = { role: 'system', content: 'End every story with the words: The end.' }

function* prompts() {
  const heroes = ['fox', 'snail', 'dragon', 'owl', 'robot', 'bear', 'turtle', 'mouse']
  const traits = ['brave', 'shy', 'kind', 'sleepy', 'playful']
  for (let i = 0; i < count; i++) {
    yield `Write a very short story about a ${traits[i % traits.length]} ${heroes[i % heroes.length]}.`
  }
}

const llm = await LLM.load(model, { backend: 'cpu', maxSequences: concurrency })
const pending = prompts()
const started = performance.now()
let done = 0
let tokens = 0

async function work() {
  for (const content of pending) {
    const result = await llm.generate({ messages: [system, { role: 'user', content }], maxTokens: 96, temperature: 0 }).result()
    tokens += result.usage.completionTokens
    if (++done % 10 === 0) console.log(`${done}: ${content} -> ${result.text.slice(0, 50)}...`)
  }
}
// A generator is its own iterator: each worker takes the next prompt that nobody has taken.
await Promise.all(Array.from({ length: concurrency }, work))

const seconds = (performance.now() - started) / 1000
const { prefixCache, steps } = llm.stats()
console.log(
  `${done} answers, ${tokens} tokens in ${seconds.toFixed(2)} s: ${Math.round(tokens / seconds)} tokens/s in ${steps.completed} steps, ` +
    `${Math.round(prefixCache.hitRate * 100)}% of the prompts' full pages from the prefix cache`,
)
await llm.close()
