/** `build` of an ONNX model: its own options, and a bar for the whole build. */
import { InvalidArgumentError } from 'commander'
import { buildEngine, type InputProfile, type InputRange, type OnnxBuildOptions, type OnnxBuildProgress } from '../runtime'
import { formatBytes, runLong } from './output'

export interface OnnxCliOptions {
  output?: string
  precision?: OnnxBuildOptions['precision']
  layer?: Record<string, string>
  profile?: InputProfile[]
  workspace?: number
  optimizationLevel?: number
  maxAuxStreams?: number
  timingCache?: string
  strip?: boolean
  refit?: 'none' | 'identical' | 'any'
  versionCompatible?: boolean
  excludeLeanRuntime?: boolean
  hardwareCompatibility?: 'none' | 'ampere+' | 'same-compute-capability'
  ioType?: 'model' | 'fp16' | 'bf16'
  cacheDir?: string
  cache: boolean
  device?: number
  libraryPath?: string
  force?: boolean
  json?: boolean
}

/** 'encoder*=fp32', once for each pattern. */
export function parseLayer(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.lastIndexOf('=')
  if (at < 1) throw new InvalidArgumentError("expected a pattern and a type, such as 'encoder*=fp32'.")
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) }
}

/** 'ids:1x128..8x128..32x128,mask:1..8..32': one profile; '@' instead of ':' gives the values of a shape tensor. */
export function parseProfile(text: string, before: InputProfile[] = []): InputProfile[] {
  const profile: InputProfile = {}
  for (const part of text.split(',')) {
    const match = /^(.+)([:@])([^:@]*)$/.exec(part)
    const [, name = '', separator = '', ranges = ''] = match ?? []
    const shapes = ranges.split('..').map((shape) => shape.split('x').map((extent) => (/^-?\d+$/.test(extent) ? Number(extent) : NaN)))
    const numbers = shapes.every((shape) => shape.every(Number.isSafeInteger))
    if (Object.hasOwn(profile, name)) throw new InvalidArgumentError(`it names input '${name}' twice; a second --profile makes another profile.`)
    if (match === null || !numbers || (shapes.length !== 1 && shapes.length !== 3)) {
      throw new InvalidArgumentError("expected an input and its shapes, such as 'input:1x128..8x128..32x128'.")
    }
    const [min, opt = min, max = min] = shapes as [number[], number[]?, number[]?]
    const range: InputRange = { min, opt, max }
    if (separator === '@') range.values = true
    profile[name] = range
  }
  return [...before, profile]
}

export function buildOnnx(model: string, options: OnnxCliOptions): Promise<void> {
  const { output, layer, profile, workspace, json, ...rest } = options
  let latest: OnnxBuildProgress = { phase: 'preparing', fraction: 0 }
  let printed = 0
  const onProgress = (now: OnnxBuildProgress): void => {
    latest = now
    const tenth = Math.floor(now.fraction * 10)
    if (json === true || process.stderr.isTTY === true || tenth <= printed) return
    printed = tenth
    process.stderr.write(`${tenth * 10}% ${now.phase}\n`)
  }
  const status = (seconds: string): string => `${bar(latest.fraction)} ${seconds}  ${latest.phase}`
  return runLong(json === true, status, async (signal) => {
    const built = await buildEngine({
      ...rest,
      onnx: model,
      out: output,
      layers: layer as OnnxBuildOptions['layers'],
      profiles: profile,
      workspaceBytes: workspace,
      signal,
      onProgress,
    })
    if (json === true) return `${JSON.stringify(built)}\n`
    const { gpu, tensorrtVersion, precision, plan, build, onnx } = built.manifest
    return (
      `${built.path}\n  ${precision}, TensorRT ${tensorrtVersion}, ${gpu.name} (compute capability ${gpu.computeCapability})\n` +
      `  plan ${formatBytes(plan.bytes)} of ${build.layers} layers, model ${formatBytes(onnx.bytes)}, ` +
      `${built.cached ? 'taken from the cache' : `built in ${build.seconds.toFixed(1)} s`}\n`
    )
  })
}

function bar(fraction: number): string {
  const width = 24
  const full = Math.round(fraction * width)
  return `[${'#'.repeat(full)}${'.'.repeat(width - full)}] ${String(Math.floor(fraction * 100)).padStart(3)}%`
}
