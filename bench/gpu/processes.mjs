/** Programs that are measured: started, their processor time read, ended with all that they started. Linux, as it reads /proc. */
import { spawn } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
/** What Linux counts processor time in for /proc, whatever the kernel's own clock (USER_HZ). */
const TICKS_PER_SECOND = 100
const TERM_MS = 20_000

/** Of /proc/PID/stat: name, parent, seconds of the processor, and when it began, which no later process of that id did. Undefined where there is none. */
function statOf(pid) {
  let text
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // The name is in parentheses and may have any characters.
  const end = text.lastIndexOf(')')
  const fields = text.slice(end + 2).split(' ')
  return {
    name: text.slice(text.indexOf('(') + 1, end),
    parent: Number(fields[1]),
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
    began: fields[19],
  }
}

/** A process and all below it, parents first. */
function treeOf(root) {
  const stats = new Map()
  for (const entry of readdirSync('/proc')) {
    const stat = /^\d+$/.test(entry) ? statOf(entry) : undefined
    if (stat !== undefined) stats.set(Number(entry), stat)
  }
  const found = stats.has(root) ? [root] : []
  for (const pid of found) for (const [child, { parent }] of stats) if (parent === pid) found.push(child)
  return found.map((pid) => ({ pid, ...stats.get(pid) }))
}

function kill(pid, signal) {
  try {
    process.kill(pid, signal)
  } catch {
    // It is gone.
  }
}

const running = new Set()
// The last resort; whoever starts a program ends it.
process.on('exit', () => {
  for (const program of running) program.killNow()
})

export class Program {
  #child
  #exited
  #code
  #log
  /** When each process began that was seen below this one, by id: they may outlive it. */
  #seen = new Map()

  /** @param options `{ args, env, log, ipc }`: stdout and stderr go to the file `log`; `ipc` gives a channel for messages */
  constructor(command, { args, env = {}, log, ipc = false }) {
    this.#log = log
    const out = openSync(log, 'w')
    this.command = [command, ...args].join(' ')
    this.#child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', out, out, ...(ipc ? ['ipc'] : [])] })
    closeSync(out)
    this.#exited = new Promise((resolve) => {
      const over = (code) => {
        this.#code ??= code
        if (this.#child.pid === undefined) running.delete(this)
        resolve()
      }
      this.#child.once('exit', (code, signal) => over(code ?? signal))
      this.#child.once('error', (error) => over(error.message))
    })
    running.add(this)
  }

  get pid() {
    return this.#child.pid
  }

  /** The child process: for messages. */
  get channel() {
    return this.#child
  }

  /** The end of what it wrote. */
  get tail() {
    try {
      return readFileSync(this.#log, 'utf8').slice(-2000)
    } catch {
      return ''
    }
  }

  /** @throws Error where it has ended */
  check() {
    if (this.#code !== undefined) throw new Error(`${this.command} ended with ${this.#code}:\n${this.tail}`)
  }

  /** Rejects when it ends. */
  async failure() {
    await this.#exited
    this.check()
  }

  /** Waits until a GET of `url` is answered with 200. @throws Error where it ends before, or takes longer than `seconds` */
  async ready(url, seconds, signal) {
    const end = performance.now() + seconds * 1000
    for (;;) {
      signal.throwIfAborted()
      this.check()
      const answer = await fetch(url, { signal: AbortSignal.timeout(2000) }).catch(() => undefined)
      await answer?.arrayBuffer().catch(() => undefined)
      if (answer?.status === 200) return
      if (performance.now() > end) throw new Error(`${this.command} was not ready after ${seconds} s:\n${this.tail}`)
      await sleep(100)
    }
  }

  /** Seconds of the processor that each of its processes has taken so far: `[{ pid, name, cpuSeconds }]`. */
  processorTimes() {
    return this.#tree().map(({ pid, name, cpuSeconds }) => ({ pid, name, cpuSeconds }))
  }

  #tree() {
    const tree = this.pid === undefined ? [] : treeOf(this.pid)
    for (const { pid, began } of tree) this.#seen.set(pid, began)
    return tree
  }

  /** SIGTERM, and SIGKILL to whatever it started that is left then or after 20 s. */
  async end() {
    if (this.pid === undefined) return
    this.#tree()
    kill(this.pid, 'SIGTERM')
    let timer
    const late = new Promise((resolve) => (timer = setTimeout(resolve, TERM_MS)))
    await Promise.race([this.#exited, late])
    clearTimeout(timer)
    this.killNow()
    await this.#exited
    running.delete(this)
  }

  killNow() {
    this.#tree()
    for (const [pid, began] of this.#seen) if (statOf(pid)?.began === began) kill(pid, 'SIGKILL')
  }
}

/** A port of 127.0.0.1 that nobody listens at now. */
export async function freePort() {
  const server = createServer()
  await new Promise((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  await new Promise((resolve) => server.close(resolve))
  return port
}
