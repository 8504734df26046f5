// What the load generator of `bench serve` costs: a server that does no work (a process of its own) streams tokens at a fixed
// pace, and whatever the client reports beyond that pace is its own.
//   npx tsx bench/bench_serve.ts [streams = 512] [tokens/s of each = 40] [seconds = 10]
import { fork } from 'node:child_process'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { runServeLoad } from '../lib/cli/bench_serve_load'
import { describeMachine } from './machine'

/** Answers each request with `max_tokens` chunks, `intervalMs` apart. All streams share one timer, as a server's steps are shared. */
function serve(intervalMs: number): void {
  const streams = new Set<() => void>()
  let due = performance.now()
  const tick = (): void => {
    for (const next of streams) next()
    due += intervalMs
    setTimeout(tick, Math.max(0, due - performance.now()))
  }
  tick()
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8')
    request.on('data', (part: string) => (body += part))
    request.on('end', () => {
      const { max_tokens: tokens } = JSON.parse(body) as { max_tokens: number }
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      const chunk = (text: string, reason: string | null): string =>
        `data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,"model":"none","choices":[{"index":0,"text":${JSON.stringify(text)},"logprobs":null,"finish_reason":${JSON.stringify(reason)},"stop_reason":null}]}\n\n`
      let sent = 0
      const next = (): void => {
        sent++
        response.write(chunk(' word', sent === tokens ? 'length' : null))
        if (sent < tokens) return
        streams.delete(next)
        response.end(`data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":${tokens},"total_tokens":${tokens + 8}}}\n\ndata: [DONE]\n\n`)
      }
      streams.add(next)
      response.on('close', () => streams.delete(next))
    })
  })
  server.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port))
  process.on('disconnect', () => process.exit())
}

async function measure(streams: number, rate: number, seconds: number): Promise<void> {
  const child = fork(__filename, ['serve', String(1000 / rate)])
  const port = await new Promise<number>((resolve) => child.once('message', (message) => resolve(message as number)))
  const tokens = { kind: 'uniform' as const, min: rate * 2, max: rate * 4 }
  try {
    const report = await runServeLoad({
      target: {
        base: new URL(`http://127.0.0.1:${port}/v1`),
        endpoint: 'completions',
        model: 'none',
        headers: {},
        exactLengths: true,
        temperature: 0,
        extraBody: {},
        timeoutMs: 60_000,
      },
      seed: 1,
      input: { kind: 'uniform', min: 128, max: 128 },
      output: tokens,
      sharedPrefix: 0,
      tokenIds: { min: 100, max: 999 },
      arrivals: { kind: 'gamma', shape: 1 },
      concurrency: streams,
      requests: undefined,
      durationSeconds: seconds,
      goodput: {},
      signal: new AbortController().signal,
    })
    process.stdout.write(`${JSON.stringify({ ...describeMachine(), streams, tokensPerSecondEach: rate, intervalMs: 1000 / rate, ...report, samples: undefined }, null, 2)}\n`)
  } finally {
    child.disconnect()
  }
}

if (process.argv[2] === 'serve') serve(Number(process.argv[3]))
else {
  const [streams = 512, rate = 40, seconds = 10] = process.argv.slice(2).map(Number)
  void measure(streams, rate, seconds)
}
