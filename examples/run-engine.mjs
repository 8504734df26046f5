// Any TensorRT engine, by hand: its tensors, one run on zeros, then the same as a CUDA graph with its time on the device.
//   node examples/run-engine.mjs model.plan|engine-folder [runs]
// Needs an NVIDIA GPU and TensorRT.
import { Engine, Tensor, TensorRTError } from 'node-tensorrt'

const [path, runs = '100'] = process.argv.slice(2)
if (path === undefined) {
  console.error('usage: node examples/run-engine.mjs model.plan|engine-folder [runs]')
  process.exit(2)
}

async function main() {
  const engine = await Engine.load(path)
  const { runtime } = engine
  try {
    console.log(`${runtime.info.name}, TensorRT ${runtime.info.libraryVersion}, ${engine.info.layers} layers`)
    for (const { name, mode, dtype, shape } of [...engine.inputs, ...engine.outputs]) console.log(`${mode} ${name}: ${dtype} [${shape}]`)

    const context = await engine.createContext({ profile: 0 })
    const stream = await runtime.createStream()
    // The shapes that the engine is fastest at.
    for (const input of engine.inputs) {
      if (input.isShapeTensor) context.setShapeValues(input.name, [...input.values[0].opt])
      else context.setInputShape(input.name, input.profiles?.[0].opt ?? input.shape)
    }
    const shapes = await context.resolveShapes(stream)

    const pairs = []
    for (const { name, mode, dtype, isShapeTensor } of [...engine.inputs, ...engine.outputs]) {
      if (mode === 'input' && isShapeTensor) continue
      const shape = shapes[name]
      if (shape.includes(-1)) {
        // Its size is known when the run is done.
        context.allocateOutput(name)
        continue
      }
      const [host, device] = await Promise.all([runtime.allocatePinned({ dtype, shape }), runtime.allocateDevice({ dtype, shape })])
      context.setTensor(name, device)
      if (mode === 'input') host.write(Tensor.zeros(dtype, shape))
      pairs.push({ name, mode, dtype, shape, host, device })
    }
    const inputs = pairs.filter(({ mode }) => mode === 'input')
    const outputs = pairs.filter(({ mode }) => mode === 'output')

    const queueRun = () => {
      for (const { host, device } of inputs) stream.copy(device, host)
      stream.enqueue(context)
      for (const { host, device } of outputs) stream.copy(host, device)
    }
    queueRun()
    await stream.synchronize()
    for (const { name, dtype, shape, host } of outputs) {
      console.log(`${name} [${shape}]: ${host.read(dtype, shape).toFloat32().slice(0, 8).join(', ')} ...`)
    }
    for (const { name } of engine.outputs) {
      const { shape, buffer } = context.output(name)
      if (buffer !== null) console.log(`${name} turned out to be [${shape}]`)
      await buffer?.close()
    }

    if (outputs.length === engine.outputs.length) {
      const [start, end] = await Promise.all([runtime.createEvent({ timing: true }), runtime.createEvent({ timing: true })])
      const graph = await stream.capture(queueRun)
      stream.record(start)
      for (let i = 0; i < Number(runs); i++) stream.launch(graph)
      stream.record(end)
      await stream.synchronize()
      console.log(`${runs} launches of the graph: ${(end.elapsedSince(start) / Number(runs)).toFixed(3)} ms each`)
    }
  } finally {
    // Closes all that was made of it, and the runtime with the last engine.
    await engine.close()
  }
}

main().catch((error) => {
  if (!(error instanceof TensorRTError)) throw error
  console.error(`${error.code}: ${error.message}`)
  process.exitCode = 1
})
