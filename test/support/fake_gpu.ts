/**
 * The GPU on host memory of test/native/fake_gpu: the real module and addon run on it. Its folder is named by NT_FAKE_GPU, which
 * `npm test` sets; see the README there for the plans.
 *
 *   describe.skipIf(!fakeGpu.available)('...', ...)
 *   const runtime = await addon.createRuntime({ ...fakeGpu.native, device: 0 })
 *   const plan = makePlan(scalePlan())
 */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export type FakeDtype = 'float32' | 'float16' | 'bfloat16' | 'float8' | 'int8' | 'uint8' | 'int32' | 'int64' | 'bool' | 'int4'
export type FakeSeverity = 'internal-error' | 'error' | 'warning' | 'info' | 'verbose'

export interface FakeTensor {
  name: string
  mode: 'input' | 'output'
  dtype?: FakeDtype
  /** -1 = dynamic. */
  shape: number[]
  location?: 'device' | 'host'
  /** Its values decide shapes; it lives on the host. */
  shapeTensor?: boolean
}

export interface FakeRange {
  min: number[]
  opt: number[]
  max: number[]
  /** Of a shape tensor. */
  values?: { min: number[]; opt: number[]; max: number[] }
}

interface Named {
  name?: string
}

export type FakeLayer = Named &
  (
    | { op: 'identity' | 'rowsum' | 'nonzero'; inputs: [string]; output: string }
    /** y = a * x + b; `weight` names the weights that hold `a`. */
    | { op: 'scale'; inputs: [string]; output: string; weight?: string; a?: number; b?: number }
    | { op: 'add'; inputs: [string, string]; output: string }
    /** The output's shape is the values of the shape tensor, each value is `a`. */
    | { op: 'fill'; inputs: [string]; output: string; a: number }
    | { op: 'sleep'; us?: number; usPerRow?: number }
    /** A value above `max` is a device-side assert: the device is dead from then on. */
    | { op: 'assert'; inputs: [string]; max: number }
    /** enqueueV3 fails where the first input has so many rows. */
    | { op: 'refuse'; rows: number }
    | { op: 'log'; severity: FakeSeverity; text: string }
    /** An illegal access: the device is dead from then on. */
    | { op: 'die' }
  )

/** In order of execution. A layer's output may be a later one's input; all are tensors of the engine. */
export interface FakePlan {
  name?: string
  /** Other than 10.6.0, or compute other than 9.0: the plan is refused as incompatible. */
  tensorrt?: string
  compute?: string
  hostCode?: boolean
  refittable?: boolean
  stripped?: boolean
  tensors: FakeTensor[]
  profiles?: Record<string, FakeRange>[]
  weights?: Record<string, { dtype?: FakeDtype; values: number[] }>
  /** Groups of weights that can only be refitted together. */
  coupled?: string[][]
  /** By profile, or of all. */
  activationBytes?: number | number[]
  /** Device memory beside the weights. */
  weightBytes?: number
  /** Of the temporary allocator, in each run. */
  scratchBytes?: number
  layers: FakeLayer[]
  /** Logged while the plan is deserialised. */
  log?: { severity: FakeSeverity; text: string }[]
}

/** The plan's bytes: a header with length and checksum, then JSON. */
export function makePlan(plan: FakePlan): Uint8Array {
  const json = Buffer.from(JSON.stringify(plan))
  let hash = 2166136261
  for (const byte of json) hash = Math.imul(hash ^ byte, 16777619) >>> 0
  const header = Buffer.alloc(20)
  header.write('NTFAKEPLAN1\n', 'latin1')
  header.writeUInt32LE(json.length, 12)
  header.writeUInt32LE(hash, 16)
  return new Uint8Array(Buffer.concat([header, json]))
}

/** y = a * x + b of float32 [-1, 4], 1 to 8 rows; `a` is the refittable weight 'a'. */
export function scalePlan({ a = 2, b = 1, rows = 8, width = 4, us = 0, usPerRow = 0 } = {}): FakePlan {
  return {
    name: 'scale',
    refittable: true,
    activationBytes: 1024,
    tensors: [
      { name: 'x', mode: 'input', shape: [-1, width] },
      { name: 'y', mode: 'output', shape: [-1, width] },
    ],
    profiles: [{ x: { min: [1, width], opt: [Math.min(4, rows), width], max: [rows, width] } }],
    weights: { a: { values: [a] } },
    layers: [
      { op: 'scale', inputs: ['x'], output: 'y', weight: 'a', b },
      { op: 'sleep', us, usPerRow },
    ],
  }
}

const folder = process.env.NT_FAKE_GPU ?? ''
const modulePath = join(folder, 'nt-tensorrt.so')
const available = folder !== '' && existsSync(modulePath)
if (!available && process.env.CI === 'true' && process.env.NT_SKIP_TENSORRT !== '1') {
  throw new Error(`The fake GPU is not there (NT_FAKE_GPU is '${folder}'): start the tests by npm test, which builds it`)
}

export const fakeGpu = {
  /** False = the tests that need it are to be skipped; with CI=true only where NT_SKIP_TENSORRT=1 leaves the module out. */
  available,
  folder,
  /** For `addon.createRuntime` and its kin. libcuda.so.1 comes with the module. */
  native: { modulePath, libraryPath: folder },
  /**
   * For what finds the module and the library by itself: to be called before it first looks. Ends with the process, which
   * vitest starts anew for each file.
   */
  use(): void {
    process.env.NODE_TENSORRT_MODULE = modulePath
    process.env.TENSORRT_LIB_DIR = folder
  },
}

/** What the fake GPU tells of a process at its end. */
export interface FakeGpuReport {
  /** Double frees, copies past an allocation, uses of a handle after its end and the like; each is a line on stderr too. */
  violations: number
  deviceBlocks: number
  deviceBytes: number
  pinnedBlocks: number
  pinnedBytes: number
  streams: number
  events: number
  graphs: number
  allocations: number
}

export interface FakeGpuChild {
  code: number
  signal: string | null
  stdout: string
  stderr: string
  /** Null where the process crashed. */
  report: FakeGpuReport | null
}

/** Runs a script in a process of its own, with the fake GPU set up by `environment` (FAKE_GPU_DEVICES and the like). */
export function runOnFakeGpu(script: string, args: string[] = [], environment: Record<string, string> = {}, timeoutMs = 200_000): Promise<FakeGpuChild> {
  const temporary = mkdtempSync(join(tmpdir(), 'fake-gpu-'))
  const reportPath = join(temporary, 'report.json')
  const env = { ...process.env, NODE_TENSORRT_MODULE: modulePath, TENSORRT_LIB_DIR: folder, FAKE_GPU_REPORT: reportPath, ...environment }
  return new Promise((resolve) => {
    execFile(process.execPath, [script, ...args], { env, timeout: timeoutMs, killSignal: 'SIGKILL' }, (error, stdout, stderr) => {
      const report = existsSync(reportPath) ? (JSON.parse(readFileSync(reportPath, 'utf8')) as FakeGpuReport) : null
      rmSync(temporary, { recursive: true, force: true })
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
      resolve({ code, signal: error?.signal ?? null, stdout, stderr, report })
    })
  })
}
