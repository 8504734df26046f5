export { DEFAULT_LIMITS, type ServerOptions } from './options'
export type {
  Admission,
  AdmissionDecision,
  AdmissionTicket,
  Caller,
  Endpoint,
  HealthProbe,
  HttpFacts,
  Refusal,
  RefusalReason,
  RequestFacts,
  RequestHead,
  RequestLimits,
  RequestOutcome,
  RequestTelemetry,
  Security,
  Telemetry,
} from './seams'
export { createServer, type ListenOptions, type Server, type ServerCloseOptions } from './server'
