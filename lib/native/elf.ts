/** Reads as much of an ELF file's headers as tells whether it is worth loading. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'

export interface ElfFacts {
  /** 'x64', 'arm64' ... as process.arch has it; 'another processor' when unknown. */
  arch: string
  /** False when the file is shorter than its segments. glibc would map it all the same, and the process die of SIGBUS. */
  complete: boolean
}

const MACHINES: Record<number, string> = { 3: 'ia32', 40: 'arm', 62: 'x64', 183: 'arm64', 243: 'riscv64', 258: 'loong64' }
const HEADER_BYTES = 64
const MAGIC = 0x7f454c46
const CLASS_64 = 2
const LITTLE_ENDIAN = 1

/** Undefined when the file is no ELF file, or not readable. */
export function inspectElf(file: string): ElfFacts | undefined {
  let descriptor: number | undefined
  try {
    descriptor = openSync(file, 'r')
    const header = Buffer.alloc(HEADER_BYTES)
    const bytes = readSync(descriptor, header, 0, HEADER_BYTES, 0)
    if (bytes < 20 || header.readUInt32BE(0) !== MAGIC) return undefined
    const little = header[5] === LITTLE_ENDIAN
    const arch = MACHINES[little ? header.readUInt16LE(18) : header.readUInt16BE(18)] ?? 'another processor'
    // The processors that this library could run on are 64-bit and little-endian; the others fail by their name.
    if (header[4] !== CLASS_64 || !little) return { arch, complete: true }
    return { arch, complete: bytes === HEADER_BYTES && holdsSegments(descriptor, header) }
  } catch {
    return undefined
  } finally {
    if (descriptor !== undefined) closeSync(descriptor)
  }
}

function holdsSegments(descriptor: number, header: Buffer): boolean {
  const size = BigInt(fstatSync(descriptor).size)
  const offset = header.readBigUInt64LE(32)
  const entryBytes = header.readUInt16LE(54)
  const count = header.readUInt16LE(56)
  if (entryBytes < 56 || offset + BigInt(entryBytes * count) > size) return false
  const table = Buffer.alloc(entryBytes * count)
  readSync(descriptor, table, 0, table.length, Number(offset))
  for (let entry = 0; entry < table.length; entry += entryBytes) {
    const segmentOffset = table.readBigUInt64LE(entry + 8)
    const segmentBytes = table.readBigUInt64LE(entry + 32)
    if (segmentOffset + segmentBytes > size) return false
  }
  return true
}
