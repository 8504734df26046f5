/** The demo model on the real addon, and steps for it. */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { graphFromConfig } from '../../../lib/models'
import { CpuBackend, type CpuBackendOptions } from '../../../lib/native'
import {
  GREEDY_SAMPLING,
  LAST_SAMPLED_TOKEN,
  type SlotInit,
  STEP_HEADER_INTS,
  STEP_VERSION,
  StepFlag,
  type StepResult,
} from '../../../lib/scheduler/executor'

const root = resolve(__dirname, '..', '..', '..')
export const modelFolder = join(root, 'models', 'tiny-storyteller')

export function demoOptions(overrides: Partial<CpuBackendOptions> = {}): CpuBackendOptions {
  return {
    graph: graphFromConfig(JSON.parse(readFileSync(join(modelFolder, 'config.json'), 'utf8'))),
    files: [join(modelFolder, 'model.safetensors')],
    pageSize: 16,
    numPages: 64,
    maxSlots: 8,
    maxStepTokens: 256,
    threads: 1,
    simd: '',
    ...overrides,
  }
}

export function greedySlot(slot: number, prompt: number[]): SlotInit {
  return {
    slot,
    prompt: Int32Array.from(prompt),
    output: new Int32Array(0),
    sampling: GREEDY_SAMPLING,
  }
}

/** A step of one sequence that samples. */
export function packStep(stepId: number, slot: number, cached: number, tokens: number[], pages: number[]): Int32Array {
  const header = [STEP_VERSION, stepId, 1, tokens.length, pages.length, 0]
  if (header.length !== STEP_HEADER_INTS) throw new Error('the header has changed')
  return Int32Array.from([...header, slot, tokens.length, cached, pages.length, StepFlag.SAMPLE, ...pages, ...tokens])
}

/** Prefills `prompt` and decodes `count` tokens greedily, one step in flight; `count` is bounded by `pages`. */
export async function decodeGreedily(backend: CpuBackend, prompt: number[], count: number): Promise<number[]> {
  const pages = Array.from({ length: Math.ceil((prompt.length + count) / backend.info.pageSize) }, (_, i) => i)
  const results = startCollecting(backend)
  backend.openSlot(greedySlot(0, prompt))
  const tokens: number[] = []
  for (let i = 0; i < count; i++) {
    const cached = i === 0 ? 0 : prompt.length + i - 1
    backend.submit(packStep(i, 0, cached, i === 0 ? prompt : [LAST_SAMPLED_TOKEN], pages))
    const result = await results.next()
    if (result.error !== undefined) throw new Error(result.error.message)
    tokens.push(...result.tokens)
  }
  backend.closeSlot(0)
  return tokens
}

/** Starts the backend; `next()` gives results in order of arrival, `arrived` all of them. */
export function startCollecting(backend: CpuBackend): { arrived: StepResult[]; next(): Promise<StepResult> } {
  const arrived: StepResult[] = []
  let taken = 0
  let wake: (() => void) | undefined
  backend.start((result) => {
    arrived.push(result)
    wake?.()
  })
  return {
    arrived,
    async next() {
      while (arrived.length === taken) await new Promise<void>((resolve) => (wake = resolve))
      return arrived[taken++]!
    },
  }
}
