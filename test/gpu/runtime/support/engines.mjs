/** The engines of the checks, built from the exported models when they are not there yet. */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { enginesFolder, lib, modelsFolder, options, stopSignal, timingCache } from './target.mjs'
import { fakeFolder } from './fake_engines.mjs'

const range = (name, min, opt, max) => ({ [name]: { min, opt, max } })
const text = (min, opt, max) => ({ ...range('input_ids', min, opt, max), ...range('attention_mask', min, opt, max) })
const MLP = [range('x', [1, 256], [8, 256], [64, 256])]
const IMAGES = [range('image', [1, 3, 64, 64], [1, 3, 64, 64], [8, 3, 64, 64])]
const TEXTS = [text([1, 1], [4, 128], [8, 128])]
/** Batches that the server runs; smaller ones are filled up. A kernel picked for one number of rows is the fastest for it. */
export const SERVED_SIZES = options.sizes.split(',').map(Number)
const SERVE = SERVED_SIZES.map((rows) => text([rows, 128], [rows, 128], [rows, 128]))

/** By name: the ONNX file and the options of its build. */
export const ENGINES = {
  'mlp-fp32': { onnx: 'mlp', precision: 'fp32', profiles: MLP },
  'mlp-fp16': { onnx: 'mlp', precision: 'fp16', profiles: MLP },
  'mlp-stripped': { onnx: 'mlp', precision: 'fp32', profiles: MLP, strip: true, refit: 'any' },
  'mlp-refit': { onnx: 'mlp', precision: 'fp32', profiles: MLP, refit: 'any' },
  // The lean runtime of the library that it runs on will do: this one's is no part of the plan.
  'mlp-portable': { onnx: 'mlp', precision: 'fp32', profiles: MLP, versionCompatible: true, excludeLeanRuntime: true },
  'resnet-fp32': { onnx: 'resnet', precision: 'fp32', profiles: IMAGES },
  'resnet-fp16': { onnx: 'resnet', precision: 'fp16', profiles: IMAGES, profilingVerbosity: 'detailed' },
  'select-fp32': { onnx: 'select', precision: 'fp32', profiles: [range('x', [1, 32], [16, 32], [256, 32])] },
  'select-fp16': { onnx: 'select', precision: 'fp16', profiles: [range('x', [1, 32], [16, 32], [256, 32])] },
  'bert-fp32': { onnx: 'bert', precision: 'fp32', profiles: TEXTS },
  'bert-fp16': { onnx: 'bert', precision: 'fp16', profiles: TEXTS },
  // Any number of rows on one profile, for bare_loop --batches.
  'bert-dynamic': { onnx: 'bert_pooled', precision: 'fp16', ioType: 'fp16', profiles: [text([1, 128], [128, 128], [128, 128])] },
  'bert-serve': { onnx: 'bert_pooled', precision: 'fp16', ioType: 'fp16', profiles: SERVE },
}

/** Engines of other sizes are other engines. */
export const nameOfFolder = (name) => (name === 'bert-serve' ? [name, ...SERVED_SIZES].join('-') : name)

/**
 * The folder of an engine.
 * @param onBuilt is told what a build took
 */
export async function engineFolder(name, onBuilt = () => {}) {
  const folder = join(enginesFolder, nameOfFolder(name))
  if (existsSync(join(folder, 'engine.json'))) return folder
  mkdirSync(enginesFolder, { recursive: true })
  if (options.fake) return fakeFolder(name, folder)
  const { onnx, ...rest } = ENGINES[name]
  const started = performance.now()
  const path = join(modelsFolder, `${onnx}.onnx`)
  const { manifest } = await lib.buildEngine({ onnx: path, out: folder, timingCache, cache: false, signal: stopSignal, ...rest })
  const seconds = (performance.now() - started) / 1000
  console.log(`# ${name} was built in ${seconds.toFixed(1)} s`)
  onBuilt({ seconds, planBytes: manifest.plan.bytes, manifest })
  return folder
}

/** Writes a file in a folder of its own, which is made anew. */
export function freshFolder(name, files) {
  const folder = join(enginesFolder, name)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  for (const [file, bytes] of Object.entries(files)) writeFileSync(join(folder, file), bytes)
  return folder
}
