/**
 * A GPU that faults in the middle of 64 live streams. Each case has a process of its own: after such a fault CUDA serves the process no
 * more. `--child` names the case.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { prompts } from './support/goldens.mjs'
import { record, verify } from './support/report.mjs'
import { FaultyExecutor } from './support/faulty_executor.mjs'
import { quantile } from './support/statistics.mjs'
import { createCpuExecutor, createExecutor, LLM, loadCpu, onCpu, options, precisions, TensorRTError } from './support/target.mjs'

const STREAMS = 64
const FAULT_AT_STEP = 40
const MAX_TOKENS = 96
const TYPED = ['ERR_BACKEND_DEAD', 'ERR_STEP_FAILED']
const precision = precisions.includes('bf16') ? 'bf16' : precisions[0]

const requests = Array.from({ length: STREAMS }, (_, i) => {
  const { ids } = prompts[i % prompts.length]
  return { tokens: ids.slice(0, 64), maxTokens: MAX_TOKENS, temperature: 0, ignoreEos: true }
})

/** An executor whose step `FAULT_AT_STEP` faults on the device; the CPU's stands in by dying in the same way. */
async function faulty() {
  const sizes = { numPages: 1024, maxSlots: STREAMS }
  if (!onCpu) return createExecutor(precision, { ...sizes, faultAtStep: FAULT_AT_STEP })
  const died = { code: 'ERR_BACKEND_DEAD', message: 'injected', retryable: false }
  let steps = 0
  return new FaultyExecutor(await createExecutor(precision, sizes), () => ++steps >= FAULT_AT_STEP, died)
}

/** Reads a stream to its end; `times[i]` is when token `i` arrived. */
async function consume(llm, request) {
  const tokens = []
  const times = []
  try {
    for await (const chunk of llm.generate(request)) {
      tokens.push(...chunk.tokens)
      for (const _ of chunk.tokens) times.push(performance.now())
    }
    return { tokens, times }
  } catch (error) {
    return { tokens, times, error }
  }
}

async function failoverOff() {
  const llm = LLM.fromExecutor(await faulty(), { maxSequences: STREAMS })
  const streams = await Promise.all(requests.map((request) => consume(llm, request)))
  const codes = {}
  for (const { error, tokens } of streams) {
    assert.ok(error instanceof TensorRTError, `a typed error, not ${error}`)
    assert.ok(TYPED.includes(error.code), error.code)
    assert.ok(tokens.length > 0 && tokens.length < MAX_TOKENS, 'the stream was live')
    codes[error.code] = (codes[error.code] ?? 0) + 1
  }
  llm.check()
  const { running, waiting, kv } = llm.stats()
  assert.deepEqual({ running, waiting, used: kv.usedPages }, { running: 0, waiting: 0, used: 0 })
  const after = await consume(llm, requests[0])
  assert.ok(after.error instanceof TensorRTError, 'what comes afterwards is refused, not left hanging')
  await llm.close()
  return { streams: streams.length, codes, messages: [...new Set(streams.map(({ error }) => error.message))].slice(0, 3), after: after.error.code }
}

async function failoverOn() {
  const warnings = []
  const llm = LLM.fromExecutor(await faulty(), {
    maxSequences: STREAMS,
    failover: () => createCpuExecutor({ numPages: 1024, maxSlots: STREAMS }),
    onWarning: (warning) => warnings.push(warning),
  })
  const streams = await Promise.all(requests.map((request) => consume(llm, request)))
  for (const { error, tokens } of streams) {
    assert.equal(error, undefined)
    assert.equal(tokens.length, MAX_TOKENS)
  }
  llm.check()
  const { backend } = llm
  assert.equal(backend, 'cpu')
  assert.deepEqual(warnings.map(({ code }) => code), ['BACKEND_FAILED_OVER'])
  const { running, waiting, kv } = llm.stats()
  assert.deepEqual({ running, waiting, used: kv.usedPages }, { running: 0, waiting: 0, used: 0 })
  await llm.close()
  // The longest pause of a stream is the one across the fault.
  const pauses = streams.map(({ times }) => {
    const waits = times.slice(1).map((time, i) => time - times[i])
    const longest = Math.max(...waits)
    return { ms: longest, emitted: waits.indexOf(longest) + 1 }
  })
  const cpu = await loadCpu()
  try {
    await Promise.all(
      streams.map(async ({ tokens }, i) => {
        const { emitted } = pauses[i]
        const prefix = [...requests[i].tokens, ...tokens.slice(0, emitted)]
        const { tokens: rest } = await cpu.generate({ ...requests[i], tokens: prefix, maxTokens: MAX_TOKENS - emitted }).result()
        assert.deepEqual(tokens.slice(emitted), [...rest], `stream ${i}: the CPU's greedy continuation after ${emitted} tokens`)
      }),
    )
  } finally {
    await cpu.close()
  }
  const ms = pauses.map((pause) => pause.ms)
  const emitted = pauses.map((pause) => pause.emitted)
  return {
    streams: streams.length,
    backend,
    nextTokenMs: { median: quantile(ms, 0.5), max: Math.max(...ms) },
    emitted: { min: Math.min(...emitted), max: Math.max(...emitted) },
    warning: warnings[0].message,
  }
}

const CASES = { off: failoverOff, on: failoverOn }
if (options.child !== undefined) {
  const outcome = await CASES[options.child]()
  console.log(`\n=${JSON.stringify(outcome)}`)
} else {
  const run = (name) => {
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, [...process.argv.slice(1), '--child', name], {
      encoding: 'utf8',
      timeout: 120_000,
    })
    assert.equal(status, 0, `exit ${status ?? signal}\n${stdout}\n${stderr}`)
    return JSON.parse(stdout.slice(stdout.lastIndexOf('\n=') + 2))
  }
  verify(`${precision}: fault with ${STREAMS} live streams, no failover`, {}, () => record('off', run('off')))
  verify(`${precision}: fault with ${STREAMS} live streams, failover to the CPU`, {}, () => record('on', run('on')))
}
