/** Whatever comes when: no request is lost or runs twice, no limit is exceeded, and nobody waits longer than promised. */
import { expect, it } from 'vitest'
import { BatchCost } from '../../../../lib/runtime/session/batch_cost'
import { type Batch, DynamicBatcher } from '../../../../lib/runtime/session/dynamic_batcher'
import { BatchRequest, type BatchShape } from '../../../../lib/runtime/session/request_queue'
import fc from '../../../support/fast_check'

interface Arrival {
  afterMs: number
  shape: number
  rows: number
  priority: number
  deadlineMs: number
  aborted: boolean
}

interface Scenario {
  lanes: number
  depth: number
  maxDelayMs: number
  maxQueue: number
  agingMs: number
  shapes: { maxRows: number; preferred: number[]; pads: boolean; runMs: number }[]
  arrivals: Arrival[]
  failEvery: number
}

const scenario: fc.Arbitrary<Scenario> = fc.record({
  lanes: fc.integer({ min: 1, max: 3 }),
  depth: fc.integer({ min: 1, max: 2 }),
  maxDelayMs: fc.constantFrom(0, 1, 4, 20),
  maxQueue: fc.constantFrom(3, 20, 1000),
  agingMs: fc.constantFrom(5, 1000),
  shapes: fc.array(
    fc.record({
      maxRows: fc.integer({ min: 1, max: 9 }),
      preferred: fc.array(fc.integer({ min: 1, max: 8 }), { maxLength: 2 }),
      pads: fc.boolean(),
      runMs: fc.integer({ min: 0, max: 12 }),
    }),
    { minLength: 1, maxLength: 3 },
  ),
  arrivals: fc.array(
    fc.record({
      afterMs: fc.constantFrom(0, 0, 0, 1, 2, 7, 30),
      shape: fc.nat(2),
      rows: fc.constantFrom(1, 1, 1, 2, 5),
      priority: fc.constantFrom(0, 0, 0, -1, 3),
      deadlineMs: fc.constantFrom(Infinity, Infinity, 3, 25, 200),
      aborted: fc.constantFrom(false, false, false, false, true),
    }),
    { minLength: 1, maxLength: 80 },
  ),
  failEvery: fc.constantFrom(0, 0, 3),
})

interface Running {
  batch: Batch<BatchRequest>
  endsAt: number
}

/** Runs a scenario to its end on a virtual clock. */
class World {
  now = 0
  readonly shapes: BatchShape[]
  readonly batcher: DynamicBatcher<BatchRequest>
  readonly accepted = new Set<BatchRequest>()
  readonly answered: BatchRequest[] = []
  readonly refused: BatchRequest[] = []
  readonly aborted: BatchRequest[] = []
  readonly batches: Batch<BatchRequest>[] = []
  /** By batch. */
  readonly takenAt: number[] = []
  /** By lane, the running batch first. */
  private readonly running: Running[][]

  constructor(private readonly scenario: Scenario) {
    this.shapes = scenario.shapes.map(({ maxRows, preferred, pads }): BatchShape => {
      const preferredSizes = [...new Set([...preferred.filter((size) => size < maxRows), maxRows])].sort((a, b) => a - b)
      return { maxRows, preferredSizes, runSizes: pads ? [...new Set([Math.ceil(maxRows / 2), maxRows])] : [], cost: new BatchCost() }
    })
    this.batcher = new DynamicBatcher(scenario)
    this.running = Array.from({ length: scenario.lanes }, () => [])
  }

  runMs(shape: BatchShape): number {
    return this.scenario.shapes[this.shapes.indexOf(shape)]!.runMs
  }

  add({ shape: index, rows, priority, deadlineMs }: Arrival): void {
    const shape = this.shapes[index % this.shapes.length]!
    const request = new BatchRequest(Math.min(rows, shape.maxRows), shape, this.now, priority, this.now + deadlineMs)
    const waiting = this.batcher.size
    try {
      this.batcher.add(request, this.now)
      this.accepted.add(request)
      expect(waiting).toBeLessThan(this.scenario.maxQueue)
    } catch (error) {
      const { code } = error as { code: string }
      if (code === 'ERR_QUEUE_FULL') expect(waiting).toBeGreaterThanOrEqual(this.scenario.maxQueue)
      else expect(code).toBe('ERR_DEADLINE_EXCEEDED')
      expect(this.batcher.size).toBe(waiting)
    }
  }

  work(): void {
    for (let batch = this.batcher.take(this.now); batch !== null; batch = this.batcher.take(this.now)) this.start(batch)
    this.refused.push(...this.batcher.takeRefused(this.now))
    this.checkDelay()
  }

