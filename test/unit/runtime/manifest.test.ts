/** engine.json of both kinds: what is written is read back, and what is wrong is named. */
import { describe, expect, it } from 'vitest'
import { type OnnxEngineManifest } from '../../../lib'
import { parseManifest } from '../../../lib/runtime'
import '../matchers'

const sha256 = 'a'.repeat(64)

function manifest(): OnnxEngineManifest {
  return {
    format: 1,
    kind: 'onnx',
    packageVersion: '0.1.0',
    createdAt: '2026-01-01T00:00:00.000Z',
    precision: 'fp16',
    layers: [{ pattern: 'head/*', precision: 'fp32' }],
    profiles: [{ x: { min: [1, 16], opt: [8, 16], max: [32, 16] }, shape: { min: [1], opt: [2], max: [3], values: true } }],
    tensors: [
      { name: 'x', mode: 'input', dtype: 'float32', shape: [-1, 16] },
      { name: 'y', mode: 'output', dtype: 'float32', shape: null },
    ],
    onnx: { relative: '../m.onnx', absolute: '/m.onnx', sha256, bytes: 7, externalFiles: [{ name: 'm.data', sha256, bytes: 9 }], opset: 17, producer: 'p' },
    plan: { bytes: 5, sha256 },
    tensorrtVersion: '10.6.0',
    cuda: { driver: '13.0', required: '13.0' },
    gpu: { name: 'NVIDIA H200', computeCapability: '9.0', memoryBytes: 150e9 },
    build: {
      workspaceBytes: 0,
      optimizationLevel: -1,
      maxAuxStreams: -1,
      strip: false,
      refit: 'none',
      versionCompatible: false,
      excludeLeanRuntime: false,
      hardwareCompatibility: 'none',
      profilingVerbosity: 'layer-names',
      directIo: false,
      ioType: 'model',
      sparseWeights: false,
      seconds: 1.5,
      parseSeconds: 0.5,
      layers: 3,
      constrainedLayers: 1,
      log: ['a warning'],
    },
    cacheKey: sha256,
  }
}

type Json = Record<string, unknown>

/** With the value at a path of keys replaced; undefined removes it. */
function changed(path: string, value: unknown): string {
  const copy = JSON.parse(JSON.stringify(manifest())) as Json
  const keys = path.split('.')
  const last = keys.pop()!
  const holder = keys.reduce((at, key) => at[key] as Json, copy)
  if (value === undefined) delete holder[last]
  else holder[last] = value
  return JSON.stringify(copy)
}

describe('engine.json of an ONNX model', () => {
  it('is read back as it was written', () => {
    expect(parseManifest(JSON.stringify(manifest()), 'engine.json')).toEqual(manifest())
    const measured = { ...manifest(), baselines: { p50Ms: 0.4 } }
    expect(parseManifest(JSON.stringify(measured), 'engine.json')).toEqual(measured)
  })

  it.each<[string, unknown, RegExp]>([
    ['kind', 'other', /unknown kind "other"/],
    ['precision', 'fp4', /"precision" must be "fp32" or "tf32"/],
    ['layers', {}, /"layers" must be an array of objects/],
    ['layers.0.precision', 'int8', /layers\[0\]: "precision" must be/],
    ['profiles.0.x.min', [1.5], /profiles\[0\]: x: "min" must be an array of integers/],
    ['tensors.0.mode', 'both', /tensors\[0\]: "mode" must be "input" or "output"/],
    ['onnx', undefined, /"onnx" must be an object/],
    ['onnx.sha256', 'abc', /onnx: "sha256" must be a SHA-256/],
    ['onnx.externalFiles.0.bytes', -1, /externalFiles\[0\]: "bytes" must be/],
    ['plan.sha256', undefined, /plan: "sha256" must be a SHA-256/],
    ['tensorrtVersion', 10.6, /"tensorrtVersion" must be a string/],
    ['gpu.computeCapability', undefined, /gpu: "computeCapability" must be a string/],
    ['build.strip', 'no', /build: "strip" must be true or false/],
    ['build.refit', 'some', /build: "refit" must be/],
    ['build.log', [1], /build: "log" must be an array of strings/],
    ['cacheKey', '', /"cacheKey" must be a SHA-256/],
    ['baselines', { p50Ms: 'fast' }, /baselines: "p50Ms" must be a number/],
  ])('names what is wrong with "%s"', (path, value, message) => {
    expect(() => parseManifest(changed(path, value), 'engine.json')).toThrowCode('ERR_ENGINE_INVALID', message)
  })

  it('of another format is of another version', () => {
    expect(() => parseManifest(changed('format', 2), 'engine.json')).toThrowCode('ERR_VERSION_MISMATCH', /format 2 of node-tensorrt 0\.1\.0/)
  })
})
