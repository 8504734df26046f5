import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { loadAddon } from '../../../lib/native'
import { demoOptions, greedySlot, packStep } from './demo_backend'

describe('backends that nobody closes', () => {
  it('end once they are collected, and the process waits for them', async () => {
    const { graph, ...options } = demoOptions()
    const slot = greedySlot(0, [1, 5, 9])
    const init = { ...slot, prompt: [...slot.prompt], output: [] }
    const args = [
      join(__dirname, 'collected_backend_child.cjs'),
      loadAddon().path,
      JSON.stringify({ ...options, graph: JSON.stringify(graph) }),
      JSON.stringify([...packStep(0, 0, 0, [1, 5, 9], [0])]),
      JSON.stringify(init),
    ]
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args, { timeout: 120_000 })
    expect({ stdout, stderr }).toEqual({ stdout: 'collected 8\n', stderr: '' })
  }, 180_000)
})
