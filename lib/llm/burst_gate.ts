/**
 * Requests that come one by one, as from sockets, start together where nothing runs. The first of a burst would else have a step for
 * itself, and, as steps are planned ahead, the one after it: all others would wait for both.
 */

/** However long steps take, nobody waits longer for company. */
const MOST_MS = 20

export class BurstGate {
  private waits = false
  private arrivals = 0
  /** Of `arrivals`, at the last look. */
  private seen = 0
  private since = 0
  private mostMs = 0
  private readonly look = (): void => this.onTurn()

  /** @param start plans what has come; must not throw */
  constructor(
    private readonly start: () => void,
    private readonly now: () => number,
  ) {}

  /**
   * A request has come. One that stays alone waits for two turns of the event loop, microseconds where that has nothing else to do; each
   * turn that brings another one prolongs that.
   * @param losesMs what a request that came too late would lose, in ms: nobody waits longer. 0 where something runs
   * @returns whether it is planned later: else it is the caller's to plan
   */
  add(losesMs: number): boolean {
    this.arrivals++
    if (this.waits) return true
    if (!(losesMs > 0)) return false
    this.waits = true
    this.since = this.now()
    this.mostMs = Math.min(losesMs, MOST_MS)
    // The first look is in the next turn, before what that turn brings: it has nothing to compare with.
    this.seen = -1
    setImmediate(this.look)
    return true
  }

  private onTurn(): void {
    if (this.arrivals !== this.seen && this.now() - this.since < this.mostMs) {
      this.seen = this.arrivals
      setImmediate(this.look)
      return
    }
    this.waits = false
    this.start()
  }
}
