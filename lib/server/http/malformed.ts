/** Answers what is no HTTP, in the form of all other errors. */
import type { Server } from 'node:http'
import type { Duplex } from 'node:stream'
import { ApiError, type ErrorType } from '../errors'

type Known = readonly [status: number, reason: string, type: ErrorType, code: string, message: string]

const MALFORMED: Known = [400, 'Bad Request', 'invalid_request_error', 'invalid_request', 'The request is no HTTP/1.1']

const ANSWERS: Readonly<Record<string, Known>> = {
  HPE_HEADER_OVERFLOW: [431, 'Request Header Fields Too Large', 'invalid_request_error', 'headers_too_large', 'The headers are too large'],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: [413, 'Payload Too Large', 'invalid_request_error', 'request_too_large', 'The chunk extensions are too large'],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'Request Timeout', 'timeout_error', 'headers_timeout', 'The headers did not arrive in time'],
}

/** @param isAnswering tells whether an answer to an earlier request is under way on the same connection */
export function answerMalformed(http: Server, isAnswering: (socket: Duplex) => boolean): void {
  http.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    // Bytes in the middle of another answer would be taken for a part of it.
    if (!socket.writable || error.code === 'ECONNRESET' || isAnswering(socket)) {
      socket.destroy()
      return
    }
    const [status, reason, type, code, message] = ANSWERS[error.code ?? ''] ?? MALFORMED
    const body = JSON.stringify(new ApiError(status, type, code, message).body)
    const head = `HTTP/1.1 ${status} ${reason}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}`
    socket.end(`${head}\r\n\r\n${body}`, () => socket.destroy())
  })
}
