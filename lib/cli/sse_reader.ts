/** What a longer line or event would be of no stream of tokens; it bounds the memory that a broken server can take. */
const MAX_EVENT_LENGTH = 4 * 1024 * 1024

/**
 * Reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) from text that was cut
 * anywhere. Comments, and fields other than `data`, are passed over.
 */
export class SseReader {
  private line = ''
  /** The last unit was a carriage return: a line feed that follows belongs to it. */
  private carriage = false
  private data: string | undefined
  private first = true

  /** @param onData is given the data of each event */
  constructor(private readonly onData: (data: string) => void) {}

  /** @throws RangeError for an event that is longer than 4 MiB */
  push(text: string): void {
    let from = 0
    if (this.first && text !== '') {
      this.first = false
      if (text[0] === '\uFEFF') from = 1
    }
    if (this.carriage && text !== '') {
      this.carriage = false
      if (text[from] === '\n') from++
    }
    const carriages = text.includes('\r')
    for (;;) {
      let to = text.indexOf('\n', from)
      let next = to + 1
      const carriage = carriages ? text.indexOf('\r', from) : -1
      if (carriage >= 0 && (to < 0 || carriage < to)) {
        to = carriage
        next = text[to + 1] === '\n' ? to + 2 : to + 1
        this.carriage = to + 1 === text.length
      }
      if (to < 0) break
      const line = this.line === '' ? text.slice(from, to) : this.line + text.slice(from, to)
      this.line = ''
      from = next
      this.take(line)
    }
    this.line += text.slice(from)
    this.check(this.line.length)
  }

  private take(line: string): void {
    if (line === '') {
      const { data } = this
      this.data = undefined
      if (data !== undefined) this.onData(data)
      return
    }
    if (!line.startsWith('data') || (line.length > 4 && line[4] !== ':')) return
    const value = line.slice(line[5] === ' ' ? 6 : 5)
    this.data = this.data === undefined ? value : `${this.data}\n${value}`
    this.check(this.data.length)
  }

  private check(length: number): void {
    if (length > MAX_EVENT_LENGTH) throw new RangeError('an event of more than 4 MiB')
  }
}
