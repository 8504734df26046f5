/** A server over a model: routes, a listener, and an end that loses nothing. */
import { createServer as createHttpServer, type IncomingMessage, type Server as HttpServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createServer as createHttpsServer, Server as HttpsServer } from 'node:https'
import type { Duplex } from 'node:stream'
import { getRequestListener } from '@hono/node-server'
import { AbortError, TensorRTError } from '../errors'
import type { LLM } from '../llm'
import { ArgumentReader, followSignal } from '../runtime'
import { createApp, NODE_PAIR } from './app'
import { ApiError } from './errors'
import { drainingError } from './generation/work'
import { Connections } from './http/connections'
import type { Exchange, NodePair } from './http/exchange'
import { answerMalformed } from './http/malformed'
import { Turns } from './http/turns'
import { checkServerOptions, type ServerOptions } from './options'
import { ModelRegistry, ServedModel } from './registry'
import type { Services } from './services'
import { warmUp } from './warm_up'

export interface ListenOptions {
  /** 0 takes any that is free. Default 8000. */
  port?: number | undefined
  /** Name or address to listen at. Default 127.0.0.1: this machine only. */
  host?: string | undefined
  /** Serve HTTPS with this certificate chain and private key, in PEM format. */
  tls?: { cert: string; key: string } | undefined
  /** Ends the warm-up, and with it the start. */
  signal?: AbortSignal | undefined
}

export interface ServerCloseOptions {
  /** Milliseconds for requests under way to end before they are aborted. Default 0. */
  drainMs?: number | undefined
  /** Ends the wait early. */
  signal?: AbortSignal | undefined
}

/** An OpenAI-compatible HTTP server. The model is the caller's: closing the server does not close it. */
export interface Server {
  /**
   * Begins to listen; with `warmUp` once the code of requests is warm.
   * @throws (as a rejection) ERR_INVALID_ARGUMENT; ERR_IO where the address cannot be listened at; ERR_DISPOSED after `close`; AbortError
   */
  listen(options?: ListenOptions): Promise<{ host: string; port: number; url: string }>
  /**
   * Takes no new work from now on (503 with `retry-after`, and /health/ready says no), lets requests under way end for
   * `drainMs`, aborts the rest, and closes all connections. Streams that are aborted end with an `error` event. May be called
   * again: all calls end together, and one without `drainMs` cuts an earlier one's wait short.
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, and what `admission` or `telemetry` throws when it is closed
   */
  close(options?: ServerCloseOptions): Promise<void>
  /** Answers a request without a socket: to mount the routes elsewhere, and for tests. */
  fetch(request: Request): Promise<Response>
  /** Where it listens; undefined where it does not. */
  readonly address: { host: string; port: number; url: string } | undefined
  /** Requests under way. */
  readonly pending: number
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Makes a server for a model; it does not listen yet.
 *
 * @throws ERR_INVALID_ARGUMENT
 */
export function createServer(llm: LLM, options: ServerOptions = {}): Server {
  return new LLMServer(llm, options)
}

class LLMServer implements Server {
  private readonly services: Services & { draining: boolean }
  private readonly live = new Set<Exchange>()
  private readonly app: ReturnType<typeof createApp>
  private http: HttpServer | undefined
  private handle!: (node: NodePair) => void
  private readonly turns = new Turns(
    (node) => this.handle(node),
    () => this.onIdle?.(),
  )
  private closing: Promise<void> | undefined
  private endWarmUp: (() => void) | undefined
  /** Never rejects. */
  private warming: Promise<void> | undefined
  /** Ends the wait for requests under way. */
  private endDrain: (() => void) | undefined
  /** Also before it has begun. */
  private isDrainCut = false
  private onIdle: (() => void) | undefined

  constructor(llm: LLM, options: ServerOptions) {
    const checked = checkServerOptions(llm, options)
    const registry = new ModelRegistry([new ServedModel(llm, checked.names, checked.parsers)])
    this.services = { ...checked, registry, draining: false }
    llm.gatherBursts()
    this.app = createApp(this.services, this.live, () => this.onIdle?.())
  }

  get pending(): number {
    return this.live.size + this.turns.size
  }

  get address(): { host: string; port: number; url: string } | undefined {
    const address = this.http?.address() as AddressInfo | null | undefined
    if (address === null || address === undefined) return undefined
    const host = address.family === 'IPv6' ? `[${address.address}]` : address.address
    const scheme = this.http instanceof HttpsServer ? 'https' : 'http'
    return { host: address.address, port: address.port, url: `${scheme}://${host}:${address.port}` }
  }

  async fetch(request: Request): Promise<Response> {
    return this.app.hono.fetch(request)
  }

  async listen(options: ListenOptions = {}): Promise<{ host: string; port: number; url: string }> {
    const reader = new ArgumentReader(options, ['port', 'host', 'tls', 'signal'], 'listen()')
    const port = reader.integer('port', 0, 65_535) ?? 8000
    const host = reader.string('host', 255) ?? '127.0.0.1'
    const signal = reader.signal('signal')
    if (this.closing !== undefined) throw closedError()
    if (signal?.aborted === true) throw new AbortError(signal.reason)
    if (this.http !== undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The server listens already')
    let http: HttpServer
    try {
      http = this.createHttp(readTls(reader.get('tls')))
    } catch (cause) {
      if (cause instanceof TensorRTError) throw cause
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `"tls" cannot be used: ${(cause as Error).message}`, { cause })
    }
    this.http = http
    try {
      await this.warmUp(signal)
      await new Promise<void>((resolve, reject) => {
        http.once('error', reject)
        http.listen({ port, host }, () => {
          http.off('error', reject)
          resolve()
        })
      })
    } catch (cause) {
      this.http = undefined
      if (cause instanceof AbortError || cause instanceof TensorRTError) throw cause
      throw new TensorRTError('ERR_IO', `Listening at ${host}:${port} failed: ${(cause as Error).message}`, { cause })
    }
    http.on('error', (error) => this.services.onError(error, '-'))
    return this.address!
  }

