import { execFile } from 'node:child_process'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'

const run = promisify(execFile)
const root = resolve(__dirname, '..', '..')

interface Report {
  requests: number
  finished: number
  aborted: number
  failed: number
  rssGrowthBytes: number
  usedPages: number
  leak: boolean
}

async function soak(requests: number, env: Record<string, string> = {}): Promise<Report> {
  const { stdout } = await run(process.execPath, ['--expose-gc', join(__dirname, 'soak.mjs'), String(requests)], {
    cwd: root,
    env: { ...process.env, ...env },
    maxBuffer: 2 ** 24,
  })
  return JSON.parse(stdout) as Report
}

describe('memory, handles and pages under load', () => {
  it('stay flat over 20,000 requests with aborts', { timeout: 1_200_000 }, async () => {
    const report = await soak(20_000)
    expect(report).toMatchObject({ failed: 0, usedPages: 0, leak: false })
    expect(report.finished + report.aborted).toBe(report.requests)
    expect(report.aborted).toBeGreaterThan(report.requests / 10)
  })

  it('a planted leak is caught by the same check', { timeout: 1_200_000 }, async () => {
    // The same sources, compiled with NT_PLANT_LEAK: each closed slot keeps 2 KiB.
    const build = join(root, 'build', 'cmake')
    await run('cmake', ['--build', build, '--target', 'node-tensorrt-leaky', '--parallel', '2'])
    const report = await soak(20_000, { NODE_TENSORRT_ADDON: join(build, 'leaky', 'node-tensorrt.node') })
    expect(report).toMatchObject({ failed: 0, leak: true })
    expect(report.rssGrowthBytes).toBeGreaterThan(6 * 2 ** 20)
  })
})
