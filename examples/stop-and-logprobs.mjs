// Where an output ends, and how sure the model was.
//   node examples/stop-and-logprobs.mjs
import { fileURLToPath } from 'node:url'
import { LLM } from 'node-tensorrt'

const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
const llm = await LLM.load(model, { backend: 'cpu' })
const prompt = 'Once upon a time, there was a brave fox named'

// A stop string may span tokens. It is left out of the text, unless `includeStop` says otherwise.
const sentence = await llm.generate({ prompt, temperature: 0, stop: ['.', '!'] }).result()
console.log(`stop string: "${sentence.text}", ended by "${sentence.stop}" (${sentence.finishReason})`)

// Or a token; or a number of tokens.
const [comma] = llm.tokenize(',', { addSpecialTokens: false })
const token = await llm.generate({ prompt: 'It was late', temperature: 0, stopTokenIds: [comma], maxTokens: 50 }).result()
console.log(`stop token or length: "${token.text}", ended by ${token.stop ?? 'maxTokens'} (${token.finishReason})`)

// Natural logs of probability of each token and of its best alternatives.
const { logprobs } = await llm.generate({ prompt, temperature: 0, maxTokens: 4, logprobs: 3 }).result()
for (const { token, logprob, top } of logprobs) {
  const others = top.map((other) => `${JSON.stringify(llm.detokenize([other.token]))} ${Math.exp(other.logprob).toFixed(3)}`)
  console.log(`${JSON.stringify(llm.detokenize([token])).padEnd(10)} ${Math.exp(logprob).toFixed(3)}  of ${others.join(', ')}`)
}

// `maxTokens: 0` only reads: the log-probabilities of a given text tell how likely the model finds it.
async function perplexity(text) {
  const { promptLogprobs } = await llm.generate({ prompt: text, maxTokens: 0, promptLogprobs: 0 }).result()
  const known = promptLogprobs.filter((entry) => entry !== null)
  return Math.exp(-known.reduce((sum, entry) => sum + entry.logprob, 0) / known.length)
}
for (const text of ['The sun went down, and everybody was happy.', 'The down sun happy, was and everybody went.']) {
  console.log(`perplexity ${(await perplexity(text)).toFixed(1)}: ${text}`)
}
await llm.close()
