import { describe, expect, it } from 'vitest'
import { apiBase } from '../../../lib/cli/bench_serve_client'
import { type Arrivals, drawInterval, drawLength, parseLengths, planServeLoad, SHAREGPT, wordsOf } from '../../../lib/cli/bench_serve_plan'
import { SseReader } from '../../../lib/cli/sse_reader'
import { label, svgChart, ticks } from '../../../lib/cli/svg_chart'
import { seededRandom } from '../../../lib/llm'
import fc from '../../support/fast_check'

const read = (parts: readonly string[]): string[] => {
  const events: string[] = []
  const reader = new SseReader((data) => events.push(data))
  for (const part of parts) reader.push(part)
  return events
}

describe('server-sent events', () => {
  it.each([
    ['data: a\n\n', ['a']],
    ['data:a\n\ndata:  b\n\n', ['a', ' b']],
    ['data: a\ndata: b\n\n', ['a\nb']],
    ['data: a\r\n\r\ndata: b\r\rdata: c\n\n', ['a', 'b', 'c']],
    [': comment\n\nevent: e\nid: 1\nretry: 5\ndata\n\n', ['']],
    ['dataset: x\n\n\n\n', []],
    ['\uFEFFdata: a\n\n', ['a']],
    ['data: not ended\n', []],
  ])('%j', (text, events) => {
    expect(read([text])).toEqual(events)
    expect(read(text.split(''))).toEqual(events)
  })

  it('are the same however they are cut', () => {
    const text = fc.array(fc.constantFrom('data: ', 'data:', 'x', '\n', '\r', '\r\n', '\n\n', ':', 'event: y', 'é😀'), { maxLength: 30 }).map((all) => all.join(''))
    fc.assert(
      fc.property(text, fc.array(fc.nat(), { maxLength: 20 }), (whole, cuts) => {
        const at = [0, ...cuts.map((cut) => cut % (whole.length + 1)), whole.length].sort((a, b) => a - b)
        expect(read(at.slice(1).map((end, i) => whole.slice(at[i], end)))).toEqual(read([whole]))
      }),
      { numRuns: 2000 },
    )
  })

  it('bound what they keep', () => {
    expect(() => read(Array.from({ length: 50 }, () => 'x'.repeat(100_000)))).toThrow(RangeError)
    expect(() => read(Array.from({ length: 50 }, () => `data: ${'x'.repeat(100_000)}\n`))).toThrow(RangeError)
  })
})

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length
const draws = (count: number, draw: (random: () => number) => number): number[] => {
  const random = seededRandom(3)
  return Array.from({ length: count }, () => draw(random))
}

