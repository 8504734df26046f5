/** What is read of an ONNX model without a GPU: of the fixtures, which make.py makes, and of damaged ones. */
import { copyFileSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { TensorRTError } from '../../../lib'
import { checkInputProfiles, type InputProfile, readOnnxModel, requireExternalFiles } from '../../../lib/runtime'
import { readInputProfiles } from '../../../lib/runtime/onnx_profiles'
import '../matchers'

const fixtures = resolve(__dirname, '..', '..', 'fixtures', 'onnx')
const fixture = (name: string): string => join(fixtures, `${name}.onnx`)
const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => new Error('it did not fail'),
    (error: unknown) => error,
  )
}

/** A protocol buffer's field of bytes. */
function field(number: number, ...parts: (Uint8Array | string)[]): Buffer {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part as string)))
  return Buffer.concat([varint(number * 8 + 2), varint(content.length), content])
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128)
  return Buffer.from([...bytes, rest])
}

/** What this process has had from files and sockets so far; nothing where the system does not tell. */
const bytesRead = (): number => (process.platform === 'linux' ? Number(/^rchar: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))![1]) : 0)

const number = (field: number, value: number): Buffer => Buffer.concat([varint(field * 8), varint(value)])

describe('readOnnxModel', () => {
  it('tells inputs, outputs, nodes and opset', async () => {
    expect(await readOnnxModel(fixture('mlp'))).toEqual({
      irVersion: 9,
      producer: 'node-tensorrt fixtures',
      opsets: { '': 17 },
      graph: 'mlp',
      inputs: [{ name: 'x', dtype: 'float32', shape: [-1, 16], dimensionNames: ['batch', ''] }],
      outputs: [{ name: 'y', dtype: 'float32', shape: [-1, 8], dimensionNames: ['batch', ''] }],
      nodes: [
        { name: 'encoder/fc1', op: 'Gemm', domain: '' },
        { name: 'encoder/relu', op: 'Relu', domain: '' },
        { name: 'head/fc2', op: 'Gemm', domain: '' },
      ],
      operators: { Gemm: 2, Relu: 1 },
      initializers: 4,
      quantization: { int8: 0, float8: 0, other: 0 },
      externalFiles: [],
      bytes: 3477,
    })
  })

  it('reads bytes as it reads files', async () => {
    const { externalFiles, ...ofFile } = await readOnnxModel(fixture('mlp_external'))
    const { externalFiles: named, ...ofBytes } = await readOnnxModel(readFileSync(fixture('mlp_external')))
    expect(ofBytes).toEqual(ofFile)
    expect(externalFiles).toEqual([{ name: 'mlp_external.data', path: join(fixtures, 'mlp_external.data'), bytes: 3232 }])
    expect(named).toEqual([{ name: 'mlp_external.data', path: '', bytes: 3232 }])
  })

  it('tells Q/DQ nodes by their type', async () => {
    expect((await readOnnxModel(fixture('qdq_int8'))).quantization).toEqual({ int8: 4, float8: 0, other: 0 })
    expect((await readOnnxModel(fixture('qdq_fp8'))).quantization).toEqual({ int8: 0, float8: 4, other: 0 })
  })

  it('looks into branches and other domains', async () => {
    expect((await readOnnxModel(fixture('branches'))).operators).toEqual({ If: 1, Exp: 1, Neg: 1 })
    const model = await readOnnxModel(fixture('unsupported'))
    expect(model.operators).toEqual({ Relu: 2, 'com.example::Frobnicate': 1 })
    expect(model.opsets).toEqual({ '': 17, 'com.example': 1 })
  })

  it('tells a dimension that no data decides from one that it does', async () => {
    const { inputs, outputs } = await readOnnxModel(fixture('nonzero'))
    expect(inputs[0]).toMatchObject({ shape: [-1, 4], dimensionNames: ['n', ''] })
    expect(outputs[0]).toMatchObject({ dtype: 'int64', shape: [2, -1], dimensionNames: ['', 'found'] })
  })

  it('passes over large weights without reading them', async () => {
    // A gigabyte of zeros that takes no room on the disk: read whole it would not fit in a Buffer's half.
    const bytes = 2 ** 30
    const raw = Buffer.concat([varint(9 * 8 + 2), varint(bytes)])
    const head = Buffer.concat([number(1, bytes / 4), number(2, 1), field(8, 'huge'), raw])
    const tensor = Buffer.concat([varint(5 * 8 + 2), varint(head.length + bytes), head])
    const node = field(1, field(1, 'huge'), field(2, 'y'), field(4, 'Relu'))
    const graph = Buffer.concat([varint(7 * 8 + 2), varint(node.length + tensor.length + bytes)])
    const path = join(folder, 'huge.onnx')
    writeFileSync(path, Buffer.concat([number(1, 9), graph, node, tensor]))
    const header = readFileSync(path).length
    truncateSync(path, header + bytes)
    const before = bytesRead()
    const model = await readOnnxModel(path)
    expect(model).toMatchObject({ initializers: 1, operators: { Relu: 1 }, bytes: header + bytes })
    expect(bytesRead() - before).toBeLessThan(2 ** 24)
  })

  it.each(['truncated', 'no_model'])('refuses what is damaged: %s', async (name) => {
    expect(await failure(readOnnxModel(fixture(name)))).toHaveCode('ERR_ONNX_INVALID', new RegExp(`${name}\\.onnx: .* at byte \\d+$`))
  })

  it('refuses every cut of a model, or reads what is whole', async () => {
    const whole = readFileSync(fixture('mlp_external'))
    for (let length = 0; length < whole.length; length++) {
      const error = await failure(readOnnxModel(whole.subarray(0, length)))
      // The operator set comes last: a model without it is one that says less.
      if ((error as Error).message !== 'it did not fail') expect(error, `${length} bytes`).toHaveCode('ERR_ONNX_INVALID')
    }
  })

  it('answers to any bytes with a model or a typed error', async () => {
    const whole = readFileSync(fixture('branches'))
    for (let at = 0; at < whole.length; at++) {
      for (const flip of [0x01, 0x80, 0xff]) {
        const mutated = Buffer.from(whole)
        mutated[at]! ^= flip
        const error = await failure(readOnnxModel(mutated))
        expect(error instanceof TensorRTError ? error.code : (error as Error).message, `byte ${at}`).toMatch(/^ERR_ONNX_INVALID$|^it did not fail$/)
      }
    }
  })

  it('refuses graphs that are nested without an end', async () => {
    let graph = field(1, field(4, 'Relu'))
    for (let depth = 0; depth < 40; depth++) graph = field(1, field(4, 'If'), field(5, field(6, graph)))
    const model = Buffer.concat([number(1, 9), field(7, graph)])
    expect(await failure(readOnnxModel(model))).toHaveCode('ERR_ONNX_INVALID', /nested more than 32 deep/)
  })

  it('names what is not there', async () => {
    expect(await failure(readOnnxModel(join(folder, 'nowhere.onnx')))).toHaveCode('ERR_MODEL_NOT_FOUND', /nowhere\.onnx/)
    expect(await failure(readOnnxModel(folder))).toHaveCode('ERR_ONNX_INVALID', /no file/)
    expect(await failure(readOnnxModel(fixture('mlp'), AbortSignal.abort('early')))).toMatchObject({ name: 'AbortError', cause: 'early' })
  })
})

