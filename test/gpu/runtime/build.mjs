/**
 * Engines from ONNX on the real TensorRT: every precision and flag, profiles, the build cache and the timing cache, cancelling, errors by
 * name, trials of damaged plans, and the commands `build` and `doctor`. Models: test/fixtures/onnx.
 */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { check, describeProgram, finish, lib, options, root, round, stopSignal } from './support/target.mjs'

describeProgram({
  text: 'Engines from ONNX on the real TensorRT. A build takes about 5 s even of these small models; pieces may run at the same time, one process each.',
  pieces: {
    precisions: { checks: 'precision', seconds: 42, about: 'seven precisions' },
    typed: { checks: 'precision strongly', seconds: 6, about: 'the last of them: a strongly typed network' },
    layers: { checks: 'layers,a pattern', seconds: 12, about: 'layers held to a type' },
    models: { checks: 'any number,model,a model', seconds: 45, about: 'profiles, shape tensors, branches, external data, a model as bytes' },
    errors: { checks: 'a shape tensor,an operator,shapes,a library,inspect,a trial', seconds: 55, about: 'what the parser refuses is named; damaged plans' },
    differs: { checks: 'an operator,inspectOnnxModel lists,flag: refit identical', seconds: 30, about: 'where TensorRT 10.6 is not what one expects: unknown operators, sizes that depend on data, identical refit' },
    'flags-a': { checks: 'flag: workspace,flag: level,flag: no aux,flag: refit', seconds: 36, about: 'workspace, optimization levels, streams, refit' },
    'flags-b': { checks: 'flag: ampere,flag: direct,flag: fp16,flag: sparse,flag: verbosity,flag: same', seconds: 32, about: 'compatibility, I/O, sparsity, verbosity' },
    'flags-c': { checks: 'flag: strip,flag: version', seconds: 30, about: 'stripped and version-compatible plans' },
    caching: { checks: 'the same,the timing,two', seconds: 40, about: 'build cache, timing cache, several processes' },
    cancel: { checks: 'progress,cancelling,builds at once', seconds: 35, about: 'progress, cancelling, builds that wait for each other' },
    commands: { checks: 'commands', seconds: 14, about: 'the commands build and doctor' },
  },
})
if (options.fake) {
  console.log('build needs the real TensorRT: the fake one builds nothing')
  process.exit(0)
}
const { buildEngine, Engine, inspectOnnxModel, tryEngine } = lib
const folder = mkdtempSync(join(tmpdir(), 'nt-build-'))
const clear = () => rmSync(folder, { recursive: true, force: true })
process.once('exit', clear)
stopSignal.addEventListener('abort', clear)
const fixture = (name) => join(root, 'test', 'fixtures', 'onnx', `${name}.onnx`)
const cacheDir = join(folder, 'cache')
const batch = (width, max = 32) => [{ x: { min: [1, width], opt: [8, width], max: [max, width] } }]
const mlp = { onnx: fixture('mlp'), profiles: batch(16), cacheDir }
let count = 0
const newPath = () => join(folder, `engine-${count++}`)

async function failure(promise) {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new assert.AssertionError({ message: 'it did not fail' })
}

async function fails(promise, code, message) {
  const error = await failure(promise)
  assert.equal(error.code, code, `${error.code}: ${error.message}`)
  assert.match(error.message, message)
  return { said: error.message }
}

/** Loads in a process of its own, and here; ends with what `use` makes of the engine. */
async function loads(path, use = () => ({}), options = {}) {
  const trial = await tryEngine(path, options)
  assert.equal(trial.ok, true, trial.error?.message)
  const engine = await Engine.load(path, options)
  try {
    return { trialMs: round(trial.milliseconds), ...(await use(engine)) }
  } finally {
    await engine.close()
  }
}

function cli(...args) {
  return new Promise((resolve) => {
    execFile(process.execPath, [join(root, 'dist', 'cli', 'main.js'), ...args], { encoding: 'utf8', signal: stopSignal }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : error.code, stdout, stderr }),
    )
  })
}

