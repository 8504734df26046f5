/** HTTP/1.1 over a bare socket, kept alive: it sends whatever bytes it is given, as no decent client would. */
import { connect, type Socket } from 'node:net'

export interface RawAnswer {
  /** undefined: the connection ended without an answer. */
  status: number | undefined
  headers: Readonly<Record<string, string>>
  body: string
  /** The other side closed the connection with it, or instead of it. */
  closed: boolean
  /** No answer came in time. */
  hung: boolean
}

export interface RawRequest {
  /** In the order in which they are sent. */
  parts: readonly (Buffer | string)[]
  /** Each part is a packet of its own, and the next one waits for a turn of the event loop. */
  slowly?: boolean
  /** The answer has no body whatever its headers say. */
  head?: boolean
  /** Destroy the socket after so many bytes of the answer have come, or at once where it is 0. */
  leaveAfter?: number
}

const HEAD_END = Buffer.from('\r\n\r\n')

/** Takes an answer apart as its bytes come. */
class AnswerParser {
  private bytes: Buffer = Buffer.alloc(0)
  status: number | undefined
  headers: Record<string, string> = {}
  private readonly pieces: Buffer[] = []
  private left: number | 'chunked' | 'until-close' | undefined
  received = 0

  constructor(private readonly noBody: boolean) {}

  get body(): string {
    return Buffer.concat(this.pieces).toString('utf8')
  }

  /** @returns true when the answer is complete */
  push(chunk: Buffer): boolean {
    this.received += chunk.length
    this.bytes = this.bytes.length === 0 ? chunk : Buffer.concat([this.bytes, chunk])
    while (this.left === undefined) {
      const end = this.bytes.indexOf(HEAD_END)
      if (end < 0) return false
      this.readHead(this.bytes.toString('latin1', 0, end))
      this.bytes = this.bytes.subarray(end + 4)
    }
    return this.readBody()
  }

  private readHead(head: string): void {
    const [statusLine, ...lines] = head.split('\r\n')
    const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(statusLine!)?.[1] ?? NaN)
    // 100 Continue comes before the answer.
    if (status < 200) return
    this.status = status
    for (const line of lines) {
      const colon = line.indexOf(':')
      this.headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim()
    }
    if (this.noBody || this.status === 204 || this.status === 304) this.left = 0
    else if (this.headers['transfer-encoding'] === 'chunked') this.left = 'chunked'
    else if (this.headers['content-length'] !== undefined) this.left = Number(this.headers['content-length'])
    else this.left = 'until-close'
  }

  private readBody(): boolean {
    if (this.left === 'chunked') return this.readChunks()
    if (this.left === 'until-close') {
      this.pieces.push(this.bytes)
      this.bytes = Buffer.alloc(0)
      return false
    }
    const taken = this.bytes.subarray(0, this.left as number)
    this.pieces.push(taken)
    this.left = (this.left as number) - taken.length
    this.bytes = this.bytes.subarray(taken.length)
    return this.left === 0
  }

  private readChunks(): boolean {
    for (;;) {
      const end = this.bytes.indexOf('\r\n')
      if (end < 0) return false
      const size = parseInt(this.bytes.toString('latin1', 0, end), 16)
      if (this.bytes.length < end + 2 + size + 2) return false
      if (size === 0) return true
      this.pieces.push(this.bytes.subarray(end + 2, end + 2 + size))
      this.bytes = this.bytes.subarray(end + 4 + size)
    }
  }
}

/** One request after the other; a connection that was closed is opened again. */
export class RawConnection {
  private socket: Socket | undefined
  /** How often a connection was opened. */
  opened = 0

  constructor(
    private readonly port: number,
    private readonly timeoutMs = 60_000,
  ) {}

  async send({ parts, slowly = false, head = false, leaveAfter }: RawRequest): Promise<RawAnswer> {
    const socket = this.socket ?? (await this.open())
    if (socket === undefined) return { status: undefined, headers: {}, body: '', closed: true, hung: false }
    const parser = new AnswerParser(head)
    return new Promise<RawAnswer>((resolve) => {
      let over = false
      const finish = (closed: boolean, hung = false): void => {
        if (over) return
        over = true
        clearTimeout(timer)
        socket.off('data', onData).off('close', onClose)
        if (closed || hung || parser.headers['connection'] === 'close') this.drop()
        const { status, headers, body } = parser
        resolve({ status, headers, body, closed, hung })
      }
      const onData = (chunk: Buffer): void => {
        const complete = parser.push(chunk)
        if (leaveAfter !== undefined && parser.received >= leaveAfter) {
          socket.destroy()
          finish(true)
        } else if (complete) finish(false)
      }
      const onClose = (): void => finish(true)
      const timer = setTimeout(() => finish(true, true), this.timeoutMs)
      socket.on('data', onData).on('close', onClose)
      const write = async (): Promise<void> => {
        await this.write(socket, parts, slowly)
        if (leaveAfter !== 0) return
        socket.destroy()
        finish(true)
      }
      void write()
    })
  }

  close(): void {
    this.drop()
  }

  private async write(socket: Socket, parts: RawRequest['parts'], slowly: boolean): Promise<void> {
    if (!slowly) {
      socket.write(Buffer.concat(parts.map((part) => Buffer.from(part as string))))
      return
    }
    for (const part of parts) {
      if (socket.destroyed) return
      socket.write(part)
      await new Promise(setImmediate)
    }
  }

  /** undefined where no connection came about. */
  private async open(): Promise<Socket | undefined> {
    const socket = connect({ port: this.port, host: '127.0.0.1', noDelay: true })
    this.opened++
    // What a broken connection comes to is told by its end.
    socket.on('error', () => {})
    this.socket = socket
    socket.once('close', () => {
      if (this.socket === socket) this.socket = undefined
    })
    return new Promise((resolve) => {
      socket.once('connect', () => resolve(socket))
      socket.once('close', () => resolve(undefined))
    })
  }

  private drop(): void {
    this.socket?.destroy()
    this.socket = undefined
  }
}
