/** bench/gpu/http.mjs on the CPU backend: the library and a real server under real loads, and what becomes of both when it is ended. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { ServeLoadReport } from '../../lib/cli/bench_serve_load'
import { execute, root, start } from './programs'

const MODEL = join(root, 'models', 'tiny-storyteller')
const bench = (out: string, args: readonly string[]): string[] => [
  join(root, 'bench', 'gpu', 'http.mjs'), '--backend', 'cpu', '--scale', '0.05', '--max-sequences', '64', '--warmup', '4', '--out', out, ...args, MODEL,
]

interface Side {
  command?: string
  error?: string
  loads: Record<string, Omit<ServeLoadReport, 'samples'> & { processor: { seconds: number; usPerOutputToken: number } }>
}
interface Report {
  settings: object
  loads: Record<string, string>
  sides: Record<string, Side>
}
const read = (file: string): Report => JSON.parse(readFileSync(file, 'utf8')) as Report

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-http-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

// Processor times are read from /proc.
describe.skipIf(process.platform !== 'linux')('bench/gpu/http.mjs', () => {
  it('gives library and server the same requests, measures both, and makes a report', async () => {
    const out = join(folder, 'both.json')
    const args = ['--sides', 'library,server', '--loads', '64x128-128,sharegpt,64xmixed', '--rates', '8', '--seconds', '1.5']
    const { code, stdout, stderr } = await execute(bench(out, args))
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/server 64x128-128 .* tokens\/s/)
    const { loads, sides } = read(out)
    expect(Object.keys(loads)).toEqual(['64x128-128', 'sharegpt-8', '64xmixed'])
    for (const side of ['library', 'server']) {
      const measured = sides[side]!.loads
      for (const load of Object.values(measured)) {
        expect(load).toMatchObject({ failed: 0, aborted: 0, errors: {}, otherLengths: 0, countedByChunks: 0, cachedTokens: 0, interrupted: false })
        expect(load.ttftMs.p50).toBeGreaterThan(0)
        expect(load.itlMs.mean).toBeGreaterThan(0)
        expect(load.processor.seconds).toBeGreaterThan(0)
      }
      const closed = measured['64x128-128']!
      expect(closed).toMatchObject({ concurrency: 64, client: { maxActive: 64 } })
      expect(closed.outputTokens).toBe(closed.completed * 6)
      expect(closed.promptTokens).toBe(closed.completed * 6)
      // 3 to 10 in and out, each as often.
      const mixed = measured['64xmixed']!
      expect(mixed).toMatchObject({ concurrency: 64, client: { maxActive: 64 } })
      for (const tokens of [mixed.promptTokens, mixed.outputTokens]) {
        expect(tokens).toBeGreaterThan(mixed.completed * 5)
        expect(tokens).toBeLessThan(mixed.completed * 8)
      }
    }
    // Arrivals and lengths come of a seed, so both were asked for the same.
    const asked = (side: string) => {
      const { requests, completed, promptTokens, outputTokens, rate } = sides[side]!.loads['sharegpt-8']!
      return { requests, completed, promptTokens, outputTokens, rate }
    }
    expect(asked('library')).toEqual(asked('server'))
    expect(asked('server').completed).toBeGreaterThan(0)
    // Nothing of this machine's folders.
    expect(`${sides['library']!.command}${sides['server']!.command}`).not.toContain(root)

    const report = [join(root, 'bench', 'gpu', 'http_report.mjs'), 'tiny', out, '--title', 'Tiny', '--out', folder]
    expect(await execute(report)).toMatchObject({ code: 0, stderr: '' })
    const text = readFileSync(join(folder, 'serving-http.md'), 'utf8')
    expect(text).toContain('## Tiny')
    expect(text.match(/\| node-tensorrt serve \|/g)).toHaveLength(3)
    const share = (100 * sides['server']!.loads['64x128-128']!.outputTokensPerSecond) / sides['library']!.loads['64x128-128']!.outputTokensPerSecond
    expect(text).toContain(`| 64 streams, 6 in, 6 out | ${share.toFixed(1)}% |`)
    for (const what of ['64 streams, 6 in, 6 out', '64 streams, 3 to 10 in, 3 to 10 out']) expect(readFileSync(join(folder, 'http-tiny.svg'), 'utf8')).toContain(what)

    // A side that ran some of the loads, beside one that ran others.
    const [library, server] = [['64x128-128', '64xmixed'], ['64xmixed']].map((kept, i) => {
      const { loads, ...side } = sides[['library', 'server'][i]!]!
      return { ...side, loads: Object.fromEntries(kept.map((load) => [load, loads[load]])) }
    })
    const some = join(folder, 'some.json')
    writeFileSync(some, JSON.stringify({ ...read(out), sides: { library, server } }))
    expect(await execute([report[0]!, 'tiny', some, '--out', folder])).toMatchObject({ code: 0, stderr: '' })
    const partial = readFileSync(join(folder, 'serving-http.md'), 'utf8')
    expect(partial.match(/\| node-tensorrt serve \|/g)).toHaveLength(1)
    expect(partial.match(/\| 64 streams, 3 to 10 in, 3 to 10 out \|/g)).toHaveLength(2)

    const other = join(folder, 'other.json')
    writeFileSync(other, JSON.stringify({ ...read(out), settings: { ...read(out).settings, seconds: 2 } }))
    const refused = await execute([report[0]!, 'tiny', out, other, '--out', folder])
    expect(refused.code).toBe(1)
    expect(refused.stderr).toContain('runs that cannot be compared')
  })

  it('ends what it started when it is ended, and keeps what was measured', async () => {
    const out = join(folder, 'ended.json')
    const program = start(bench(out, ['--sides', 'server', '--loads', '64x128-128,sharegpt', '--rates', '4,5,6,7,8,9', '--seconds', '2']))
    await program.shows('stdout', /server 64x128-128 /)
    const [, url] = /listening at (\S+),/.exec(readFileSync(`${out}.server.log`, 'utf8'))!
    expect((await fetch(`${url}/health/live`)).status).toBe(200)
    program.child.kill('SIGTERM')
    expect(await program.ended).toMatchObject({ code: 1, stderr: 'server: ended by SIGTERM\n' })
    await expect(fetch(`${url}/health/live`)).rejects.toThrow('fetch failed')
    const { server } = read(out).sides
    expect(server!.error).toBe('ended by SIGTERM')
    // What has ended by then: a machine that is busy may hear of it a load or two later.
    expect(Object.keys(server!.loads)[0]).toBe('64x128-128')
    expect(Object.keys(server!.loads)).not.toContain('sharegpt-9')
  })

  it('goes on with the other sides where one does not start', async () => {
    const out = join(folder, 'missing.json')
    // An interpreter that knows no -m.
    const args = ['--sides', 'vllm,library', '--python', process.execPath, '--loads', '64x128-128', '--seconds', '0.2']
    const { code, stderr } = await execute(bench(out, args))
    expect(code).toBe(1)
    expect(stderr).toContain('vllm.entrypoints.cli.main serve')
    const { vllm, library } = read(out).sides
    expect(vllm!.error).toContain('ended with 9')
    expect(library!.loads['64x128-128']!.completed).toBeGreaterThan(0)
  })
})