for (const precision of ['fp32', 'tf32', 'fp16', 'bf16', 'int8', 'fp8', 'strongly-typed']) {
  await check(`precision ${precision}`, async () => {
    const quantized = precision === 'int8' || precision === 'fp8'
    const model = quantized ? { onnx: fixture(`qdq_${precision}`), profiles: batch(32) } : { onnx: fixture('mlp'), profiles: batch(16) }
    const { manifest, path } = await buildEngine({ ...model, precision, cacheDir, profilingVerbosity: 'detailed' })
    assert.equal(manifest.precision, precision)
    const { seconds, layers, log } = manifest.build
    return loads(path, async (engine) => ({ seconds: round(seconds), planBytes: manifest.plan.bytes, layers, log, inspected: JSON.stringify(await engine.layers()).slice(0, 1500) }))
  })
}

await check('layers are held to a type', async () => {
  const options = { ...mlp, profilingVerbosity: 'detailed', precision: 'fp16' }
  const { manifest, path } = await buildEngine({ ...options, layers: { '*': 'fp16', 'head/*': 'fp32' } })
  assert.ok(manifest.build.constrainedLayers >= 2, `${manifest.build.constrainedLayers} layers`)
  const strict = await buildEngine({ ...options, precision: 'fp32', layers: { 'encoder/*': 'fp16' } })
  const inspected = await loads(path, async (engine) => ({ inspected: JSON.stringify(await engine.layers()).slice(0, 1500) }))
  return { constrained: [manifest.build.constrainedLayers, strict.manifest.build.constrainedLayers], ...inspected }
})

await check('a pattern that matches nothing names layers close to it', () =>
  fails(buildEngine({ ...mlp, layers: { 'encoder/fc2': 'fp16' } }), 'ERR_INVALID_ARGUMENT', /'encoder\/fc2' matches none.*'encoder\/fc1'/s))

await check('any number of profiles', async () => {
  const at = (min, opt, max) => ({ x: { min: [min, 16], opt: [opt, 16], max: [max, 16] } })
  const profiles = [at(1, 1, 1), at(1, 8, 8), at(8, 32, 64), at(64, 256, 1024)]
  const { path } = await buildEngine({ ...mlp, profiles })
  return loads(path, (engine) => {
    assert.equal(engine.profiles.length, 4)
    return {}
  })
})

for (const [name, options] of [
  ['mlp_static', {}],
  ['nonzero', { profiles: [{ x: { min: [1, 4], opt: [8, 4], max: [64, 4] } }] }],
  ['reshape', { profiles: [{ x: { min: [4], opt: [8], max: [16] }, shape: { min: [1, 1], opt: [2, 4], max: [16, 16], values: true } }] }],
  ['branches', { profiles: [{ x: { min: [1], opt: [8], max: [64] } }] }],
  ['mlp_external', { profiles: batch(16) }],
]) {
  await check(`model ${name}`, async () => {
    const { path } = await buildEngine({ onnx: fixture(name), cacheDir, ...options })
    return loads(path, ({ inputs, outputs }) => ({ inputs: inputs.map((t) => t.name), outputs: outputs.map((t) => `${t.name} ${t.shape}`) }))
  })
}

await check('a model as bytes', async () => {
  const { manifest, path } = await buildEngine({ ...mlp, onnx: readFileSync(fixture('mlp')), out: newPath(), cache: false, cacheDir: undefined })
  assert.equal(manifest.onnx.absolute, '')
  return loads(path)
})

await check('a shape tensor without values is named', () =>
  fails(
    buildEngine({ onnx: fixture('reshape'), cacheDir, profiles: [{ x: { min: [4], opt: [8], max: [16] } }] }),
    'ERR_INVALID_ARGUMENT',
    /no range for 'shape'/,
  ))

await check('an operator that TensorRT lacks is named', () =>
  fails(
    buildEngine({ onnx: fixture('unsupported'), cacheDir, profiles: [{ x: { min: [1, 4], opt: [1, 4], max: [1, 4] } }] }),
    'ERR_ONNX_UNSUPPORTED',
    /middle\/frobnicate.*Frobnicate.*line \d+/s,
  ))

await check('shapes that do not fit are told by node', async () => {
  // Which of the two it is, is up to the check of TensorRT's parser that fails first.
  const { code, message } = await failure(buildEngine({ ...mlp, onnx: fixture('wrong_shapes') }))
  assert.match(code, /^ERR_ONNX_(INVALID|UNSUPPORTED)$/, message)
  assert.match(message, /head\/fc2/)
  return { code, said: message }
})

