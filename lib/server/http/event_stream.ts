/** Server-sent events, to a socket of this server's own or into a `Response`. */
import type { ServerResponse } from 'node:http'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import type { Exchange } from './exchange'
import { watchReader } from './slow_reader'

const EVENT_HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  // Of nginx and those like it: pass events on as they come.
  'x-accel-buffering': 'no',
}

const LAST_CHUNK = '0\r\n\r\n'
const COMMENT = ': keep-alive\n\n'
export const DONE = 'data: [DONE]\n\n'

export interface EventStreamOptions {
  /** Milliseconds of silence before a comment. */
  keepAliveMs: number
  /** Milliseconds that a reader may take nothing. */
  stallTimeoutMs: number
}

/** Where the text goes. */
interface Sink {
  /** Sends status and headers. */
  start(headers: Record<string, string>): Response
  /** @param bytes of the text in UTF-8. @param last nothing comes behind it but `end`. @returns whether the reader keeps up */
  write(text: string, bytes: number, last: boolean): boolean
  end(): void
  destroy(): void
  /** The reader has another answer to take before this one. */
  readonly waits: boolean
}

/**
 * An answer of events. Status and headers go out with the first event or comment, so that a request that fails before can
 * be answered by a status of its own.
 */
export class EventStream {
  /** Resolves with what the handler returns, when the first event is written. */
  readonly response: Promise<Response>
  private resolve!: (response: Response) => void
  private readonly sink: Sink
  private readonly keepAlive: NodeJS.Timeout
  private silent = true
  private held = ''
  private draining: Promise<void> | undefined
  private drained: (() => void) | undefined
  private stall: NodeJS.Timeout | undefined
  private started = false
  private closed = false

  constructor(
    private readonly exchange: Exchange,
    private readonly options: EventStreamOptions,
  ) {
    this.response = new Promise((resolve) => (this.resolve = resolve))
    const onDrain = (): void => this.onDrain()
    this.sink = exchange.node === undefined ? new WebSink(exchange, onDrain) : new NodeSink(exchange.node.outgoing, options.stallTimeoutMs, onDrain)
    // Twice as often, so that no silence lasts longer than it may.
    this.keepAlive = setInterval(() => this.tick(), options.keepAliveMs / 2)
    exchange.follow(onDrain)
  }

  get isStarted(): boolean {
    return this.started
  }

  /**
   * Writes events as they are on the wire.
   * @returns undefined where the reader keeps up, else a promise of the moment when it does again, or has gone
   */
  write(text: string): Promise<void> | undefined {
    return this.send(text, false)
  }

  /** The last events, and the end in the same packet. */
  finish(text: string): void {
    void this.send(text, true)
    this.end()
  }

  private send(text: string, last: boolean): Promise<void> | undefined {
    if (this.closed || this.exchange.aborted) return undefined
    if (!this.started) this.start()
    this.silent = false
    const all = this.held + text
    this.held = ''
    const bytes = Buffer.byteLength(all)
    this.exchange.responseBytes += bytes
    if (this.sink.write(all, bytes, last)) return undefined
    if (this.draining === undefined) {
      this.draining = new Promise((resolve) => (this.drained = resolve))
      this.watchStall()
    }
    return this.draining
  }

  /** Events that go out with those that are written next, which is soon. */
  hold(text: string): void {
    this.held += text
  }

  /** After the last event. */
  end(): void {
    if (this.closed) return
    this.discard()
    if (this.started && !this.exchange.aborted) this.sink.end()
  }

  /** Nothing was written, and nothing will be: the answer is another one. */
  discard(): void {
    this.closed = true
    clearInterval(this.keepAlive)
    this.onDrain()
  }

  private start(): void {
    this.started = true
    this.exchange.status = 200
    this.resolve(this.sink.start(this.exchange.headers(EVENT_HEADERS)))
  }

  private tick(): void {
    // A reader that does not keep up has something to read.
    if (this.silent && this.draining === undefined) void this.write(COMMENT)
    this.silent = true
  }

  /** The period in which the answer before this one ends does not count: what is left of it may be an instant. */
  private watchStall(waited = this.sink.waits): void {
    this.stall = setTimeout(() => {
      const waits = this.sink.waits
      if (waits || waited) this.watchStall(waits)
      else this.sink.destroy()
    }, this.options.stallTimeoutMs)
  }

  private onDrain(): void {
    clearTimeout(this.stall)
    this.draining = undefined
    this.drained?.()
    this.drained = undefined
  }
}

/**
 * Chunks of the transfer encoding are framed here, each as one string: Node gives four to the socket, which then gathers them into one
 * write in a later tick. That is half of what a token costs.
 */
class NodeSink implements Sink {
  /** The answer is in chunks, to all but clients of HTTP/1.0, and the one that ends it has not been written. */
  private chunked = false

  constructor(
    private readonly outgoing: ServerResponse,
    private readonly stallTimeoutMs: number,
    onDrain: () => void,
  ) {
    outgoing.on('drain', onDrain)
  }

  get waits(): boolean {
    return this.outgoing.socket === null && !this.outgoing.destroyed
  }

  start(headers: Record<string, string>): Response {
    const { outgoing } = this
    if (!outgoing.destroyed) {
      outgoing.writeHead(200, headers)
      this.chunked = outgoing.chunkedEncoding
      outgoing.chunkedEncoding = false
    }
    return RESPONSE_ALREADY_SENT
  }

  write(text: string, bytes: number, last: boolean): boolean {
    const { outgoing } = this
    if (outgoing.destroyed) return true
    // A request behind another one on its connection has no socket yet.
    const { socket } = outgoing
    // Out at once: whoever waits for it should not wait for the other streams of this step.
    socket?.cork()
    const framed = this.chunked ? `${bytes.toString(16)}\r\n${text}\r\n${last ? LAST_CHUNK : ''}` : text
    if (last) this.chunked = false
    // ASCII needs no second look at each character.
    const keepsUp = outgoing.write(framed, bytes === text.length ? 'latin1' : 'utf8')
    socket?.uncork()
    return keepsUp
  }

  end(): void {
    const { outgoing } = this
    // Node writes the last chunk, where it is missing.
    outgoing.chunkedEncoding = this.chunked
    outgoing.end()
    if (outgoing.writableLength > 0) watchReader(outgoing, this.stallTimeoutMs)
  }

  destroy(): void {
    this.outgoing.destroy()
  }
}

/** Bytes that wait in a `Response`'s body before the writer is asked to wait; as much as a socket buffers. */
const WEB_BUFFER_BYTES = 16 * 1024

class WebSink implements Sink {
  readonly waits = false
  private controller!: ReadableStreamDefaultController<Uint8Array>
  private readonly encoder = new TextEncoder()

  constructor(
    private readonly exchange: Exchange,
    private readonly onDrain: () => void,
  ) {}

  start(headers: Record<string, string>): Response {
    const body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.controller = controller
        },
        pull: () => this.onDrain(),
        cancel: () => this.exchange.leave(),
      },
      new ByteLengthQueuingStrategy({ highWaterMark: WEB_BUFFER_BYTES }),
    )
    return new Response(body, { headers })
  }

  write(text: string): boolean {
    this.controller.enqueue(this.encoder.encode(text))
    return (this.controller.desiredSize ?? 1) > 0
  }

  end(): void {
    this.controller.close()
    this.exchange.end()
  }

  destroy(): void {
    this.controller.error(new Error('The reader took nothing for too long'))
    this.exchange.leave()
  }
}
