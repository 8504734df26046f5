/**
 * When requests are looked at: behind new connections and the results of steps.
 *
 * In each turn the event loop takes one new connection (libuv accepts no more), then what sockets and steps have brought. Were requests
 * handled where they are read, hundreds of them would make one turn of many milliseconds, in which results of steps wait, and new
 * connections, in a queue of the system that nobody sees: some thousand requests a second can wait there for seconds. So they
 * wait here, and how long they wait is known.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { NodePair } from './exchange'

/** Turns, and milliseconds, for which new connections go before requests that wait. */
const MOST_ACCEPT_TURNS = 64
const MOST_ACCEPT_MS = 5
/** Requests of one turn, and milliseconds after which no more are begun in it. */
const MOST_AT_ONCE = 64
const SLICE_MS = 4
/** Where the first has waited so long, a turn has more: else requests would queue here whose answer, a refusal most likely, is cheap. */
const LONG_WAIT_MS = 20
const LONG_SLICE_MS = 20
/** Where it has waited so long, every other one is the newest: were all taken in order, all would be late once the first is. */
const BEHIND_MS = 100

interface Waiting extends NodePair {
  cameAt: number
}

export class Turns {
  private readonly waiting: Waiting[] = []
  /** Of `waiting`, those before have had their turn. */
  private head = 0
  /** Callbacks that are still to come in the next turn. */
  private due = 0
  /** None of them has come. */
  private fresh = false
  private turnSince = 0
  /** In this turn no request is looked at. */
  private skips = false
  /** A connection has come since the last turn. */
  private accepted = false
  private acceptTurns = 0
  private acceptSince = 0
  private newestNext = false
  private readonly next = (): void => this.turn()

  /**
   * @param handle is called in a request's turn; must not throw
   * @param onLeft is called when a request's client left before its turn: it is not handled
   */
  constructor(
    private readonly handle: (request: Waiting) => void,
    private readonly onLeft: () => void,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** Requests that have not had their turn. */
  get size(): number {
    return this.waiting.length - this.head
  }

  onConnection(): void {
    this.accepted = true
  }

  add(incoming: IncomingMessage, outgoing: ServerResponse): void {
    this.waiting.push({ incoming, outgoing, cameAt: this.now() })
    if (this.due < MOST_AT_ONCE) this.schedule(1)
  }

  /** One callback for each: between them what they set off goes on, and takes its time. */
  private schedule(count: number): void {
    if (this.due === 0) this.fresh = true
    this.due += count
    for (let i = 0; i < count; i++) setImmediate(this.next)
  }

  private turn(): void {
    const now = this.now()
    if (this.fresh) {
      this.fresh = false
      this.turnSince = now
      this.skips = this.connectionsFirst(now)
    }
    const request = this.skips ? undefined : this.take(now)
    if (--this.due === 0) this.schedule(Math.min(this.size, MOST_AT_ONCE))
    if (request === undefined) return
    if (request.outgoing.destroyed) this.onLeft()
    else this.handle(request)
  }

  private take(now: number): Waiting | undefined {
    const { waiting } = this
    const first = waiting[this.head]
    if (first === undefined) return undefined
    const waitedMs = now - first.cameAt
    if (now - this.turnSince > (waitedMs > LONG_WAIT_MS ? LONG_SLICE_MS : SLICE_MS)) return undefined
    this.newestNext = waitedMs > BEHIND_MS && !this.newestNext
    if (this.newestNext) return waiting.pop()
    if (++this.head === waiting.length || this.head >= 1024) {
      waiting.splice(0, this.head)
      this.head = 0
    }
    return first
  }

  /** Where one connection has come there may be more. */
  private connectionsFirst(now: number): boolean {
    if (!this.accepted) {
      this.acceptTurns = 0
      return false
    }
    this.accepted = false
    if (this.acceptTurns === 0) this.acceptSince = now
    if (++this.acceptTurns <= MOST_ACCEPT_TURNS && now - this.acceptSince < MOST_ACCEPT_MS) return true
    this.acceptTurns = 0
    return false
  }
}
