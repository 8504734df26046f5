/** How long a reader may take nothing, for an answer that gets the connection only when the one before it has ended. */
import { IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { EventStream } from '../../../lib/server/http/event_stream'
import { Exchange } from '../../../lib/server/http/exchange'
import { watchReader } from '../../../lib/server/http/slow_reader'

const PERIOD_MS = 1000
const LARGE = 'x'.repeat(100_000)

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval'] }))
afterEach(() => void vi.useRealTimers())

/** An answer behind another one on its connection: it has no socket until it is given one. */
function waiting(): { incoming: IncomingMessage; outgoing: ServerResponse } {
  const incoming = new IncomingMessage(new Socket())
  incoming.method = 'POST'
  return { incoming, outgoing: new ServerResponse(incoming) }
}

/** A connection whose reader takes nothing. */
class Stalled extends Duplex {
  override _read(): void {}

  override _write(): void {}
}

/** @returns after how many ms from now the answer is given up */
function untilDestroyed(outgoing: ServerResponse): number {
  for (let ms = 0; ms < 10 * PERIOD_MS; ms += 10) {
    if (outgoing.destroyed) return ms
    vi.advanceTimersByTime(10)
  }
  return Infinity
}

describe('a reader that takes nothing', () => {
  it('of a whole answer has a period for it', () => {
    const { outgoing } = waiting()
    outgoing.assignSocket(new Stalled() as never)
    outgoing.end(LARGE)
    watchReader(outgoing, PERIOD_MS)
    expect(untilDestroyed(outgoing)).toBe(PERIOD_MS)
  })

  it.each([1, 500, 990])('of a whole answer has a period from when it gets the connection: %i ms before the next look', (ms) => {
    const { outgoing } = waiting()
    outgoing.end(LARGE)
    watchReader(outgoing, PERIOD_MS)
    vi.advanceTimersByTime(4 * PERIOD_MS - ms)
    expect(outgoing.destroyed).toBe(false)
    outgoing.assignSocket(new Stalled() as never)
    const after = untilDestroyed(outgoing)
    expect(after).toBeGreaterThanOrEqual(PERIOD_MS)
    expect(after).toBeLessThanOrEqual(2 * PERIOD_MS)
  })

  it.each([1, 500, 990])('of a stream has a period from when it gets the connection: %i ms before the next look', (ms) => {
    const pair = waiting()
    const exchange = new Exchange(new Request('http://a/', { method: 'POST' }), pair, PERIOD_MS, () => {})
    const events = new EventStream(exchange, { keepAliveMs: 100 * PERIOD_MS, stallTimeoutMs: PERIOD_MS })
    expect(events.write(LARGE)).toBeInstanceOf(Promise)
    vi.advanceTimersByTime(4 * PERIOD_MS - ms)
    expect(pair.outgoing.destroyed).toBe(false)
    pair.outgoing.assignSocket(new Stalled() as never)
    const after = untilDestroyed(pair.outgoing)
    expect(after).toBeGreaterThanOrEqual(PERIOD_MS)
    expect(after).toBeLessThanOrEqual(2 * PERIOD_MS)
    events.discard()
  })

  it('of a stream that has the connection has a period, and none longer', () => {
    const pair = waiting()
    pair.outgoing.assignSocket(new Stalled() as never)
    const exchange = new Exchange(new Request('http://a/', { method: 'POST' }), pair, PERIOD_MS, () => {})
    const events = new EventStream(exchange, { keepAliveMs: 100 * PERIOD_MS, stallTimeoutMs: PERIOD_MS })
    expect(events.write(LARGE)).toBeInstanceOf(Promise)
    expect(untilDestroyed(pair.outgoing)).toBe(PERIOD_MS)
    events.discard()
  })
})
