/** Counting, bounds and buckets of metrics. */
import { createHistogram } from 'node:perf_hooks'
import { Registry } from 'prom-client'
import { describe, expect, it } from 'vitest'
import { EVENT_LOOP_BUCKETS, oneTwoFiveBuckets } from '../../../../lib/server/telemetry/buckets'
import { moveDelays } from '../../../../lib/server/telemetry/process_metrics'
import { formatBound, HistogramSeries, MAX_SERIES, MetricSet, OTHER } from '../../../../lib/server/telemetry/series'
import fc from '../../../support/fast_check'
import { Exposition } from './exposition'

describe('a histogram', () => {
  it('counts what a plain search would', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.double({ min: -1e6, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 30 }),
        fc.array(fc.tuple(fc.double({ min: -2e6, max: 2e6, noNaN: true }), fc.integer({ min: 1, max: 5 }))),
        (some, observed) => {
          const bounds = some.sort((a, b) => a - b)
          const series = new HistogramSeries({}, Float64Array.from(bounds))
          // Bounds belong to the bucket below.
          const all = [...observed, ...bounds.map((bound) => [bound, 1] as [number, number])]
          const expected = Array.from({ length: bounds.length + 1 }, () => 0)
          for (const [value, times] of all) {
            series.observe(value, times)
            const at = bounds.findIndex((bound) => value <= bound)
            expected[at === -1 ? bounds.length : at]! += times
          }
          expect([...series.counts]).toEqual(expected)
        },
      ),
    )
  })
})

describe('bounds', () => {
  it('are written as Python writes them', () => {
    const pairs: [number, string][] = [
      [0.001, '0.001'],
      [0.25, '0.25'],
      [1, '1.0'],
      [2.5, '2.5'],
      [7680, '7680.0'],
      [100_000, '100000.0'],
      [500_000, '500000.0'],
      [1_000_000, '1e+06'],
      [1_234_500, '1.2345e+06'],
      [20_000_000, '2e+07'],
      [10_000_000_000, '1e+10'],
    ]
    for (const [bound, text] of pairs) expect(formatBound(bound)).toBe(text)
  })

  it('of counts are 1, 2, 5 times powers of ten, up to the largest', () => {
    expect(oneTwoFiveBuckets(100)).toEqual([1, 2, 5, 10, 20, 50, 100])
    expect(oneTwoFiveBuckets(99)).toEqual([1, 2, 5, 10, 20, 50])
    expect(oneTwoFiveBuckets(1)).toEqual([1])
  })
})

describe('a set of metrics', () => {
  it('keeps a metric within its bound: what is beyond goes to one series', async () => {
    const set = new MetricSet(new Registry())
    const counter = set.counter('a_total', 'A', ['x', 'y'])
    for (let i = 0; i < 2 * MAX_SERIES; i++) counter.series(`${i}`, 'y').inc()
    const { samples } = new Exposition((await set.render()).body).family('a_total')
    expect(samples).toHaveLength(MAX_SERIES + 1)
    expect(samples.at(-1)).toMatchObject({ labels: { x: OTHER, y: OTHER }, value: MAX_SERIES })
  })

  it('takes label values apart that only together are alike', async () => {
    const set = new MetricSet(new Registry())
    const counter = set.counter('a_total', 'A', ['x', 'y'])
    counter.series('a', 'bc').inc()
    counter.series('ab', 'c').inc()
    expect(new Exposition((await set.render()).body).family('a_total').samples).toHaveLength(2)
  })

  it('renders although a collector fails, and runs those that are synchronous in one turn', async () => {
    const set = new MetricSet(new Registry())
    const gauge = set.gauge('g', 'G').series()
    const order: string[] = []
    set.onCollect(() => {
      throw new Error('broken')
    })
    set.onCollect(() => Promise.reject(new Error('broken, too')))
    set.onCollect(() => {
      order.push('collected')
      gauge.set(7)
    })
    const rendering = set.render()
    order.push('called')
    expect(new Exposition((await rendering).body).value('g')).toBe(7)
    expect(order).toEqual(['collected', 'called'])
  })

  it('hands the same on as JSON', async () => {
    const registry = new Registry()
    const set = new MetricSet(registry)
    set.histogram('h', 'H', [1, 2], ['x']).series('a').observe(1.5)
    set.counter('c_total', 'C', ['x']).series('a').inc(3)
    const [histogram, counter] = await registry.getMetricsAsJSON()
    expect(counter).toMatchObject({ name: 'c_total', help: 'C', type: 'counter', values: [{ labels: { x: 'a' }, value: 3 }] })
    expect(histogram!.values.map(({ labels, value }) => [labels, value])).toEqual([
      [{ x: 'a', le: '1.0' }, 0],
      [{ x: 'a', le: '2.0' }, 1],
      [{ x: 'a', le: '+Inf' }, 1],
      [{ x: 'a' }, 1.5],
      [{ x: 'a' }, 1],
    ])
  })

  it('refuses a name that is taken', () => {
    const set = new MetricSet(new Registry())
    set.gauge('g', 'G')
    expect(() => set.gauge('g', 'G')).toThrow(/already been registered/)
  })
})

describe("the event loop's delays", () => {
  const bounds = Float64Array.from(EVENT_LOOP_BUCKETS)

  it('reach the buckets that they belong to, each once', () => {
    // Node's histogram keeps three digits: what is as near to a bound may be on either side of it.
    const clear = (ms: number): boolean => EVENT_LOOP_BUCKETS.every((bound) => Math.abs(ms + 0.2 - bound * 1000) > 0.003 * (ms + 10))
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 8000 }).filter(clear), { maxLength: 300 }), (samples) => {
        const source = createHistogram()
        const series = new HistogramSeries({}, bounds)
        // A sample is the time between two ticks of a timer of 10 ms; half a millisecond off, away from the bounds.
        const late = samples.map((ms) => ms + 0.2)
        for (const ms of late) source.record(Math.round((10 + ms) * 1e6))
        moveDelays(source as never, series)
        const expected = new HistogramSeries({}, bounds)
        for (const ms of late) expected.observe(ms / 1000)
        expect([...series.counts]).toEqual([...expected.counts])
        expect(series.sum).toBeCloseTo(expected.sum, 1)
        // They are moved, not copied.
        moveDelays(source as never, series)
        expect([...series.counts]).toEqual([...expected.counts])
      }),
      { numRuns: 50 },
    )
  })
})
