/**
 * BERT-base's shape in the variants of models/bert_variants.json, each built with one profile of 128 x 128 tokens: milliseconds of that batch as a
 * CUDA graph, times by layer, and the outputs against onnxruntime's. All variants go into one report. ONNX files that are missing are made
 * by bert_variants.py.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { runByHand } from '../../test/gpu/runtime/support/by_hand.mjs'
import { fakeFolder } from '../../test/gpu/runtime/support/fake_engines.mjs'
import { SERVED_SIZES } from '../../test/gpu/runtime/support/engines.mjs'
import { texts } from '../../test/gpu/runtime/support/load.mjs'
import { distance, readCases } from '../../test/gpu/runtime/support/references.mjs'
import { check, describeProgram, enginesFolder, finish, lib, modelsFolder, options, round, stopSignal, timingCache } from '../../test/gpu/runtime/support/target.mjs'

const VARIANTS = JSON.parse(readFileSync(join(import.meta.dirname, 'models', 'bert_variants.json'), 'utf8'))
const ROWS = 128
const LENGTH = 128
const HIDDEN = 768
/** Relative to the larger of 1 and the value, as for every float16 engine. */
const TOLERANCE = 2e-2
describeProgram({
  text: 'BERT-base shape, 128 x 128 tokens, float16, in variants of the ONNX file: time of the batch and of its layers.',
  options: [
    '  --serve              builds NAME-serve, too: a profile for each of --sizes, for bert.mjs --engine (30 s more)',
    '  --dynamic            times 128 rows of a profile from 1 to 128 rows, too (15 s more)',
    '  --sizes LIST         default: 1,32,128',
    '  --layers N           default: 12',
    '  --python FILE        with onnx, onnxruntime and numpy. Default: python3',
  ],
  pieces: Object.fromEntries(Object.entries(VARIANTS).map(([name, { about, build }]) => [name, { checks: [`${name}: `], seconds: build.optimizationLevel === 5 ? 180 : 90, about }])),
  joins: true,
})
const { Engine, Runtime } = lib

async function exported(name) {
  const path = join(modelsFolder, `bert-${name}.onnx`)
  if (existsSync(path) && existsSync(join(modelsFolder, `bert-${name}.json`))) return path
  mkdirSync(modelsFolder, { recursive: true })
  const args = [join(import.meta.dirname, 'bert_variants.py'), modelsFolder, '--variants', name, '--layers', options.layers]
  await promisify(execFile)(options.python, args, { signal: stopSignal })
  return path
}

const isMasked = (name) => VARIANTS[name].graph.mask !== 'none'
function profile(name, min, opt, max) {
  const range = { min: [min, LENGTH], opt: [opt, LENGTH], max: [max, LENGTH] }
  return { input_ids: range, ...(isMasked(name) ? { attention_mask: range } : {}) }
}

async function build(name, kind, profiles) {
  const folder = join(enginesFolder, `${name}-${kind}`)
  if (existsSync(join(folder, 'engine.json'))) return { folder, seconds: 0 }
  mkdirSync(enginesFolder, { recursive: true })
  if (options.fake) return { folder: fakeFolder('bert', folder), seconds: 0 }
  const started = performance.now()
  const { manifest } = await lib.buildEngine({
    onnx: await exported(name), out: folder, cache: false, timingCache, profiles, profilingVerbosity: 'detailed', signal: stopSignal, ...VARIANTS[name].build,
  })
  return { folder, seconds: round((performance.now() - started) / 1000), parseSeconds: round(manifest.build.parseSeconds), planBytes: manifest.plan.bytes, layers: manifest.build.layers, log: manifest.build.log }
}

/** A context with its buffers for the batch, and the commands of a run without copies. */
async function prepare(engine) {
  const { runtime } = engine
  const open = []
  const keep = (object) => (open.push(object), object)
  const stream = keep(await runtime.createStream({ spinUs: 2000 }))
  const fits = engine.profiles.findIndex(({ inputs }) => inputs.input_ids.min[0] <= ROWS && ROWS <= inputs.input_ids.max[0])
  assert.ok(fits >= 0, `a profile for ${ROWS} rows`)
  const context = keep(await engine.createContext({ profile: fits }))
  const rows = texts(engine, ROWS, LENGTH)
  for (const { name, dtype } of engine.inputs) {
    const pinned = keep(await runtime.allocatePinned({ dtype, shape: [ROWS, LENGTH] }))
    const device = keep(await runtime.allocateDevice({ dtype, shape: [ROWS, LENGTH] }))
    const view = pinned.view(dtype)
    for (const [row, inputs] of rows.entries()) view.set(inputs[name].data, row * LENGTH)
    stream.copy(device, pinned)
    context.setInputShape(name, [ROWS, LENGTH])
    context.setTensor(name, device)
  }
  const [{ name, dtype }] = engine.outputs
  const shapes = await context.resolveShapes(stream)
  context.setTensor(name, keep(await runtime.allocateDevice({ dtype, shape: shapes[name] })))
  return { stream, context, keep, close: () => Promise.all(open.map((object) => object.close())) }
}

/** Milliseconds of the batch: command by command and as a graph, of which several rounds. */
async function time({ stream, context, keep }, runtime) {
  const [start, end] = [keep(await runtime.createEvent({ timing: true })), keep(await runtime.createEvent({ timing: true }))]
  const runs = options.fake ? 3 : 40
  const measure = async (command) => {
    stream.record(start)
    for (let i = 0; i < runs; i++) command()
    stream.record(end)
    await stream.synchronize()
    return end.elapsedSince(start) / runs
  }
  await measure(() => stream.enqueue(context))
  const enqueueMs = round(await measure(() => stream.enqueue(context)), 5)
  const graph = keep(await stream.capture(() => stream.enqueue(context)))
  await measure(() => stream.launch(graph))
  const rounds = []
  for (let i = 0; i < 5; i++) rounds.push(round(await measure(() => stream.launch(graph)), 5))
  const graphMs = rounds.toSorted((a, b) => a - b)[2]
  return { graphMs, rounds, enqueueMs, perSecond: round((ROWS * 1000) / graphMs, 5) }
}

