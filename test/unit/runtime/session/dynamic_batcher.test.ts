import { describe, expect, it } from 'vitest'
import { BatchCost } from '../../../../lib/runtime/session/batch_cost'
import { type Batch, type BatcherOptions, DynamicBatcher } from '../../../../lib/runtime/session/dynamic_batcher'
import { BatchRequest, type BatchShape } from '../../../../lib/runtime/session/request_queue'

function shapeOf(maxRows: number, overrides: Partial<BatchShape> = {}): BatchShape {
  return { maxRows, preferredSizes: [maxRows], runSizes: [], cost: new BatchCost(), ...overrides }
}

function batcherOf(overrides: Partial<BatcherOptions> = {}): DynamicBatcher<BatchRequest> {
  return new DynamicBatcher({ lanes: 1, depth: 2, maxDelayMs: 5, maxQueue: 100, agingMs: 1000, ...overrides })
}

function add(batcher: DynamicBatcher<BatchRequest>, shape: BatchShape, now: number, overrides: { rows?: number; priority?: number; deadline?: number } = {}): BatchRequest {
  const request = new BatchRequest(overrides.rows ?? 1, shape, now, overrides.priority, overrides.deadline)
  batcher.add(request, now)
  return request
}

function codeOf(call: () => void): unknown {
  try {
    call()
  } catch (error) {
    return (error as { code: unknown }).code
  }
  return undefined
}

describe('when a batch is sent off', () => {
  it('waits for others for as long as it may, and no longer', () => {
    const batcher = batcherOf()
    const shape = shapeOf(4)
    const first = add(batcher, shape, 0)
    expect(batcher.take(0)).toBeNull()
    expect(batcher.nextWake()).toBe(5)
    const second = add(batcher, shape, 3)
    expect(batcher.take(4.9)).toBeNull()
    expect(batcher.take(5)).toMatchObject({ lane: 0, rows: 2, size: 2, requests: [first, second] })
    expect(batcher.nextWake()).toBe(Infinity)
  })

  it('does not wait when the batch is full', () => {
    const batcher = batcherOf()
    const shape = shapeOf(4)
    for (let i = 0; i < 5; i++) add(batcher, shape, 0)
    expect(batcher.take(0)?.rows).toBe(4)
    expect(batcher.size).toBe(1)
  })

  it('does not wait when a preferred size is reached, and takes no more than that', () => {
    const batcher = batcherOf()
    const shape = shapeOf(8, { preferredSizes: [2, 4, 8] })
    for (let i = 0; i < 5; i++) add(batcher, shape, 0)
    expect(batcher.take(0)?.rows).toBe(4)
    expect(batcher.size).toBe(1)
  })

  it('takes what there is once the wait is over, whatever sizes are preferred', () => {
    const batcher = batcherOf()
    const shape = shapeOf(8, { preferredSizes: [4, 8] })
    for (let i = 0; i < 5; i++) add(batcher, shape, 0)
    expect(batcher.take(5)?.rows).toBe(5)
  })

  it('lets a full batch stand by behind a running one, and keeps others waiting', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(4)
    add(batcher, shape, 0)
    const running = batcher.take(0)!
    add(batcher, shape, 1)
    expect(batcher.take(1)).toBeNull()
    for (let i = 0; i < 3; i++) add(batcher, shape, 2)
    expect(batcher.take(2)?.rows).toBe(4)
    expect(batcher.running).toBe(2)
    for (let i = 0; i < 4; i++) add(batcher, shape, 3)
    expect(batcher.take(3)).toBeNull()
    batcher.done(running, 4, true)
    expect(batcher.take(4)?.rows).toBe(4)
  })

  it('does not let full batches of one shape keep another shape waiting', () => {
    const batcher = batcherOf()
    const [busy, rare] = [shapeOf(2), shapeOf(2)]
    for (let i = 0; i < 2; i++) add(batcher, busy, 0)
    const running = batcher.take(0)
    const waiting = add(batcher, rare, 1)
    for (let i = 0; i < 4; i++) add(batcher, busy, 2)
    // The full ones came later than the one that has waited long enough.
    expect(batcher.take(10)?.requests).toEqual([waiting])
    expect(running).not.toBeNull()
  })
})

describe('what runs together', () => {
  it('keeps shapes apart', () => {
    const batcher = batcherOf({ maxDelayMs: 0, lanes: 2 })
    const [a, b] = [shapeOf(4), shapeOf(4)]
    const [a1, b1, a2] = [add(batcher, a, 0), add(batcher, b, 1), add(batcher, a, 2)]
    expect(batcher.take(2)?.requests).toEqual([a1, a2])
    expect(batcher.take(2)).toMatchObject({ lane: 1, requests: [b1] })
  })

  it('does not overtake a request that does not fit', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(4)
    const [a, b, c] = [add(batcher, shape, 0, { rows: 3 }), add(batcher, shape, 1, { rows: 2 }), add(batcher, shape, 2)]
    const first = batcher.take(2)!
    expect(first.requests).toEqual([a])
    batcher.done(first, 3, true)
    expect(batcher.take(3)?.requests).toEqual([b, c])
  })

  it('fills up to a size that runs', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(8, { runSizes: [1, 4, 8] })
    for (let i = 0; i < 3; i++) add(batcher, shape, 0)
    expect(batcher.take(0)).toMatchObject({ rows: 3, size: 4 })
  })

  it('runs a request alone that is to, before the others', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(4)
    add(batcher, shape, 0)
    const single = new BatchRequest(1, shape, 5)
    single.alone = true
    batcher.restore(single)
    expect(batcher.take(5)?.requests).toEqual([single])
  })
})

