import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, vi } from 'vitest'
import { graphFromConfig } from '../../../lib/models'
import { loadAddon, MODULE_PATH_VARIABLE, type TensorRTFacts } from '../../../lib/native'
import { defaultHeadProfiles, defaultProfiles, ENGINE_FORMAT, sha256File, writeEngineFolder } from '../../../lib/runtime'

export const root = resolve(__dirname, '..', '..', '..')
export const demoModel = join(root, 'models', 'tiny-storyteller')

/** The module under test: what the environment names, else what a build left beside the addon. */
export const realModule = process.env[MODULE_PATH_VARIABLE] || join(dirname(loadAddon().path), 'nt-tensorrt.so')
export const hasRealModule = existsSync(realModule)

/** A folder that goes when the file's tests have ended. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export function compileC(file: string, source: string): string {
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(`${file}.c`, source)
  execFileSync('cc', ['-shared', '-fPIC', '-o', file, `${file}.c`])
  return file
}

export function compileCpp(file: string, source: string, ...flags: string[]): string {
  mkdirSync(dirname(file), { recursive: true })
  execFileSync('c++', ['-std=c++20', '-shared', '-fPIC', '-I', join(root, 'cpp'), ...flags, '-o', file, source])
  return file
}

export function compileStandIn(folder: string): string {
  return compileCpp(join(folder, 'stand-in.so'), join(__dirname, 'stand_in_module.cpp'))
}

export function useModule(path: string): void {
  vi.stubEnv(MODULE_PATH_VARIABLE, path)
}

export interface CliOutcome {
  code: number | null
  stdout: string
  stderr: string
}

/**
 * The command line from its sources, in one process: tsx's own command puts another before it, which kills a program that takes longer than
 * 30 ms to hear of a signal.
 */
export function runCli(args: readonly string[], env: NodeJS.ProcessEnv = {}, onStart?: (child: ChildProcess) => void): Promise<CliOutcome> {
  const loader = pathToFileURL(join(root, 'node_modules', 'tsx', 'dist', 'loader.mjs')).href
  const child = spawn(process.execPath, ['--import', loader, join(root, 'lib', 'cli', 'main.ts'), ...args], { env: { ...process.env, ...env } })
  const text = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const) child[stream].setEncoding('utf8').on('data', (piece: string) => (text[stream] += piece))
  onStart?.(child)
  return new Promise((settle, fail) => child.on('error', fail).on('close', (code) => settle({ code, ...text })))
}

/** Presses Ctrl-C as soon as a file is there. */
export function interruptOnceThereIs(file: string): (child: ChildProcess) => void {
  return (child) => {
    const timer = setInterval(() => {
      if (existsSync(file)) child.kill('SIGINT')
      if (existsSync(file) || child.exitCode !== null) clearInterval(timer)
    }, 20)
  }
}

/** What rejects, as the error. */
export async function failure(promise: Promise<unknown>): Promise<Error & { code?: string; hint?: string }> {
  try {
    await promise
  } catch (error) {
    return error as Error
  }
  throw new Error('it did not fail')
}

/** A machine on which the engine of {@link writeDemoEngine} runs. */
export function fittingFacts(): TensorRTFacts {
  return {
    driver: null,
    driverPath: '/usr/lib/libcuda.so.1',
    driverCuda: 13000,
    requiredCuda: 13000,
    gpus: [{ name: 'NVIDIA H200', computeMajor: 9, computeMinor: 0, memoryBytes: 150e9 }],
    library: null,
    libraryPath: '/usr/lib/libnvinfer.so.10',
    libraryVersion: 100600,
    placesLooked: [],
    builderResource: null,
    builderResourcePath: '',
  }
}

/** An engine folder of the demo model, whose plan no TensorRT would take; weights in a folder of their own beside it. */
export async function writeDemoEngine(parent: string, force = false): Promise<{ path: string; weights: string }> {
  const weights = join(parent, 'weights')
  cpSync(demoModel, weights, { recursive: true })
  const file = join(weights, 'model.safetensors')
  const { size, mtimeMs } = statSync(file)
  const path = join(parent, 'engine')
  const copied = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json']
  await writeEngineFolder({
    path,
    force,
    graph: graphFromConfig(JSON.parse(readFileSync(join(weights, 'config.json'), 'utf8')), 'config.json'),
    plan: Buffer.from('a plan that nothing runs'),
    files: new Map(copied.map((name) => [name, readFileSync(join(weights, name))])),
    weightsFolder: weights,
    weightFiles: [{ name: 'model.safetensors', bytes: size, mtimeMs, sha256: await sha256File(file) }],
    manifest: {
      format: ENGINE_FORMAT,
      packageVersion: '0.0.1',
      createdAt: new Date(0).toISOString(),
      family: 'llama',
      precision: 'bf16',
      profiles: { layer: defaultProfiles(2048), head: defaultHeadProfiles(2048) },
      tensorrtVersion: '10.6.0',
      cuda: { driver: '13.0', required: '13.0' },
      gpu: { name: 'NVIDIA H200', computeCapability: '9.0', memoryBytes: 150e9 },
      build: { seconds: 1, optimizationLevel: -1, parts: [] },
    },
  })
  return { path, weights }
}