/** By layer, the longest first. Kernels that TensorRT fused are one. */
async function byLayer({ stream, context }) {
  const runs = options.fake ? 2 : 10
  context.setProfiling(true)
  for (let i = 0; i < runs; i++) {
    stream.enqueue(context)
    await stream.synchronize()
  }
  const layers = context.takeProfile().map(({ name, ms, runs: of }) => ({ name, ms: round(ms / of, 4) }))
  context.setProfiling(false)
  return layers.sort((a, b) => b.ms - a.ms)
}

function kindOf({ name, type, tactic }) {
  const text = `${name} ${type} ${tactic}`.toLowerCase()
  // Kernels of fused attention have "mha" in their names.
  if (/mha|flash/.test(text)) return 'fused attention'
  if (/gemm|matmul|matrix_multiply|cask/.test(text)) return 'products'
  return /norm/.test(text) ? 'norms' : 'other'
}

/** Layers with what the engine tells of them, and summed up: by kind, and those that are alike but for the numbers in their names. */
function explain(layers, information) {
  const told = new Map(information.layers.map((layer) => (typeof layer === 'string' ? [layer, {}] : [layer.Name, layer])))
  const full = layers.map((layer) => {
    const { LayerType: type = '', TacticName: tactic = '', Metadata: metadata = '' } = told.get(layer.name) ?? {}
    return { ...layer, type, tactic, of: metadata.slice(0, 200) }
  })
  const sum = (keyOf) => {
    const sums = {}
    for (const layer of full) {
      const entry = (sums[keyOf(layer)] ??= { ms: 0, layers: 0, example: layer.name })
      entry.ms = round(entry.ms + layer.ms, 4)
      entry.layers++
    }
    return Object.fromEntries(Object.entries(sums).sort(([, a], [, b]) => b.ms - a.ms))
  }
  return { kinds: sum(kindOf), alike: sum(({ name, tactic }) => `${name.replace(/\d+/g, '#').slice(0, 160)} | ${tactic}`), slowest: full.slice(0, 24) }
}

/** The rows of all cases, again and again until the batch is full: how far the outputs are from onnxruntime's. */
async function compare(engine, name) {
  const cases = readCases(`bert-${name}`)
  const rows = cases.flatMap(({ inputs, outputs }) =>
    Array.from({ length: inputs.input_ids.shape[0] }, (_, row) => {
      const cut = ({ data }, width) => data.slice(row * width, (row + 1) * width)
      return { ids: cut(inputs.input_ids, LENGTH), mask: inputs.attention_mask && cut(inputs.attention_mask, LENGTH), expected: cut(outputs.pooler_output, HIDDEN) }
    }),
  )
  const batch = Array.from({ length: ROWS }, (_, i) => rows[i % rows.length])
  const join = (key) => lib.Tensor.int64(BigInt64Array.from(batch.flatMap((row) => [...row[key]])), [ROWS, LENGTH])
  const inputs = { input_ids: join('ids'), ...(isMasked(name) ? { attention_mask: join('mask') } : {}) }
  const expected = lib.Tensor.float32(Float32Array.from(batch.flatMap((row) => [...row.expected])), [ROWS, HIDDEN])
  return distance((await runByHand(engine, inputs)).pooler_output, expected)
}

for (const name of Object.keys(VARIANTS)) {
  await check(`${name}: 128 x 128 tokens`, async (figures) => {
    const started = performance.now()
    if (!options.fake) await exported(name)
    figures.exportSeconds = round((performance.now() - started) / 1000)
    const { folder, ...built } = await build(name, 'static', [profile(name, ROWS, ROWS, ROWS)])
    Object.assign(figures, { variant: VARIANTS[name], build: built })
    const runtime = await Runtime.create()
    try {
      const engine = await Engine.load(folder, { runtime })
      const run = await prepare(engine)
      Object.assign(figures, await time(run, runtime))
      const layers = await byLayer(run)
      Object.assign(figures, explain(layers, await engine.layers(0)))
      figures.layerCount = layers.length
      figures.layersMs = round(layers.reduce((sum, { ms }) => sum + ms, 0), 4)
      await run.close()
      if (!options.fake) {
        const { relative, absolute } = await compare(engine, name)
        figures.difference = { relative: round(relative), absolute: round(absolute) }
      }
      await engine.close()
    } finally {
      await runtime.close()
    }
    assert.ok(options.fake || figures.difference.relative <= TOLERANCE, `${figures.difference?.relative} from onnxruntime`)
  }, { timeoutMs: 300_000 })
  if (options.dynamic) {
    await check(`${name}: 128 rows of a wide profile`, async (figures) => {
      const { folder, ...built } = await build(name, 'dynamic', [profile(name, 1, ROWS, ROWS)])
      figures.build = built
      const engine = await Engine.load(folder)
      try {
        const run = await prepare(engine)
        Object.assign(figures, await time(run, engine.runtime))
        await run.close()
      } finally {
        await engine.close()
      }
    }, { timeoutMs: 300_000 })
  }
  if (options.serve) {
    await check(`${name}: an engine for bert.mjs`, async () => {
      const { folder, ...built } = await build(name, 'serve', SERVED_SIZES.map((size) => profile(name, size, size, size)))
      return { folder, build: built }
    }, { timeoutMs: 300_000 })
  }
}
await finish()
