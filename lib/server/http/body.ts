/** Reads JSON bodies of clients that may mean no good: bounded in bytes, in depth and in time. */
import type { IncomingMessage } from 'node:http'
import { ApiError } from '../errors'
import type { RequestLimits } from '../seams'
import type { Exchange } from './exchange'

type BodyLimits = Pick<RequestLimits, 'maxBodyBytes' | 'maxJsonDepth' | 'bodyTimeoutMs'>

/** Bytes in one buffer that grows, as a body may come byte by byte. Most come in one piece, which is taken as it is. */
class Gathered {
  private bytes: Uint8Array = new Uint8Array(0)
  length = 0

  push(chunk: Uint8Array): void {
    const needed = this.length + chunk.length
    if (this.length === 0) {
      this.bytes = chunk
    } else {
      if (needed > this.bytes.length) {
        const larger = Buffer.allocUnsafe(Math.max(needed, this.length * 2, 4096))
        larger.set(this.view())
        this.bytes = larger
      }
      this.bytes.set(chunk, this.length)
    }
    this.length = needed
  }

  view(): Uint8Array {
    return this.bytes.subarray(0, this.length)
  }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true })

/**
 * The object that a request's body is.
 * @throws ApiError 400, 408, 413, 415; AbortError where the client goes away
 */
export async function readJson(exchange: Exchange, limits: BodyLimits): Promise<Record<string, unknown>> {
  const type = exchange.header('content-type')
  if (type !== undefined && !/^application\/(?:[\w.-]+\+)?json\s*(?:;|$)/i.test(type.trim())) {
    throw new ApiError(415, 'invalid_request_error', 'unsupported_media_type', `The body must be JSON, with the content-type application/json, not "${type.slice(0, 100)}"`)
  }
  const encoding = exchange.header('content-encoding')
  if (encoding !== undefined && encoding.trim().toLowerCase() !== 'identity') {
    throw new ApiError(415, 'invalid_request_error', 'unsupported_content_encoding', 'Bodies with a content-encoding are not read')
  }
  const bytes = await readBytes(exchange, limits)
  let text: string
  try {
    text = UTF8.decode(bytes)
  } catch {
    throw ApiError.invalid(null, 'The body is no UTF-8', 'invalid_json')
  }
  if (text.trim() === '') throw ApiError.invalid(null, 'The body is empty; a JSON object is expected', 'invalid_json')
  if (nestsDeeper(text, limits.maxJsonDepth)) {
    throw ApiError.invalid(null, `The body nests deeper than ${limits.maxJsonDepth} levels`, 'json_too_deep')
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    // V8 quotes what it read; that is the client's own text, but it may be long.
    const where = /position \d+(?: \(line \d+ column \d+\))?/.exec((error as Error).message)?.[0]
    throw ApiError.invalid(null, `The body is no JSON${where === undefined ? '' : `: it breaks at ${where}`}`, 'invalid_json')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw ApiError.invalid(null, 'The body must be a JSON object', 'invalid_json')
  }
  return value as Record<string, unknown>
}

function tooLarge(limit: number): ApiError {
  return new ApiError(413, 'invalid_request_error', 'request_too_large', `The body is larger than ${limit} bytes`)
}

function tooLate(bodyTimeoutMs: number): ApiError {
  // What it still sends is no request any more.
  const headers = { connection: 'close' }
  return new ApiError(408, 'timeout_error', 'body_timeout', `The body did not arrive within ${bodyTimeoutMs} ms`, null, headers)
}

/** The connection broke: nobody is there to hear of it. */
function brokenOff(): ApiError {
  return ApiError.invalid(null, 'The body broke off', 'incomplete_body')
}

