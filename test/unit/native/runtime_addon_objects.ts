/** Objects of the native runtime, on the fake GPU. */
import { join } from 'node:path'
import {
  loadAddon,
  type NativeContext,
  type NativeEngine,
  type NativeEvent,
  type NativeGraph,
  type NativeMemory,
  type NativeRuntime,
  type NativeStream,
} from '../../../lib/native'
import { fakeGpu, type FakeGpuChild, type FakeGpuReport, makePlan, runOnFakeGpu, scalePlan } from '../../support/fake_gpu'

export const { addon, path: addonPath } = loadAddon()

/** A value that is no object of the addon's: a closed object must not come to look at its arguments. */
export const LATE = null

export interface Objects {
  runtime: NativeRuntime
  engine: NativeEngine
  context: NativeContext
  stream: NativeStream
  event: NativeEvent
  graph: NativeGraph
  device: NativeMemory
  pinned: NativeMemory
}

/** y = 2 x + 1 of float32 [-1, 4], and two lines of log. */
const plan = makePlan({ ...scalePlan(), log: [{ severity: 'info', text: 'one' }, { severity: 'warning', text: 'two' }] })

export const planBuffer = (): ArrayBuffer => new Uint8Array(plan).buffer

export const createRuntime = (): Promise<NativeRuntime> => addon.createRuntime({ ...fakeGpu.native, device: 0 })

export async function newObjects(runtime: NativeRuntime): Promise<Objects> {
  const engine = await runtime.deserialize(planBuffer(), false)
  const context = await engine.createContext({ profile: 0, memory: 'static' })
  const stream = await runtime.createStream({ priority: 0, spinUs: 0 })
  const event = await runtime.createEvent(true)
  const device = await runtime.allocate('device', 4096, false)
  const pinned = await runtime.allocate('pinned', 4096, false)
  stream.beginCapture()
  stream.fill(device, 0, 4, 0)
  const graph = await stream.endCapture()
  return { runtime, engine, context, stream, event, graph, device, pinned }
}

/** Runs a part of runtime_addon_child.cjs in a process of its own. */
export async function runChild(name: string): Promise<{ end: Omit<FakeGpuChild, 'report'>; report: FakeGpuReport | null }> {
  const { modulePath, libraryPath } = fakeGpu.native
  const args = [name, addonPath, modulePath, libraryPath, Buffer.from(plan).toString('base64')]
  const { report, ...end } = await runOnFakeGpu(join(__dirname, 'runtime_addon_child.cjs'), args)
  return { end, report }
}
