/** The serving benchmark's own arithmetic: rooflines, requests, tables. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'

const root = resolve(__dirname, '..', '..', '..')
const load = <T>(...path: string[]): Promise<T> => import(pathToFileURL(join(root, ...path)).href) as Promise<T>

interface Length {
  input: number
  output: number
  at?: number
}
interface Roofline {
  weightBytes: number
  kvTokenBytes: number
  decodeMs(rows: number, context: number): number
  prefillMs(tokens: number): number
  loadSeconds(requests: Length[], options?: { maxSequences?: number; maxStepTokens?: number; kvTokens?: number }): number
}
interface Request {
  tokens: number[]
  output: number
  at?: number
}
interface RequestsModule {
  fixedLoad(name: string): Request[]
  RequestSource: new (seed: number) => {
    conversations(count: number, rate?: number): Request[]
    sharing(count: number, input: number, output: number, shared: number): Request[]
  }
}
const rooflines = load<{ roofline(config: object, limits: object): Roofline }>('bench', 'gpu', 'roofline.mjs')
const requests = load<RequestsModule>('bench', 'gpu', 'requests.mjs')

const llama = JSON.parse(readFileSync(join(root, 'bench', 'gpu', 'configs', 'llama-2-7b.json'), 'utf8')) as object
const limits = { readGBs: 4000, matmulTFLOPs: 800 }

describe('rooflines', () => {
  let bound: Roofline
  beforeAll(async () => {
    bound = (await rooflines).roofline(llama, limits)
  })

  it('count the bytes of Llama-2-7B', () => {
    expect(bound.weightBytes).toBe(2 * 6_738_149_376)
    expect(bound.kvTokenBytes).toBe(32 * 2 * 4096 * 2)
  })

  it('are bound by bytes for one row, by arithmetic for a long prompt', () => {
    // All but the embedding is read once.
    const matrices = 6_738_149_376 - 32000 * 4096
    expect(bound.decodeMs(1, 0)).toBeCloseTo((2 * matrices) / 4e9, 6)
    expect(bound.decodeMs(1, 1000) - bound.decodeMs(1, 0)).toBeCloseTo((1000 * 524288) / 4e9, 6)
    const flops = 2 * (matrices - 32000 * 4096) * 2048 + 2 * 32000 * 4096 + 32 * 4 * 4096 * (2048 * 2048) * 0.5
    expect(bound.prefillMs(2048)).toBeCloseTo(flops / 800e9, 3)
  })

  it('make a load of one request a prompt and its decode steps', () => {
    let ms = bound.prefillMs(100)
    for (let i = 1; i < 5; i++) ms += bound.decodeMs(1, 100 + i)
    // The load counts the pairs of a prompt exactly, prefillMs half of the square.
    expect(bound.loadSeconds([{ input: 100, output: 5 }])).toBeCloseTo(ms / 1000, 5)
  })

  it('respect arrivals, sequences at once and the KV cache', () => {
    const two = [1, 2].map(() => ({ input: 64, output: 50 }))
    const together = bound.loadSeconds(two)
    const behind = bound.loadSeconds(two, { maxSequences: 1 })
    expect(behind).toBeGreaterThan(1.8 * together)
    expect(bound.loadSeconds(two, { kvTokens: 120 })).toBeCloseTo(behind, 6)
    expect(bound.loadSeconds([{ input: 64, output: 50, at: 10 }])).toBeCloseTo(10 + behind / 2, 3)
  })

  it('take a prompt that is longer than a step', () => {
    expect(bound.loadSeconds([{ input: 100, output: 1 }], { maxStepTokens: 10, kvTokens: 10 })).toBeGreaterThan(0)
  })
})

describe('requests', () => {
  it('are the same each time, and within their bounds', async () => {
    const { fixedLoad } = await requests
    const mixed = fixedLoad('mixed')
    expect(fixedLoad('mixed')).toEqual(mixed)
    expect(mixed).toHaveLength(512)
    for (const { tokens, output } of mixed) {
      expect(tokens.length).toBeGreaterThanOrEqual(16)
      expect(tokens.length).toBeLessThan(1024)
      expect(output).toBeGreaterThanOrEqual(16)
      expect(output).toBeLessThan(512)
    }
    const ids = mixed.flatMap(({ tokens }) => tokens)
    expect(Math.min(...ids.slice(0, 50_000))).toBeGreaterThanOrEqual(5)
    expect(Math.max(...ids.slice(0, 50_000))).toBeLessThan(30_000)
  })

  it('of conversations have the stated lengths and rate', async () => {
    const { RequestSource } = await requests
    const arriving = new RequestSource(9).conversations(4000, 20)
    const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length
    const shares = [mean(arriving.map(({ tokens }) => tokens.length)) / 150, mean(arriving.map(({ output }) => output)) / 321, arriving.at(-1)!.at! / (4000 / 20)]
    for (const share of shares) {
      expect(share).toBeGreaterThan(0.94)
      expect(share).toBeLessThan(1.06)
    }
    for (let i = 1; i < arriving.length; i++) expect(arriving[i]!.at).toBeGreaterThan(arriving[i - 1]!.at!)
  })

  it('share what they shall', async () => {
    const { RequestSource } = await requests
    const [a, b] = new RequestSource(9).sharing(2, 1000, 8, 0.9)
    expect(a!.tokens.slice(0, 900)).toEqual(b!.tokens.slice(0, 900))
    expect(a!.tokens.slice(900)).not.toEqual(b!.tokens.slice(900))
    expect(b!.tokens).toHaveLength(1000)
  })
})

describe('tables', () => {
  const report = {
    name: 'a-model',
    device: 'A GPU',
    at: '2026-01-02T03:04:05Z',
    node: 'v20.20.2',
    rows: { 'ttft-512': { ms: 20, limit: { ms: 10 } }, mixed: { tokensPerSecond: 6000, limit: { tokensPerSecond: 8000 } }, batch: { error: 'Error: no\n  at' } },
    peers: {
      vllm: { version: '1.2', rows: { 'ttft-512': { ms: 30 }, mixed: { tokensPerSecond: 5000 } } },
      transformers: { version: '5.6', rows: { mixed: { tokensPerSecond: 600, batches: { measured: 4, of: 16 } } } },
    },
  }

  it('put each figure beside its limit and its peers', async () => {
    const { servingSections } = await load<{ servingSections(report: object): string[] }>('scripts', 'serving-table.mjs')
    const text = servingSections(report).join('\n')
    expect(text).toContain('| time to the first token of 512, ms | 20.0 | 10.0 (50.0%) | 30.0 | 1.50x | - | - |')
    expect(text).toMatch(/16-511 out: output tokens\/s \| 6,000 \| 8,000 \(75\.0%\) \| 5,000 \| 1\.20x \| 600 \(4 of 16 batches\) \| 10\.00x \|/)
    expect(text).toContain('Rows that failed: batch (Error: no).')
  })

  it('come into the README from the reports of the folder', async () => {
    const { renderTable } = await load<{ renderTable(folder: string): string }>('scripts', 'readme-table.mjs')
    const folder = mkdtempSync(join(tmpdir(), 'serving-'))
    try {
      expect(renderTable(folder)).not.toContain('vLLM')
      writeFileSync(join(folder, 'serving-a-model.json'), JSON.stringify(report))
      expect(renderTable(folder)).toContain('| vLLM 1.2 | ratio to vLLM |')
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
