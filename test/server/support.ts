/** A real server on the loopback, over the CPU backend and models/tiny-storyteller. */
import { execFile } from 'node:child_process'
import { resolve } from 'node:path'
import { LLM, type LLMOptions } from '../../lib'
import { createServer, type Server, type ServerOptions } from '../../lib/server'

export const MODEL = resolve(__dirname, '../../models/tiny-storyteller')
export const NAME = 'tiny-storyteller'

export interface Fixture {
  llm: LLM
  server: Server
  url: string
  /** What failed inside of the server. */
  failures: unknown[]
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>
  close(): Promise<void>
}

export async function startServer(options: ServerOptions = {}, load: LLMOptions = {}): Promise<Fixture> {
  return serveLLM(await LLM.load(MODEL, { backend: 'cpu', threads: 2, ...load }), options)
}

/** The LLM ends with the server. */
export async function serveLLM(llm: LLM, options: ServerOptions = {}): Promise<Fixture> {
  const failures: unknown[] = []
  const server = createServer(llm, { onError: (error) => failures.push(error), ...options })
  const { url } = await server.listen({ port: 0 })
  return {
    llm,
    server,
    url,
    failures,
    post: (path, body, headers = {}) =>
      fetch(url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
      }),
    close: async () => {
      await server.close()
      await llm.close()
    },
  }
}

export interface ErrorAnswer {
  error: { message: string; type: string; param: string | null; code: string | null }
}

// oxlint-disable-next-line typescript/no-explicit-any -- answers are looked at field by field
export type Json = any

/** The data of each event of a stream, parsed; `[DONE]` as it is. Comments are left out. */
export function eventsOf(text: string): Json[] {
  return text
    .split('\n\n')
    .filter((event) => event.startsWith('data: '))
    .map((event) => event.slice(6))
    .map((data) => (data === '[DONE]' ? data : JSON.parse(data)))
}

/** Waits until `condition` holds, also on a machine that is slow, and busy with something else. */
export async function until(condition: () => boolean, what: string, timeoutMs = 60_000): Promise<void> {
  const end = Date.now() + timeoutMs
  while (!condition()) {
    if (Date.now() > end) throw new Error(`Not within ${timeoutMs} ms: ${what}`)
    await new Promise((done) => setTimeout(done, 2))
  }
}

export function curl(args: readonly string[], timeoutMs = 60_000): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((done) => {
    execFile('curl', ['-s', '-S', ...args], { timeout: timeoutMs, maxBuffer: 2 ** 26 }, (error, stdout, stderr) =>
      done({ code: error === null ? 0 : Number(error.code ?? 1), stdout, stderr }),
    )
  })
}