describe('priorities', () => {
  it('serves the more urgent first', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(2)
    const [low, high, normal] = [add(batcher, shape, 0, { priority: 1 }), add(batcher, shape, 1, { priority: -1 }), add(batcher, shape, 2)]
    const first = batcher.take(2)!
    expect(first.requests).toEqual([high, normal])
    batcher.done(first, 3, true)
    expect(batcher.take(3)?.requests).toEqual([low])
  })

  it('lets nobody wait for ever', () => {
    const batcher = batcherOf({ maxDelayMs: 0, depth: 1, agingMs: 10 })
    const shape = shapeOf(1)
    const patient = add(batcher, shape, 0, { priority: 3 })
    let now = 0
    for (; now < 100; now++) {
      add(batcher, shape, now)
      const batch = batcher.take(now)!
      batcher.done(batch, now, true)
      if (batch.requests[0] === patient) break
    }
    expect(now).toBe(31)
  })
})

describe('limits and deadlines', () => {
  it('refuses what the queue does not hold', () => {
    const batcher = batcherOf({ maxQueue: 2 })
    const shape = shapeOf(8)
    add(batcher, shape, 0)
    add(batcher, shape, 0)
    expect(codeOf(() => add(batcher, shape, 0))).toBe('ERR_QUEUE_FULL')
    expect(batcher.size).toBe(2)
  })

  it('refuses at once what cannot be done in time, by what batches were seen to take', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(4)
    expect(codeOf(() => add(batcher, shape, 0, { deadline: 1 }))).toBeUndefined()
    const first = batcher.take(0)!
    batcher.done(first, 10, true)
    expect(codeOf(() => add(batcher, shape, 10, { deadline: 12 }))).toBe('ERR_DEADLINE_EXCEEDED')
    expect(codeOf(() => add(batcher, shape, 10, { deadline: 21 }))).toBeUndefined()
    // Behind the batch that now begins it cannot be done by then.
    batcher.take(10)
    expect(codeOf(() => add(batcher, shape, 10, { deadline: 21 }))).toBe('ERR_DEADLINE_EXCEEDED')
  })

  it('counts what waits before a request', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(1)
    shape.cost.observe(1, 10)
    batcher.take(0)
    for (let i = 0; i < 5; i++) add(batcher, shape, 0)
    expect(codeOf(() => add(batcher, shape, 0, { deadline: 30 }))).toBe('ERR_DEADLINE_EXCEEDED')
    expect(codeOf(() => add(batcher, shape, 0, { deadline: 30, priority: -1 }))).toBeUndefined()
  })

  it('gives up a request as soon as it is too late for it', () => {
    const batcher = batcherOf({ maxDelayMs: 0, depth: 1 })
    const shape = shapeOf(1)
    add(batcher, shape, 0)
    const running = batcher.take(0)!
    const request = add(batcher, shape, 0, { deadline: 50 })
    expect(batcher.nextWake()).toBe(50)
    expect(batcher.takeRefused(50)).toEqual([])
    batcher.done(running, 40, true)
    add(batcher, shape, 40)
    expect(batcher.takeRefused(51)).toEqual([request])
    expect(batcher.size).toBe(1)
    expect(batcher.takeRefused(51)).toEqual([])
  })

  it('does not wait for others where that would cost the deadline', () => {
    const batcher = batcherOf({ maxDelayMs: 100 })
    const shape = shapeOf(4)
    shape.cost.observe(4, 10)
    add(batcher, shape, 0, { deadline: 30 })
    expect(batcher.take(0)).toBeNull()
    const wake = batcher.nextWake()
    expect(wake).toBeLessThan(20)
    expect(batcher.take(wake)?.rows).toBe(1)
  })

  it('keeps a batch small where a larger one would be too late for somebody', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(4)
    shape.cost.observe(1, 10)
    shape.cost.observe(4, 100)
    const urgent = add(batcher, shape, 0, { deadline: 20 })
    for (let i = 0; i < 3; i++) add(batcher, shape, 0)
    expect(batcher.take(0)?.requests).toEqual([urgent])
  })
})

describe('bookkeeping', () => {
  it('forgets what is taken out', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(4)
    const [a, b, c] = [add(batcher, shape, 0), add(batcher, shape, 0), add(batcher, shape, 0)]
    expect(batcher.remove(b)).toBe(true)
    expect(batcher.remove(b)).toBe(false)
    expect(batcher.take(0)?.requests).toEqual([a, c])
    expect(batcher.remove(a)).toBe(false)
  })

  it('measures a batch that stood by from the moment the one before ended', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(1)
    const batches: Batch<BatchRequest>[] = []
    for (let i = 0; i < 2; i++) {
      add(batcher, shape, 0)
      batches.push(batcher.take(0)!)
    }
    batcher.done(batches[0]!, 10, true)
    batcher.done(batches[1]!, 20, true)
    expect(shape.cost.expected(1)).toBe(10)
  })

  it('does not learn from what failed, and minds a batch that does not run', () => {
    const batcher = batcherOf({ maxDelayMs: 0 })
    const shape = shapeOf(1)
    add(batcher, shape, 0)
    const batch = batcher.take(0)!
    batcher.done(batch, 10, false)
    expect(shape.cost.expected(1)).toBe(0)
    expect(codeOf(() => batcher.done(batch, 10, true))).toBe('ERR_INTERNAL')
  })

  it('hands everything out that waits, by arrival', () => {
    const batcher = batcherOf()
    const [a, b] = [shapeOf(4), shapeOf(4)]
    const requests = [add(batcher, a, 0, { priority: 5 }), add(batcher, b, 1), add(batcher, a, 2)]
    expect(batcher.clear()).toEqual(requests)
    expect(batcher.size).toBe(0)
    expect(batcher.nextWake()).toBe(Infinity)
  })
})
