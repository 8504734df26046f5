/** GET /health/live, /health/ready, /version and /metrics. */
import { version } from '../../version'
import { ApiError } from '../errors'
import type { Exchange } from '../http/exchange'
import { partAnswer } from '../http/part_answer'
import type { Services } from '../services'
import { limitsOf } from './request'

function report(exchange: Exchange, reason: string | undefined, good: string, bad: string): Response {
  return reason === undefined ? exchange.json(200, { status: good }) : exchange.json(503, { status: bad, reason })
}

/** Whether the process is worth keeping. */
export function live(exchange: Exchange, { health }: Services): Response {
  return report(exchange, health.notLive?.(), 'live', 'failed')
}

/** Whether traffic should come. */
export function ready(exchange: Exchange, { health, draining }: Services): Response {
  return report(exchange, draining ? 'The server is shutting down' : health.notReady?.(), 'ready', 'not ready')
}

export function showVersion(exchange: Exchange): Response {
  return exchange.json(200, { version })
}

/** @throws ApiError 404 where nothing is recorded */
export async function metrics(exchange: Exchange, services: Services): Promise<Response> {
  const { telemetry } = services
  if (telemetry === undefined) throw new ApiError(404, 'invalid_request_error', 'not_found', 'This server records no metrics')
  const { contentType, body } = await partAnswer(exchange, services, telemetry.metrics(), limitsOf(exchange, services).requestTimeoutMs, 'metrics() of "telemetry"')
  return exchange.text(200, body, { 'content-type': contentType })
}
