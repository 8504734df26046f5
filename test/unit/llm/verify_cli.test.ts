/** `node-tensorrt verify` as a process, and what `doctor` says of its result. */
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { createCpu } from '../../../lib/llm/backend'
import { verifyTarget } from '../../../lib/llm/verify_engine'
import { MODULE_PATH_VARIABLE } from '../../../lib/native'
import { compileStandIn, demoModel, root, temporaryFolder, writeDemoEngine } from '../tensorrt/fixtures'

const folder = temporaryFolder()
const absent = { [MODULE_PATH_VARIABLE]: join(folder, 'absent.so') }
let standIn: NodeJS.ProcessEnv
let path: string
beforeAll(async () => {
  standIn = { [MODULE_PATH_VARIABLE]: compileStandIn(folder) }
  mkdirSync(join(folder, 'parent'))
  ;({ path } = await writeDemoEngine(join(folder, 'parent')))
})

interface Outcome {
  code: number | null
  stdout: string
  stderr: string
}

function run(args: string[], env: NodeJS.ProcessEnv = absent): Promise<Outcome> {
  const program = [join(root, 'node_modules', 'tsx', 'dist', 'cli.mjs'), join(root, 'lib', 'cli', 'main.ts'), ...args]
  const child = spawn(process.execPath, program, { env: { ...process.env, ...env } })
  const outcome: Outcome = { code: null, stdout: '', stderr: '' }
  child.stdout.on('data', (data) => (outcome.stdout += String(data)))
  child.stderr.on('data', (data) => (outcome.stderr += String(data)))
  return new Promise((resolve) => child.on('close', (code) => resolve({ ...outcome, code })))
}

const errorOf = ({ stdout }: Outcome): { code: string; message: string } => (JSON.parse(stdout) as { error: { code: string; message: string } }).error

interface Check {
  name: string
  ok: boolean
  optional?: boolean
  detail: string
}

async function doctor(): Promise<{ code: number | null; check: Check }> {
  const { code, stdout } = await run(['doctor', path, '--json'])
  const { checks } = JSON.parse(stdout) as { checks: Check[] }
  return { code, check: checks.find(({ name }) => name === 'Engine verified')! }
}

describe('verify', () => {
  it('has help, and usage errors', async () => {
    const help = await run(['verify', '--help'])
    expect(help).toMatchObject({ code: 0, stderr: '' })
    expect(help.stdout).toContain('Usage: node-tensorrt verify')
    expect((await run(['verify'])).code).toBe(2)
    expect((await run(['verify', path, '--limit-mean', 'low'])).code).toBe(2)
    expect(await run(['verify', path, '--references', 'a', '--save-references', 'b'])).toMatchObject({ code: 2, stdout: '' })
  })

  it('fails where there is no GPU, and changes nothing', async () => {
    const before = readFileSync(join(path, 'engine.json'), 'utf8')
    const outcome = await run(['verify', path, '--json'])
    expect(outcome.code).toBe(1)
    expect(errorOf(outcome).code).toBe('ERR_TENSORRT_MODULE_NOT_FOUND')
    const plain = await run(['verify', path])
    expect(plain).toMatchObject({ code: 1, stdout: '' })
    expect(plain.stderr).toContain('[ERR_TENSORRT_MODULE_NOT_FOUND]')
    expect(readFileSync(join(path, 'engine.json'), 'utf8')).toBe(before)
    expect(errorOf(await run(['verify', demoModel, '--json'])).code).toBe('ERR_ENGINE_REQUIRED')
  })

  it('saves references of prompts without a GPU, which the engine is then asked for', async () => {
    const prompts = join(folder, 'prompts.jsonl')
    const file = join(folder, 'references.json')
    writeFileSync(prompts, '"Once upon a time"\n\n{"prompt": "What is 7 plus 5?"}\n{"tokens": [5, 6, 7]}\n')
    expect(await run(['verify', path, '--prompts', prompts, '--save-references', file, '-n', '2'])).toEqual({
      code: 0,
      stdout: `${file}: references of 3 prompts\n`,
      stderr: '',
    })
    expect(JSON.parse(readFileSync(file, 'utf8'))).toMatchObject({ vocabSize: 4096, prompts: [{}, {}, { tokens: [5, 6, 7] }] })
    // The stand-in says what it was asked to run: three sequences, each with a page.
    const { code, message } = errorOf(await run(['verify', path, '--references', file, '--json'], standIn))
    expect(code).toBe('ERR_CUDA')
    expect(message).toMatch(/pages=3x16; .*slots=3/)
    writeFileSync(prompts, '"fine"\n{"text": "x"}\n')
    expect(errorOf(await run(['verify', path, '--prompts', prompts, '--json']))).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('prompts.jsonl, line 2 must be') as string,
    })
  })
})

describe('doctor', () => {
  it('says whether the engine was verified, and fails for one that is unfit', async () => {
    expect(await doctor()).toMatchObject({ code: 0, check: { ok: false, optional: true, detail: 'never' } })
    await verifyTarget(path, { maxTokens: 2 }, createCpu)
    expect(await doctor()).toMatchObject({
      code: 0,
      check: { ok: true, detail: expect.stringMatching(/^fit on .*, against the CPU backend: mean 0\.00, largest 0\.00 of \d+ log-probabilities$/) as string },
    })
    await verifyTarget(path, { maxTokens: 2, limits: { top1Agreement: 1, maxDifference: 0 } }, async (model, options) => {
      const executor = await createCpu(model, options)
      const { start } = executor
      executor.start = (listener) => start.call(executor, (result) => listener({ ...result, logits: result.logits.map((logit, i) => logit * (1 + (i % 7) / 9)) }))
      return executor
    })
    expect(await doctor()).toMatchObject({
      code: 1,
      check: { ok: false, detail: expect.stringMatching(/^unfit on .*: mean difference of log-probabilities [\d.]+, the limit is 0\.02; largest/) as string },
    })
  })
})
