/** The command line as its users meet it: real processes, real pipes, real signals. */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, cpSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { LLMProfile } from '../../lib'
import type { LoadReport } from '../../lib/cli/load_generator'
import { execute, type ExecuteOptions, type Outcome, root, start } from './programs'

const main = join(root, 'dist', 'cli', 'main.js')
const model = join(root, 'models', 'tiny-storyteller')
const { version } = require(join(root, 'package.json')) as { version: string }
/** Greedy, and the CPU whatever the machine has: no warning on stderr. */
const PLAIN = ['-b', 'cpu', '-t', '0']
const FOX = 'Write a short story about a brave fox.'
/** A second's work and more: the prompt and all the room there is, past the end of the story. */
const LONG = ['run', '-b', 'cpu', '-t', '2', '-s', '1', '-n', '1000', '--raw', '-q', 'Once upon a time']

const cli = (args: string[], options?: ExecuteOptions): Promise<Outcome> => execute([main, ...args], options)

async function json<T>(args: string[], options?: ExecuteOptions): Promise<T> {
  const { code, stdout, stderr } = await cli(args, options)
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return JSON.parse(stdout) as T
}

interface RunReport {
  text: string
  finishReason: string
  usage: { promptTokens: number; completionTokens: number; cachedTokens: number }
  timings: { queueMs: number; ttftMs: number; totalMs: number }
  backend: string
  device: string
}

interface Failure {
  error: { code: string; message: string; hint?: string }
}

