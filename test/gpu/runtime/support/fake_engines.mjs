/** Stand-ins for the engines, of test/native/fake_gpu: they have the right inputs, and compute next to nothing. To try the programs only. */
import { createHash } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { lib, options } from './target.mjs'

const both = (name, dtype, shape, range) => ({ tensor: { name, mode: 'input', dtype, shape }, range: range && { [name]: range } })
const output = (name, dtype, shape) => ({ name, mode: 'output', dtype, shape })
const text = (min, opt, max) => ['input_ids', 'attention_mask'].map((name) => both(name, 'int64', [-1, -1], { min, opt, max }))

const MODELS = {
  mlp: () => ({
    inputs: [[both('x', 'float32', [-1, 256], { min: [1, 256], opt: [8, 256], max: [64, 256] })]],
    outputs: [output('y', 'float32', [-1, 256])],
    weights: { a: { values: [2] } },
    layers: [{ op: 'scale', inputs: ['x'], output: 'y', weight: 'a', b: 1 }],
  }),
  resnet: () => ({
    inputs: [[both('image', 'float32', [-1, 3, 64, 64], { min: [1, 3, 64, 64], opt: [1, 3, 64, 64], max: [8, 3, 64, 64] })]],
    outputs: [output('logits', 'float32', [-1, 3, 64])],
    layers: [{ op: 'rowsum', inputs: ['image'], output: 'logits' }, { op: 'sleep', us: 100 }],
  }),
  bert: () => ({
    inputs: options.sizes.split(',').map(Number).map((rows) => text([rows, 128], [rows, 128], [rows, 128])),
    outputs: [output('pooler_output', 'float16', [-1, -1])],
    layers: [{ op: 'identity', inputs: ['input_ids'], output: 'pooler_output' }, { op: 'sleep', us: 300, usPerRow: 20 }],
  }),
  select: () => ({
    inputs: [[both('x', 'float32', [-1, 32], { min: [1, 32], opt: [16, 32], max: [256, 32] })]],
    outputs: [output('rows', 'int64', [2, -1])],
    layers: [{ op: 'nonzero', inputs: ['x'], output: 'rows' }],
  }),
}

function planBytes(name) {
  const { inputs, outputs, weights = {}, layers } = MODELS[name.split('-')[0]]()
  const plan = {
    name, refittable: /refit|stripped/.test(name), stripped: name.endsWith('stripped'), activationBytes: 4096, weights, layers,
    tensors: [...inputs[0].map(({ tensor }) => tensor), ...outputs],
    profiles: inputs.map((profile) => Object.assign({}, ...profile.map(({ range }) => range))),
  }
  const json = Buffer.from(JSON.stringify(plan))
  let hash = 2166136261
  for (const byte of json) hash = Math.imul(hash ^ byte, 16777619) >>> 0
  const header = Buffer.alloc(20)
  header.write('NTFAKEPLAN1\n', 'latin1')
  header.writeUInt32LE(json.length, 12)
  header.writeUInt32LE(hash, 16)
  return Buffer.concat([header, json])
}

export function fakeFolder(name, folder) {
  const plan = planBytes(name)
  const manifest = {
    format: 1, kind: 'onnx', packageVersion: lib.version, createdAt: new Date().toISOString(), precision: 'fp32', layers: [], profiles: [], tensors: [],
    onnx: { relative: '', absolute: '', sha256: '0'.repeat(64), bytes: 0, externalFiles: [], opset: 17, producer: '' },
    plan: { bytes: plan.length, sha256: createHash('sha256').update(plan).digest('hex') },
    tensorrtVersion: '10.6.0', cuda: { driver: '13.0', required: '13.0' }, gpu: { name: 'fake', computeCapability: '9.0', memoryBytes: 1 },
    build: {
      workspaceBytes: 0, optimizationLevel: -1, maxAuxStreams: -1, strip: false, refit: 'none', versionCompatible: false, excludeLeanRuntime: false,
      hardwareCompatibility: 'none', profilingVerbosity: 'layer-names', directIo: false, ioType: 'model', sparseWeights: false,
      seconds: 0, parseSeconds: 0, layers: 1, constrainedLayers: 0, log: [],
    },
    cacheKey: '0'.repeat(64),
  }
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'plan'), plan)
  writeFileSync(join(folder, 'engine.json'), JSON.stringify(manifest))
  return folder
}
