/**
 * What the formats are written with. A format is a generator that is given one UTF-16 unit at a time, so how the text was
 * cut cannot matter, and no unit is looked at twice but those of a marker.
 */
import { isSpace, JsonScanner, JsonStringDecoder, jsonUnit } from './json_scanner'
import type { ToolCallDelta, ToolCallOutput } from './types'

/** In place of a unit: the text has ended. */
export const END = -1

export type Parse<T = void> = Generator<void, T, number>

/** What has come out since the last `take()`. */
export class Output {
  private content = ''
  private calls: ToolCallDelta[] = []
  private index = -1
  /** White space at the beginning or after a call: part of the format if a call or the end follows, else content. */
  private space = ''
  private atEdge = true

  constructor(private readonly newId: () => string) {}

  get anyCalls(): boolean {
    return this.index >= 0
  }

  text(text: string): void {
    if (text === '') return
    if (this.atEdge) {
      if (text.trim() === '') {
        this.space += text
        return
      }
      this.content += this.space
      this.space = ''
      this.atEdge = false
    }
    this.content += text
  }

  call(name: string): void {
    this.space = ''
    this.atEdge = true
    this.index++
    this.calls.push({ index: this.index, id: this.newId(), name, arguments: '' })
  }

  /** Extends the arguments of the latest call. */
  arguments(text: string): void {
    const last = this.calls.at(-1)
    if (last === undefined) this.calls.push({ index: this.index, arguments: text })
    else last.arguments += text
  }

  end(): void {
    if (!this.anyCalls) this.content += this.space
    this.space = ''
  }

  take(): ToolCallOutput {
    const { content, calls } = this
    this.content = ''
    this.calls = []
    return { content, calls }
  }
}

/** The unit under consideration, and the text before it of which it is not yet known what it is. */
export class Cursor {
  code = END
  raw = ''
  /** Text up to this unit is content, whatever follows; undefined where each unit must be looked at. */
  awaited: string | undefined

  constructor(
    readonly out: Output,
    /** Whether a name without a marker before it is that of a tool. */
    readonly knows: (name: string) => boolean,
  ) {}

  is(unit: string): boolean {
    return this.code === unit.charCodeAt(0)
  }

  /** Puts the unit to the undecided text and goes on to the next. */
  *take(): Parse {
    this.raw += String.fromCharCode(this.code)
    this.code = yield
  }

  *spaces(): Parse {
    while (isSpace(this.code)) yield* this.take()
  }

  /** What is undecided is content. */
  giveUp(): void {
    this.out.text(this.raw)
    this.raw = ''
  }

  /** The first unit of what is undecided is content; the rest may hold a marker. For short texts. */
  giveUpUnit(): void {
    this.out.text(this.raw.slice(0, 1))
    this.raw = this.raw.slice(1)
  }

  /** What was undecided is part of a call that has begun. */
  commit(name: string): void {
    this.raw = ''
    this.out.call(name)
  }

  /** @returns whether the text goes on with `expected`; where not, what agreed is undecided */
  *literal(expected: string): Parse<boolean> {
    for (let i = 0; i < expected.length; i++) {
      if (this.code !== expected.charCodeAt(i)) return false
      yield* this.take()
    }
    return true
  }

  /** Units of a class, at most 256; `''` if there is none. */
  *word(allowed: RegExp): Parse<string> {
    let word = ''
    while (this.code !== END && word.length < 256 && allowed.test(String.fromCharCode(this.code))) {
      word += String.fromCharCode(this.code)
      yield* this.take()
    }
    return word
  }

  /** A JSON string, decoded. */
  *string(): Parse<string | undefined> {
    if (!this.is('"')) return undefined
    yield* this.take()
    const decoder = new JsonStringDecoder()
    let text = ''
    while (this.code !== END) {
      const step = decoder.feed(this.code)
      if (step === 'bad') return undefined
      yield* this.take()
      if (step === 'end') return text
      text += step.text
    }
    return undefined
  }

  /**
   * One JSON value.
   * @param emit is handed the value's text as it comes; control characters in strings are escaped
   * @param keep whether it is undecided text, too
   * @returns false at the unit that cannot go on
   */
  *json(emit: (text: string) => void, keep: boolean): Parse<boolean> {
    const scanner = new JsonScanner()
    while (this.code !== END) {
      const { inString } = scanner
      const result = scanner.feed(this.code)
      if (result === 'bad') return false
      if (result === 'past') return true
      const unit = String.fromCharCode(this.code)
      emit(inString && this.code < 0x20 ? jsonUnit(this.code) : unit)
      if (keep) this.raw += unit
      this.code = yield
      if (result === 'end') return true
    }
    return false
  }

  /**
   * Passes content on up to the first of the markers, which is undecided text then. Markers are no prefixes of each other.
   * @returns undefined at the end of the text
   */
  *marker(markers: readonly string[]): Parse<string | undefined> {
    this.passOn(markers)
    while (!markers.includes(this.raw)) {
      if (this.code === END) {
        this.giveUp()
        return undefined
      }
      this.raw += String.fromCharCode(this.code)
      this.passOn(markers)
      // Markers of one format begin with the same unit.
      this.awaited = this.raw === '' ? markers[0]?.[0] : undefined
      this.code = yield
      this.awaited = undefined
    }
    return this.raw
  }

  /** Content is what cannot be the beginning of a marker. */
  private passOn(markers: readonly string[]): void {
    while (this.raw !== '' && !markers.some((marker) => marker.startsWith(this.raw))) this.giveUpUnit()
  }
}
