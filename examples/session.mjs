// A session over a model: requests of many callers share batches. Needs an engine folder for a GPU, or an ONNX file for the CPU:
//   node examples/session.mjs engine-folder [model.onnx]
//   node examples/session.mjs model.onnx            (npm install onnxruntime-node)
import { Session, Tensor } from 'node-tensorrt'

const [source, onnx] = process.argv.slice(2)
if (source === undefined) {
  console.error('usage: node examples/session.mjs engine-folder|model.onnx [model.onnx]')
  process.exit(1)
}

const session = await Session.load(source, {
  backend: source.endsWith('.onnx') ? 'onnxruntime' : 'auto',
  onnx,
  batching: { maxBatch: 16, maxDelayMs: 2 },
  onWarning: ({ message }) => console.error(message),
})
console.log(`${session.info.backend} on ${session.info.device}`)

// Requests of one row each, of zeros: whatever is dynamic beside the batch is 1.
const request = () =>
  Object.fromEntries(session.info.inputs.map(({ name, dtype, shape }) => [name, Tensor.zeros(dtype, shape.map((size) => (size < 0 ? 1 : size)))]))

const outputs = await Promise.all(Array.from({ length: 100 }, () => session.run(request(), { timeoutMs: 10_000 })))
for (const [name, tensor] of Object.entries(outputs[0])) console.log(`${name}: ${tensor.dtype} [${tensor.shape.join(', ')}]`)

const { completed, batches, queueTime, runTime } = session.stats()
console.log(`${completed} requests in ${batches} batches; queued ${queueTime.p50.toFixed(2)} ms, ran ${runTime.p50.toFixed(2)} ms (medians)`)

await session.close()
