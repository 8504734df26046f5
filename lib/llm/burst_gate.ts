/**
 * Requests that come one by one, as from sockets, start together where nothing runs. The first of a burst would else have a step for
 * itself, and, as steps are planned ahead, the one after it: all others would wait for both.
 */

/** However long steps take, nobody waits longer for company. */
const MOST_MS = 20
/** Of what a late one would lose: for so long the last one of a burst is waited for. */
const QUIET_SHARE = 0.05

export class BurstGate {
  /** Requests that wait. */
  private waiting = 0
  /** Of those, at the last look, and when there were more than at the look before. */
  private seen = 0
  private seenAt = 0
  private since = 0
  private mostMs = 0
  private readonly look = (): void => this.onTurn()

  /** @param start plans what has come; must not throw */
  constructor(
    private readonly start: () => void,
    private readonly now: () => number,
  ) {}

  /**
   * A request has come. One that stays alone waits for two turns of the event loop, microseconds where that has nothing else to do; several
   * wait for more until none has come for a while.
   * @param losesMs what a request that came too late would lose, in ms: nobody waits longer. 0 where something runs
   * @returns whether it is planned later: else it is the caller's to plan
   */
  add(losesMs: number): boolean {
    if (this.waiting === 0) {
      if (!(losesMs > 0)) return false
      this.since = this.now()
      this.mostMs = Math.min(losesMs, MOST_MS)
      this.seen = 0
      setImmediate(this.look)
    }
    this.waiting++
    return true
  }

  private onTurn(): void {
    const now = this.now()
    if (this.waiting > this.seen) {
      this.seen = this.waiting
      this.seenAt = now
      // The first look comes before what its turn brings: one that is alone gets another.
      if (now - this.since < this.mostMs) return void setImmediate(this.look)
    }
    const quietMs = this.waiting > 1 ? QUIET_SHARE * this.mostMs : 0
    if (now - this.seenAt < quietMs && now - this.since < this.mostMs) return void setImmediate(this.look)
    this.waiting = 0
    this.start()
  }
}
