/** A server over the CPU backend whose steps fail and whose backend dies, again and again. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { LLM, type LLMWarning, seededRandom } from '../../lib/llm'
import { graphFromConfig } from '../../lib/models'
import { CpuBackend } from '../../lib/native'
import type { Executor } from '../../lib/scheduler'
import { createServer, createTelemetry, type Server } from '../../lib/server'
import { Tokenizer } from '../../lib/text'
import { type Death, DyingExecutor } from './dying_executor'
import type { KnownOutput } from './fault_load'
import { FaultyExecutor } from './faulty_executor'

const FOLDER = resolve(__dirname, '..', '..', 'models', 'tiny-storyteller')
const json = (file: string): never => JSON.parse(readFileSync(join(FOLDER, file), 'utf8')) as never
const FIRST_TOKEN = 6
const VOCAB_SIZE = 4096
const DEATHS: readonly Death[] = ['ERR_CUDA', 'ERR_BACKEND_DEAD', 'submit', 'openSlot', 'hang']

/** From one to the next, on average; Infinity: none. */
export interface Faults {
  /** Steps make faults as frequent, seen from a request, on any machine. */
  unit: 'seconds' | 'steps'
  /** A step fails in a way that may pass. */
  retryable: number
  /** A step fails for good. That ends the requests in it, by contract. */
  fatal: number
  /** The backend dies, each time in another way. */
  death: number
}

export interface FaultyServer {
  llm: LLM
  server: Server
  url: string
  injected: { retryable: number; fatal: number; deaths: Record<Death, number> }
  warnings: LLMWarning['code'][]
  /** What the server called its own failures: each with an answer 500. */
  failures: string[]
  close(): Promise<void>
}

interface Sizes {
  maxSlots: number
  threads?: number | undefined
}

function cpu({ maxSlots, threads = 0 }: Sizes): Promise<Executor> {
  const files = [join(FOLDER, 'model.safetensors')]
  return CpuBackend.create({ graph: graphFromConfig(json('config.json')), files, pageSize: 16, numPages: 512, maxSlots, maxStepTokens: 256, threads, simd: '' })
}

const tokenizer = (): Tokenizer => new Tokenizer(json('tokenizer.json'), json('tokenizer_config.json'))

/** Prompts of any tokens, and what each comes to when it runs alone. */
export async function knownOutputs(count: number, seed: number): Promise<KnownOutput[]> {
  const random = seededRandom(seed)
  const between = (min: number, max: number): number => min + Math.floor(random() * (max - min))
  const llm = LLM.fromExecutor(await cpu({ maxSlots: 1 }), { tokenizer: tokenizer(), prefixCache: false })
  const known: KnownOutput[] = []
  for (let i = 0; i < count; i++) {
    const tokens = Array.from({ length: between(4, 100) }, () => between(FIRST_TOKEN, VOCAB_SIZE))
    const maxTokens = between(8, 96)
    const { text } = await llm.generate({ tokens, maxTokens, temperature: 0, ignoreEos: true }).result()
    known.push({ tokens, maxTokens, text })
  }
  await llm.close()
  return known
}

/** Says at each call whether a period has passed since the last time that it said so; half as long, or half as long again, at random. */
function every(period: number, now: () => number, random: () => number): () => boolean {
  const next = (): number => now() + period * (0.5 + random())
  let due = next()
  return () => {
    if (now() < due) return false
    due = next()
    return true
  }
}

export async function startFaultyServer(faults: Faults, sizes: Sizes, stepTimeoutMs: number): Promise<FaultyServer> {
  const random = seededRandom(5)
  let steps = 0
  const now = faults.unit === 'steps' ? () => steps : () => performance.now() / 1000
  const injected: FaultyServer['injected'] = { retryable: 0, fatal: 0, deaths: { ERR_CUDA: 0, ERR_BACKEND_DEAD: 0, submit: 0, openSlot: 0, hang: 0 } }
  const passes = every(faults.retryable, now, seededRandom(6))
  const stays = every(faults.fatal, now, seededRandom(7))
  const faulty = async (): Promise<FaultyExecutor> =>
    new FaultyExecutor(await cpu(sizes), () => {
      steps++
      const fatal = stays()
      if (!fatal && !passes()) return undefined
      injected[fatal ? 'fatal' : 'retryable']++
      return { retryable: !fatal }
    })
  let made = 0
  const timers = new Set<NodeJS.Timeout>()
  const mortal = async (): Promise<Executor> => {
    const how = DEATHS[made++ % DEATHS.length]!
    const life = faults.death * (0.5 + random())
    const inSteps = faults.unit === 'steps'
    const executor = new DyingExecutor(await faulty(), inSteps ? Math.ceil(life) : Infinity, how)
    executor.onDeath = () => void injected.deaths[how]++
    if (inSteps || life === Infinity) return executor
    const timer = setTimeout(() => {
      timers.delete(timer)
      executor.kill()
    }, life * 1000)
    timers.add(timer)
    return executor
  }
  const warnings: LLMWarning['code'][] = []
  const llm = LLM.fromExecutor(await mortal(), {
    tokenizer: tokenizer(),
    stepTimeoutMs,
    failover: faulty,
    // Deaths that are as frequent as here would lengthen the pauses between attempts.
    restart: { create: mortal, initialDelayMs: 500, maxDelayMs: 1000 },
    onWarning: ({ code }) => void warnings.push(code),
  })
  const failures: string[] = []
  const telemetry = createTelemetry(llm, { model: 'faulty' })
  const server = createServer(llm, { modelName: 'faulty', telemetry, onError: (error) => void failures.push(String(error)) })
  const { url } = await server.listen({ port: 0 })
  return {
    llm,
    server,
    url,
    injected,
    warnings,
    failures,
    close: async () => {
      for (const timer of timers) clearTimeout(timer)
      await server.close()
      await llm.close()
    },
  }
}
