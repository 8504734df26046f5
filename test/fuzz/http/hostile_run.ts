/** Sends hostile requests over some connections at once, and tells what was not as it should be. */
import { HostileGenerator, type HostileOptions, type HostileRequest } from './hostile_requests'
import { type RawAnswer, RawConnection } from './raw_connection'

export interface HostileReport {
  requests: number
  seconds: number
  /** Connections that were opened. */
  connections: number
  /** By status; `none` where the connection ended without an answer. */
  statuses: Record<string, number>
  kinds: Record<string, number>
  failures: { index: number; kind: string; reason: string; request: string; answer: string }[]
  failed: number
}

export interface HostileRunOptions extends HostileOptions {
  port: number
  requests: number
  /** Number of the first. */
  from?: number
  connections: number
  onProgress?: (done: number) => void
  /** Ends the run early; what has run is reported. */
  signal?: AbortSignal
}

/** Failures that are told in full. */
const SHOWN = 20

export async function runHostile(options: HostileRunOptions): Promise<HostileReport> {
  const { port, requests, from = 0, connections } = options
  const generator = new HostileGenerator(options)
  const report: HostileReport = { requests: 0, seconds: 0, connections: 0, statuses: {}, kinds: {}, failures: [], failed: 0 }
  const startedAt = performance.now()
  let next = from
  const worker = async (): Promise<void> => {
    const connection = new RawConnection(port)
    for (let index = next++; index < from + requests && options.signal?.aborted !== true; index = next++) {
      const request = generator.make(index)
      const answer = await connection.send(request)
      report.requests++
      const status = String(answer.status ?? 'none')
      report.statuses[status] = (report.statuses[status] ?? 0) + 1
      report.kinds[request.kind] = (report.kinds[request.kind] ?? 0) + 1
      const reason = faultOf(request, answer)
      if (reason !== undefined) {
        report.failed++
        if (report.failures.length < SHOWN) {
          const text = Buffer.concat(request.parts.map((part) => Buffer.from(part as string))).toString('latin1')
          const shown = options.apiKey === undefined ? text : text.replaceAll(options.apiKey, '<key>')
          report.failures.push({ index, kind: request.kind, reason, request: shown.slice(0, 600), answer: answer.body.slice(0, 300) })
        }
      }
      if (report.requests % 1000 === 0) options.onProgress?.(report.requests)
    }
    connection.close()
    report.connections += connection.opened
  }
  await Promise.all(Array.from({ length: connections }, worker))
  report.seconds = (performance.now() - startedAt) / 1000
  return report
}

/** Paths of this machine, and positions in sources. */
const INSIDES = /node_modules|\bat .*:\d+:\d+|\/dist\/|\/lib\/|\.ts:|\.js:\d|0x[0-9a-f]{8,}/

function faultOf(request: HostileRequest, answer: RawAnswer): string | undefined {
  if (answer.hung) return 'no answer came'
  if (answer.status === undefined) return request.mayClose || request.leaveAfter !== undefined ? undefined : 'the connection ended without an answer'
  if (answer.status >= 500) return `status ${answer.status}`
  // Where it left, the answer was cut, too.
  if (request.leaveAfter !== undefined) return undefined
  if (!request.statuses.has(answer.status)) return `status ${answer.status}`
  if (answer.status >= 400) return faultOfError(request, answer)
  return request.check?.(answer.body) === false ? 'a wrong answer' : undefined
}

/** Errors have OpenAI's shape, and nothing of the server's inside. */
function faultOfError(request: HostileRequest, { status, body, headers }: RawAnswer): string | undefined {
  if (request.head === true) return undefined
  // What Node's parser refuses has no route, and no body.
  if (body === '' && request.kind === 'broken HTTP') return undefined
  let error: { message?: unknown; type?: unknown; param?: unknown; code?: unknown }
  try {
    ;({ error } = JSON.parse(body) as { error: typeof error })
  } catch {
    return `status ${status} with a body that is no JSON`
  }
  if (typeof error?.message !== 'string' || typeof error.type !== 'string' || !('param' in error) || !('code' in error)) return 'an error without message, type, param or code'
  if (INSIDES.test(error.message)) return 'an error that tells of the inside'
  if (error.message.length > 1000) return 'an error of more than 1000 characters'
  return headers['x-request-id'] === undefined && request.kind !== 'broken HTTP' ? 'no x-request-id' : undefined
}
