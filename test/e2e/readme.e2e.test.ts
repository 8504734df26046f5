/** What the README shows is true: its programs run as they stand, its table is of the reports, its links lead somewhere. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import ts from 'typescript'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Block, blocksOf, stripTypes } from './doc_blocks'
import { execute, type Outcome, root } from './programs'

/** What each block of the README that is run must print, in order. */
const PRINTS: (string | RegExp)[][] = [
  // Sampled with a random seed.
  [/\w+ \w+ \w+/],
  [/^, .+/, /\n\d+ tokens \((stop|length)\), the first after \d+ ms\n$/],
  [/^(.+\.\.\. \((stop|length) at .*, mean log-probability -\d\.\d\d\)\n){3}\d+ \+ \d+ tokens\n$/],
  [/^([^\n]+\n){8}\d+ tokens in \d+ steps; (\d+) of \2 pages to give away\nprefix cache: \d+ of \d+ tokens found\n$/],
  [/^ABORT_ERR TimeoutError\nERR_TIMEOUT .*\nERR_DEADLINE_EXCEEDED .*\nERR_INVALID_ARGUMENT "temperature" must be .*\n$/],
  ['7 plus 5 is 12.\n'],
  ['7 plus 5 is 12. cpu\n'],
  [/^\{ hero: '(snail|fox)', age: [1-9] \}\n2 192\n$/],
]

