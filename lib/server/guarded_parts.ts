/**
 * Parts of a caller's own that only hear of requests: what they throw concerns no request. It goes to `onError`, once for each request, and the
 * part hears no more of that request's tokens. What parts are asked for, such as who may do what, fails the request that asks.
 */
import { TensorRTError } from '../errors'
import { tellListener } from '../runtime'
import type { Admission, AdmissionTicket, RequestTelemetry, Security, Telemetry } from './seams'

export type OnError = (error: unknown, requestId: string) => void

/** What `onError` itself throws is a warning of the process. */
export function guardOnError(onError: OnError): OnError {
  return (error, requestId) => tellListener('onError', () => onError(error, requestId), undefined)
}

/** How long the end of a part may take: spans and lines of a log on their way over a network. */
const CLOSE_MS = 10_000
/** Of no request. */
const NO_ID = '-'

function attempt<T>(onError: OnError, id: string, call: () => T): T | undefined {
  try {
    return call()
  } catch (error) {
    onError(error, id)
    return undefined
  }
}

export function guardSecurity(security: Security, onError: OnError): Security {
  return {
    authenticate: (request) => security.authenticate(request),
    begin: (caller, facts) => {
      const claim = security.begin?.(caller, facts)
      if (claim === undefined || 'refusal' in claim) return claim ?? { release: () => {} }
      return { release: () => attempt(onError, facts.id, () => claim.release()) }
    },
  }
}

export function guardAdmission(admission: Admission, onError: OnError): Admission {
  return {
    admit: (facts) => {
      const decision = admission.admit(facts)
      return decision.admitted ? { admitted: true, ticket: new GuardedTicket(decision.ticket, facts.id, onError) } : decision
    },
    retryAfterSeconds: (facts) => admission.retryAfterSeconds(facts),
    close: () => admission.close(),
  }
}

class GuardedTicket implements AdmissionTicket {
  private failed = false

  constructor(
    private readonly ticket: AdmissionTicket,
    private readonly id: string,
    private readonly onError: OnError,
  ) {}

  firstToken(): void {
    try {
      this.ticket.firstToken()
    } catch (error) {
      this.fail(error)
    }
  }

  tokens(choice: number, count: number): void {
    if (this.failed) return
    try {
      this.ticket.tokens(choice, count)
    } catch (error) {
      this.fail(error)
    }
  }

  end(): void {
    attempt(this.onError, this.id, () => this.ticket.end())
  }

  private fail(error: unknown): void {
    this.failed = true
    this.onError(error, this.id)
  }
}

export function guardTelemetry(telemetry: Telemetry, onError: OnError): Telemetry {
  return {
    start: (facts) => new GuardedRequest(attempt(onError, facts.id, () => telemetry.start(facts)), facts.id, onError),
    refused: (facts, reason) => attempt(onError, facts.id, () => telemetry.refused(facts, reason)),
    httpStarted: () => attempt(onError, NO_ID, () => telemetry.httpStarted()),
    http: (facts) => attempt(onError, facts.requestId, () => telemetry.http(facts)),
    metrics: () => telemetry.metrics(),
    close: () => settleClose(telemetry.close()),
  }
}

/** A close that never settles must not hold the server's. */
async function settleClose(closing: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new TensorRTError('ERR_TIMEOUT', `close() of "telemetry" did not settle within ${CLOSE_MS / 1000} s`)), CLOSE_MS)
  })
  try {
    await Promise.race([closing, late])
  } finally {
    clearTimeout(timer)
  }
}

class GuardedRequest implements RequestTelemetry {
  private failed = false

  constructor(
    private readonly request: RequestTelemetry | undefined,
    private readonly id: string,
    private readonly onError: OnError,
  ) {}

  tokens(choice: number, count: number): void {
    if (this.failed) return
    try {
      this.request?.tokens(choice, count)
    } catch (error) {
      this.failed = true
      this.onError(error, this.id)
    }
  }

  end(...told: Parameters<RequestTelemetry['end']>): void {
    attempt(this.onError, this.id, () => this.request?.end(...told))
  }
}
