/** Reads JSON bodies of clients that may mean no good: bounded in bytes, in depth and in time. */
import { ApiError } from '../errors'
import type { RequestLimits } from '../seams'
import type { Exchange } from './exchange'

type BodyLimits = Pick<RequestLimits, 'maxBodyBytes' | 'maxJsonDepth' | 'bodyTimeoutMs'>

/** Bytes in one buffer that grows, as a body may come byte by byte. */
class Gathered {
  private bytes = Buffer.allocUnsafe(4096)
  length = 0

  push(chunk: Uint8Array): void {
    const needed = this.length + chunk.length
    if (needed > this.bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(needed, this.bytes.length * 2))
      this.bytes.copy(larger, 0, 0, this.length)
      this.bytes = larger
    }
    this.bytes.set(chunk, this.length)
    this.length = needed
  }

  view(): Uint8Array {
    return this.bytes.subarray(0, this.length)
  }
}

/**
 * The object that a request's body is.
 * @throws ApiError 400, 408, 413, 415; AbortError where the client goes away
 */
export async function readJson(exchange: Exchange, limits: BodyLimits): Promise<Record<string, unknown>> {
  const type = exchange.header('content-type')
  if (type !== undefined && !/^application\/(?:[\w.-]+\+)?json\s*(?:;|$)/i.test(type.trim())) {
    throw new ApiError(415, 'invalid_request_error', 'unsupported_media_type', 'The body must be JSON: content-type application/json')
  }
  const encoding = exchange.header('content-encoding')
  if (encoding !== undefined && encoding.trim().toLowerCase() !== 'identity') {
    throw new ApiError(415, 'invalid_request_error', 'unsupported_content_encoding', 'Bodies with a content-encoding are not read')
  }
  const bytes = await readBytes(exchange, limits)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
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

async function readBytes(exchange: Exchange, { maxBodyBytes, bodyTimeoutMs }: BodyLimits): Promise<Uint8Array> {
  const declared = Number(exchange.header('content-length') ?? 0)
  if (declared > maxBodyBytes) throw tooLarge(maxBodyBytes)
  const gathered = new Gathered()
  const chunks = exchange.node?.incoming.iterator({ destroyOnReturn: false }) ?? exchange.request.body
  if (chunks === null) return gathered.view()
  const reader = (chunks as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]()
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const fail = (): void => {
      // What it still sends is no request any more.
      const headers = { connection: 'close' }
      reject(new ApiError(408, 'timeout_error', 'body_timeout', `The body did not arrive within ${bodyTimeoutMs} ms`, null, headers))
    }
    timer = setTimeout(fail, bodyTimeoutMs)
  })
  // Where the body is there at once, nobody waits for this.
  late.catch(() => {})
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.next(), late])
      if (done === true) return gathered.view()
      if (gathered.length + value.length > maxBodyBytes) throw tooLarge(maxBodyBytes)
      gathered.push(value)
    }
  } catch (error) {
    if (error instanceof ApiError) throw error
    // The connection broke: nobody is there to hear of it.
    throw ApiError.invalid(null, 'The body broke off', 'incomplete_body')
  } finally {
    clearTimeout(timer)
    // Not awaited: it settles with the chunk that is still to come.
    void Promise.resolve(reader.return?.()).catch(() => {})
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