const readme = blocksOf('README.md')
const runnable = readme.filter(({ notRun }) => notRun === undefined)
const pages = ['README.md', 'examples/README.md', 'examples/custom-executor/README.md', ...readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md')).map((name) => `docs/${name}`)]

/** A project that has the library installed, as a user's has. */
let project: string
beforeAll(() => {
  project = mkdtempSync(join(tmpdir(), 'node-tensorrt-readme-'))
  mkdirSync(join(project, 'node_modules', '@types'), { recursive: true })
  symlinkSync(root, join(project, 'node_modules', 'node-tensorrt'))
  symlinkSync(join(root, 'node_modules', '@types', 'node'), join(project, 'node_modules', '@types', 'node'))
  // The paths in the README are those of a checkout.
  symlinkSync(join(root, 'models'), join(project, 'models'))
})
afterAll(() => rmSync(project, { recursive: true, force: true }))

function run({ name, code, extension }: Block): Promise<Outcome> {
  const file = join(project, `${name}.${extension === 'cjs' ? 'cjs' : 'mjs'}`)
  writeFileSync(file, extension === 'mts' ? stripTypes(code) : code)
  return execute([file], { cwd: project })
}

/** The one thing that a machine without a GPU may say. */
const withoutFallback = (stderr: string): string =>
  stderr.replace(/^\(node:\d+\) \[CPU_FALLBACK\] NodeTensorRTWarning: .*\n\(Use `node --trace-warnings .*\n/, '')

describe('README.md', () => {
  it('has programs, and says why one is not run', () => {
    expect(runnable).toHaveLength(PRINTS.length)
    for (const { notRun } of readme) if (notRun !== undefined) expect(notRun).toMatch(/\w{3}/)
  })

  it.each(runnable.map((block, index) => [block.name, block, index] as const))('%s runs', async (_, block, index) => {
    const { code, signal, stdout, stderr } = await run(block)
    expect({ code, signal, stderr: withoutFallback(stderr) }).toEqual({ code: 0, signal: null, stderr: '' })
    for (const text of PRINTS[index]!) expect(stdout).toEqual(typeof text === 'string' ? expect.stringContaining(text) : expect.stringMatching(text))
  })

  it('starts with a quick start of two commands that exist', () => {
    const text = readFileSync(join(root, 'README.md'), 'utf8')
    const quickStart = /## Quick start[\s\S]*?```sh\n([\s\S]*?)```/.exec(text)![1]!
    const commands = quickStart.trim().split('\n').map((line) => line.replace(/\s+#.*/, ''))
    expect(commands).toEqual(['npm start', 'npm test'])
    const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
    for (const [, name] of text.matchAll(/`npm run ([\w:]+)`/g)) expect(Object.keys(scripts)).toContain(name)
    expect(Object.keys(scripts)).toEqual(expect.arrayContaining(['start', 'test']))
  })

  it('has command lines that the program takes', async () => {
    const text = readFileSync(join(root, 'README.md'), 'utf8')
    const lines = [...text.matchAll(/^npx node-tensorrt (\w+) (.*)$/gm)]
    expect(lines.length).toBeGreaterThanOrEqual(5)
    for (const [, command, rest] of lines) {
      const inner = command === 'bench' && rest!.startsWith('serve ') ? ['serve'] : []
      const help = (await execute([join(root, 'dist', 'cli', 'main.js'), command!, ...inner, '--help'])).stdout
      for (const [option] of rest!.matchAll(/(?<= )--?[a-z-]+/g)) expect(help, `${command} ${option}`).toContain(option)
    }
  })

  it('shows the table of the reports', async () => {
    const { code, stderr } = await execute([join(root, 'scripts', 'readme-table.mjs'), '--check'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  })
})

describe('the table of measurements', () => {
  type Render = { renderTable(folder: string): string; replaceTable(readme: string, table: string): string }
  const script = import(pathToFileURL(join(root, 'scripts', 'readme-table.mjs')).href) as Promise<Render>

  it('is made of the reports', async () => {
    const { renderTable, replaceTable } = await script
    const folder = join(project, 'benchmarks')
    mkdirSync(folder)
    expect(renderTable(folder)).toContain('No figures yet')
    const common = { device: 'A Processor', model: 'tiny-storyteller', machine: { date: '2026-01-02T03:04:05Z', memoryGiB: 8, node: 'v20.20.2' } }
    const rounds = [1000, 3000, 2000].map((rate) => ({
      saturated: { continuous: { outputTokensPerSecond: rate }, static: { outputTokensPerSecond: rate / 2 } },
      steady: {
        continuous: { ttftMs: { p50: 11, p99: 21 }, latencyMs: { p99: 310 } },
        static: { ttftMs: { p50: 99, p99: 210 }, latencyMs: { p99: 620 } },
      },
    }))
    const ratios = { saturatedThroughputRatio: 2, steadyTtftP50Ratio: 9.04, steadyTtftP99Ratio: 10, steadyLatencyP99Ratio: 1.96 }
    const batching = { ...common, size: 32, requests: 400, ...ratios, rounds }
    writeFileSync(join(folder, 'cpu-batching.json'), JSON.stringify(batching))
    const result = { requests: 16, newTokens: 128, tokensPerSecond: { 'node-tensorrt': 6000, float32: 600, bfloat16: 700 }, ratioToTransformers: { float32: 10, bfloat16: 8.55 } }
    writeFileSync(join(folder, 'cpu-transformers.json'), JSON.stringify({ ...common, results: [result] }))
    const table = renderTable(folder)
    expect(table).toContain('A Processor, 8 GiB, Node 20.20.2, 2026-01-02')
    expect(table).toContain('output tokens/s | continuous batching 2,000 | static 1,000 | 2.0x |')
    expect(table).toContain('first token, ms, P50 | continuous batching 11 | static 99 | 9.0x |')
    expect(table).toContain('the same, P99 | continuous batching 21 | static 210 | 10.0x |')
    expect(table).toContain('whole request, ms, P99 | continuous batching 310 | static 620 | 2.0x |')
    // The faster peer is the yardstick.
    expect(table).toMatch(/16 requests .* \| node-tensorrt 6,000 \| transformers, bfloat16: 700 \| 8\.[56]x \|/)
    const [start, , end] = [table.split('\n')[0]!, '', table.split('\n').at(-1)!]
    expect(replaceTable(`a\n${start}\nold\n${end}\nb`, table)).toBe(`a\n${table}\nb`)
    expect(() => replaceTable('no markers', table)).toThrow('lacks the lines')
  })
})

describe('all pages', () => {
  const blocks = pages.flatMap(blocksOf)

  it('have TypeScript that is right in its types', () => {
    const files = blocks.filter(({ extension, notRun = '' }) => extension === 'mts' && !notRun.startsWith('a fragment')).map(({ name, code }) => {
      const file = join(project, `${name}.types.mts`)
      // Each is a module, whether or not it imports anything.
      writeFileSync(file, `${code}\nexport {}\n`)
      return file
    })
    const program = ts.createProgram(files, {
      noEmit: true,
      strict: true,
      exactOptionalPropertyTypes: true,
      skipLibCheck: true,
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.Node16,
      moduleResolution: ts.ModuleResolutionKind.Node16,
      types: ['node'],
      typeRoots: [join(project, 'node_modules', '@types')],
    })
    const problems = ts.getPreEmitDiagnostics(program).map(({ file, messageText }) => `${file?.fileName}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`)
    expect(problems).toEqual([])
  }, 120_000)

  const others = blocks.filter(({ name, notRun }) => notRun === undefined && !name.startsWith('README'))
  it.runIf(others.length > 0).each(others.map((block) => [block.name, block] as const))('%s runs', async (_, block) => {
    const { code, signal, stderr } = await run(block)
    expect({ code, signal, stderr: withoutFallback(stderr) }).toEqual({ code: 0, signal: null, stderr: '' })
  })

  it.each(pages)('%s has links that lead somewhere', (page) => {
    const text = readFileSync(join(root, page), 'utf8')
    for (const [, target] of text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
      if (/^https?:/.test(target!)) continue
      expect(existsSync(join(root, dirname(page), target!)), `${page}: ${target}`).toBe(true)
    }
  })
})
