/** One HTTP request and its answer: what is known of it, how it is answered, and when it has ended. */
import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import type { Usage } from '../../llm'
import type { ApiError } from '../errors'
import type { ServedModel } from '../registry'
import type { Caller, RequestHead } from '../seams'
import { watchReader } from './slow_reader'

/** Node's side of a request that came over a socket of this server's own. */
export interface NodePair {
  incoming: IncomingMessage
  outgoing: ServerResponse
  /** When its head was read, on the clock of `performance.now()`. */
  cameAt?: number | undefined
}

/** What may be repeated in headers, logs and metrics as it is. */
const HARMLESS_ID = /^[\w.:-]{1,128}$/

/** Bytes that the system's buffers take, whatever the reader does. */
const SMALL_ANSWER = 16 * 1024

export class Exchange implements RequestHead {
  readonly id: string
  readonly startedAt: number
  /** When the last of its body came: what is slow before that is the client. */
  completeAt: number
  /** Milliseconds that parts of a caller's own took to answer before its work began: of the time that it may take, they are gone. */
  heldMs = 0
  route = 'other'
  caller: Caller = {}
  status = 0
  responseBytes = 0
  errorCode: string | undefined
  /** The client went away before the end of the answer. */
  aborted = false
  usage: Usage | undefined
  /** The model that is asked, once it is known. */
  served: ServedModel | undefined
  /** A property, so that it can be handed on by itself. */
  readonly header = (name: string): string | undefined => {
    if (this.node === undefined) return this.request?.headers.get(name) ?? undefined
    // Node's own: a `Headers` would be made of them, and checked, for this alone.
    const value = this.node.incoming.headers[name]
    return typeof value === 'string' ? value : value?.join(', ')
  }
  /** Why it was aborted. */
  private abortedBy: { reason: Error } | undefined
  private controller: AbortController | undefined
  private readonly followers: (() => void)[] = []
  private unfollow: (() => void) | undefined
  private ended = false

  /**
   * @param request undefined where `node` has all that there is to know
   * @param stallTimeoutMs for which a reader may take next to nothing
   * @param onEnd called once, when the answer is out, or will never be
   */
  constructor(
    readonly request: Request | undefined,
    readonly node: NodePair | undefined,
    private readonly stallTimeoutMs: number,
    private readonly onEnd: (exchange: Exchange) => void,
  ) {
    this.startedAt = node?.cameAt ?? performance.now()
    this.completeAt = this.startedAt
    const given = this.header('x-request-id')
    this.id = given !== undefined && HARMLESS_ID.test(given) ? given : `req-${randomUUID()}`
    if (node !== undefined) this.followSocket(node.outgoing)
    else if (request !== undefined) this.followRequest(request.signal)
  }

  get method(): string {
    return this.request?.method ?? this.node?.incoming.method ?? ''
  }

  /** Aborts when the client goes away, and when the server gives up. Made where it is asked for: see {@link follow}. */
  get signal(): AbortSignal {
    if (this.controller === undefined) {
      this.controller = new AbortController()
      if (this.abortedBy !== undefined) this.controller.abort(this.abortedBy.reason)
    }
    return this.controller.signal
  }

  /** Set once it is aborted. */
  get abortReason(): Error | undefined {
    return this.abortedBy?.reason
  }

  /**
   * Calls back once when it is aborted, as a listener of {@link signal} would be, which costs ten times as much.
   * @param onAbort must not throw
   */
  follow(onAbort: () => void): void {
    if (this.abortedBy === undefined) this.followers.push(onAbort)
    else onAbort()
  }

  /** Ends what runs for this request. The answer, if it is under way, ends with the reason where its format allows. */
  abort(reason: Error): void {
    if (this.abortedBy !== undefined) return
    this.abortedBy = { reason }
    this.controller?.abort(reason)
    for (const follower of this.followers.splice(0)) follower()
  }

  /** Headers of every answer. What computes is told as it is when the answer begins: it may be another than when the request came. */
  headers(more: Readonly<Record<string, string>>): Record<string, string> {
    // Not spread into a new object, which takes V8 twenty times as long.
    const headers: Record<string, string> = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff', 'x-request-id': this.id }
    return Object.assign(headers, this.served?.backendHeaders(), more)
  }

  json(status: number, body: unknown, headers: Readonly<Record<string, string>> = {}): Response {
    return this.text(status, JSON.stringify(body), { 'content-type': 'application/json', ...headers })
  }

  error(error: ApiError): Response {
    this.errorCode = error.code ?? error.type
    return this.json(error.status, error.body, error.headers)
  }

  text(status: number, body: string, headers: Readonly<Record<string, string>>): Response {
    const length = Buffer.byteLength(body)
    this.status = status
    this.responseBytes += length
    const all = this.headers({ ...headers, 'content-length': String(length) })
    if (this.node === undefined) {
      this.end()
      return new Response(body, { status, headers: all })
    }
    // Straight to the socket: a Response would be taken apart again, at many times the cost.
    const { outgoing } = this.node
    if (!outgoing.headersSent && !outgoing.destroyed) {
      outgoing.writeHead(status, all).end(body)
      if (length > SMALL_ANSWER) watchReader(outgoing, this.stallTimeoutMs)
    }
    return RESPONSE_ALREADY_SENT
  }

  /** The answer is out. Of a socket, its end says so. */
  end(): void {
    if (this.ended) return
    this.ended = true
    this.unfollow?.()
    this.onEnd(this)
  }

  /** The client is not there any more. */
  leave(): void {
    if (this.ended) return
    this.aborted = true
    // As nginx writes it in its log; nobody gets to see it.
    if (this.status === 0) this.status = 499
    this.abort(new Error('The client went away'))
    this.end()
  }

  private followSocket(outgoing: ServerResponse): void {
    // What cannot be written because the client left is told by 'close'.
    outgoing.on('error', () => {})
    outgoing.once('close', () => (outgoing.writableFinished ? this.end() : this.leave()))
  }

  private followRequest(signal: AbortSignal): void {
    const onAbort = (): void => this.leave()
    signal.addEventListener('abort', onAbort, { once: true })
    this.unfollow = () => signal.removeEventListener('abort', onAbort)
  }
}
