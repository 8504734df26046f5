/** A server whose answers and their times are known: what bench serve reports of it can be checked. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface Asked {
  path: string
  headers: IncomingMessage['headers']
  // oxlint-disable-next-line typescript/no-explicit-any -- looked at field by field
  body: any
  at: number
}

export type Answer = (response: ServerResponse, asked: Asked) => void | Promise<void>

export interface KnownServer {
  url: string
  asked: Asked[]
  answer: Answer
  close(): Promise<void>
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
export const event = (data: unknown): string => `data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`
export const begin = (response: ServerResponse): void => {
  response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' })
  response.flushHeaders()
}

/** As vLLM streams completions and chats. */
export function tokens(ttftMs: number, gapMs: number): Answer {
  return async (response, { path, body }) => {
    begin(response)
    const chat = path.endsWith('chat/completions')
    await sleep(ttftMs)
    if (chat) response.write(event({ choices: [{ index: 0, delta: { role: 'assistant', content: '' }, finish_reason: null }] }))
    for (let i = 1; i <= body.max_tokens; i++) {
      const finish_reason = i === body.max_tokens ? 'length' : null
      response.write(event({ choices: [{ index: 0, ...(chat ? { delta: { content: ' a' } } : { text: ' a' }), finish_reason }] }))
      if (i < body.max_tokens && gapMs > 0) await sleep(gapMs)
    }
    const prompt = chat ? 7 : body.prompt.length
    response.write(event({ choices: [], usage: { prompt_tokens: prompt, completion_tokens: body.max_tokens, prompt_tokens_details: { cached_tokens: 3 } } }))
    response.end(event('[DONE]'))
  }
}

export async function startKnownServer(): Promise<KnownServer> {
  const asked: Asked[] = []
  const known: KnownServer = { url: '', asked, answer: tokens(0, 0), close: () => Promise.resolve() }
  const server: Server = createServer((request, response) => {
    let text = ''
    request.setEncoding('utf8')
    request.on('data', (part: string) => (text += part))
    request.on('end', () => {
      if (request.method === 'GET') {
        response.setHeader('content-type', 'application/json')
        response.end(JSON.stringify({ data: [{ id: 'known' }] }))
        return
      }
      const one: Asked = { path: request.url!, headers: request.headers, body: JSON.parse(text), at: performance.now() }
      asked.push(one)
      void Promise.resolve(known.answer(response, one)).catch(() => response.destroy())
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  known.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  known.close = () =>
    new Promise((resolve) => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  return known
}
