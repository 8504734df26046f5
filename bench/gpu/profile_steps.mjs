/**
 * Runs a few steps of an engine, each once after a warm-up, for a profiler to watch; then turns the profiler's list of kernels into a table
 * per step. Without CUDA graphs, so that every kernel is a launch of its own.
 *
 *   ncu --clock-control none --cache-control none --metrics gpu__time_duration.sum --csv --log-file KERNELS.csv \
 *     node bench/gpu/profile_steps.mjs run MODEL_FOLDER ENGINE_FOLDER STEPS.json
 *   node bench/gpu/profile_steps.mjs table KERNELS.csv STEPS.json REPORT.json
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { StepTimer } from './step_timer.mjs'

const root = resolve(import.meta.dirname, '..', '..')
const PAGE = 16
const CONTEXT = 128

async function run(model, engineFolder, out) {
  const require = createRequire(join(root, 'package.json'))
  const { createTensorRTBackend } = require(join(root, 'dist', 'native'))
  const { readEngineFolder, readPlan } = require(join(root, 'dist', 'runtime'))
  const engine = await readEngineFolder(engineFolder)
  const { weight_map: map } = JSON.parse(readFileSync(join(model, 'model.safetensors.index.json'), 'utf8'))
  const executor = await createTensorRTBackend({
    graph: engine.graph, plan: await readPlan(engine), files: [...new Set(Object.values(map))].map((file) => join(model, file)),
    libraryPath: '', device: 0, pageSize: PAGE, numPages: 4096, kvCacheFraction: 0.9, maxSlots: 256, maxStepTokens: 8192,
    cudaGraphs: false, plainKernels: false, faultAtStep: 0,
  })
  const { vocabSize } = executor.info
  const prompt = (length, seed) => Array.from({ length }, (_, i) => 3 + (Math.imul(i + 1 + 7919 * seed, 2654435761) >>> 8) % (vocabSize - 3))
  const timer = new StepTimer(executor)
  const steps = []
  const step = async (label, rows) => {
    await timer.submit(rows)
    steps.push(label)
  }
  const perSequence = CONTEXT / PAGE + 1
  const pages = (slot) => Array.from({ length: perSequence }, (_, i) => slot * perSequence + i)
  for (const rows of [1, 64, 256]) {
    const slots = Array.from({ length: rows }, (_, slot) => slot)
    for (const slot of slots) timer.open(slot, prompt(CONTEXT, slot))
    for (let at = 0; at < rows; at += 64) {
      await step('', slots.slice(at, at + 64).map((slot) => ({ slot, tokens: prompt(CONTEXT, slot), cached: 0, pages: pages(slot) })))
    }
    for (const label of ['', `decode ${rows}`]) {
      await step(label, slots.map((slot) => ({ slot, tokens: [-1], cached: CONTEXT + (label === '' ? 0 : 1), pages: pages(slot) })))
    }
    for (const slot of slots) timer.close(slot)
  }
  for (const tokens of [512, 2048]) {
    const row = { slot: 0, tokens: prompt(tokens, 0), cached: 0, pages: Array.from({ length: tokens / PAGE }, (_, i) => i) }
    timer.open(0, row.tokens)
    for (const label of ['', `prefill ${tokens}`]) await step(label, [row])
    timer.close(0)
  }
  writeFileSync(out, JSON.stringify(steps))
  await executor.close()
}

/** Fields of a line of CSV in double quotes. */
const fields = (line) => Array.from(line.matchAll(/"((?:[^"]|"")*)"/g), ([, text]) => text.replaceAll('""', '"'))

function table(csv, stepsFile, out) {
  const steps = JSON.parse(readFileSync(stepsFile, 'utf8'))
  const lines = readFileSync(csv, 'utf8').split('\n').filter((line) => line.startsWith('"'))
  const names = fields(lines[0])
  const [name, value, unit] = ['Kernel Name', 'Metric Value', 'Metric Unit'].map((column) => names.indexOf(column))
  const micro = { ns: 1e-3, nsecond: 1e-3, us: 1, usecond: 1, ms: 1e3, msecond: 1e3 }
  const kernels = lines.slice(1).map(fields).filter((row) => micro[row[unit]] !== undefined)
    .map((row) => ({ name: row[name], us: Number(row[value].replaceAll(',', '')) * micro[row[unit]] }))
  // Each step begins with the look-up of its embeddings; those of the load came before.
  const starts = kernels.flatMap((kernel, i) => (/embed/i.test(kernel.name) ? [i] : [])).slice(-steps.length)
  if (starts.length !== steps.length) throw new Error(`${starts.length} steps in the profile, ${steps.length} were run`)
  const report = {}
  steps.forEach((label, i) => {
    if (label === '') return
    const sums = new Map()
    // Slots that are opened behind a step are not its work.
    const own = kernels.slice(starts[i], starts[i + 1]).filter((kernel) => !kernel.name.includes('openKernel'))
    const total = own.reduce((sum, { us }) => sum + us, 0)
    for (const { name: kernel, us } of own) {
      const sum = sums.get(kernel) ?? { kernel, launches: 0, us: 0 }
      sum.launches++
      sum.us += us
      sums.set(kernel, sum)
    }
    const rows = [...sums.values()].sort((a, b) => b.us - a.us).map((sum) => ({ ...sum, us: Number(sum.us.toFixed(2)) }))
    report[label] = { us: Number(total.toFixed(1)), launches: own.length, kernels: rows }
    console.log(`\n${label}: ${total.toFixed(1)} us in ${own.length} kernels`)
    for (const { kernel, launches, us } of rows.slice(0, 12)) {
      console.log(`  ${us.toFixed(1).padStart(8)} us ${((100 * us) / total).toFixed(0).padStart(3)}% ${String(launches).padStart(3)} x ${kernel.slice(0, 110)}`)
    }
  })
  writeFileSync(out, `${JSON.stringify(report, null, 1)}\n`)
}

const [verb, ...rest] = process.argv.slice(2)
if (verb === 'run') await run(...rest)
else if (verb === 'table') table(...rest)
else throw new Error('profile_steps.mjs run | table')
