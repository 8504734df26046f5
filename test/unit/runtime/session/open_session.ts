/** Sessions over the double of a GPU. */
import { expect } from 'vitest'
import { Tensor } from '../../../../lib/runtime'
import { checkSessionOptions, type SessionOptions, type TensorMap } from '../../../../lib/runtime/session/options'
import type { BackendSource } from '../../../../lib/runtime/session/failover'
import { Session } from '../../../../lib/runtime/session/session'
import { TensorRTBackend } from '../../../../lib/runtime/session/tensorrt_session'
import { affineModel, GpuDouble, type ModelDouble, range } from './gpu_double'

const opened: { gpu: GpuDouble; session: Session }[] = []

export async function open(model: ModelDouble | GpuDouble, options: SessionOptions = {}, fallback?: BackendSource): Promise<{ gpu: GpuDouble; session: Session }> {
  const gpu = model instanceof GpuDouble ? model : new GpuDouble(model)
  const checked = checkSessionOptions(options, 'createSession()')
  const session = await Session.open(await TensorRTBackend.create(gpu.engine(), checked), checked, fallback)
  opened.push({ gpu, session })
  return { gpu, session }
}

/** Ends all sessions, and looks whether they behaved and gave everything back. */
export async function closeAll(): Promise<void> {
  for (const { gpu, session } of opened.splice(0)) {
    gpu.resume()
    await session.close()
    expect(gpu.violations).toEqual([])
    for (const kind of ['stream', 'context', 'graph', 'device', 'pinned']) expect(gpu.leaks).not.toHaveProperty(kind)
  }
}

/** One profile of 1 to 8 rows. */
export const dynamic = affineModel([range([1, 4], [4, 4], [8, 4])])

export function row(...values: number[]): TensorMap {
  return { x: Tensor.float32(values, [values.length / 4, 4]) }
}

export function numbers(tensor: Tensor | undefined): number[] {
  return Array.from(tensor!.data as Float32Array)
}

export async function codeOf(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: { code?: unknown }) => error.code,
  )
}
