/**
 * What the parts of the server know of each other. Routes know these interfaces alone, so telemetry and admission can be
 * left out, replaced or tested by themselves.
 */
import type { FinishReason, Usage } from '../llm'

export type Endpoint = 'chat' | 'completions' | 'embeddings'

/** What can be told of a request before its body is read. */
export interface RequestHead {
  /** As given by the client, or made by the server. */
  id: string
  method: string
  /** The route's pattern, such as `/v1/models/:model`; `other` for a path that is no route. */
  route: string
  /** Value of a header, by its lower-case name; undefined where it was not sent. */
  header: (name: string) => string | undefined
  /** Aborts when the client goes away, when the server closes, and when the request has taken too long. */
  signal: AbortSignal
}

/** Who a request comes from. */
export interface Caller {
  /** Name of the API key, never the key. */
  keyName?: string | undefined
  /** Keeps cached prefixes of this caller from all others; joined with the request's own `cache_salt`. */
  cacheSalt?: string | undefined
  /** Limits of this caller, in place of the server's. */
  limits?: Partial<RequestLimits> | undefined
}

/** What one request may ask for. */
export interface RequestLimits {
  /** Bytes of a body. */
  maxBodyBytes: number
  /** Nesting of arrays and objects in a body. */
  maxJsonDepth: number
  /** Choices of one request: `n` times the number of prompts. */
  maxChoices: number
  /** Inputs of one request for embeddings. */
  maxInputs: number
  /** Log-probabilities per token, in answers and of prompts: each is an object that is built and sent. */
  maxLogprobs: number
  /** Tokens to generate per choice; a request that asks for more is refused, one that says nothing gets at most these. */
  maxOutputTokens: number
  /** Tokens of one prompt, below what the model's context allows. */
  maxPromptTokens: number
  /** Milliseconds that a body may take to arrive. */
  bodyTimeoutMs: number
  /** Milliseconds after which a request that runs still is given up: in `authenticate` (the server's own limit), then in generation or embedding. */
  requestTimeoutMs: number
  /** The most urgent priority that may be asked for; lower is more urgent. */
  minPriority: number
}

/** Why a request is refused, as its answer says it. */
export interface Refusal {
  status: 400 | 401 | 403 | 404 | 429 | 503
  /** Short and stable, such as `invalid_api_key`. */
  code: string
  message: string
  /** Seconds, at least 1; for the header `retry-after`. */
  retryAfterSeconds?: number | undefined
}

/** Decides who may do what. */
export interface Security {
  /**
   * Called for every request, also for paths that are no routes, before its body is read. What it throws fails the request with 500; where its promise
   * does not settle within the server's `requestTimeoutMs`, the request ends with 504. Either goes to `onError`.
   */
  authenticate(request: RequestHead): Caller | { refusal: Refusal } | Promise<Caller | { refusal: Refusal }>
  /**
   * Called once a request was read: of one for work before admission, of one for tokens or their text before it is looked at.
   * @returns what ends the caller's claim, called once whatever became of the request
   */
  begin?(caller: Caller, facts: RequestFacts | TokenizeFacts): { release(): void } | { refusal: Refusal }
}

/** What the server is asked by those who route traffic to it. */
export interface HealthProbe {
  /** Why the process should be replaced; undefined while it is alive. */
  notLive?(): string | undefined
  /** Why no traffic should come at the moment; undefined while it is welcome. */
  notReady?(): string | undefined
}

/** A request whose body was read and whose prompt was encoded. */
export interface RequestFacts {
  /** Given by the client in x-request-id, where that is harmless, else made by the server. */
  id: string
  endpoint: Endpoint
  /** Name under which the model is served. */
  model: string
  stream: boolean
  /** Choices, over all prompts. */
  n: number
  /** Over all prompts. */
  promptTokens: number
  /** Tokens of each prompt; may be left out where there is one. */
  promptLengths?: readonly number[] | undefined
  /** Per choice; undefined: as many as fit. */
  maxTokens: number | undefined
  /** Lower is more urgent. */
  priority: number
  /** Milliseconds within which the whole output must exist. */
  deadlineMs: number | undefined
  /** Milliseconds since the last of it came: behind other requests, and in reading it. May be left out. */
  waitedMs?: number | undefined
  /** Name of the API key, never the key; undefined where no keys are asked for. */
  keyName: string | undefined
  /** W3C trace context of the caller. */
  traceparent: string | undefined
  tracestate: string | undefined
  /** Sampling parameters worth a span's attribute. */
  temperature: number | undefined
  topP: number | undefined
}

/** A request to /tokenize or /detokenize whose body was read: it is no work for the model, and no admission hears of it. */
export interface TokenizeFacts {
  /** As in {@link RequestFacts}. */
  id: string
  endpoint: 'tokenize' | 'detokenize'
  model: string
  keyName: string | undefined
}

export type RequestOutcome =
  | { kind: 'finished'; finishReasons: readonly FinishReason[]; usage: Usage }
  /** The client went away, or broke off. */
  | { kind: 'aborted' }
  | { kind: 'failed'; error: Error }

/** Hears of one request from its admission to its end. Calls never throw. */
export interface RequestTelemetry {
  /** Tokens of a choice reached the server; the first call for a choice is its first token. */
  tokens(choice: number, count: number): void
  /** Once. `queueMs` is the time before the first step, where the request got that far. */
  end(outcome: RequestOutcome, times: { queueMs: number | undefined }): void
}

/** One line of the access log. */
export interface HttpFacts {
  requestId: string
  method: string
  /** The route's pattern, never the path as it came. `other` for what is no route. */
  route: string
  status: number
  durationMs: number
  responseBytes: number
  keyName: string | undefined
  model: string | undefined
  backend: string
  /** `error.code` of the answer, where it was an error. */
  errorCode: string | undefined
  /** Where the client went away before the end. */
  aborted: boolean
  /** Of a request that ran to its end. */
  usage?: Usage | undefined
}

export interface Telemetry {
  start(facts: RequestFacts): RequestTelemetry
  /** A request that admission, the queue or a key's limits turned away. */
  refused(facts: RequestFacts | TokenizeFacts, reason: RefusalReason): void
  /** An HTTP request has come; `http` tells of its end. */
  httpStarted(): void
  http(facts: HttpFacts): void
  /** Prometheus' text format. Given up as `authenticate` is. */
  metrics(): Promise<{ contentType: string; body: string }>
  /** May be called twice. Given up after 10 s: the server's `close()` rejects with ERR_TIMEOUT then, everything else being closed. */
  close(): Promise<void>
}

export type RefusalReason = 'queue_full' | 'sla' | 'deadline' | 'draining' | 'not_ready' | 'key_limit'

export type AdmissionDecision =
  | { admitted: true; ticket: AdmissionTicket }
  | {
      admitted: false
      reason: RefusalReason
      /** When to try again, in seconds, at least 1. */
      retryAfterSeconds: number
      message: string
    }

/** What admission learns of a request that it let in. */
export interface AdmissionTicket {
  firstToken(): void
  tokens(choice: number, count: number): void
  /** Once, whatever became of it. */
  end(): void
}

/** Decides, before a request is queued, whether it can be served as promised. */
export interface Admission {
  admit(facts: RequestFacts): AdmissionDecision
  /** Seconds until a request that is refused now might be served; for answers to ERR_QUEUE_FULL. */
  retryAfterSeconds(facts: RequestFacts): number
  close(): void
}
