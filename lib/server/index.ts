export { createSlaAdmission, type SlaAdmission, type SlaOptions, type SlaSnapshot } from './admission'
export { DEFAULT_LIMITS } from './limits'
export type { ServerOptions } from './options'
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
  TokenizeFacts,
} from './seams'
export { type ApiKey, createKeySecurity, hashApiKey, type KeySecurityOptions, makeApiKey, OPEN_ROUTES } from './security'
export { createServer, type ListenOptions, type Server, type ServerCloseOptions } from './server'
export { type AccessLogDestination, createTelemetry, type MetricDescription, type MetricType, type ServerTelemetry, type TelemetryOptions } from './telemetry'
