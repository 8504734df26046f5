/** Runs a server from its configuration to its end. */
import { createServer as createHttpServer, type Server as HttpServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { stringify } from 'yaml'
import { TensorRTError } from '../errors'
import type { LLM } from '../llm'
import { createKeySecurity, createServer, createSlaAdmission, createTelemetry, type Security, type Server, type ServerOptions, type SlaAdmission, type Telemetry } from '../server'
import { resolveModel } from './options'
import { say, SIGNAL_CODES } from './output'
import { misspeltVariables, readServeConfig, type ServeConfig, type Tree, withAbsolutePaths } from './serve_config'
import { findKeys, type FoundKeys } from './serve_keys'
import { loadServed, warmUp } from './serve_model'
import { preflight } from './serve_preflight'

const LOOPBACK = /^(?:127\.\d+\.\d+\.\d+|::1|localhost)$/i

/** The command line, a variable or the configuration file is wrong; `cause` says how. */
export class UsageError extends Error {
  constructor(override readonly cause: unknown) {
    super('usage')
  }
}

/** @throws what keeps the server from being started */
export async function serve(model: string | undefined, flags: Readonly<Record<string, unknown>>): Promise<void> {
  const { config, keys, warnings, security } = configure(model, flags)
  for (const warning of [...warnings, ...misspeltVariables(process.env)]) say(warning)
  if (flags['printConfig'] === true) {
    process.stdout.write(printable({ ...config, auth: { ...config.auth, keys } }))
    return
  }
  const { tls } = await preflight(config)
  const end = new End(config.drainMs)
  try {
    const llm = await loadServed(config, end.signal)
    end.add('model', () => llm.close())
    if (config.warmUp) await warmUp(llm, end.signal)
    const admission = config.sla === undefined ? undefined : createSlaAdmission(llm, config.sla)
    const telemetry = config.metrics.enabled || config.accessLog !== undefined ? telemetryOf(llm, config, admission) : undefined
    const server = createServer(llm, {
      ...serverOptions(config),
      admission,
      telemetry,
      security,
    })
    end.server = server
    if (telemetry !== undefined && config.metrics.port !== undefined) {
      const metrics = await listenForMetrics(telemetry, config.metrics.host, config.metrics.port)
      end.add('metrics', () => closeHttp(metrics))
      say(`metrics at http://${hostOf(metrics)}/metrics`)
    }
    end.throwIfAsked()
    const { url } = await server.listen({ host: config.host, port: config.port, tls, signal: end.signal })
    end.throwIfAsked()
    if (keys.length === 0 && !LOOPBACK.test(config.host)) {
      say(`WARNING: ${config.host} can be reached from other machines, and no API key is asked for; give --api-key-file, or NODE_TENSORRT_API_KEY`)
    }
    say(`listening at ${url}, with ${keys.length === 0 ? 'no API key' : keys.length === 1 ? 'an API key' : `${keys.length} API keys`}`)
  } catch (error) {
    await end.now()
    if (end.signal.aborted) {
      process.exitCode = end.code
      return
    }
    throw error
  }
  process.exitCode = await end.whenOver()
}

/** What is wrong with the configuration is a usage error. */
function configure(model: string | undefined, flags: Readonly<Record<string, unknown>>): FoundKeys & { config: ServeConfig; security: Security | undefined } {
  try {
    const config = readServeConfig({ model, flags, env: process.env, file: flags['config'] as string | undefined })
    const found = findKeys(config, process.env)
    const { open, shareCache } = config.auth
    return { config, ...found, security: found.keys.length === 0 ? undefined : createKeySecurity({ keys: found.keys, open, shareCache }) }
  } catch (error) {
    throw new UsageError(error)
  }
}

/** YAML that gives the same configuration again. Hashes of keys are in it, keys are not. */
function printable(config: ServeConfig): string {
  const plain = (value: unknown): unknown => {
    if (value === Infinity) return 'none'
    if (Array.isArray(value)) return value.map(plain)
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(Object.entries(value).flatMap(([key, inner]) => (inner === undefined ? [] : [[key, plain(inner)]])))
  }
  const { keyFile: _, ...auth } = config.auth
  const model = config.model === undefined ? undefined : resolveModel(config.model)
  return stringify(withAbsolutePaths(plain({ ...config, model, auth }) as Tree, process.cwd()), { lineWidth: 0 })
}

function telemetryOf(llm: LLM, config: ServeConfig, admission: SlaAdmission | undefined): Telemetry {
  const { accessLog } = config
  return createTelemetry(llm, {
    model: config.modelName?.[0],
    accessLog: accessLog === undefined || accessLog === 'stdout' || accessLog === 'stderr' ? accessLog : { path: accessLog },
    tracing: config.tracing,
    admission,
    onWarning: (message) => say(message),
  })
}

function serverOptions(config: ServeConfig): ServerOptions {
  return {
    modelName: config.modelName,
    toolCallParser: config.toolCallParser,
    reasoningParser: config.reasoningParser,
    limits: config.limits,
    keepAliveMs: config.keepAliveMs,
    stallTimeoutMs: config.stallTimeoutMs,
    headersTimeoutMs: config.headersTimeoutMs,
    maxConnections: config.maxConnections,
    warmUp: config.warmUp,
    onError: (error, requestId) => say(`request ${requestId} failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`),
  }
}

/** Metrics alone, for a network that only those who collect them can reach. */
async function listenForMetrics(telemetry: Telemetry, host: string, port: number): Promise<HttpServer> {
  const http = createHttpServer({ headersTimeout: 5000, requestTimeout: 10_000 }, (request, response) => {
    const known = request.url === '/metrics' && (request.method === 'GET' || request.method === 'HEAD')
    if (!known) {
      response.writeHead(404, { 'content-type': 'text/plain' }).end('not found\n')
      return
    }
    telemetry.metrics().then(
      ({ contentType, body }) => response.writeHead(200, { 'content-type': contentType }).end(body),
      () => response.writeHead(500).end(),
    )
  })
  http.maxConnections = 64
  await new Promise<void>((resolve, reject) => {
    http.once('error', (cause) => reject(new TensorRTError('ERR_IO', `Listening for metrics at ${host}:${port} failed: ${cause.message}`, { cause })))
    http.listen({ host, port }, resolve)
  })
  return http
}

function hostOf(http: HttpServer): string {
  const { address, family, port } = http.address() as AddressInfo
  return family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`
}

function closeHttp(http: HttpServer): Promise<void> {
  return new Promise((resolve) => {
    http.close(() => resolve())
    http.closeAllConnections()
  })
}

/** The end of the process: asked for by a signal, hastened by a second one, forced by a third. */
class End {
  server: Server | undefined
  code = 0
  private readonly controller = new AbortController()
  private readonly parts: { name: string; close: () => Promise<void> }[] = []
  private signals = 0
  private over!: (code: number) => void
  private readonly ended = new Promise<number>((resolve) => (this.over = resolve))
  private closing: Promise<void> | undefined

  constructor(private readonly drainMs: number) {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => this.onSignal(signal))
  }

  /** Aborts when the process is to end before it listens. */
  get signal(): AbortSignal {
    return this.controller.signal
  }

  add(name: string, close: () => Promise<void>): void {
    this.parts.unshift({ name, close })
  }

  throwIfAsked(): void {
    this.signal.throwIfAborted()
  }

  whenOver(): Promise<number> {
    return this.ended
  }

  /** Closes what was opened. Never rejects. */
  now(): Promise<void> {
    this.closing ??= this.close(0)
    return this.closing
  }

  private onSignal(signal: keyof typeof SIGNAL_CODES): void {
    this.signals++
    if (this.signals > 2) process.exit(SIGNAL_CODES[signal])
    if (this.signals === 2) {
      this.code = SIGNAL_CODES[signal]
      say(`${signal} again: ending at once`)
      void this.server?.close()
      return
    }
    this.controller.abort(new Error(signal))
    if (this.server?.address === undefined) {
      // Still loading: whoever loads ends it.
      this.code = SIGNAL_CODES[signal]
      say(`${signal}: ending`)
      return
    }
    const { pending } = this.server
    say(`${signal}: taking no more requests${pending === 0 ? '' : `; ${pending} under way may take ${this.drainMs / 1000} s`}`)
    this.closing = this.close(this.drainMs)
    void this.closing.then(() => this.over(this.code))
  }

  private async close(drainMs: number): Promise<void> {
    const { server } = this
    if (server !== undefined) {
      const startedAt = performance.now()
      let left = 0
      // What is there when the time is over is what is cut off.
      const timer = setTimeout(() => (left = server.pending), Math.max(0, drainMs - 1))
      await server.close({ drainMs }).catch((error: unknown) => this.complain('server', error))
      clearTimeout(timer)
      if (left > 0) {
        this.code ||= 1
        say(`${left} requests were cut off after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`)
      }
    }
    for (const { name, close } of this.parts) await close().catch((error: unknown) => this.complain(name, error))
    // What failed to start is told in its own words.
    if (this.signals > 0) say('ended')
  }

  private complain(name: string, error: unknown): void {
    this.code ||= 1
    say(`closing the ${name} failed: ${error instanceof Error ? error.message : String(error)}`)
  }
}
