/** Every program in examples/ runs, and says what it is there to show. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { fakeGpu, makePlan, scalePlan } from '../support/fake_gpu'
import { execute, root, tool } from './programs'

const folder = join(root, 'examples')

const tsx = tool('tsx')
const programs: Record<string, { args: string[]; shows: (RegExp | string)[] }> = {
  'stream.mjs': { args: [], shows: ['shy robot named', /\d+ tokens, the first after \d+ ms, all after \d+ ms \(stop\)/] },
  'chat.mjs': {
    args: [],
    shows: ['> What is 7 plus 5?\n7 plus 5 is 12.', '(0 of 20 prompt tokens from the cache)', /\([1-9]\d* of \d+ prompt tokens from the cache\)/],
  },
  'batch.mjs': { args: ['30', '8'], shows: [/^10: Write a very short story/m, /30 answers, \d+ tokens in .* steps, [1-9]\d*% of the prompts' full pages/] },
  'abort-and-deadline.mjs': {
    args: [],
    shows: [
      'signal: ABORT_ERR, because: changed my mind',
      'break: ABORT_ERR, because: the stream was left',
      'timeout: ERR_TIMEOUT',
      'deadline: ERR_DEADLINE_EXCEEDED',
      'close: ERR_DISPOSED',
    ],
  },
  'stop-and-logprobs.mjs': {
    args: [],
    shows: [/stop string: " \w+", ended by "\." \(stop\)/, /^"\."\s+1\.000 {2}of "\." 1\.000/m, /perplexity \d+\.\d: The sun/],
  },
  'workers.mjs': { args: [], shows: ['kind snail named', 'the main thread kept ticking', 'worker ended with code 0'] },
  'http-stream.mjs': {
    args: ['--self-test'],
    shows: [
      '200 text/event-stream: 7 plus 5 is 12.',
      '400 ERR_INVALID_ARGUMENT: "temperature"',
      '400 ERR_INVALID_ARGUMENT: The body',
      '1 aborted as its client went away',
      'closed',
    ],
  },
  'session.mjs': {
    args: [join(root, 'test', 'fixtures', 'onnx', 'mlp.onnx')],
    shows: ['onnxruntime on CPU', 'y: float32 [1, 8]', /100 requests in \d+ batches; queued \d/],
  },
  'commonjs.cjs': { args: [], shows: [/node-tensorrt \d+\.\d+\.\d+ on .*: 7 plus 5 is 12\./] },
  'typescript/story_writer.mts': { args: [], shows: ['brave fox named', /\(\d+ tokens, stop\)/, 'ERR_INVALID_ARGUMENT, not worth a retry'] },
  'custom-executor/main.ts': { args: [], shows: [/^one: (\d+ ){10}\(length\)$/m, /^three: /m] },
}

describe('examples', () => {
  it.each(Object.entries(programs))('%s', async (name, { args, shows }) => {
    const loader = /\.m?ts$/.test(name) ? [tsx] : []
    const { code, signal, stdout, stderr } = await execute([...loader, join(folder, name), ...args], { limitMs: 200_000 })
    expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' })
    for (const text of shows) expect(stdout).toEqual(typeof text === 'string' ? expect.stringContaining(text) : expect.stringMatching(text))
  })

  it.skipIf(!fakeGpu.available)('run-engine.mjs, on a GPU of host memory', async () => {
    const temporary = mkdtempSync(join(tmpdir(), 'node-tensorrt-example-'))
    const plan = join(temporary, 'model.plan')
    writeFileSync(plan, makePlan(scalePlan()))
    const env = { NODE_TENSORRT_MODULE: fakeGpu.native.modulePath, TENSORRT_LIB_DIR: fakeGpu.folder }
    const { code, stdout, stderr } = await execute([join(folder, 'run-engine.mjs'), plan, '3'], { env })
    const missing = await execute([join(folder, 'run-engine.mjs'), join(temporary, 'no.plan')], { env })
    rmSync(temporary, { recursive: true })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toContain('input x: float32 [-1,4]')
    // 2 * 0 + 1
    expect(stdout).toContain('y [4,4]: 1, 1, 1, 1, 1, 1, 1, 1 ...')
    expect(stdout).toMatch(/3 launches of the graph: \d+\.\d{3} ms each/)
    expect(missing).toMatchObject({ code: 1, stdout: '' })
    expect(missing.stderr).toMatch(/^ERR_ENGINE_INVALID: There is no engine at/)
  })

  it('are all tested, and all in the README', () => {
    const found = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((name) => {
      if (name.startsWith('custom-executor')) return name.endsWith('main.ts')
      return /\.(mjs|cjs|ts|mts)$/.test(name)
    })
    expect([...Object.keys(programs), 'run-engine.mjs'].sort()).toEqual(found.sort())
    const readme = readFileSync(join(folder, 'README.md'), 'utf8')
    for (const name of found) expect(readme).toContain(`examples/${name}\``)
  })

  it('the typed one is right in its types', async () => {
    const { code, stdout } = await execute([tool('typescript', 'tsc'), '-p', join(folder, 'typescript')], { limitMs: 200_000 })
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' })
  })
})