async function readBytes(exchange: Exchange, limits: BodyLimits): Promise<Uint8Array> {
  const declared = Number(exchange.header('content-length') ?? 0)
  if (declared > limits.maxBodyBytes) throw tooLarge(limits.maxBodyBytes)
  const { node, request } = exchange
  if (node !== undefined) {
    const { incoming } = node
    // What came with the head waited with it.
    if (incoming.complete) return takeIncoming(incoming, limits)
    const bytes = await readIncoming(incoming, limits)
    exchange.completeAt = performance.now()
    return bytes
  }
  const body = request?.body ?? null
  return body === null ? new Uint8Array(0) : readStream(body, limits)
}

/** All of it is there. */
function takeIncoming(incoming: IncomingMessage, { maxBodyBytes }: BodyLimits): Uint8Array {
  if (incoming.destroyed) throw brokenOff()
  if (incoming.readableLength > maxBodyBytes) throw tooLarge(maxBodyBytes)
  return (incoming.read() as Buffer | null) ?? new Uint8Array(0)
}

/** By events: an iterator costs more than all else that is done with a body of usual size. */
function readIncoming(incoming: IncomingMessage, { maxBodyBytes, bodyTimeoutMs }: BodyLimits): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const gathered = new Gathered()
    const stop = (): void => {
      clearTimeout(timer)
      incoming.off('data', onData).off('end', onEnd).off('error', onBroken).off('close', onBroken)
    }
    const fail = (error: ApiError): void => {
      stop()
      // The rest stays where it is: a client that goes on sending is held back, and loses its connection in the end.
      incoming.pause()
      reject(error)
    }
    const onData = (chunk: Buffer): void => {
      if (gathered.length + chunk.length > maxBodyBytes) fail(tooLarge(maxBodyBytes))
      else gathered.push(chunk)
    }
    const onEnd = (): void => {
      stop()
      resolve(gathered.view())
    }
    const onBroken = (): void => fail(brokenOff())
    const timer = setTimeout(() => fail(tooLate(bodyTimeoutMs)), bodyTimeoutMs)
    if (incoming.destroyed) onBroken()
    else incoming.on('data', onData).on('end', onEnd).on('error', onBroken).on('close', onBroken)
  })
}

async function readStream(body: ReadableStream<Uint8Array>, { maxBodyBytes, bodyTimeoutMs }: BodyLimits): Promise<Uint8Array> {
  const gathered = new Gathered()
  const reader = body.getReader()
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(tooLate(bodyTimeoutMs)), bodyTimeoutMs)
  })
  // Where the body is there at once, nobody waits for this.
  late.catch(() => {})
  let complete = false
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.read(), late])
      if (done) {
        complete = true
        return gathered.view()
      }
      if (gathered.length + value.length > maxBodyBytes) throw tooLarge(maxBodyBytes)
      gathered.push(value)
    }
  } catch (error) {
    throw error instanceof ApiError ? error : brokenOff()
  } finally {
    clearTimeout(timer)
    // Not awaited: a source may take its time.
    if (!complete) void reader.cancel().catch(() => {})
  }
}

const QUOTE = 0x22
const BACKSLASH = 0x5c

/**
 * Whether arrays and objects of a JSON text nest deeper than `limit`. A text that is no JSON may give either answer.
 * Told before it is parsed, as what walks over the value later may do so by recursion.
 */
export function nestsDeeper(text: string, limit: number): boolean {
  let depth = 0
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i)
    if (code === QUOTE) {
      i = endOfString(text, i + 1)
    } else if (code === 0x5b || code === 0x7b) {
      if (++depth > limit) return true
    } else if (code === 0x5d || code === 0x7d) {
      depth--
    }
  }
  return false
}

/** Where the string that begins at `from` has its closing quote; the end of the text where it has none. */
function endOfString(text: string, from: number): number {
  for (let at = text.indexOf('"', from); at >= 0; at = text.indexOf('"', at + 1)) {
    let backslashes = 0
    while (text.charCodeAt(at - 1 - backslashes) === BACKSLASH) backslashes++
    if (backslashes % 2 === 0) return at
  }
  return text.length
}