function changeConfig(folder: string, changes: object): void {
  const path = join(folder, 'config.json')
  const config = JSON.parse(readFileSync(path, 'utf8')) as object
  writeFileSync(path, JSON.stringify({ ...config, ...changes }))
}

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-cli-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('help and usage', () => {
  it.each([[[]], [['run']], [['chat']], [['build']], [['verify']], [['bench']], [['doctor']], [['serve']], [['key']]])('%j --help', async (command) => {
    const { code, stdout, stderr } = await cli([...command, '--help'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toContain(`Usage: node-tensorrt ${command[0] ?? '[options]'}`)
    expect(stdout).not.toContain(root)
  })

  it('knows its version', async () => {
    expect(await cli(['--version'])).toMatchObject({ code: 0, stdout: `${version}\n` })
  })

  it.each([
    ['no command', [], 'Usage: node-tensorrt'],
    ['an unknown command', ['sing'], "unknown command 'sing'"],
    ['an unknown option', ['run', '--hot'], "unknown option '--hot'"],
    ['a number that is none', ['run', '--temperature', 'warm'], "'warm' is invalid. expected a number from 0 to 100"],
    ['a number out of range', ['run', '--top-p', '0'], 'expected a number above 0 and up to 1'],
    ['an empty stop string', ['run', '--stop', ''], 'expected a text that is not empty'],
    ['a fraction of a token', ['run', '--max-tokens', '1.5'], 'expected an integer from 1'],
    ['a negative count', ['bench', '--requests', '-3'], 'expected an integer from 1'],
    ['a range upside down', ['bench', '--input', '20-10'], 'expected a count such as 128, or a range'],
    ['bytes of no size', ['run', '--kv-cache-memory', '5 apples'], 'expected bytes, such as 512M'],
    ['an unknown backend', ['run', '--backend', 'abacus'], 'Allowed choices are auto, cpu, tensorrt'],
    ['a missing value', ['run', '--seed'], 'argument missing'],
    ['an engine of nothing', ['build', '-o', 'engine'], "missing required argument 'model'"],
    ['an engine to nowhere', ['build', 'model'], "required option '-o, --output <folder>' not specified"],
    ['a second folder', ['doctor', 'a', 'b'], 'too many arguments'],
  ])('%s is a usage error', async (_, args, message) => {
    const { code, stdout, stderr } = await cli(args)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain(message)
  })
})

describe('run', () => {
  it('streams text to stdout, and figures to stderr', async () => {
    const { code, stdout, stderr } = await cli(['run', ...PLAIN, FOX])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^Once upon a time, .*fox.*\n$/)
    expect(stderr).toMatch(/^\n\[cpu: .+\] \d+ prompt \+ \d+ generated tokens, first after [\d.]+ ms, then \d+ tokens\/s \(stop\)\n$/)
  })

  it('gives the same as JSON, with usage and timings', async () => {
    const quiet = await cli(['run', ...PLAIN, '-q', FOX])
    expect(quiet).toMatchObject({ code: 0, stderr: '' })
    const report = await json<RunReport>(['run', ...PLAIN, '--json', FOX])
    expect(`${report.text}\n`).toBe(quiet.stdout)
    expect(report).toMatchObject({ finishReason: 'stop', backend: 'cpu' })
    expect(report.usage.completionTokens).toBeGreaterThan(20)
    expect(report.timings.totalMs).toBeGreaterThanOrEqual(report.timings.ttftMs)
  })

  it('needs no quotes, and no prompt', async () => {
    const quoted = await json<RunReport>(['run', ...PLAIN, '--json', 'What is 7 plus 5?'])
    expect(quoted.text).toBe('7 plus 5 is 12.')
    expect((await json<RunReport>(['run', ...PLAIN, '--json', 'What', 'is', '7', 'plus', '5?'])).text).toBe(quoted.text)
    expect((await json<RunReport>(['run', ...PLAIN, '--json', '-n', '30'])).text).toContain('fox')
  })

  it('--raw continues the prompt instead of answering it', async () => {
    const raw = await json<RunReport>(['run', ...PLAIN, '--raw', '-n', '8', '--json', 'Once upon a'])
    expect(raw.text).toMatch(/^ time, there was a/)
    // Beginning of text, and three words; no turns of a chat.
    expect(raw).toMatchObject({ finishReason: 'length', usage: { promptTokens: 4, completionTokens: 8 } })
    // An empty text is no missing one: the model begins by itself.
    expect((await json<RunReport>(['run', ...PLAIN, '--raw', '-n', '2', '--json', ''])).usage.promptTokens).toBe(1)
    const refused = await cli(['run', ...PLAIN, '--raw', '--system', 'Be brief.', '--json', 'Once'])
    expect(refused.code).toBe(1)
    expect((JSON.parse(refused.stdout) as Failure).error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', hint: 'leave out --raw' })
  })

  it('reads the prompt from stdin', async () => {
    const question = await json<RunReport>(['run', ...PLAIN, '--json', '-'], { input: 'What is 7 plus 5?' })
    expect(question.text).toBe('7 plus 5 is 12.')
    // `echo` ends its output with a line break that nobody typed; text to continue is taken as it is.
    const echoed = await json<RunReport>(['run', ...PLAIN, '--json', '-'], { input: 'What is 7 plus 5?\n' })
    expect(echoed.usage.promptTokens).toBe(question.usage.promptTokens)
    const raw = async (input: string): Promise<number> =>
      (await json<RunReport>(['run', ...PLAIN, '--raw', '-n', '1', '--json', '-'], { input })).usage.promptTokens
    expect(await raw('Once\n')).toBe((await raw('Once')) + 1)
  })

  it('takes a system message, several stop texts, and the name of a bundled model', async () => {
    const args = ['run', ...PLAIN, '-m', 'tiny-storyteller', '--system', 'Begin every answer with: Ahoy!', '--json']
    const whole = await json<RunReport>([...args, 'Hello!'])
    expect(whole.text).toMatch(/^Ahoy! Would you/)
    const stopped = await json<RunReport>([...args, '--stop', 'zebra', '--stop', 'Would', 'Hello!'], { cwd: folder })
    expect(stopped).toMatchObject({ text: 'Ahoy! ', finishReason: 'stop' })
    // As the documentation has it, and where no checkout is.
    await expect(json(['run', ...PLAIN, '-m', 'models/tiny-storyteller', '-n', '1', '--json', 'Hello!'], { cwd: folder })).resolves.toMatchObject({ finishReason: 'length' })
  })

  it('is reproducible by its seed', async () => {
    const sample = async (seed: string): Promise<string> =>
      (await json<RunReport>(['run', '-b', 'cpu', '-t', '1', '-s', seed, '-n', '40', '--json', FOX])).text
    const [first, again, other] = await Promise.all([sample('11'), sample('11'), sample('12')])
    expect(again).toBe(first)
    expect(other).not.toBe(first)
  })

  it('warns once when no GPU can run the model', async () => {
    const { code, stderr } = await cli(['run', '-t', '0', '-q', '-n', '4', FOX], { env: { NODE_TENSORRT_MODULE: join(folder, 'absent.so') } })
    expect(code).toBe(0)
    expect(stderr).toMatch(/^node-tensorrt: The CPU runs the model, as no GPU can\. [^\n]+\n$/)
  })
})

describe('failures', () => {
  it('exit with 1, a message and a code', async () => {
    const { code, stdout, stderr } = await cli(['run', '-b', 'cpu', '-m', join(folder, 'nowhere'), FOX])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(/^node-tensorrt: .*nowhere.* \[ERR_MODEL_NOT_FOUND\]\n$/)
  })

  it.each([['run'], ['chat'], ['bench']])('%s --json tells them as JSON', async (command) => {
    const { code, stdout, stderr } = await cli([command, '--json', '-b', 'cpu', '-m', join(folder, 'nowhere')])
    expect({ code, stderr }).toEqual({ code: 1, stderr: '' })
    expect((JSON.parse(stdout) as Failure).error.code).toBe('ERR_MODEL_NOT_FOUND')
  })

  it('a GPU that was asked for and is not there', async () => {
    const { code, stdout } = await cli(['run', '--json', '-b', 'tensorrt', FOX], { env: { NODE_TENSORRT_MODULE: join(folder, 'absent.so') } })
    expect(code).toBe(1)
    expect((JSON.parse(stdout) as Failure).error).toMatchObject({ code: 'ERR_TENSORRT_MODULE_NOT_FOUND', hint: expect.any(String) as string })
  })

  it.each([
    ['weights that are cut short', 'ERR_WEIGHTS_INVALID', (copy: string) => truncateSync(join(copy, 'model.safetensors'), 100_000)],
    ['a config that is no JSON', 'ERR_MODEL_INVALID', (copy: string) => writeFileSync(join(copy, 'config.json'), '{')],
    ['a weight too few', 'ERR_WEIGHTS_MISSING', (copy: string) => changeConfig(copy, { num_hidden_layers: 7 })],
    ['weights of other shapes', 'ERR_MODEL_INVALID', (copy: string) => changeConfig(copy, { intermediate_size: 640 })],
    ['no tokenizer', 'ERR_TOKENIZER_INVALID', (copy: string) => rmSync(join(copy, 'tokenizer.json'))],
    ['an unknown architecture', 'ERR_MODEL_UNSUPPORTED', (copy: string) => writeFileSync(join(copy, 'config.json'), '{"model_type": "abacus"}')],
  ])('a model folder with %s: run and doctor agree', async (_, expected, damage) => {
    const copy = mkdtempSync(join(folder, 'damaged-'))
    cpSync(model, copy, { recursive: true })
    damage(copy)
    const ran = await cli(['run', '--json', '-b', 'cpu', '-m', copy, FOX])
    expect(ran.code).toBe(1)
    expect((JSON.parse(ran.stdout) as Failure).error.code).toBe(expected)
    const examined = await cli(['doctor', copy, '--json'])
    expect(examined.code).toBe(1)
    expect((JSON.parse(examined.stdout) as DoctorReport).checks.find(({ name }) => name === `Model ${copy}`)).toMatchObject({ ok: false, code: expected })
  })

  it('a prompt that does not fit', async () => {
    const { code, stdout } = await cli(['run', ...PLAIN, '--json', '-'], { input: 'many words '.repeat(2000) })
    expect(code).toBe(1)
    expect((JSON.parse(stdout) as Failure).error.code).toBe('ERR_PROMPT_TOO_LONG')
  })
})

describe('an early end', () => {
  /** Ctrl-C as soon as there is output, or as input is waited for: sent from here it may come too late. */
  const interrupted = (at: 'output' | 'input', args: string[], input?: string, by = 'SIGINT'): Promise<Outcome> => {
    const { child, ended } = start(['--require', join(__dirname, 'fixtures', 'interrupt_self.cjs'), main, ...args], { env: { INTERRUPT_AT: at, INTERRUPT_BY: by } })
    if (input !== undefined) child.stdin.write(input)
    return ended
  }

  it('SIGINT stops a stream: exit code 130, and what was written stays', async () => {
    const whole = await cli(LONG)
    expect(whole.code).toBe(0)
    const { code, signal, stdout } = await interrupted('output', LONG)
    expect({ code, signal }).toEqual({ code: 130, signal: null })
    expect(stdout.length).toBeGreaterThan(0)
    expect(stdout.length).toBeLessThan(whole.stdout.length)
    expect(whole.stdout.startsWith(stdout)).toBe(true)
  })

  it('SIGTERM stops a stream: exit code 143', async () => {
    expect(await interrupted('output', LONG, undefined, 'SIGTERM')).toMatchObject({ code: 143, signal: null })
  })

  it('SIGINT while stdin is read', async () => {
    expect(await interrupted('input', ['run', '-b', 'cpu', '-'])).toMatchObject({ code: 130, signal: null, stdout: '' })
  })

  it('SIGINT in an answer of a chat', async () => {
    const question = 'Write a story about a sleepy dragon named Otto who is afraid of thunder.\n'
    const { code, stdout } = await interrupted('output', ['chat', ...PLAIN, '-n', '1000'], question)
    expect(code).toBe(130)
    expect(stdout.length).toBeLessThan(200)
  })

  it.each([
    ['a stream goes away', 'head -c 5', LONG],
    ['a stream was never there', 'true', LONG],
    ['a report was never there', 'true', ['doctor']],
    ['a help text was never there', 'true', ['bench', '--help']],
    ['a bench report was never there', 'true', ['bench', '-b', 'cpu', '-r', '2', '-i', '8', '-o', '4']],
    ['a chat was never there', 'true', ['chat', ...PLAIN]],
  ])('the reader of %s', async (_, reader, args) => {
    const outcome = await new Promise<{ code: number | null; signal: string | null; stderr: string }>((resolve) => {
      // As a shell would, with the exit code of the first program.
      const script = `echo Hello! | "$0" "$@" | ${reader} >/dev/null; exit \${PIPESTATUS[1]}`
      const child = spawn('bash', ['-c', script, process.execPath, main, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
      let stderr = ''
      child.stderr.on('data', (piece: Buffer) => (stderr += piece.toString()))
      const timer = setTimeout(() => child.kill('SIGKILL'), 200_000)
      child.on('close', (code, signal) => {
        clearTimeout(timer)
        resolve({ code, signal, stderr })
      })
    })
    expect(outcome.signal).toBeNull()
    expect(outcome.code).toBe(0)
    expect(outcome.stderr).not.toMatch(/EPIPE|Error|at /)
  })

  it.skipIf(!existsSync('/dev/full')).each([['run', LONG], ['doctor', ['doctor', '--json']]])('a full disk: %s', (_, args) => {
    const full = openSync('/dev/full', 'w')
    const { status, stderr } = spawnSync(process.execPath, [main, ...args], { stdio: ['ignore', full, 'pipe'], encoding: 'utf8' })
    closeSync(full)
    expect(status).toBe(1)
    expect(stderr).toMatch(/^node-tensorrt: The output cannot be written: ENOSPC[^\n]*\n$/)
  })
})

describe('chat', () => {
  const chat = async (input: string, ...args: string[]): Promise<Outcome> => cli(['chat', ...PLAIN, ...args], { input })

  it('answers line by line, and remembers', async () => {
    const { code, stdout, stderr } = await chat('My name is Clara.\nWhat is my name?\n')
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const answers = stdout.trimEnd().split('\n')
    expect(answers).toHaveLength(2)
    expect(answers[1]).toContain('Clara')
  })

  it('/reset and /undo forget', async () => {
    const alone = await json<RunReport>(['run', ...PLAIN, '--json', 'What is my name?'])
    for (const command of ['/reset', '/undo']) {
      const { code, stdout } = await chat(`My name is Clara.\n${command}\nWhat is my name?\n`)
      expect(code).toBe(0)
      expect(stdout.trimEnd().split('\n')[1]).toBe(alone.text)
    }
  })

  it('/undo takes back one exchange, and never the system message', async () => {
    const undone = await chat('My name is Clara.\nWhat is 7 plus 5?\n/undo\nWhat is my name?\n')
    expect(undone.stdout.trimEnd().split('\n')[2]).toContain('Clara')
    const system = ['--system', 'Begin every answer with: Ahoy!']
    expect((await chat('/undo\n/undo\nHello!\n', ...system)).stdout).toMatch(/^Ahoy!/)
  })

  it('/exit leaves at once, though stdin stays open; anything else with a slash is help', async () => {
    const { child, ended, shows } = start([main, 'chat', ...PLAIN])
    child.stdin.write('/sing\n')
    await shows('stderr', /\/reset starts over/)
    child.stdin.write('/exit\nHello!\n')
    expect(await ended).toMatchObject({ code: 0, stdout: '' })
  })

  it('--json gives a line for a question that does not fit, too, and goes on', async () => {
    const { code, stdout, stderr } = await chat(`${'many words '.repeat(2000)}\nWhat is 7 plus 5?\n`, '--json')
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringContaining('outgrown') as string })
    const lines = stdout.trimEnd().split('\n').map((line) => JSON.parse(line) as RunReport | Failure)
    expect(lines).toEqual([
      { error: { code: 'ERR_PROMPT_TOO_LONG', message: expect.any(String) as string, hint: 'shorten it' } },
      expect.objectContaining({ text: '7 plus 5 is 12.' }),
    ])
  })

  it('--json gives a line per answer', async () => {
    const { stdout } = await chat('Hello!\n\nWhat is 7 plus 5?\n', '--json')
    const lines = stdout.trimEnd().split('\n').map((line) => JSON.parse(line) as RunReport)
    expect(lines).toHaveLength(2)
    expect(lines[1]).toMatchObject({ text: '7 plus 5 is 12.', finishReason: 'stop' })
    expect(lines[1]!.usage.cachedTokens).toBeGreaterThan(0)
  })

  it('a conversation that outgrows the context goes on after /reset', async () => {
    const { code, stdout, stderr } = await chat(`${'many words '.repeat(2000)}\n/reset\nWhat is 7 plus 5?\n`)
    expect(code).toBe(0)
    expect(stdout).toBe('7 plus 5 is 12.\n')
    expect(stderr).toContain('/reset starts over')
  })

  it('needs a chat template', async () => {
    const copy = mkdtempSync(join(folder, 'plain-'))
    cpSync(model, copy, { recursive: true })
    const config = require(join(model, 'tokenizer_config.json')) as Record<string, unknown>
    writeFileSync(join(copy, 'tokenizer_config.json'), JSON.stringify({ ...config, chat_template: undefined }))
    const { code, stdout } = await chat('Hello!\n', '--json', '-m', copy)
    expect(code).toBe(1)
    expect((JSON.parse(stdout) as Failure).error).toMatchObject({ code: 'ERR_CHAT_TEMPLATE', hint: 'use: node-tensorrt run --raw' })
  })
})

interface BenchReport extends LoadReport {
  backend: string
  model: string
  concurrency?: number
  rate?: number
}

describe('bench', () => {
  const LOAD = ['bench', '-b', 'cpu', '-r', '24', '-c', '8', '-i', '32-64', '-o', '16', '--json']

  it('counts what it measures', async () => {
    const report = await json<BenchReport>([...LOAD, '--no-prefix-cache'])
    expect(report).toMatchObject({ requests: 24, failed: 0, errors: {}, outputTokens: 24 * 16, cachedTokens: 0, backend: 'cpu', concurrency: 8 })
    expect(report.promptTokens).toBeGreaterThanOrEqual(24 * 32)
    expect(report.promptTokens).toBeLessThanOrEqual(24 * 64)
    expect(report.outputTokensPerSecond).toBeCloseTo(report.outputTokens / report.seconds, 3)
    expect(report.totalTokensPerSecond).toBeCloseTo((report.outputTokens + report.promptTokens) / report.seconds, 3)
    expect(report.requestsPerSecond).toBeCloseTo(24 / report.seconds, 3)
    for (const { p50, p90, p99, max } of [report.ttftMs, report.interTokenMs, report.latencyMs]) {
      expect([p50, p90, p99, max]).toEqual([p50, p90, p99, max].sort((a, b) => a - b))
      expect(p50).toBeGreaterThan(0)
    }
    expect(report.latencyMs.max).toBeGreaterThanOrEqual(report.ttftMs.max)
    expect(report.latencyMs.max).toBeLessThanOrEqual(report.seconds * 1000 + 1)
  })

  it('--profile tells where the time of the steps went', async () => {
    const { profile } = await json<{ profile: LLMProfile }>([...LOAD, '--profile', '--no-prefix-cache'])
    expect(profile.backend).toBe('cpu')
    // 24 outputs of 16 tokens, at most 8 of them at a time.
    expect(profile.steps).toBeGreaterThanOrEqual((24 * 16) / 8)
    expect(profile.decodeSteps.steps + profile.prefillSteps.steps).toBe(profile.steps)
    expect(profile.shares.run).toBeGreaterThan(0.2)
    const table = await cli([...LOAD.filter((option) => option !== '--json'), '--profile'])
    expect(table.stdout).toMatch(/\d+ steps in [\d.]+ s: [\d.]+% run, [\d.]+% gaps; host [\d.]+%, of it the scheduler [\d.]+%\n/)
    for (const name of ['decode steps', 'prefill steps', 'gap, us', 'plan, us', 'hand out, us', 'event loop delay, ms']) expect(table.stdout).toContain(`\n${name}`)
  })

  it('asks for the same by the same seed, and finds shared prefixes', async () => {
    const shared = [...LOAD, '--shared-prefix', '0.9']
    const [first, again, other] = await Promise.all([json<BenchReport>(shared), json<BenchReport>(shared), json<BenchReport>([...shared, '--seed', '2'])])
    expect(again.promptTokens).toBe(first.promptTokens)
    expect(other.promptTokens).not.toBe(first.promptTokens)
    expect(first.cachedTokens).toBeGreaterThan(first.promptTokens * 0.2)
  })

  it('takes arrivals at a rate', async () => {
    const report = await json<BenchReport>(['bench', '-b', 'cpu', '-r', '20', '--rate', '40', '-i', '16', '-o', '8', '--json'])
    expect(report).toMatchObject({ requests: 20, failed: 0, outputTokens: 160, rate: 40 })
    expect(report).not.toHaveProperty('concurrency')
    // Twenty arrivals, forty a second: the last one arrives some 0.5 s after the start.
    expect(report.seconds).toBeGreaterThan(0.15)
  })

  it('prints a table for humans', async () => {
    const { code, stdout } = await cli(['bench', '-b', 'cpu', '-r', '4', '-c', '4', '-i', '8', '-o', '8', '--warmup', '0'])
    expect(code).toBe(0)
    expect(stdout).toMatch(/4 requests in [\d.]+ s\n32 prompt tokens \(0\.0% from the prefix cache\), 32 output tokens\n/)
    expect(stdout).toMatch(/TTFT, ms( +[\d.]+){5}\n/)
    expect(stdout).not.toContain('NaN')
  })

  it('refuses a load that does not fit into the context', async () => {
    const { code, stdout } = await cli(['bench', '-b', 'cpu', '--json', '-i', '1000', '-o', '25'])
    expect(code).toBe(1)
    expect((JSON.parse(stdout) as Failure).error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', hint: 'lower --input or --output' })
  })

  it('SIGINT ends it with 130', async () => {
    const args = ['bench', '-r', '1000000', '-i', '8', '-o', '8', '--json']
    const { child, ended, shows } = start([main, ...args], { env: { NODE_TENSORRT_MODULE: join(folder, 'absent.so') } })
    await shows('stderr', /The CPU runs the model/)
    await new Promise((resolve) => setTimeout(resolve, 300))
    child.kill('SIGINT')
    const { code, stdout } = await ended
    expect({ code, stdout }).toEqual({ code: 130, stdout: '' })
  })
})

interface DoctorReport {
  version: string
  healthy: boolean
  checks: { name: string; ok: boolean; optional?: boolean; detail: string; hint?: string; code?: string }[]
}

describe('doctor', () => {
  it('finds a machine that works, with or without a GPU', async () => {
    const report = await json<DoctorReport>(['doctor', model, '--json'])
    expect(report).toMatchObject({ version, healthy: true })
    const names = report.checks.map(({ name }) => name)
    expect(names).toEqual(expect.arrayContaining(['Node', 'Platform', 'Addon', 'CPU backend', `Model ${model}`]))
    expect(report.checks.filter(({ ok, optional }) => !ok && optional !== true)).toEqual([])
    expect(report.checks.find(({ name }) => name === `Model ${model}`)!.detail).toMatch(/^llama, 6 layers, vocabulary 4096, context 1024/)
  })

  it('says the same to humans', async () => {
    const { code, stdout } = await cli(['doctor'])
    expect(code).toBe(0)
    expect(stdout).toContain(`node-tensorrt ${version}\n`)
    expect(stdout).toContain(`  ok   Node: ${process.version}`)
    expect(stdout.endsWith('Everything that is needed works.\n')).toBe(true)
  })

  it('finds an addon that is missing', async () => {
    const { code, stdout } = await cli(['doctor', '--json'], { env: { NODE_TENSORRT_ADDON: join(folder, 'absent.node') } })
    expect(code).toBe(1)
    const report = JSON.parse(stdout) as DoctorReport
    expect(report.healthy).toBe(false)
    expect(report.checks.find(({ name }) => name === 'Addon')).toMatchObject({ ok: false, hint: expect.stringContaining('NODE_TENSORRT_ADDON') as string })
  })

  it('finds a model folder that is not there', async () => {
    const { code, stdout } = await cli(['doctor', join(folder, 'nowhere')])
    expect(code).toBe(1)
    expect(stdout).toMatch(/ FAIL {2}Model .*nowhere: /)
    expect(stdout.endsWith('Something that is needed does not work.\n')).toBe(true)
  })
})