await check('a library that is not there', () =>
  fails(buildEngine({ ...mlp, out: newPath(), cache: false, cacheDir: undefined, libraryPath: join(folder, 'nowhere') }), 'ERR_TENSORRT_NOT_FOUND', /nowhere/))

const flags = {
  workspace: { workspaceBytes: 64 << 20 },
  'level 0': { optimizationLevel: 0 },
  'level 5': { optimizationLevel: 5 },
  'no aux streams': { maxAuxStreams: 0 },
  'refit any': { refit: 'any' },
  'refit identical': { refit: 'identical' },
  'ampere+': { hardwareCompatibility: 'ampere+' },
  'direct I/O': { directIo: true },
  'fp16 I/O': { precision: 'fp16', ioType: 'fp16' },
  'sparse weights': { sparseWeights: true },
  'verbosity none': { profilingVerbosity: 'none' },
}
for (const [name, options] of Object.entries(flags)) {
  await check(`flag: ${name}`, async () => {
    const { path, manifest } = await buildEngine({ ...mlp, ...options })
    return loads(path, ({ info, inputs, outputs }) => {
      // TensorRT 10.6 calls an engine that takes no other weights than its own not refittable, unless it was stripped of them.
      if (options.refit !== 'identical') assert.equal(info.refittable, options.refit === 'any')
      assert.equal(info.hardwareCompatibility, options.hardwareCompatibility ?? 'none')
      assert.equal(info.profilingVerbosity, options.profilingVerbosity ?? 'layer-names')
      assert.deepEqual([...inputs, ...outputs].map(({ dtype }) => dtype), Array(2).fill(options.ioType === 'fp16' ? 'float16' : 'float32'))
      return { seconds: round(manifest.build.seconds), planBytes: manifest.plan.bytes, refittable: info.refittable }
    })
  })
}

await check('flag: same-compute-capability, or the version that lacks it', async () => {
  const build = buildEngine({ ...mlp, hardwareCompatibility: 'same-compute-capability' })
  const result = await build.catch((error) => error)
  if (result instanceof Error) assert.equal(result.code, 'ERR_VERSION_MISMATCH', result.message)
  return { outcome: result.message ?? 'built' }
})

await check('flag: strip leaves weights out', async () => {
  const onnx = fixture('mlp')
  const whole = await buildEngine({ ...mlp, onnx, refit: 'any' })
  const stripped = await buildEngine({ ...mlp, onnx, refit: 'any', strip: true })
  const identical = await buildEngine({ ...mlp, onnx, strip: true })
  const bytes = [whole, stripped, identical].map(({ manifest }) => manifest.plan.bytes)
  assert.ok(bytes[1] < bytes[0], `${bytes}`)
  const engine = await Engine.load(stripped.path)
  try {
    return { bytes, weights: await engine.refittableWeights() }
  } finally {
    await engine.close()
  }
})

await check('flag: version-compatible, with and without the lean runtime', async () => {
  const lean = await buildEngine({ ...mlp, versionCompatible: true, excludeLeanRuntime: true })
  const figures = { without: lean.manifest.plan.bytes, ...(await loads(lean.path)) }
  // The lean runtime that goes into the plan is a file of its own that a machine may lack.
  const whole = await buildEngine({ ...mlp, versionCompatible: true }).catch((error) => error)
  if (whole instanceof Error) return { ...figures, with: whole.message }
  assert.ok(whole.manifest.plan.bytes > lean.manifest.plan.bytes)
  await loads(whole.path, undefined, { allowHostCode: true })
  return { ...figures, with: whole.manifest.plan.bytes }
})

await check('the same inputs are not built again', async () => {
  const first = await buildEngine({ ...mlp, workspaceBytes: 32 << 20 })
  const started = performance.now()
  const again = await buildEngine({ ...mlp, workspaceBytes: 32 << 20 })
  const ms = performance.now() - started
  assert.deepEqual([first.cached, again.cached, again.path], [false, true, first.path])
  assert.ok(ms < 2000, `${ms} ms`)
  writeFileSync(join(first.path, 'plan'), readFileSync(join(first.path, 'plan')).reverse())
  const rebuilt = await buildEngine({ ...mlp, workspaceBytes: 32 << 20 })
  assert.equal(rebuilt.cached, false)
  return { ms: round(ms), ...(await loads(rebuilt.path)) }
})

