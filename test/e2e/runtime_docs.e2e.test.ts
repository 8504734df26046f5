/**
 * What the pages about the runtime show works: each program runs as it stands where the fake GPU or onnxruntime will do, and each fragment behind
 * what it takes for granted. Whole builds of engines are not among them: they need TensorRT itself.
 */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { fakeGpu, type FakePlan, type FakeTensor, makePlan, scalePlan } from '../support/fake_gpu'
import { blocksOf, stripTypes } from './doc_blocks'
import { execute, type Outcome, root } from './programs'

/** A project that has the library and onnxruntime installed. */
let project: string
beforeAll(() => {
  project = mkdtempSync(join(tmpdir(), 'node-tensorrt-runtime-docs-'))
  mkdirSync(join(project, 'node_modules'))
  symlinkSync(root, join(project, 'node_modules', 'node-tensorrt'))
  copyFileSync(join(root, 'test', 'fixtures', 'onnx', 'mlp.onnx'), join(project, 'bert.onnx'))
  writeFileSync(join(project, 'model.plan'), makePlan(model))
  writeFileSync(join(project, 'bert-engine'), makePlan(bert))
})
afterAll(() => rmSync(project, { recursive: true, force: true }))

const scale = scalePlan()
/** y = 2x + 1, and a weight to be refitted. */
const model: FakePlan = {
  ...scale,
  tensors: scale.tensors.map((tensor): FakeTensor => ({ ...tensor, name: tensor.mode })),
  profiles: [{ input: scale.profiles![0]!.x! }],
  weights: { ...scale.weights, 'encoder.weight': { dtype: 'float16', values: Array.from({ length: 768 * 768 }, () => 1) } },
  layers: [{ op: 'scale', inputs: ['input'], output: 'output', weight: 'a', b: 1 }],
}
/** logits, and hidden states that show the padding: ids + mask. */
const bert: FakePlan = {
  tensors: [
    { name: 'input_ids', mode: 'input', dtype: 'int64', shape: [-1, -1] },
    { name: 'attention_mask', mode: 'input', dtype: 'int64', shape: [-1, -1] },
    { name: 'logits', mode: 'output', shape: [-1, -1] },
    { name: 'last_hidden_state', mode: 'output', shape: [-1, -1] },
  ],
  profiles: [Object.fromEntries(['input_ids', 'attention_mask'].map((name) => [name, { min: [1, 1], opt: [8, 128], max: [64, 512] }]))],
  layers: ['logits', 'last_hidden_state'].map((output) => ({ op: 'add', inputs: ['input_ids', 'attention_mask'], output })),
}

/** The block of a page that holds `text`. */
function block(page: string, text: string): string {
  const found = blocksOf(`docs/${page}.md`).filter(({ code }) => code.includes(text))
  expect(found, `${page}: ${text}`).toHaveLength(1)
  return found[0]!.code
}

let count = 0
function run(code: string, env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const file = join(project, `program-${count++}.mjs`)
  writeFileSync(file, stripTypes(code))
  return execute([file], { cwd: project, env })
}

const onFakeGpu = { NODE_TENSORRT_MODULE: fakeGpu.native.modulePath, TENSORRT_LIB_DIR: fakeGpu.folder }
const withoutGpu = { NODE_TENSORRT_MODULE: '/nowhere/nt-tensorrt.so' }
const good = (stdout: unknown): unknown => ({ code: 0, signal: null, stdout, stderr: '' })

