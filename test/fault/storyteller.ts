/** The model, loads and checks that tests of failover and restart share. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { expect, vi } from 'vitest'
import { type Executor, type GenerateOptions, type GenerationResult, LLM } from '../../lib'
import { seededRandom } from '../../lib/cli/load_generator'
import { graphFromConfig } from '../../lib/models'
import { CpuBackend } from '../../lib/native'
import { Tokenizer } from '../../lib/text'
import { PATIENTLY } from '../support/patience'

const folder = resolve(__dirname, '..', '..', 'models', 'tiny-storyteller')
const json = (file: string): never => JSON.parse(readFileSync(join(folder, file), 'utf8')) as never
export const tokenizer = new Tokenizer(json('tokenizer.json'), json('tokenizer_config.json'))
export const STREAMS = 64

export interface Sizes {
  numPages?: number
  maxSlots?: number
  pageSize?: number
  maxStepTokens?: number
}

export function cpu({ numPages = 1024, maxSlots = STREAMS, pageSize = 16, maxStepTokens = 256 }: Sizes = {}): Promise<Executor> {
  return CpuBackend.create({
    graph: graphFromConfig(json('config.json')),
    files: [join(folder, 'model.safetensors')],
    pageSize,
    numPages,
    maxSlots,
    maxStepTokens,
    threads: 0,
    simd: '',
  })
}

/** Half of them greedy, half sampled with a seed, and of those a few with all that depends on the output so far. */
export function plan(seed: number): GenerateOptions[] {
  const random = seededRandom(seed)
  return Array.from({ length: STREAMS }, (_, i) => ({
    tokens: Array.from({ length: 1 + Math.floor(random() ** 2 * 60) }, () => 6 + Math.floor(random() * 4000)),
    maxTokens: 40 + Math.floor(random() * 60),
    ignoreEos: true,
    ...(i % 2 === 0 ? { temperature: 0 } : { temperature: 0.9, topP: 0.95, seed: 1000 + i }),
    ...(i % 8 === 3 ? { repetitionPenalty: 1.2, presencePenalty: 0.3, frequencyPenalty: 0.2 } : {}),
    ...(i % 8 === 5 ? { logprobs: 2, minTokens: 30, ignoreEos: false } : {}),
  }))
}

/** What each request gives by itself, on a backend that lives. */
export async function solos(requests: readonly GenerateOptions[]): Promise<GenerationResult[]> {
  const llm = LLM.fromExecutor(await cpu({ maxSlots: 1 }), { tokenizer })
  const results: GenerationResult[] = []
  for (const request of requests) results.push(await llm.generate(request).result())
  await llm.close()
  return results
}

/** Tokens as they were streamed, and when. */
export async function stream(llm: LLM, request: GenerateOptions) {
  const generation = llm.generate(request)
  const times: number[] = []
  const streamed: number[] = []
  let text = ''
  for await (const chunk of generation) {
    times.push(performance.now())
    streamed.push(...chunk.tokens)
    text += chunk.text
  }
  const result = await generation.result()
  expect(streamed).toEqual(result.tokens)
  expect(text).toBe(result.text)
  return { result, times }
}

export const substance = ({ tokens, text, finishReason, logprobs, usage, choices }: GenerationResult): unknown => ({
  tokens,
  text,
  finishReason,
  logprobs,
  usage,
  choices,
})

export async function expectWhole(llm: LLM): Promise<void> {
  await vi.waitFor(() =>
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, steps: { inFlight: 0 }, kv: { usedPages: 0 } }),
    PATIENTLY,
  )
  llm.check()
}

export const codes = (results: PromiseSettledResult<unknown>[]): unknown[] =>
  results.map((result) => (result.status === 'rejected' ? (result.reason as { code: unknown }).code : 'fulfilled'))
