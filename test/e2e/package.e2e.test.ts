import { type ExecFileException, execFile } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const root = resolve(__dirname, '..', '..')
let folder: string
let tarball: string
/** A folder with node and npm and nothing else, to be the whole PATH. */
let bareBin: string

interface Output {
  code: number
  stdout: string
  stderr: string
}

function run(command: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = {}): Promise<Output> {
  return new Promise((done) => {
    execFile(command, args, { cwd, env: { ...process.env, ...env }, maxBuffer: 2 ** 26 }, (error: ExecFileException | null, stdout, stderr) =>
      done({ code: error === null ? 0 : Number(error.code ?? 1), stdout, stderr }),
    )
  })
}

const onPath = (name: string): string => {
  const found = (process.env['PATH'] ?? '').split(':').map((place) => join(place, name)).find((path) => existsSync(path))
  if (found === undefined) throw new Error(`${name} is not on the PATH`)
  return realpathSync(found)
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-package-'))
  bareBin = join(folder, 'bin')
  mkdirSync(bareBin)
  symlinkSync(process.execPath, join(bareBin, 'node'))
  symlinkSync(onPath('npm'), join(bareBin, 'npm'))

  const built = await run('npm', ['run', 'prebuild:all', '--', '--if-stale'], root)
  expect(built, built.stderr).toMatchObject({ code: 0 })
  const packed = await run('npm', ['pack', '--json', '--pack-destination', folder], root)
  expect(packed, packed.stderr).toMatchObject({ code: 0 })
  tarball = join(folder, (JSON.parse(packed.stdout) as { filename: string }[])[0]!.filename)
}, 900_000)
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function install(name: string, ...flags: string[]): Promise<string> {
  const project = join(folder, name)
  mkdirSync(project)
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name, private: true }))
  const args = ['install', tarball, '--omit=dev', '--no-audit', '--no-fund', '--prefer-offline', ...flags]
  const { code, stderr } = await run('npm', args, project, { PATH: bareBin })
  expect(code, stderr).toBe(0)
  return project
}

/** Streams the demo and prints what was seen as JSON; the same text for CommonJS and ES modules. */
const streaming = `
  const model = require.resolve('node-tensorrt/package.json').replace('package.json', 'models/tiny-storyteller')
  const llm = await LLM.load(model, { backend: 'cpu' })
  let text = ''
  let chunks = 0
  for await (const chunk of llm.generate({ prompt: 'Once upon a time', temperature: 0, maxTokens: 24 })) {
    text += chunk.text
    chunks++
  }
  await llm.close()
  console.log(JSON.stringify({ text, chunks }))`

