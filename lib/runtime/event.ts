/** A point in the work of a stream. */
import { native, type NativeEvent } from '../native'
import { invalidArgument } from './argument_reader'
import { NativeHandle } from './handle'

/**
 * A point in the work of a stream, set by `stream.record(event)`: other streams can wait for it, and the time between two can be taken.
 * Made by `runtime.createEvent()`.
 */
export class Event extends NativeHandle {
  readonly #native: NativeEvent

  private constructor(event: NativeEvent, owner: NativeHandle) {
    super('Event', event, owner)
    this.#native = event
  }

  /** @internal */
  static wrap(event: NativeEvent, owner: NativeHandle): Event {
    return new Event(event, owner)
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeEvent {
    this.checkOpen()
    return this.#native
  }

  /**
   * Milliseconds of the device's clock from `start`'s record to this one's; both must be complete.
   * @throws ERR_INVALID_ARGUMENT for an event without timing, without a record or that is not complete yet; ERR_CUDA, ERR_DISPOSED
   */
  elapsedSince(start: Event): number {
    const own = this.native
    if (!(start instanceof Event)) throw invalidArgument('start', 'an Event', start)
    return native(() => own.elapsedSince(start.native))
  }

  /**
   * Whether the device has reached the last record; true where there was none.
   * @throws ERR_CUDA, ERR_BACKEND_DEAD, ERR_DISPOSED
   */
  isComplete(): boolean {
    return native(() => this.native.isComplete())
  }
}
