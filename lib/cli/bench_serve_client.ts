/** One streamed request to an OpenAI-compatible server, and what its user sees of it. */
import http from 'node:http'
import https from 'node:https'
import { TensorRTError } from '../errors'
import { type PlannedServeRequest, wordsOf } from './bench_serve_plan'
import { SseReader } from './sse_reader'

export interface ServeTarget {
  /** Base of the API, with `/v1`. */
  base: URL
  endpoint: 'completions' | 'chat'
  model: string
  headers: Readonly<Record<string, string>>
  /** Sends `ignore_eos` and `min_tokens`, which OpenAI's own API does not know. */
  exactLengths: boolean
  temperature: number
  /** Further fields of the body. */
  extraBody: Readonly<Record<string, unknown>>
  /** For one request from its beginning to its end. */
  timeoutMs: number
}

export interface ServedRequest {
  /** Undefined where the whole answer came. Else its kind: `HTTP 503`, `timeout`, `connection ECONNRESET`, `stream cut` ... */
  error: string | undefined
  /** What the server or the connection said of it. */
  detail: string | undefined
  /** It was broken off from this side. */
  aborted: boolean
  /** Milliseconds of `performance.now()`. */
  startedAt: number
  endedAt: number
  /** To the first token; NaN where none came. */
  ttftMs: number
  /** From one chunk with text to the next. */
  gapsMs: number[]
  /** By the server's usage, else the chunks that brought text. */
  promptTokens: number
  outputTokens: number
  cachedTokens: number
  counted: 'usage' | 'chunks'
}

/** Longest part of an answer that says what went wrong. */
const MAX_DETAIL = 300
/** Idle connections end before servers close theirs (5 s in uvicorn and Node), as a request could meet that end. */
const IDLE_MS = 4000

interface Chunk {
  error?: unknown
  choices?: unknown
  usage?: { prompt_tokens?: unknown; completion_tokens?: unknown; prompt_tokens_details?: { cached_tokens?: unknown } | null } | null
}

interface Choice {
  text?: unknown
  finish_reason?: unknown
  delta?: { role?: unknown; content?: unknown; reasoning_content?: unknown; reasoning?: unknown; tool_calls?: unknown } | null
}

const count = (value: unknown): number | undefined => (typeof value === 'number' && Number.isFinite(value) ? value : undefined)
const filled = (value: unknown): boolean => typeof value === 'string' && value !== ''

/** Whether a chunk brings a token. Text may be empty where a token is part of a character. */
function bringsToken(choice: Choice): boolean {
  if (choice.delta === undefined) return filled(choice.text) || (choice.text === '' && (choice.finish_reason ?? null) === null)
  const { delta } = choice
  if (delta === null) return false
  if (filled(delta.content) || filled(delta.reasoning_content) || filled(delta.reasoning)) return true
  if (Array.isArray(delta.tool_calls) && delta.tool_calls.length > 0) return true
  // The chunk that opens the message has a role and no token.
  return delta.role === undefined && delta.content === '' && (choice.finish_reason ?? null) === null
}

/** The kind of an `error` chunk, for the list of errors. */
function streamError(error: unknown): { kind: string; detail: string } {
  const { type, code, message } = (typeof error === 'object' && error !== null ? error : { message: error }) as Record<string, unknown>
  const kind = [code, type].find((value) => typeof value === 'string' || typeof value === 'number')
  return { kind: `error in stream${kind === undefined ? '' : `: ${String(kind).slice(0, 60)}`}`, detail: String(message).slice(0, MAX_DETAIL) }
}

/** Keeps connections for all requests of a run. */
export class ServeClient {
  private readonly agent: http.Agent
  private readonly request: typeof http.request
  private readonly url: URL
  private readonly live = new Set<() => void>()
  private closed = false

  constructor(private readonly target: ServeTarget) {
    const secure = target.base.protocol === 'https:'
    const options: http.AgentOptions = { keepAlive: true, maxFreeSockets: 4096, scheduling: 'lifo', timeout: IDLE_MS, noDelay: true }
    this.agent = secure ? new https.Agent(options) : new http.Agent(options)
    this.request = secure ? https.request : http.request
    this.url = urlOf(target.base, target.endpoint === 'chat' ? 'chat/completions' : 'completions')
  }

  /** Requests in flight. */
  get active(): number {
    return this.live.size
  }

  private bodyOf({ promptTokens, outputTokens }: PlannedServeRequest): string {
    const { target } = this
    const prompt =
      target.endpoint === 'chat' ? { messages: [{ role: 'user', content: wordsOf(promptTokens) }] } : { prompt: promptTokens }
    return JSON.stringify({
      model: target.model,
      ...prompt,
      max_tokens: outputTokens,
      ...(target.exactLengths ? { ignore_eos: true, min_tokens: outputTokens } : {}),
      temperature: target.temperature,
      stream: true,
      stream_options: { include_usage: true },
      ...target.extraBody,
    })
  }