await check('the timing cache makes the next build faster', async () => {
  const timingCache = join(folder, 'timings.bin')
  const options = { ...mlp, optimizationLevel: 4, timingCache }
  const cold = await buildEngine({ ...options, cache: false, cacheDir: undefined, out: newPath() })
  const bytes = statSync(timingCache).size
  const warm = await buildEngine({ ...options, cache: false, cacheDir: undefined, out: newPath() })
  const seconds = [cold, warm].map(({ manifest }) => round(manifest.build.seconds))
  assert.ok(bytes > 0)
  assert.ok(seconds[1] < seconds[0], `${seconds}`)
  writeFileSync(timingCache, 'no timings')
  await buildEngine({ ...options, cache: false, cacheDir: undefined, out: newPath() })
  assert.ok(statSync(timingCache).size > 100, 'a damaged file is replaced')
  return { seconds, bytes }
})

await check('two processes build the same at once', async () => {
  const shared = join(folder, 'shared')
  const program = `require(${JSON.stringify(join(root, 'dist', 'index.js'))}).buildEngine(JSON.parse(process.argv[1])).then(({ path, cached }) => console.log(JSON.stringify({ path, cached })))`
  const options = JSON.stringify({ ...mlp, cacheDir: shared, optimizationLevel: 3 })
  const build = () =>
    new Promise((resolve, reject) => {
      const child = spawn(process.execPath, ['-e', program, options], { stdio: ['ignore', 'pipe', 'inherit'] })
      let text = ''
      child.stdout.on('data', (chunk) => (text += chunk))
      child.once('close', (code) => (code === 0 ? resolve(JSON.parse(text)) : reject(new Error(`exit code ${code}`))))
    })
  const built = await Promise.all([build(), build(), build()])
  assert.equal(new Set(built.map(({ path }) => path)).size, 1)
  assert.deepEqual(readdirSync(join(shared, 'engines')).filter((name) => name.startsWith('.')), [])
  assert.deepEqual(readdirSync(join(shared, 'timings')).filter((name) => !name.endsWith('.bin') && !name.endsWith('.lock')), [])
  return { cached: built.map(({ cached }) => cached), ...(await loads(built[0].path)) }
})

await check('progress rises to the end, and the event loop stays free', async () => {
  const seen = []
  let lag = 0
  let last = performance.now()
  const timer = setInterval(() => {
    lag = Math.max(lag, performance.now() - last - 5)
    last = performance.now()
  }, 5)
  await buildEngine({ ...mlp, cache: false, cacheDir: undefined, out: newPath(), optimizationLevel: 5, onProgress: ({ fraction, phase }) => seen.push([fraction, phase]) })
  clearInterval(timer)
  const fractions = seen.map(([fraction]) => fraction)
  assert.ok(fractions.every((fraction, i) => i === 0 || fraction >= fractions[i - 1]), 'never falls')
  assert.ok(fractions.at(-1) > 0.9, `${fractions.at(-1)}`)
  assert.ok(lag < 100, `${lag} ms`)
  return { events: seen.length, phases: [...new Set(seen.map(([, phase]) => phase))].slice(0, 12), lagMs: round(lag) }
})

await check('cancelling ends the build and leaves nothing', async () => {
  const out = newPath()
  const controller = new AbortController()
  let aborted = 0
  const onProgress = ({ fraction }) => {
    if (aborted !== 0 || fraction <= 0.02) return
    aborted = performance.now()
    controller.abort('enough')
  }
  const error = await failure(buildEngine({ ...mlp, cache: false, cacheDir: undefined, out, optimizationLevel: 5, signal: controller.signal, onProgress }))
  const ms = performance.now() - aborted
  assert.equal(error.code, 'ABORT_ERR', error.message)
  assert.equal(error.cause, 'enough')
  assert.equal(existsSync(out), false)
  assert.ok(ms < 5000, `${ms} ms`)
  await buildEngine({ ...mlp, cache: false, cacheDir: undefined, out })
  return { ms: round(ms) }
})

