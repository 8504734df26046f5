/** Reads protocol buffers without a schema compiler: messages in memory, and long ones in files, of which only what is asked for is read. */
import { type FileHandle } from 'node:fs/promises'
import { TensorRTError } from '../errors'

export const Wire = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 } as const

export interface Field {
  number: number
  wire: number
}

const text = new TextDecoder()

/** @throws ERR_ONNX_INVALID: nothing but ONNX is read by this */
function malformed(at: number, why: string): never {
  throw new TensorRTError('ERR_ONNX_INVALID', `The ONNX model is damaged: ${why} at byte ${at}`)
}

function splitTag(tag: number, at: number): Field {
  const field = { number: Math.trunc(tag / 8), wire: tag % 8 }
  const known = field.wire === Wire.varint || field.wire === Wire.fixed64 || field.wire === Wire.bytes || field.wire === Wire.fixed32
  if (!known || field.number === 0) malformed(at, 'no field of a protocol buffer')
  return field
}

/** The fields of one message in memory, in their order. */
export class MessageReader {
  #at = 0

  /** @param start of the bytes in the file, for messages */
  constructor(
    private readonly bytes: Uint8Array,
    private readonly start: number,
  ) {}

  /** The next field's number and type; undefined at the end. Its value is to be read, or skipped, next. */
  next(): Field | undefined {
    return this.#at === this.bytes.length ? undefined : splitTag(this.varint(), this.start + this.#at)
  }

  /** Numbers above 2^53 come out rounded; negative ones, of 64 bits, as such. */
  varint(): number {
    let low = 0
    let high = 0
    for (let i = 0; i < 10; i++) {
      const byte = this.bytes[this.#at++]
      if (byte === undefined) malformed(this.start + this.bytes.length, 'it ends within a number')
      if (i < 4) low |= (byte & 0x7f) << (7 * i)
      else if (i === 4) {
        low |= (byte & 0x0f) << 28
        high |= (byte & 0x7f) >> 4
      } else high |= (byte & 0x7f) << (7 * i - 32)
      if (byte < 0x80) return (high | 0) * 2 ** 32 + (low >>> 0)
    }
    malformed(this.start + this.#at, 'a number of more than 64 bits')
  }

  /** A view of the field's bytes. */
  view(): Uint8Array {
    const length = this.varint()
    if (length < 0 || length > this.bytes.length - this.#at) malformed(this.start + this.#at, 'a length that goes past the end')
    const view = this.bytes.subarray(this.#at, this.#at + length)
    this.#at += length
    return view
  }

  string(): string {
    return text.decode(this.view())
  }

  /** All that is left, as text: for messages that are no messages but strings. */
  rest(): string {
    const left = this.bytes.subarray(this.#at)
    this.#at = this.bytes.length
    return text.decode(left)
  }

  message(): MessageReader {
    const view = this.view()
    return new MessageReader(view, this.start + this.#at - view.length)
  }

  /** Repeated integers, packed or one at a time. */
  integers({ wire }: Field, to: number[]): void {
    if (wire !== Wire.bytes) {
      to.push(this.varint())
      return
    }
    const packed = this.message()
    while (!packed.atEnd) to.push(packed.varint())
  }

  get atEnd(): boolean {
    return this.#at === this.bytes.length
  }

  skip({ wire }: Field): void {
    if (wire === Wire.varint) this.varint()
    else if (wire === Wire.bytes) this.view()
    else {
      this.#at += wire === Wire.fixed64 ? 8 : 4
      if (this.#at > this.bytes.length) malformed(this.start + this.bytes.length, 'it ends within a number')
    }
  }
}

/** A file, or memory that stands for one. */
export interface ByteSource {
  readonly size: number
  /** Exactly these bytes, unless the source has become shorter. */
  read(at: number, length: number): Promise<Uint8Array>
}

export function memorySource(bytes: Uint8Array): ByteSource {
  return { size: bytes.length, read: (at, length) => Promise.resolve(bytes.subarray(at, at + length)) }
}

const WINDOW = 1 << 20

/** Reads ahead, so that small reads in order cost few calls of the system's. */
export function fileSource(file: FileHandle, size: number): ByteSource {
  let window = new Uint8Array(0)
  let windowAt = 0
  const load = async (at: number, length: number): Promise<Uint8Array> => {
    const bytes = new Uint8Array(length)
    let have = 0
    while (have < length) {
      const { bytesRead } = await file.read(bytes, have, length - have, at + have)
      if (bytesRead === 0) break
      have += bytesRead
    }
    return bytes.subarray(0, have)
  }
  return {
    size,
    async read(at, length) {
      if (length > WINDOW / 2) return load(at, length)
      if (at < windowAt || at + length > windowAt + window.length) {
        window = (await load(at, Math.min(WINDOW, size - at))) as Uint8Array<ArrayBuffer>
        windowAt = at
      }
      return window.subarray(at - windowAt, at - windowAt + length)
    },
  }
}

/** A message in a {@link ByteSource}: its long fields can be entered or passed over without being read. */
export class SourceReader {
  #at: number

  constructor(
    private readonly source: ByteSource,
    start = 0,
    private readonly end = source.size,
  ) {
    this.#at = start
  }

  async next(): Promise<Field | undefined> {
    if (this.#at >= this.end) return undefined
    const at = this.#at
    return splitTag(await this.varint(), at)
  }

  async varint(): Promise<number> {
    const bytes = await this.source.read(this.#at, Math.min(10, this.end - this.#at))
    const length = bytes.findIndex((byte) => byte < 0x80) + 1
    if (length === 0) malformed(this.#at, 'no number')
    const value = new MessageReader(bytes.subarray(0, length), this.#at).varint()
    this.#at += length
    return value
  }

  /** Length of the field that comes, whose content starts at `at`; passes over it. */
  async range(): Promise<{ at: number; length: number }> {
    const length = await this.varint()
    if (length < 0 || length > this.end - this.#at) malformed(this.#at, 'a length that goes past the end')
    const at = this.#at
    this.#at += length
    return { at, length }
  }

  async load({ at, length }: { at: number; length: number }): Promise<MessageReader> {
    const bytes = await this.source.read(at, length)
    if (bytes.length < length) malformed(at + bytes.length, 'the file has become shorter')
    return new MessageReader(bytes, at)
  }

  enter({ at, length }: { at: number; length: number }): SourceReader {
    return new SourceReader(this.source, at, at + length)
  }

  async skip({ wire }: Field): Promise<void> {
    if (wire === Wire.varint) await this.varint()
    else if (wire === Wire.bytes) await this.range()
    else this.#at += wire === Wire.fixed64 ? 8 : 4
    if (this.#at > this.end) malformed(this.end, 'it ends within a number')
  }
}
