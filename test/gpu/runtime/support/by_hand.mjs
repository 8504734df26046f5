/** One run by the low-level API: context, stream, buffers. */
import { lib } from './target.mjs'

/** @returns outputs by name, as tensors of the host */
export async function runByHand(engine, inputs, { profile } = {}) {
  const { runtime } = engine
  const chosen = profile ?? engine.profiles.findIndex((range) => Object.entries(inputs).every(([name, { shape }]) => fits(range, name, shape)))
  const open = []
  const keep = (object) => {
    open.push(object)
    return object
  }
  try {
    const stream = keep(await runtime.createStream())
    const context = keep(await engine.createContext({ profile: Math.max(chosen, 0) }))
    for (const [name, tensor] of Object.entries(inputs)) {
      const { dtype, shape } = tensor
      context.setInputShape(name, shape)
      const pinned = keep(await runtime.allocatePinned({ dtype, shape }))
      const device = keep(await runtime.allocateDevice({ dtype, shape }))
      pinned.write(tensor)
      stream.copy(device, pinned)
      context.setTensor(name, device)
    }
    const shapes = await context.resolveShapes(stream)
    const places = new Map()
    for (const { name, dtype } of engine.outputs) {
      const shape = shapes[name]
      if (shape.some((size) => size < 0)) {
        context.allocateOutput(name)
        continue
      }
      const device = keep(await runtime.allocateDevice({ dtype, shape }))
      places.set(name, device)
      context.setTensor(name, device)
    }
    stream.enqueue(context)
    await stream.synchronize()
    const outputs = {}
    for (const { name, dtype } of engine.outputs) {
      const { shape, buffer } = context.output(name)
      if (buffer !== null) keep(buffer)
      const elements = shape.reduce((product, size) => product * size, 1)
      if (elements === 0) {
        outputs[name] = lib.Tensor.zeros(dtype, shape)
        continue
      }
      const pinned = keep(await runtime.allocatePinned({ dtype, shape }))
      stream.copy(pinned, buffer ?? places.get(name), { bytes: pinned.bytes })
      await stream.synchronize()
      outputs[name] = pinned.read(dtype, shape)
    }
    return outputs
  } finally {
    await Promise.all(open.map((object) => object.close()))
  }
}

function fits(profile, name, shape) {
  const range = profile.inputs[name]
  return range !== undefined && shape.every((size, axis) => size >= range.min[axis] && size <= range.max[axis])
}
