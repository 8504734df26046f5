// Text as server-sent events over plain HTTP: back-pressure, clients that go away, errors as status codes, a clean end.
//   node examples/http-stream.mjs               listens on 127.0.0.1:8080 (PORT)
//   curl -N 127.0.0.1:8080/generate -d '{"prompt": "Once upon a time", "maxTokens": 64}'
//   node examples/http-stream.mjs --self-test   is its own client, and ends
import { once } from 'node:events'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'
import { LLM, TensorRTError } from 'node-tensorrt'

const MAX_BODY_BYTES = 1024 * 1024
/** What a client can do something about; all else is 500. */
const STATUS = {
  ERR_INVALID_ARGUMENT: 400,
  ERR_INVALID_TOKEN: 400,
  ERR_PROMPT_TOO_LONG: 400,
  ERR_REQUEST_TOO_LARGE: 400,
  ERR_QUEUE_FULL: 503,
  ERR_DISPOSED: 503,
  ERR_TIMEOUT: 504,
  ERR_DEADLINE_EXCEEDED: 504,
}

const model = fileURLToPath(new URL('../models/tiny-storyteller', import.meta.url))
const llm = await LLM.load(model, { backend: 'cpu', maxQueue: 256 })

async function readJson(request) {
  let body = ''
  request.setEncoding('utf8')
  for await (const piece of request) {
    body += piece
    if (body.length > MAX_BODY_BYTES) throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The request is too large')
  }
  try {
    const value = JSON.parse(body)
    if (typeof value === 'object' && value !== null) return value
  } catch {
    // The same answer.
  }
  throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The body must be a JSON object')
}

/** Only what a stranger may choose. */
function optionsOf({ prompt, messages, maxTokens = 256, temperature, seed, stop }) {
  return { prompt, messages, maxTokens, temperature, seed, stop, timeoutMs: 60_000 }
}

/** Resolves when the system has all of it, or the client has gone. */
function end(response, text = '') {
  return new Promise((resolve) => {
    response.once('close', resolve)
    response.end(text, resolve)
  })
}

async function generate(request, response) {
  const gone = new AbortController()
  response.once('close', () => gone.abort(new Error('the client went away')))
  const send = async (event) => {
    if (!response.write(`data: ${JSON.stringify(event)}\n\n`)) await once(response, 'drain', { signal: gone.signal })
  }
  try {
    const generation = llm.generate({ ...optionsOf(await readJson(request)), signal: gone.signal })
    for await (const { text, finishReason } of generation) {
      // Not before the first chunk: a request that is refused gets its status code.
      if (!response.headersSent) response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
      await send({ text, finishReason })
    }
    await send({ usage: (await generation.result()).usage })
    await end(response)
  } catch (error) {
    if (gone.signal.aborted) return
    const known = error instanceof TensorRTError
    const body = { error: known ? { code: error.code, message: error.message } : { code: 'ERR_INTERNAL', message: 'internal error' } }
    if (!known) console.error(error)
    if (response.headersSent) {
      await end(response, `data: ${JSON.stringify(body)}\n\n`)
    } else {
      response.writeHead(STATUS[error.code] ?? 500, { 'content-type': 'application/json' })
      await end(response, `${JSON.stringify(body)}\n`)
    }
  }
}

const running = new Set()
const server = createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/generate') {
    const answered = generate(request, response).finally(() => running.delete(answered))
    running.add(answered)
  } else if (request.method === 'GET' && request.url === '/stats') {
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(llm.stats()))
  } else {
    response.writeHead(404).end()
  }
})

/** New requests are refused, those that run have ten seconds; connections without a request are closed at once. */
async function shutDown() {
  const closed = new Promise((resolve) => server.close(resolve))
  await llm.close({ drain: 10_000 })
  await Promise.all(running)
  server.closeAllConnections()
  await closed
}

const selfTesting = process.argv.includes('--self-test')
server.listen(selfTesting ? 0 : Number(process.env.PORT ?? 8080), '127.0.0.1')
await once(server, 'listening')
const address = `http://127.0.0.1:${server.address().port}`

if (selfTesting) {
  await selfTest()
  await shutDown()
  console.log('closed')
} else {
  console.log(`${address}/generate`)
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, shutDown)
}

async function selfTest() {
  const post = (body, signal) => fetch(`${address}/generate`, { method: 'POST', body: JSON.stringify(body), signal })
  async function* events(response) {
    let text = ''
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
      const parts = (text + piece).split('\n\n')
      text = parts.pop()
      for (const part of parts) yield JSON.parse(part.slice('data: '.length))
    }
  }

  const response = await post({ messages: [{ role: 'user', content: 'What is 7 plus 5?' }], temperature: 0 })
  let text = ''
  for await (const event of events(response)) text += event.text ?? ''
  console.log(`${response.status} ${response.headers.get('content-type')}: ${text}`)

  for (const body of [{ prompt: 'Once', temperature: -1 }, null]) {
    const refused = await post(body)
    const { error } = await refused.json()
    console.log(`${refused.status} ${error.code}: ${error.message}`)
  }

  const client = new AbortController()
  const endless = await post({ prompt: 'Once upon a time', maxTokens: 900 }, client.signal)
  try {
    for await (const _ of events(endless)) client.abort()
  } catch {
    // The client's own doing.
  }
  while (llm.stats().running > 0) await new Promise((resolve) => setTimeout(resolve, 10))
  console.log(`${llm.stats().sequences.aborted} aborted as its client went away`)
}
