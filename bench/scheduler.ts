/**
 * What a step costs on the scheduler's side: complete() of the last step, plan() and packing of the next one, with an
 * executor that does nothing. 256 sequences run at all times, new requests replace those that finish.
 *
 *     npm run bench:scheduler -- [requests]
 *
 * Measures the compiled library. Prints JSON, and keeps it in docs/benchmarks/scheduler.json. Times are microseconds per step; `windows` shows whether they grow with the number of requests served.
 */
import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { StepResult } from '../lib/scheduler'
import { describeMachine } from './machine'

const { GREEDY_SAMPLING, Scheduler, STEP_HEADER_INTS, STEP_SEQUENCE_INTS, StepFlag } = createRequire(__filename)(
  '../dist/scheduler',
) as typeof import('../lib/scheduler')

const RUNNING = 256
const REQUESTS = Number(process.argv[2] ?? 100_000)
const SHARED_PREFIX = 64
const MAX_PROMPT = 256
const MAX_OUTPUT = 128

function quantile(sorted: Float64Array, q: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? NaN
}

function summary(times: number[]): { steps: number; medianUs: number; p99Us: number; meanUs: number } {
  const sorted = Float64Array.from(times).sort()
  const round = (value: number): number => Math.round(value * 10) / 10
  const meanUs = round(times.reduce((sum, time) => sum + time, 0) / times.length)
  return { steps: times.length, medianUs: round(quantile(sorted, 0.5)), p99Us: round(quantile(sorted, 0.99)), meanUs }
}

let randomState = 1
function random(below: number): number {
  randomState = (Math.imul(randomState, 1664525) + 1013904223) >>> 0
  return Math.floor((randomState / 2 ** 32) * below)
}

const none = new Float32Array(0)
const timings = { queueUs: 0, runUs: 5000 }

/** The null executor's answer: an arbitrary token for each sampled row. */
function answer(packed: Int32Array): StepResult {
  let samples = 0
  for (let row = 0, at = STEP_HEADER_INTS + 4; row < packed[2]!; row++, at += STEP_SEQUENCE_INTS)
    samples += packed[at]! & StepFlag.SAMPLE
  return { stepId: packed[1]!, tokens: new Int32Array(samples).fill(7), logprobs: [], logits: none, timings }
}

const scheduler = new Scheduler(
  { vocabSize: 32_000, maxPositions: 2048, pageSize: 16, numPages: 8192, maxSlots: RUNNING, maxStepTokens: 8192 },
  { maxQueue: 1024 },
)
const preamble = Int32Array.from({ length: SHARED_PREFIX }, () => random(32_000))
let added = 0
function add(now: number): void {
  const prompt = new Int32Array(SHARED_PREFIX + 1 + random(MAX_PROMPT - SHARED_PREFIX))
  prompt.set(preamble)
  for (let i = SHARED_PREFIX; i < prompt.length; i++) prompt[i] = random(32_000)
  scheduler.add({ id: added++, prompt, sampling: GREEDY_SAMPLING, maxTokens: 1 + random(MAX_OUTPUT), timeoutMs: 600_000 }, now)
}

const windowEnds = [1000, 3000, 10_000, 30_000, 100_000].filter((end) => end < REQUESTS).concat(REQUESTS)
const windows: ({ served: number } & ReturnType<typeof summary>)[] = []
const all: number[] = []
let times: number[] = []
let now = 0
let rowSum = 0
const inFlight: StepResult[] = []

while (windows.length < windowEnds.length) {
  while (added < REQUESTS + 4 * RUNNING && scheduler.stats().waiting < 64) add(now)
  now += 5
  const result = inFlight.shift()
  const start = process.hrtime.bigint()
  if (result !== undefined) scheduler.complete(result, now)
  const step = scheduler.plan(now)
  const us = Number(process.hrtime.bigint() - start) / 1000
  if (step !== null) inFlight.push(answer(step.packed))
  if (inFlight.length < 2) {
    const ahead = scheduler.plan(now)
    if (ahead !== null) inFlight.push(answer(ahead.packed))
  }
  if (step !== null && result !== undefined && step.sequences >= 0.9 * RUNNING) {
    times.push(us)
    all.push(us)
    rowSum += step.sequences
  }
  const served = scheduler.stats().sequencesFinished
  if (served >= windowEnds[windows.length]!) {
    windows.push({ served, ...summary(times) })
    times = []
  }
}

const stats = scheduler.stats()
const report = JSON.stringify(
  {
    command: 'npm run bench:scheduler',
    machine: describeMachine(),
    running: RUNNING,
    meanSequencesPerStep: Math.round((rowSum / all.length) * 10) / 10,
    ...summary(all),
    windows,
    preemptions: stats.preemptions,
    prefixHitRate: Math.round((stats.prefixHitTokens / stats.prefixQueryTokens) * 1000) / 1000,
  },
  null,
  2,
)
writeFileSync(join(__dirname, '..', 'docs', 'benchmarks', 'scheduler.json'), `${report}\n`)
console.log(report)