  /** Takes a connection that came by no listener. */
  connect(connection: Duplex): void {
    this.http ??= this.createHttp(undefined)
    this.http.emit('connection', connection)
  }

  close(options: ServerCloseOptions = {}): Promise<void> {
    let drainMs: number
    let signal: AbortSignal | undefined
    try {
      const reader = new ArgumentReader(options, ['drainMs', 'signal'], 'close()')
      drainMs = reader.number('drainMs', 0, Number.MAX_VALUE) ?? 0
      signal = reader.signal('signal')
    } catch (error) {
      return Promise.reject(error as Error)
    }
    if (this.closing === undefined) this.closing = this.shutDown(drainMs)
    else if (drainMs === 0) this.cutDrain()
    if (signal === undefined) return this.closing
    const unfollow = followSignal(signal, () => this.cutDrain())
    return this.closing.finally(unfollow)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** @throws (as a rejection) ERR_DISPOSED where the server was closed meanwhile; AbortError */
  private async warmUp(signal: AbortSignal | undefined): Promise<void> {
    if (!this.services.warmUp) return
    const over = new AbortController()
    this.endWarmUp = () => over.abort()
    const unfollow = signal === undefined ? undefined : followSignal(signal, this.endWarmUp)
    this.warming = warmUp(this.services, (llm, options) => new LLMServer(llm, options), over.signal)
    await this.warming
    unfollow?.()
    if (this.closing !== undefined) throw closedError()
    if (signal?.aborted === true) throw new AbortError(signal.reason)
  }

  private createHttp(tls: ListenOptions['tls']): HttpServer {
    const { headersTimeoutMs, maxConnections } = this.services
    const listener = getRequestListener(
      (request, env) => {
        const { incoming, outgoing } = env as { incoming: IncomingMessage; outgoing: ServerResponse }
        return this.app.hono.fetch(request, { [NODE_PAIR]: { incoming, outgoing, cameAt: performance.now() } })
      },
      {
        // A library leaves the process's Request and Response as they are.
        overrideGlobalObjects: false,
        errorHandler: () => Response.json(ApiError.invalid(null, 'The request has no valid target or host', 'invalid_request').body, { status: 400 }),
      },
    )
    const settings = {
      headersTimeout: headersTimeoutMs,
      // As `Headers` has them: of two, neither is the one that counts.
      joinDuplicateHeaders: true,
      // Bodies are timed where they are read, and the answer then says so.
      requestTimeout: 0,
      connectionsCheckingInterval: Math.min(headersTimeoutMs, 5000),
    }
    const connections = new Connections()
    const onRequest = (incoming: IncomingMessage, outgoing: ServerResponse): void => {
      connections.begin(incoming.socket, outgoing)
      this.turns.add(incoming, outgoing)
    }
    const http = tls === undefined ? createHttpServer(settings, onRequest) : createHttpsServer({ ...settings, ...tls }, onRequest)
    this.handle = (node) => {
      if (!this.app.answers(node)) void listener(node.incoming, node.outgoing)
    }
    http.on('connection', () => this.turns.onConnection())
    answerMalformed(http, (socket) => connections.isAnswering(socket))
    if (maxConnections !== undefined) http.maxConnections = maxConnections
    return http
  }

  private async shutDown(drainMs: number): Promise<void> {
    this.services.draining = true
    this.endWarmUp?.()
    await this.warming
    const { http } = this
    http?.closeIdleConnections()
    if (drainMs > 0 && !this.isDrainCut) await this.idle(drainMs)
    for (const exchange of this.live) exchange.abort(drainingError())
    // What was aborted still has its last words to send.
    await this.idle(1000)
    if (http !== undefined) {
      const closed = new Promise<void>((resolve) => http.close(() => resolve()))
      http.closeAllConnections()
      await closed
    }
    try {
      this.services.admission?.close()
    } finally {
      await this.services.telemetry?.close()
    }
  }

  private cutDrain(): void {
    this.isDrainCut = true
    this.endDrain?.()
  }

  /** Resolves when nothing is under way, and after `ms` at the latest. */
  private idle(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer)
        this.endDrain = undefined
        this.onIdle = undefined
        resolve()
      }
      const timer = setTimeout(end, Math.min(ms, 2 ** 31 - 1))
      this.endDrain = end
      this.onIdle = () => {
        if (this.pending === 0) end()
      }
      this.onIdle()
    })
  }
}

function closedError(): TensorRTError {
  return new TensorRTError('ERR_DISPOSED', 'The server is closed')
}

function readTls(given: unknown): ListenOptions['tls'] {
  if (given === undefined) return undefined
  const reader = new ArgumentReader(given, ['cert', 'key'], '"tls"')
  const cert = reader.string('cert', 2 ** 20)
  const key = reader.string('key', 2 ** 20)
  if (cert === undefined || key === undefined) throw new TensorRTError('ERR_INVALID_ARGUMENT', '"tls" takes both "cert" and "key", as PEM text')
  return { cert, key }
}