describe('the packed package', { timeout: 900_000 }, () => {
  it.each([
    // npm hands the setting of this folder on to those that it starts.
    ['with install scripts', ['--no-ignore-scripts']],
    ['without install scripts', ['--ignore-scripts']],
  ])('installs where there is only node and npm, %s, and streams', async (name, flags) => {
    const project = await install(name.replaceAll(' ', '-'), ...flags)
    writeFileSync(join(project, 'stream.cjs'), `const { LLM } = require('node-tensorrt'); (async () => {${streaming}})()`)
    writeFileSync(
      join(project, 'stream.mjs'),
      `import { LLM } from 'node-tensorrt'; import { createRequire } from 'node:module'; const require = createRequire(import.meta.url); ${streaming}`,
    )
    const outputs = []
    for (const file of ['stream.cjs', 'stream.mjs']) {
      const { code, stdout, stderr } = await run('node', [file], project, { PATH: bareBin })
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      outputs.push(JSON.parse(stdout) as { text: string; chunks: number })
    }
    expect(outputs[0]!.text).toBe(outputs[1]!.text)
    expect(outputs[0]!.text.length).toBeGreaterThan(40)
    expect(outputs[0]!.chunks).toBeGreaterThan(1)

    const cli = await run(join(project, 'node_modules', '.bin', 'node-tensorrt'), ['run', '--max-tokens', '16'], project, { PATH: bareBin })
    expect(cli.code, cli.stderr).toBe(0)
    expect(cli.stdout.length).toBeGreaterThan(20)

    const doctor = await run('node', ['node_modules/node-tensorrt/dist/cli/main.js', 'doctor', '--json'], project, { PATH: bareBin })
    expect(doctor.stdout).toContain(join('node_modules', 'node-tensorrt', 'prebuilds', `${process.platform}-${process.arch}`))
  })

  it('is one library under import and require', async () => {
    const project = await install('identity')
    writeFileSync(
      join(project, 'identity.mjs'),
      `import * as imported from 'node-tensorrt'
       import { createRequire } from 'node:module'
       const required = createRequire(import.meta.url)('node-tensorrt')
       const names = Object.keys(required)
       console.log(JSON.stringify({ names, same: names.every((name) => imported[name] === required[name]), extra: Object.keys(imported).filter((name) => !names.includes(name)) }))`,
    )
    const { stdout, stderr } = await run('node', ['identity.mjs'], project, { PATH: bareBin })
    expect(stderr).toBe('')
    const { names, same, extra } = JSON.parse(stdout) as { names: string[]; same: boolean; extra: string[] }
    expect(names).toContain('LLM')
    expect({ same, extra }).toEqual({ same: true, extra: [] })
  })

  it('builds from the sources that it carries', async () => {
    const project = await install('from-source')
    const installed = join(project, 'node_modules', 'node-tensorrt')
    rmSync(join(installed, 'prebuilds'), { recursive: true })
    const missing = await run('node', ['node_modules/node-tensorrt/dist/cli/main.js', 'doctor', '--json'], project, { PATH: bareBin })
    expect(missing.code).toBe(1)
    expect(missing.stdout).toContain('node-gyp rebuild')

    const nodeGyp = join(root, 'node_modules', 'node-gyp', 'bin', 'node-gyp.js')
    // Node's own headers, where they were installed with it: no download.
    const prefix = dirname(dirname(process.execPath))
    const nodedir = existsSync(join(prefix, 'include', 'node', 'node.h')) ? { npm_config_nodedir: prefix } : {}
    const built = await run(process.execPath, [nodeGyp, 'rebuild'], installed, nodedir)
    expect(built.code, built.stderr).toBe(0)
    const found = await run('node', ['-p', "require('./node_modules/node-tensorrt/dist/native').loadAddon().path"], project, { PATH: bareBin })
    expect(found.stdout.trim()).toBe(join(installed, 'build', 'Release', 'node-tensorrt.node'))
  })

  it('carries no install script, and what it says about itself is there', async () => {
    const project = await install('manifest')
    const installed = join(project, 'node_modules', 'node-tensorrt')
    const manifest = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as Record<string, unknown> & { scripts?: object }
    expect(manifest['gypfile']).toBe(false)
    expect(Object.keys(manifest.scripts ?? {}).filter((name) => /^(pre|post)?install$|^prepare$/.test(name))).toEqual([])
    for (const file of ['LICENSE', 'NOTICE', 'README.md', 'typings/index.d.ts', 'typings/index.d.mts', 'dist/index.mjs', 'binding.gyp']) {
      expect(existsSync(join(installed, file)), file).toBe(true)
    }
    const whole = await run(process.execPath, [join(root, 'scripts', 'check-package.mjs'), '--contents'], root)
    expect(whole.code, whole.stderr).toBe(0)
    const example = await run('node', [join(installed, 'examples', 'stream.mjs')], project, { PATH: bareBin })
    expect(example.code, example.stderr).toBe(0)
    expect(example.stdout.length).toBeGreaterThan(40)
  })
})

describe.runIf(process.platform === 'linux')('the prebuilt binary', () => {
  it('needs no glibc above 2.28 and nothing else', async () => {
    const { code, stderr } = await run(process.execPath, [join(root, 'scripts', 'check-binary.mjs')], root)
    expect(code, stderr).toBe(0)
  })

  it('would be refused if it did', async () => {
    const source = join(folder, 'new.cpp')
    writeFileSync(source, '#include <thread>\nextern "C" void f() { std::thread([] {}).join(); }\n')
    const file = join(folder, 'new.node')
    expect((await run('c++', ['-shared', '-fPIC', '-pthread', '-o', file, source], folder)).code).toBe(0)
    const { code, stderr } = await run(process.execPath, [join(root, 'scripts', 'check-binary.mjs'), file], root)
    expect(code).toBe(1)
    expect(stderr).toContain('link libstdc++ and libgcc statically')
    expect(stderr).toContain('it needs libstdc++.so.6')
    expect(stderr).toContain('f is exported')
  })
})
