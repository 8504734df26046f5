/**
 * Runs the code that requests go through before there are any. Code that has never run is compiled with the first burst, which makes that one several times as
 * long as those that follow.
 *
 * Requests of each kind go over connections in memory to a server of their own, whose LLM computes nothing: metrics, log, traces, limits of keys, queue,
 * forecasts and cache of the real one never hear of them.
 */
import { Duplex } from 'node:stream'
import { dryRunOf, type LLM } from '../llm'
import { followSignal } from '../runtime'
import { createSlaAdmission } from './admission'
import type { ServerOptions } from './options'
import { createKeySecurity, hashApiKey, makeApiKey } from './security'
import type { Services } from './services'
import { createTelemetry } from './telemetry'

/** A server whose connections are handed to it. */
export interface WarmUpServer {
  connect(connection: Duplex): void
  close(): Promise<void>
}

/** Milliseconds after which what is not warm stays cold: a slow machine gets by with fewer requests. */
const MOST_MS = 300
/** Of a dozen requests at once each. Twice as many bring nothing that can be measured. */
const WAVES = 32
const MAX_TOKENS = 4
const PROMPT_TOKENS = 64
/** Beyond all bounds that could refuse a request. */
const SLA = { ttftMs: 60_000, itlMs: 60_000 }
const SENTENCE = 'The quick brown fox jumps over the lazy dog while 3 birds sing, and nobody knows why. '
/** Enough for a text to be encoded by the thread for long ones, which starts with its first. */
const LONG_SENTENCES = 30

/** Code is the process's: what was compiled for one server is there for the next. */
let isWarm = false

/**
 * Takes {@link MOST_MS} at most. Never rejects: what fails here ends it, and is left to real requests to tell.
 *
 * @param serve makes a server that nobody can reach
 * @param signal ends it early
 */
export async function warmUp(services: Services, serve: (llm: LLM, options: ServerOptions) => WarmUpServer, signal: AbortSignal): Promise<void> {
  if (isWarm) return
  const over = new AbortController()
  const end = (): void => over.abort()
  const timer = setTimeout(end, MOST_MS)
  const unfollow = followSignal(signal, end)
  const [served] = services.registry.models
  try {
    await Promise.all([sendAll(services, served!.llm, serve, over.signal), startEncoder(served!.llm, over.signal)])
    isWarm = !signal.aborted
  } catch {
    // Told by real requests.
  } finally {
    clearTimeout(timer)
    unfollow()
  }
}

async function sendAll(services: Services, llm: LLM, serve: (llm: LLM, options: ServerOptions) => WarmUpServer, over: AbortSignal): Promise<void> {
  const dryRun = dryRunOf(llm)
  try {
    const key = makeApiKey()
    const server = serve(dryRun, optionsLike(services, dryRun, key))
    try {
      for (let wave = 0; wave < WAVES && !over.aborted; wave++) {
        await Promise.all(requestsOf(dryRun, services.registry.models[0]!.name, key, wave).map((request) => send(server, request, over)))
      }
    } finally {
      await server.close()
    }
  } finally {
    await dryRun.close()
  }
}

/** The parts that the server has, of their own kind; a caller's own are the caller's to warm up. */
function optionsLike({ registry, security, admission, telemetry }: Services, llm: LLM, key: string): ServerOptions {
  const { name, toolCallFormat, reasoningFormat } = registry.models[0]!
  return {
    modelName: name,
    toolCallParser: toolCallFormat ?? 'none',
    reasoningParser: reasoningFormat ?? 'none',
    security: security && createKeySecurity({ keys: [{ name: 'warm-up', sha256: hashApiKey(key) }] }),
    admission: admission && createSlaAdmission(llm, SLA),
    telemetry: telemetry && createTelemetry(llm, { tracing: false, gpus: false }),
    onError: () => {},
    warmUp: false,
  }
}

/** The thread is the real model's, as a burst's texts go to it. It goes on to start where that takes longer. */
async function startEncoder(llm: LLM, signal: AbortSignal): Promise<void> {
  if (!llm.info.hasTokenizer) return
  // A small context, or a model that is closed, refuses it.
  await llm.encodePrompt({ prompt: SENTENCE.repeat(LONG_SENTENCES), signal }).catch(() => {})
}

function requestsOf({ info }: LLM, model: string, key: string, wave: number): string[] {
  const requests: string[] = []
  for (const [i, stream] of [true, true, true, false].entries()) {
    const text = `${wave}. ${SENTENCE.repeat(1 + ((wave + i) % 4))}`
    const fields = { model, max_tokens: MAX_TOKENS, temperature: 0.7, top_p: 0.95, ...(stream ? { stream, stream_options: { include_usage: true } } : {}) }
    const prompt = Array.from({ length: PROMPT_TOKENS }, (_, at) => (wave + i + at) % info.vocabSize)
    requests.push(requestOf('/v1/completions', { ...fields, prompt }, key))
    if (info.hasTokenizer && i % 2 === 1) requests.push(requestOf('/v1/completions', { ...fields, prompt: text }, key))
    if (info.hasChatTemplate) requests.push(requestOf('/v1/chat/completions', { ...fields, messages: [{ role: 'user', content: text }] }, key))
  }
  return requests
}

function requestOf(path: string, fields: object, key: string): string {
  const body = JSON.stringify(fields)
  const head = [
    `POST ${path} HTTP/1.1`,
    'host: localhost',
    'accept: application/json',
    'content-type: application/json',
    'user-agent: warm-up',
    `authorization: Bearer ${key}`,
    `content-length: ${Buffer.byteLength(body)}`,
  ]
  return `${head.join('\r\n')}\r\n\r\n${body}`
}

/** Resolves when the answer has come, whatever it says, or when it is over. */
async function send(server: WarmUpServer, request: string, over: AbortSignal): Promise<void> {
  const connection = new MemoryConnection(request)
  const unfollow = followSignal(over, () => connection.destroy())
  server.connect(connection)
  await connection.answered
  unfollow()
  connection.destroy()
}

/** A connection on which one request comes. */
class MemoryConnection extends Duplex {
  readonly answered: Promise<void>
  private onAnswered!: () => void

  constructor(private readonly request: string) {
    super({ decodeStrings: false })
    this.answered = new Promise((resolve) => (this.onAnswered = resolve))
    // Where nobody answers.
    this.once('close', this.onAnswered)
    this.push(this.request)
  }

  override _read(): void {}

  override _write(chunk: Buffer | string, _encoding: BufferEncoding, callback: () => void): void {
    const text = typeof chunk === 'string' ? chunk : chunk.toString('latin1')
    // Of an answer in chunks, and of one in JSON, whose last part comes in one piece.
    if (text.endsWith('\r\n0\r\n\r\n') || text.endsWith('}')) this.onAnswered()
    callback()
  }
}
