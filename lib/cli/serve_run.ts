/** Runs a server from its configuration to its end. */
import { createServer as createHttpServer, type Server as HttpServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { readFileSync } from 'node:fs'
import { stringify } from 'yaml'
import { TensorRTError } from '../errors'
import { LLM, type LLMOptions } from '../llm'
import { createKeySecurity, createServer, createSlaAdmission, createTelemetry, type Server, type ServerOptions, type SlaAdmission, type Telemetry } from '../server'
import { bundledModel, resolveModel } from './options'
import { printWarning } from './output'
import { readServeConfig, type ServeConfig } from './serve_config'
import { findKeys, type FoundKeys } from './serve_keys'

/** Exit codes of a process that a signal ended, as shells have them. */
const SIGNAL_CODES = { SIGINT: 130, SIGTERM: 143 } as const
const LOOPBACK = /^(?:127\.\d+\.\d+\.\d+|::1|localhost)$/i
/** Lines that say that loading goes on. */
const LOADING_EVERY_MS = 5000

/** The command line, a variable or the configuration file is wrong; `cause` says how. */
export class UsageError extends Error {
  constructor(override readonly cause: unknown) {
    super('usage')
  }
}

const say = (text: string): void => void process.stderr.write(`node-tensorrt: ${text}\n`)

/** @throws what keeps the server from being started */
export async function serve(model: string | undefined, flags: Readonly<Record<string, unknown>>): Promise<void> {
  const { config, keys, warnings } = configure(model, flags)
  if (flags['printConfig'] === true) {
    process.stdout.write(printable({ ...config, auth: { ...config.auth, keys } }))
    return
  }
  for (const warning of warnings) say(warning)
  // Before the model, so that what is missing is told at once.
  const tls = config.tls === undefined ? undefined : { cert: readPem(config.tls.cert), key: readPem(config.tls.key) }
  const end = new End(config.drainMs)
  try {
    const llm = await load(config, end.signal)
    end.add('model', () => llm.close())
    await warmUp(llm, end.signal)
    const admission = config.sla === undefined ? undefined : createSlaAdmission(llm, config.sla)
    const telemetry = config.metrics.enabled || config.accessLog !== undefined ? telemetryOf(llm, config, admission) : undefined
    const server = createServer(llm, {
      ...serverOptions(config),
      admission,
      telemetry,
      security: keys.length === 0 ? undefined : createKeySecurity({ keys, open: config.auth.open, shareCache: config.auth.shareCache }),
    })
    end.server = server
    if (telemetry !== undefined && config.metrics.port !== undefined) {
      const metrics = await listenForMetrics(telemetry, config.metrics.host, config.metrics.port)
      end.add('metrics', () => closeHttp(metrics))
      say(`metrics at http://${hostOf(metrics)}/metrics`)
    }
    end.throwIfAsked()
    const { url } = await server.listen({ host: config.host, port: config.port, tls })
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
function configure(model: string | undefined, flags: Readonly<Record<string, unknown>>): FoundKeys & { config: ServeConfig } {
  try {
    const config = readServeConfig({ model, flags, env: process.env, file: flags['config'] as string | undefined })
    return { config, ...findKeys(config, process.env) }
  } catch (error) {
    throw new UsageError(error)
  }
}

function readPem(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    throw new TensorRTError('ERR_IO', `${path} cannot be read: ${(cause as Error).message}`, { cause })
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
  return stringify(plain({ ...config, auth }), { lineWidth: 0 })
}

async function load(config: ServeConfig, signal: AbortSignal): Promise<LLM> {
  const folder = resolveModel(config.model ?? bundledModel)
  say(`loading ${folder}`)
  const startedAt = performance.now()
  const seconds = (): string => ((performance.now() - startedAt) / 1000).toFixed(1)
  const timer = setInterval(() => say(`still loading, after ${seconds()} s`), LOADING_EVERY_MS)
  const { backend, failover } = config
  const options: LLMOptions = {
    backend,
    ...(failover === undefined ? {} : { failover: failover === 'standby' ? 'standby' : failover === 'on' }),
    threads: config.threads,
    device: config.device,
    libraryPath: config.libraryPath,
    weights: config.weights,
    allowUnfit: config.allowUnfit,
    kvCacheMemory: config.kvCacheMemory,
    kvCacheFraction: config.kvCacheFraction,
    maxSequences: config.maxSequences,
    maxStepTokens: config.maxStepTokens,
    maxQueue: config.maxQueue,
    prefixCache: config.prefixCache,
    // What admission promises, the scheduler keeps.
    ...(config.sla === undefined ? {} : { maxStepMs: config.sla.itlMs, preemptForPriority: true }),
    signal,
    onWarning: printWarning,
  }
  try {
    const llm = await LLM.load(folder, options)
    const { device, maxPositions, numPages, pageSize, maxSlots } = llm.info
    say(`loaded in ${seconds()} s on ${llm.backend}: ${device}; context ${maxPositions}, KV cache of ${numPages * pageSize} tokens, ${maxSlots} sequences`)
    return llm
  } finally {
    clearInterval(timer)
  }
}

/** The first request of each kind costs more than the rest: threads start, memory is touched, code is compiled. */
async function warmUp(llm: LLM, signal: AbortSignal): Promise<void> {
  const startedAt = performance.now()
  const { hasChatTemplate, hasTokenizer, maxPositions } = llm.info
  const text = 'The quick brown fox jumps over the lazy dog. '
  const once = (options: Parameters<LLM['generate']>[0]): Promise<unknown> =>
    llm.generate({ ...options, maxTokens: 8, ignoreEos: true, temperature: 1, signal }).result()
  await Promise.all([
    once({ tokens: [0] }),
    ...(hasTokenizer ? [once({ prompt: text })] : []),
    ...(hasChatTemplate ? [once({ messages: [{ role: 'user', content: text }] })] : []),
    // Long enough for the thread that encodes long prompts, which starts with the first one; a small context refuses it then.
    ...(hasTokenizer ? [llm.encodePrompt({ prompt: text.repeat(Math.max(60, Math.floor(maxPositions / 20))), signal }).catch(() => {})] : []),
  ])
  say(`warmed up in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`)
}

function telemetryOf(llm: LLM, config: ServeConfig, admission: SlaAdmission | undefined): Telemetry {
  const { accessLog } = config
  return createTelemetry(llm, {
    model: config.modelName?.[0] ?? llm.info.model?.split(/[\\/]/).at(-1) ?? llm.info.name,
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
    say('ended')
  }

  private complain(name: string, error: unknown): void {
    this.code ||= 1
    say(`closing the ${name} failed: ${error instanceof Error ? error.message : String(error)}`)
  }
}
