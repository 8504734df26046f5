// Every way to end a request early, and what the caller sees of it.
//   node examples/abort-and-deadline.mjs
import { fileURLToPath } from 'node:url'
import { AbortError, LLM, TensorRTError } from 'node-tensorrt'

const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
const llm = await LLM.load(model, { backend: 'cpu' })
/** More than a second's work, unless something ends it. */
const long = { prompt: 'Once upon a time', maxTokens: 900, ignoreEos: true, temperature: 0 }

async function report(what, generation) {
  try {
    const { text } = await generation.result()
    console.log(`${what}: ${text.length} characters`)
  } catch (error) {
    if (error instanceof AbortError) console.log(`${what}: ${error.code}, because: ${error.cause?.message ?? 'the stream was left'}`)
    else if (error instanceof TensorRTError) console.log(`${what}: ${error.code}, ${error.message}`)
    else throw error
  }
}

// An AbortSignal: of a controller, of a timer, or of an HTTP request that went away.
const controller = new AbortController()
const aborted = llm.generate({ ...long, signal: controller.signal })
controller.abort(new Error('changed my mind'))
await report('signal', aborted)

// Leaving the loop ends the request, too.
const left = llm.generate(long)
for await (const chunk of left) if (chunk.tokens.length > 0) break
await report('break', left)

// A timeout counts from the call and fails with ERR_TIMEOUT when it has passed.
await report('timeout', llm.generate({ ...long, timeoutMs: 30 }))

// A deadline is for work that is useless when late. Requests with the earliest one run first, and one that cannot be met is refused
// before any work is done: here, as the steps so far have shown that 900 tokens (`minTokens`: no less) take longer than 20 ms.
await report('deadline', llm.generate({ ...long, minTokens: 900, deadlineMs: 20 }))

// Closing lets what is pending run for `drain` milliseconds; what is left then is rejected.
const pending = llm.generate({ ...long, n: 8 })
await llm.close({ drain: 1 })
await report('close', pending)
