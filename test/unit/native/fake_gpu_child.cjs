// On a device that dies: see fake_gpu.test.ts.
//   node fake_gpu_child.cjs <plan in base64>
const { Engine, Runtime, Tensor } = require('../../..')

const plan = new Uint8Array(Buffer.from(process.argv[2], 'base64'))

async function main() {
  const runtime = await Runtime.create()
  const engine = await Engine.load(plan, { runtime })
  const context = await engine.createContext()
  const stream = await runtime.createStream()
  const pinned = await runtime.allocatePinned({ dtype: 'float32', shape: [1, 4] })
  const device = await runtime.allocateDevice({ dtype: 'float32', shape: [1, 4] })
  const output = await runtime.allocateDevice({ dtype: 'float32', shape: [1, 4] })
  context.setInputShape('x', [1, 4])
  context.setTensor('x', device)
  context.setTensor('y', output)
  const run = async (value) => {
    pinned.write(Tensor.float32([value, value, value, value], [1, 4]))
    stream.copy(device, pinned)
    stream.enqueue(context)
    stream.copy(pinned, output)
    await stream.synchronize()
    return [...pinned.view('float32')]
  }
  const result = { before: await run(3) }
  result.code = await run(30).then(String, (error) => error.code)
  result.after = await runtime.allocateDevice(16).then(String, (error) => error.code)
  for (const object of [stream, output, device, pinned, context, engine, runtime]) await object.close()
  process.stdout.write(JSON.stringify(result))
}

main()