  private start(batch: Batch<BatchRequest>): void {
    const { shape, rows, size, requests, lane } = batch
    expect(rows).toBe(requests.reduce((sum, request) => sum + request.rows, 0))
    expect(rows).toBeGreaterThan(0)
    expect(rows).toBeLessThanOrEqual(size)
    expect(size).toBeLessThanOrEqual(shape.maxRows)
    if (shape.runSizes.length > 0 && !requests[0]!.alone) expect(shape.runSizes).toContain(size)
    expect(new Set(requests.map((request) => request.shape))).toEqual(new Set([shape]))
    expect(this.running[lane]!.length).toBeLessThan(this.scenario.depth)
    const before = this.running[lane]!.at(-1)?.endsAt ?? this.now
    this.running[lane]!.push({ batch, endsAt: before + this.runMs(shape) })
    this.batches.push(batch)
    this.takenAt.push(this.now)
  }

  /** While a lane is idle, nobody has waited longer than the delay. */
  private checkDelay(): void {
    if (this.running.every((batches) => batches.length > 0)) return
    for (const request of this.accepted) {
      if (request.queue !== null) expect(this.now - request.arrival).toBeLessThan(Math.max(this.scenario.maxDelayMs, 1e-9))
    }
  }

  /** To the next moment at which something happens, `until` at the latest. */
  advance(until: number): void {
    let next = Math.min(until, this.batcher.nextWake())
    for (const batches of this.running) if (batches[0] !== undefined) next = Math.min(next, batches[0].endsAt)
    // A deadline is over after its moment, not at it.
    this.now = next <= this.now ? Math.min(until, this.now + 0.01) : next
    for (const batches of this.running) {
      while (batches[0] !== undefined && batches[0].endsAt <= this.now) this.end(batches.shift()!.batch)
    }
    this.work()
  }

  private end(batch: Batch<BatchRequest>): void {
    const { failEvery } = this.scenario
    const fails = failEvery > 0 && this.batches.indexOf(batch) % failEvery === 0
    this.batcher.done(batch, this.now, !fails)
    for (const request of batch.requests) {
      if (fails && batch.requests.length > 1) {
        request.alone = true
        this.batcher.restore(request)
      } else {
        this.answered.push(request)
      }
    }
  }

  run(): void {
    for (const arrival of this.scenario.arrivals) {
      const at = this.now + arrival.afterMs
      while (this.now < at) this.advance(at)
      this.add(arrival)
      if (arrival.aborted) {
        const victim = [...this.accepted].find((request) => request.queue !== null)
        if (victim !== undefined) {
          expect(this.batcher.remove(victim)).toBe(true)
          this.aborted.push(victim)
        }
      }
      this.work()
    }
    for (let i = 0; i < 10_000 && (this.batcher.size > 0 || this.batcher.running > 0); i++) this.advance(this.now + 1000)
  }
}

it('loses nothing, runs nothing twice, and keeps every limit', () => {
  fc.assert(
    fc.property(scenario, (s) => {
      const world = new World(s)
      world.run()
      expect(world.batcher.size).toBe(0)
      expect(world.batcher.running).toBe(0)
      const ended = [...world.answered, ...world.refused, ...world.aborted]
      expect(new Set(ended).size).toBe(ended.length)
      expect(new Set(ended)).toEqual(world.accepted)
      // Only requests with a deadline are refused, and none that could still have been met.
      for (const request of world.refused) expect(request.deadline).toBeLessThan(Infinity)
    }),
    { numRuns: 400 },
  )
})

it('is first come, first served within a priority and a shape', () => {
  fc.assert(
    fc.property(scenario, (s) => {
      const world = new World({ ...s, failEvery: 0 })
      world.run()
      const order = world.batches.flatMap(({ requests }) => requests)
      for (const shape of world.shapes) {
        for (const priority of new Set(order.map((request) => request.priority))) {
          const arrivals = order.filter((request) => request.shape === shape && request.priority === priority).map(({ arrival }) => arrival)
          expect(arrivals).toEqual([...arrivals].sort((a, b) => a - b))
        }
      }
    }),
    { numRuns: 200 },
  )
})

it('lets a request be overtaken for as long as its priority is worth, and no longer', () => {
  fc.assert(
    fc.property(scenario, (s) => {
      const world = new World({ ...s, failEvery: 0 })
      world.run()
      const startOf = new Map(world.batches.flatMap((batch, i) => batch.requests.map((request) => [request, i] as const)))
      const rank = (request: BatchRequest): number => request.arrival + request.priority * s.agingMs
      for (const [first, firstBatch] of startOf) {
        for (const [second, secondBatch] of startOf) {
          const waited = second.shape === first.shape && firstBatch < secondBatch && second.arrival < world.takenAt[firstBatch]!
          if (waited) expect(rank(first)).toBeLessThanOrEqual(rank(second))
        }
      }
    }),
    { numRuns: 200 },
  )
})