describe('plans', () => {
  it.each([
    [{ kind: 'constant' }, 0],
    [{ kind: 'gamma', shape: 1 }, 1],
    [{ kind: 'gamma', shape: 0.25 }, 2],
    [{ kind: 'gamma', shape: 4 }, 0.5],
  ] as [Arrivals, number][])('arrivals %j come at the rate, with the variation that they should', (arrivals, variation) => {
    const intervals = draws(40_000, (random) => drawInterval(arrivals, 8, random))
    const average = mean(intervals)
    expect(average).toBeGreaterThan(0.12)
    expect(average).toBeLessThan(0.13)
    const deviation = Math.sqrt(mean(intervals.map((interval) => (interval - average) ** 2)))
    expect(deviation / average).toBeGreaterThanOrEqual(variation * 0.95 - 1e-6)
    expect(deviation / average).toBeLessThanOrEqual(variation * 1.05 + 1e-6)
  })

  it('lengths are those of their distributions', () => {
    const uniform = draws(5000, (random) => drawLength({ kind: 'uniform', min: 5, max: 7 }, random))
    expect(new Set(uniform)).toEqual(new Set([5, 6, 7]))
    const [inputs, outputs] = [SHAREGPT.input, SHAREGPT.output].map((lengths) => draws(50_000, (random) => drawLength(lengths, random)))
    expect(mean(inputs!)).toBeGreaterThan(205)
    expect(mean(inputs!)).toBeLessThan(225)
    expect(mean(outputs!)).toBeGreaterThan(190)
    expect(mean(outputs!)).toBeLessThan(215)
    expect(Math.min(...inputs!)).toBe(4)
    expect(Math.max(...inputs!)).toBe(1024)
  })

  it('reads lengths as they are written, and nothing else', () => {
    const parse = parseLengths('input')
    expect(parse('128')).toEqual({ kind: 'uniform', min: 128, max: 128 })
    expect(parse('16-512')).toEqual({ kind: 'uniform', min: 16, max: 512 })
    expect(parse('sharegpt')).toBe(SHAREGPT.input)
    expect(parse('lognormal:100:1.5:2048')).toEqual({ kind: 'lognormal', median: 100, sigma: 1.5, min: 1, max: 2048 })
    for (const text of ['', '0', '5-4', '-1', '1e3', 'lognormal:1:2', 'lognormal:100:9:200', 'lognormal:100:1:50', 'x']) expect(() => parse(text)).toThrow(/expected/)
  })

  it('gives each request the same content whatever the rate', () => {
    const common = { seed: 1, input: SHAREGPT.input, output: SHAREGPT.output, sharedPrefix: 0.3, tokenIds: { min: 5, max: 6 }, arrivals: { kind: 'gamma', shape: 1 } as const }
    const take = (rate?: number) => {
      const plan = planServeLoad({ ...common, rate })
      return Array.from({ length: 50 }, () => plan.next().value)
    }
    const [closed, slow, fast] = [take(), take(1), take(10)]
    const content = (plan: typeof closed): unknown => plan.map(({ promptTokens, outputTokens }) => [promptTokens, outputTokens])
    expect(content(slow)).toEqual(content(closed))
    expect(content(fast)).toEqual(content(closed))
    const other = planServeLoad({ ...common, load: 1 })
    const next = Array.from({ length: 50 }, () => other.next().value)
    expect(next.map(({ promptTokens, outputTokens }) => [promptTokens.length, outputTokens])).toEqual(
      closed.map(({ promptTokens, outputTokens }) => [promptTokens.length, outputTokens]),
    )
    expect(content(next)).not.toEqual(content(closed))
    expect(closed.every(({ arrival }) => arrival === 0)).toBe(true)
    expect(fast.map(({ arrival }) => arrival * 10)).toEqual(slow.map(({ arrival }) => expect.closeTo(arrival, 6)))
    expect(wordsOf([0, 1, 5000]).split(' ')).toHaveLength(3)
  })
})

describe('addresses', () => {
  it('are those of the API', () => {
    expect(apiBase('http://localhost:8000')?.href).toBe('http://localhost:8000/v1')
    expect(apiBase('https://host/openai/v1/')?.href).toBe('https://host/openai/v1/')
    for (const text of ['localhost:8000', 'ftp://x', 'http://user:pass@x', 'http://x/?a=1', '']) expect(apiBase(text)).toBeUndefined()
  })
})

describe('charts', () => {
  it('have round ticks', () => {
    expect(ticks(10)).toEqual([0, 2, 4, 6, 8, 10])
    expect(ticks(0.37).at(-1)).toBeCloseTo(0.4)
    expect(ticks(0)).toEqual([0, 1])
    expect(ticks(NaN)).toEqual([0, 1])
    expect(label(0.30000000000000004)).toBe('0.3')
    expect(label(20_000)).toBe('20k')
  })

  it('keep points within the panel', () => {
    const svg = svgChart('t', 's', [{ title: 'p', xLabel: 'x', yLabel: 'y', xMax: 5, series: [{ name: 'a', points: [[0, 0], [100, 3], [NaN, 1]] }] }])
    const [, points] = /<polyline points="([^"]*)"/.exec(svg)!
    expect(points!.split(' ')).toHaveLength(2)
    for (const x of points!.split(' ').map((point) => Number(point.split(',')[0]))) {
      expect(x).toBeGreaterThan(0)
      expect(x).toBeLessThan(360)
    }
  })
})