await check('builds at once wait for each other', async () => {
  const built = await Promise.all(['fp32', 'fp16', 'bf16'].map((precision) => buildEngine({ ...mlp, precision, cache: false, cacheDir: undefined, out: newPath() })))
  for (const { path } of built) await loads(path)
})

await check('inspectOnnxModel lists what TensorRT lacks', async () => {
  const good = await inspectOnnxModel(fixture('mlp'))
  assert.deepEqual([good.supported, good.unsupported, good.problems], [true, [], []])
  // TensorRT 10.6 says of a size that depends on data that it does not support it, and builds it.
  const dependent = await inspectOnnxModel(fixture('nonzero'))
  assert.deepEqual([dependent.supported, dependent.unsupported, dependent.problems], [true, [], []])
  const bad = await inspectOnnxModel(fixture('unsupported'))
  assert.equal(bad.supported, false)
  assert.deepEqual(bad.unsupported.map(({ name, op }) => [name, op]), [['middle/frobnicate', 'Frobnicate']])
  assert.deepEqual(bad.problems.map(({ code, node }) => [code, node]), [['ERR_ONNX_UNSUPPORTED', 'middle/frobnicate']])
  return { problems: bad.problems }
})

await check('inspectOnnxModel takes quantized models and external data', async () => {
  for (const name of ['qdq_int8', 'qdq_fp8', 'mlp_external']) assert.equal((await inspectOnnxModel(fixture(name))).supported, true, name)
})

await check('a trial survives damaged plans', async () => {
  const { path } = await buildEngine(mlp)
  const plan = readFileSync(join(path, 'plan'))
  const outcomes = {}
  const trial = async (name, bytes) => {
    const file = join(folder, `${name}.plan`)
    writeFileSync(file, bytes)
    const { ok, outcome, signal, error } = await tryEngine(file)
    outcomes[name] = signal ?? error?.code ?? outcome
    return ok
  }
  assert.equal(await trial('whole', plan), true)
  assert.equal(await trial('empty', Buffer.alloc(0)), false)
  assert.equal(await trial('truncated', plan.subarray(0, plan.length / 2)), false)
  assert.equal(await trial('text', Buffer.from('no plan at all')), false)
  const flipped = Buffer.from(plan)
  for (let i = 0; i < flipped.length; i += 97) flipped[i] ^= 0xff
  assert.equal(await trial('flipped', flipped), false)
  return outcomes
})

await check('commands build and doctor', async () => {
  const out = newPath()
  const built = await cli('build', fixture('mlp'), '-o', out, '--precision', 'fp16', '--layer', 'head/*=fp32', '--profile', 'x:1x16..8x16..32x16', '--cache-dir', cacheDir, '--json')
  assert.equal(built.code, 0, built.stdout + built.stderr)
  assert.equal(JSON.parse(built.stdout).manifest.layers[0].pattern, 'head/*')
  const codes = {
    whole: (await cli('doctor', out, '--try')).code,
    model: (await cli('doctor', fixture('mlp'))).code,
    unsupported: (await cli('doctor', fixture('unsupported'))).code,
    plan: (await cli('doctor', join(out, 'plan'), '--try')).code,
  }
  const damaged = newPath()
  mkdirSync(damaged)
  copyFileSync(join(out, 'engine.json'), join(damaged, 'engine.json'))
  writeFileSync(join(damaged, 'plan'), readFileSync(join(out, 'plan')).reverse())
  codes.damaged = (await cli('doctor', damaged)).code
  codes.damagedPlan = (await cli('doctor', join(damaged, 'plan'), '--try')).code
  const manifest = JSON.parse(readFileSync(join(out, 'engine.json'), 'utf8'))
  writeFileSync(join(out, 'engine.json'), JSON.stringify({ ...manifest, tensorrtVersion: '10.3.0' }))
  codes.otherVersion = (await cli('doctor', out)).code
  const report = await cli('doctor', fixture('unsupported'), '--json')
  assert.match(report.stdout, /middle\/frobnicate/)
  assert.deepEqual(codes, { whole: 0, model: 0, unsupported: 1, plan: 0, damaged: 1, damagedPlan: 1, otherVersion: 1 })
  return codes
})

await finish()