  /** Never rejects: what goes wrong is in the result. */
  send(planned: PlannedServeRequest): Promise<ServedRequest> {
    const body = Buffer.from(this.bodyOf(planned))
    return new Promise((resolve) => {
      const started = performance.now()
      const served: ServedRequest = {
        error: undefined,
        detail: undefined,
        aborted: false,
        startedAt: started,
        endedAt: started,
        ttftMs: NaN,
        gapsMs: [],
        promptTokens: 0,
        outputTokens: 0,
        cachedTokens: 0,
        counted: 'chunks',
      }
      let last = started
      let finished = false
      let done = false
      let settled = false
      let responded = false
      let events = 0
      let chunks = 0
      const settle = (error?: string, detail?: string): void => {
        if (settled) return
        settled = true
        clearTimeout(timer)
        this.live.delete(abort)
        served.endedAt = performance.now()
        served.error = error
        served.detail = detail
        if (served.counted === 'chunks') served.outputTokens = chunks
        resolve(served)
      }
      const fail = (error: string, detail?: string): void => {
        settle(error, detail)
        request.destroy()
      }
      const abort = (): void => {
        served.aborted = true
        fail('aborted')
      }

      const onData = (data: string): void => {
        if (settled) return
        events++
        if (data === '[DONE]') {
          done = true
          return
        }
        let chunk: Chunk | null
        try {
          chunk = JSON.parse(data) as Chunk | null
        } catch {
          fail('malformed stream', data.slice(0, MAX_DETAIL))
          return
        }
        if (typeof chunk !== 'object' || chunk === null) {
          fail('malformed stream', data.slice(0, MAX_DETAIL))
          return
        }
        if (chunk.error !== undefined && chunk.error !== null) {
          const { kind, detail } = streamError(chunk.error)
          fail(kind, detail)
          return
        }
        const { usage } = chunk
        if (usage !== undefined && usage !== null) {
          const output = count(usage.completion_tokens)
          if (output !== undefined) {
            served.outputTokens = output
            served.counted = 'usage'
          }
          served.promptTokens = count(usage.prompt_tokens) ?? served.promptTokens
          served.cachedTokens = count(usage.prompt_tokens_details?.cached_tokens) ?? served.cachedTokens
        }
        if (!Array.isArray(chunk.choices)) return
        for (const choice of chunk.choices as (Choice | null)[]) {
          if (typeof choice !== 'object' || choice === null) continue
          if (typeof choice.finish_reason === 'string') finished = true
          if (!bringsToken(choice)) continue
          const now = performance.now()
          if (chunks === 0) served.ttftMs = now - started
          else served.gapsMs.push(now - last)
          last = now
          chunks++
        }
      }

      const onResponse = (response: http.IncomingMessage): void => {
        responded = true
        const status = response.statusCode ?? 0
        response.setEncoding('utf8')
        response.on('error', (error) => settle('stream cut', error.message))
        if (status !== 200) {
          let text = ''
          const tell = (): void => settle(`HTTP ${status}`, text)
          response.on('data', (part: string) => {
            text = (text + part).slice(0, MAX_DETAIL)
          })
          response.on('end', tell)
          response.on('close', tell)
          return
        }
        if (!/^text\/event-stream\b/i.test(response.headers['content-type'] ?? '')) {
          fail('no event stream', `content-type ${response.headers['content-type'] ?? 'missing'}`)
          return
        }
        const reader = new SseReader(onData)
        response.on('data', (part: string) => {
          try {
            reader.push(part)
          } catch (error) {
            fail('malformed stream', (error as Error).message)
          }
        })
        const end = (): void => {
          if (!response.complete) settle('stream cut', `after ${chunks} chunks`)
          else if (!done && !finished) settle(events > 0 ? 'stream cut' : 'malformed stream', `ended after ${chunks} chunks`)
          else if (chunks === 0 && served.outputTokens === 0) settle('no tokens')
          else settle()
        }
        response.on('end', end)
        response.on('close', end)
      }

      const request = this.request(this.url, {
        method: 'POST',
        agent: this.agent,
        headers: {
          accept: 'text/event-stream',
          ...this.target.headers,
          'content-type': 'application/json',
          'content-length': body.length,
        },
      })
      const timer = setTimeout(() => fail('timeout', `no end within ${this.target.timeoutMs} ms`), this.target.timeoutMs)
      request.on('response', onResponse)
      // A second error may follow one that was told already; without a listener it would end the process.
      request.on('error', (error: NodeJS.ErrnoException) => {
        settle(`connection ${error.code ?? 'error'}`, error.message)
      })
      request.on('close', () => {
        // An answer tells its own end.
        if (!responded) settle('connection closed')
      })
      this.live.add(abort)
      if (this.closed) abort()
      else request.end(body)
    })
  }

  /** Breaks off what is in flight and ends all connections. */
  close(): void {
    this.closed = true
    for (const abort of this.live) abort()
    this.agent.destroy()
  }
}

function urlOf(base: URL, path: string): URL {
  const url = new URL(base)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/${path}`
  return url
}

/** 'http://host:8000' or 'http://host:8000/v1': the base of the API. Undefined for what is no address of a server. */
export function apiBase(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || !/^https?:$/.test(url.protocol) || url.username !== '' || url.search !== '' || url.hash !== '') return undefined
  if (url.pathname === '/' || url.pathname === '') url.pathname = '/v1'
  return url
}

/**
 * The first model of the server's list.
 * @throws ERR_IO where there is no server, or none that answers with a list of models
 */
export async function firstModel(base: URL, headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<string> {
  const url = urlOf(base, 'models')
  const fail = (what: string, cause?: unknown): TensorRTError =>
    new TensorRTError('ERR_IO', `${url.href} ${what}`, { hint: 'check --url and --api-key, or name the model by --model', cause })
  let response: Response
  try {
    response = await fetch(url, { headers: { ...headers }, signal: AbortSignal.any([signal, AbortSignal.timeout(30_000)]) })
  } catch (error) {
    signal.throwIfAborted()
    const { cause } = error as { cause?: { code?: unknown; message?: unknown } }
    throw fail(`does not answer: ${String(cause?.code ?? cause?.message ?? (error as Error).message)}`, error)
  }
  const list = (await response.json().catch(() => undefined)) as { data?: { id?: unknown }[] } | undefined
  if (!response.ok) throw fail(`answers with HTTP ${response.status}`)
  const id = Array.isArray(list?.data) ? list.data[0]?.id : undefined
  if (typeof id !== 'string') throw fail('lists no model')
  return id
}