describe('requireExternalFiles', () => {
  it('wants the files there, and long enough', async () => {
    const path = join(folder, 'mlp_external.onnx')
    copyFileSync(fixture('mlp_external'), path)
    const model = await readOnnxModel(path)
    expect(await failure(requireExternalFiles(model, 'it'))).toHaveCode('ERR_ONNX_INVALID', /mlp_external\.data, which is not there/)
    copyFileSync(join(fixtures, 'mlp_external.data'), join(folder, 'mlp_external.data'))
    await requireExternalFiles(model, 'it')
    truncateSync(join(folder, 'mlp_external.data'), 100)
    expect(await failure(requireExternalFiles(model, 'it'))).toHaveCode('ERR_ONNX_INVALID', /has 100 bytes, 3232 are needed/)
    const ofBytes = await readOnnxModel(readFileSync(path))
    expect(await failure(requireExternalFiles(ofBytes, 'it'))).toHaveCode('ERR_ONNX_INVALID', /came as bytes/)
  })

  it.each(['../secret', '/etc/passwd', ''])('opens nothing outside of the folder: %j', async (location) => {
    const external = field(13, field(1, 'location'), field(2, location))
    const model = Buffer.concat([number(1, 9), field(7, field(5, field(8, 'w'), external))])
    expect(await failure(readOnnxModel(model))).toHaveCode('ERR_ONNX_INVALID', /no file in its folder/)
  })
})

describe('checkInputProfiles', () => {
  const range = (min: number[], opt = min, max = opt) => ({ min, opt, max })
  const check = async (profiles: InputProfile[], name = 'mlp'): Promise<void> => checkInputProfiles(readInputProfiles(profiles), await readOnnxModel(fixture(name)))

  it('takes any number of profiles, and none for a static model', async () => {
    await check([{ x: range([1, 16], [4, 16], [8, 16]) }, { x: range([8, 16], [64, 16], [64, 16]) }])
    await check([], 'mlp_static')
    await check([{ x: range([8]), shape: { ...range([2, 2], [2, 4], [4, 4]), values: true } }], 'reshape')
  })

  it.each<[string, InputProfile[], RegExp]>([
    ['no profile', [], /no profile says how: "x" float32 \[batch, 16\]/],
    ['another name', [{ X: range([1, 16]) }], /Profile 0 names input "X".*did you mean "x"\?/],
    ['no range', [{ x: range([1, 16]) }, {}], /Profile 1 has no range for "x"/],
    ['another rank', [{ x: range([1]) }], /Profile 0: input "x": min is \[1\], the model has \[-1, 16\]/],
    ['another static dimension', [{ x: range([1, 16], [1, 16], [1, 17]) }], /max is \[1, 17\], the model has \[-1, 16\]/],
    ['more than a tensor can hold', [{ x: range([1, 16], [8, 16], [2 ** 31, 16]) }], /"profiles\[0\]\["x"\].max" must be .* 0 to 2147483647, not \[2147483648, 16\]/],
    ['falling shapes', [{ x: range([2, 16], [1, 16], [4, 16]) }], /min \[2, 16\], opt \[1, 16\] and max \[4, 16\] must not fall/],
    ['values of no shape tensor', [{ x: { ...range([1, 16]), values: true } }], /float32, so it is no shape tensor/],
  ])('refuses %s', async (_, profiles, message) => {
    expect(await failure(check(profiles))).toHaveCode('ERR_INVALID_ARGUMENT', message)
  })
})