describe.skipIf(!fakeGpu.available)('docs/runtime.md', () => {
  const whole = block('runtime', "console.log(hostOut.read('float32', shapes.output).data)")
  /** What the fragments of the page take for granted. */
  const setUp = whole.slice(0, whole.indexOf('hostIn.write(input)'))
  const tearDown = "\nconsole.log(hostOut.read('float32', shapes.output).data)\nawait engine.close()\n"
  const outputs = 'Float32Array(4) [ 3, 5, 7, 9 ]\n'

  it('a first run', async () => {
    expect(await run(whole, onFakeGpu)).toEqual(good(outputs))
  })

  it('several GPUs', async () => {
    const code = `${block('runtime', 'await gpus()')}\nconsole.log(engines.map(({ runtime }) => runtime.info.device))\n`
    expect(await run(code, { ...onFakeGpu, FAKE_GPU_DEVICES: '3' })).toEqual(good('[ 0, 1, 2 ]\n'))
  })

  it('an event between streams', async () => {
    const names = 'const [copies, compute, arrived, device, pinned] = [await runtime.createStream(), stream, await runtime.createEvent(), deviceIn, hostIn]\nhostIn.write(input)\n'
    const rest = `stream.copy(hostOut, deviceOut)\nawait stream.synchronize()${tearDown}`
    expect(await run(`${setUp}${names}${block('runtime', 'compute.wait(arrived)')}${rest}`, onFakeGpu)).toEqual(good(outputs))
  })

  it('a graph', async () => {
    // The context runs with these shapes before, as the page asks for.
    const before = 'hostIn.write(input)\nstream.enqueue(context)\n'
    expect(await run(`${setUp}${before}${block('runtime', 'stream.capture(')}${tearDown}`, onFakeGpu)).toEqual(good(outputs))
  })

  it('a refit', async () => {
    const rest = 'console.log(names.sort())\nawait engine.close()\n'
    const code = `${setUp}const values = new Float32Array(768 * 768)\n${block('runtime', 'engine.refit({')}${rest}`
    expect(await run(code, onFakeGpu)).toEqual(good("[ 'a', 'encoder.weight' ]\n"))
  })

  it('a KV cache', async () => {
    const rest = 'console.log(indptr, indices.length, lastPageLen)\ncache.check()\nawait engine.close()\n'
    // Of the page's size it takes 8 GiB.
    const code = `${setUp}${block('runtime', 'KvCache.create').replace('pages: 4096', 'pages: 8')}${rest}`
    expect(await run(code, onFakeGpu)).toEqual(good('Int32Array(2) [ 0, 3 ] 3 Int32Array(1) [ 5 ]\n'))
  })
})

describe('docs/sessions.md', () => {
  it.skipIf(!fakeGpu.available)('a session', async () => {
    expect(await run(block('sessions', 'attention_mask: Tensor.int64(mask'), onFakeGpu)).toEqual(good(expect.stringMatching(/^\[ 1, 128 \] Float32Array\(128\) \[\n\s+102, 102,/)))
  })

  it.skipIf(!fakeGpu.available)('padding', async () => {
    const rest = `
      const { Tensor } = await import('node-tensorrt')
      const ones = Tensor.int64(new Array(100).fill(1), [1, 100])
      const { last_hidden_state } = await session.run({ input_ids: ones, attention_mask: ones })
      console.log(last_hidden_state.shape)
      await engine.close()\n`
    expect(await run(`${block('sessions', 'padding: [')}${rest}`, onFakeGpu)).toEqual(good('[ 1, 100 ]\n'))
  })

  it('the fallback', async () => {
    expect(await run(block('sessions', "'tensorrt' or 'onnxruntime'"), withoutGpu)).toMatchObject({
      code: 0,
      stdout: 'onnxruntime\n',
      stderr: expect.stringMatching(/^ONNXRUNTIME_FALLBACK .*not installed/) as string,
    })
  })

  it('metrics for Prometheus', async () => {
    const scrape = `const { Tensor } = await import('node-tensorrt')
      await session.run({ x: Tensor.zeros('float32', [1, 16]) })
      const text = await (await fetch('http://127.0.0.1:' + this.address().port)).text()
      process.stdout.write(text, () => process.exit())`
    const code = block('sessions', 'function exposition()').replace('.listen(9464)', `.listen(0, '127.0.0.1', async function () { ${scrape} })`)
    const { stdout, ...rest } = await run(code)
    expect(rest).toEqual({ code: 0, signal: null, stderr: '' })
    const lines = stdout.trimEnd().split('\n')
    for (const line of lines) expect(line).toMatch(/^(# TYPE [a-z_]+ (gauge|counter|summary)|[a-z_]+(\{[a-z]+="[\d.]+"\})? \d+(\.\d+)?(e-\d+)?)$/)
    expect(lines).toEqual(expect.arrayContaining(['session_completed_total 1', 'session_queue_seconds_count 1', 'session_queued 0', '# TYPE session_lane_busy_seconds_total counter']))
  })
})
