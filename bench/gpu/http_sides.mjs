/** What http.mjs measures: each side is started, answers loads, tells its processor time, and is ended. */
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { freePort, Program } from './processes.mjs'

const root = resolve(import.meta.dirname, '..', '..')
const require = createRequire(join(root, 'package.json'))
const { runServeLoad } = require(join(root, 'dist', 'cli', 'bench_serve_load.js'))
const { version } = require(join(root, 'dist', 'version.js'))

const MODEL = 'bench'
const SCRAPE_MS = 5000

/** A server that is loaded over HTTP; its metrics are read meanwhile, as a Prometheus would. */
class HttpSide {
  #url
  #program

  constructor(program, url) {
    this.#program = program
    this.#url = url
  }

  get program() {
    return this.#program
  }

  async run({ limitSeconds, ...load }, signal) {
    const target = {
      base: new URL('/v1', this.#url),
      endpoint: 'completions',
      model: MODEL,
      headers: {},
      // `ignore_eos` alone makes lengths exact; `min_tokens`, which goes with it, would have a server mask stop tokens at each step.
      exactLengths: true,
      extraBody: { min_tokens: 0 },
      temperature: 0,
      timeoutMs: 600_000,
    }
    const ended = new AbortController()
    const scrapes = setInterval(() => {
      const answer = fetch(new URL('/metrics', this.#url), { signal: AbortSignal.timeout(SCRAPE_MS) })
      answer.then((response) => response.arrayBuffer()).catch(() => undefined)
    }, SCRAPE_MS)
    try {
      const limited = AbortSignal.any([signal, ended.signal, AbortSignal.timeout(limitSeconds * 1000)])
      const { samples: _, ...report } = await Promise.race([runServeLoad({ ...load, target, signal: limited }), this.#program.failure()])
      return report
    } finally {
      // Where the server is gone the load has not ended by itself.
      ended.abort()
      clearInterval(scrapes)
    }
  }
}

/** `generate()` in a process of its own. */
class LibrarySide {
  #program

  constructor(program) {
    this.#program = program
  }

  get program() {
    return this.#program
  }

  async run(load, signal) {
    const { channel } = this.#program
    signal.throwIfAborted()
    const answer = LibrarySide.next(this.#program, signal)
    channel.send(load)
    const { report } = await answer
    return report
  }

  /** @returns its next message. @throws Error where that tells one, or the process ends */
  static async next(program, signal) {
    let hear
    let stop
    const message = new Promise((resolve, reject) => {
      hear = resolve
      stop = () => reject(new Error(`${program.command} did not answer: ${signal.reason.message}`, { cause: signal.reason }))
      program.channel.once('message', hear)
      signal.addEventListener('abort', stop)
    })
    try {
      const answer = await Promise.race([message, program.failure()])
      if (answer.error !== undefined) throw new Error(answer.error)
      return answer
    } finally {
      program.channel.off('message', hear)
      signal.removeEventListener('abort', stop)
    }
  }
}

/** A program that does not get ready is ended before its error is thrown. */
async function orEnd(program, work) {
  try {
    return await work
  } catch (error) {
    await program.end()
    throw error
  }
}

/**
 * Starts a side. `options`: `{ backend, engine, model, maxSequences, maxStepTokens, maxModelLength, kvCacheFraction, startSeconds, python, vllmArgs, log }`.
 * @returns `{ side, facts }`
 */
export const SIDES = {
  async library(options, signal) {
    const { engine, backend, maxSequences, maxStepTokens, kvCacheFraction, log, startSeconds } = options
    const argument = JSON.stringify({ folder: engine, options: { backend, maxSequences, maxStepTokens, kvCacheFraction, prefixCache: false, failover: false } })
    const program = new Program(process.execPath, { args: [join(import.meta.dirname, 'http_library.mjs'), argument], log, ipc: true })
    const late = AbortSignal.timeout(startSeconds * 1000)
    const { ready } = await orEnd(program, LibrarySide.next(program, AbortSignal.any([signal, late])))
    return { side: new LibrarySide(program), facts: { program: 'node-tensorrt, in process', ...ready } }
  },

  async server(options, signal) {
    const { engine, backend, maxSequences, maxStepTokens, kvCacheFraction, log, startSeconds } = options
    const port = await freePort()
    const flag = (name, value) => (value === undefined ? [] : [name, String(value)])
    const args = [
      join(root, 'dist', 'cli', 'main.js'), 'serve', engine, '--backend', backend, '--port', String(port), '--served-model-name', MODEL, '--no-prefix-cache', '--failover', 'off',
      ...flag('--max-sequences', maxSequences), ...flag('--max-step-tokens', maxStepTokens), ...flag('--kv-cache-fraction', kvCacheFraction),
    ]
    const program = new Program(process.execPath, { args, log })
    const url = `http://127.0.0.1:${port}`
    await orEnd(program, program.ready(`${url}/health/ready`, startSeconds, signal))
    return { side: new HttpSide(program, url), facts: { program: 'node-tensorrt serve', version } }
  },

  /** Flags as of vLLM 0.26. What is not named is as vLLM sets it: statistics and the tokenizer among it, which the other servers have, too. */
  async vllm(options, signal) {
    const { model, maxSequences, maxStepTokens, maxModelLength, python, vllmArgs, log, startSeconds } = options
    const port = await freePort()
    const flag = (name, value) => (value === undefined ? [] : [name, String(value)])
    const args = [
      '-m', 'vllm.entrypoints.cli.main', 'serve', model, '--host', '127.0.0.1', '--port', String(port), '--served-model-name', MODEL, '--dtype', 'bfloat16',
      '--no-enable-prefix-caching', '--disable-uvicorn-access-log',
      ...flag('--max-model-len', maxModelLength), ...flag('--max-num-seqs', maxSequences), ...flag('--max-num-batched-tokens', maxStepTokens), ...vllmArgs,
    ]
    const env = { HF_HUB_OFFLINE: '1', TRANSFORMERS_OFFLINE: '1', VLLM_NO_USAGE_STATS: '1', DO_NOT_TRACK: '1' }
    const program = new Program(python, { args, env, log })
    const url = `http://127.0.0.1:${port}`
    await orEnd(program, program.ready(`${url}/health`, startSeconds, signal))
    const answer = await fetch(`${url}/version`).then((response) => response.json()).catch(() => ({}))
    return { side: new HttpSide(program, url), facts: { program: 'vllm serve', version: answer.version } }
  },
}
