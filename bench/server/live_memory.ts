/**
 * What a server's threads hold after a garbage collection. RSS says little of leaks: V8 collects old space when it likes to, and both
 * it and malloc keep pages for later, more of them where there are more threads.
 */
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface LiveMemory {
  /** V8's heaps and what their objects hold outside, WebAssembly's memories among it; not what native code allocates. */
  totalMiB: number
  /** Of the thread with the event loop. */
  mainMiB: number
  /** Of each worker thread. */
  workersMiB: number[]
}

/** Milliseconds for a thread to answer: one that compiles a grammar may take ten seconds for it. */
const TIMEOUT_MS = 15_000

/** Loaded by `--require` into each thread. Asked by the process's parent, the main thread asks all others. */
const PROBE = `'use strict'
const threads = require('node:worker_threads')
require('node:v8').setFlagsFromString('--expose-gc')
const collect = require('node:vm').runInNewContext('gc')
const measure = () => {
  // What the first finds dead may be held by finalizers until the second.
  collect()
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}
const channel = new threads.BroadcastChannel('live-memory')
if (!threads.isMainThread) {
  channel.onmessage = ({ data }) => {
    if (data.ask !== undefined) channel.postMessage({ answer: data.ask, bytes: measure() })
  }
} else if (process.send !== undefined) {
  let running = 0
  threads.Worker = class extends threads.Worker {
    constructor(...given) {
      super(...given)
      running++
      this.once('exit', () => running--)
    }
  }
  process.on('message', ({ ask }) => {
    const workers = []
    channel.onmessage = ({ data }) => {
      if (data.answer === ask) workers.push(data.bytes)
    }
    channel.postMessage({ ask })
    const main = measure()
    const until = performance.now() + ${TIMEOUT_MS}
    const timer = setInterval(() => {
      // Threads may have ended meanwhile.
      if (workers.length < running && performance.now() < until) return
      clearInterval(timer)
      process.send({ answer: ask, main, workers, missing: Math.max(0, running - workers.length) })
    }, 20)
  })
  process.channel.unref()
}
channel.unref()
`

interface Answer {
  answer: number
  main: number
  workers: number[]
  missing: number
}

const mebibytes = (bytes: number): number => Math.round(bytes / 2 ** 20 / 0.1) / 10

/** Reads the live memory of one Node process, which must have an IPC channel. */
export class LiveMemoryReader {
  private readonly folder = mkdtempSync(join(tmpdir(), 'live-memory-'))
  private asked = 0

  /** For the environment of the process. */
  get nodeOptions(): string {
    const file = join(this.folder, 'probe.cjs')
    writeFileSync(file, PROBE)
    return `${process.env['NODE_OPTIONS'] ?? ''} --require ${JSON.stringify(file)}`.trim()
  }

  /** @throws Error where the process, or one of its threads, does not answer */
  read(child: ChildProcess): Promise<LiveMemory> {
    const ask = this.asked++
    return new Promise((resolve, reject) => {
      const end = (act: () => void): void => {
        clearTimeout(timer)
        child.off('message', onMessage).off('exit', onExit)
        act()
      }
      const onExit = (): void => end(() => reject(new Error('The process ended before its memory was read')))
      const onMessage = (message: unknown): void => {
        const { answer, main, workers, missing } = message as Answer
        if (answer !== ask) return
        end(() => {
          if (missing > 0) return reject(new Error(`${missing} threads did not tell of their memory`))
          const total = workers.reduce((sum, bytes) => sum + bytes, main)
          resolve({ totalMiB: mebibytes(total), mainMiB: mebibytes(main), workersMiB: workers.map(mebibytes).sort((a, b) => b - a) })
        })
      }
      const timer = setTimeout(() => end(() => reject(new Error('The process did not tell of its memory'))), 2 * TIMEOUT_MS)
      child.on('message', onMessage).once('exit', onExit)
      child.send({ ask })
    })
  }

  close(): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}
