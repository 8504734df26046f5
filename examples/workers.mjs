// An LLM in a Worker: tokenizing, chat templates and detokenizing leave the main thread. (The model's own work runs on threads
// of the backend in any case.) Requests and chunks cross as messages.
//   node examples/workers.mjs
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { LLM } from 'node-tensorrt'

if (isMainThread) await main()
else await serve()

async function main() {
  const worker = new Worker(new URL(import.meta.url))
  const waiting = new Map()
  worker.on('message', ({ id, ...event }) => waiting.get(id)?.(event))
  const failed = new Promise((_, reject) => worker.once('error', reject))

  /** Resolves with the whole text; `onText` gets each piece. */
  const generate = (id, options, onText) => {
    const result = new Promise((resolve, reject) => {
      waiting.set(id, ({ text, done, error }) => {
        if (error !== undefined) reject(new Error(error))
        else if (done !== undefined) resolve(done)
        else onText(text)
      })
      worker.postMessage({ id, options })
    })
    return Promise.race([result, failed]).finally(() => waiting.delete(id))
  }

  // The timer shows that this thread is free while three requests run in the other one.
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  let pieces = 0
  const heroes = ['fox', 'owl', 'snail']
  const stories = await Promise.all(
    heroes.map((hero, id) =>
      generate(id, { messages: [{ role: 'user', content: `Write a story about a kind ${hero}.` }], temperature: 0 }, () => pieces++),
    ),
  )
  clearInterval(timer)
  for (const [i, story] of stories.entries()) console.log(`${heroes[i]}: ${story.slice(0, 70)}...`)
  console.log(`${pieces} pieces of text from the worker; ${ticks > 0 ? 'the main thread kept ticking' : 'the main thread was blocked'}`)

  const ended = new Promise((resolve) => worker.once('exit', resolve))
  worker.postMessage({ close: true })
  console.log(`worker ended with code ${await ended}`)
}

async function serve() {
  const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
  const llm = await LLM.load(model, { backend: 'cpu' })
  parentPort.on('message', async ({ id, options, close }) => {
    if (close) {
      parentPort.close()
      await llm.close()
      return
    }
    try {
      const generation = llm.generate(options)
      for await (const { text } of generation) parentPort.postMessage({ id, text })
      parentPort.postMessage({ id, done: (await generation.result()).text })
    } catch (error) {
      parentPort.postMessage({ id, error: error.message })
    }
  })
}
